// A model file that the system cannot open, read or map: each of the library's calls fails in turn, and is told; nothing is
// left open, and the next attempt succeeds.
//
// The functions of this program stand before those of the C library for everything that is loaded with it.
// usage: io MODEL
#define _GNU_SOURCE
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

// What a read can do besides failing.
enum { SHORT = -1, END = -2 };

static const char *model_path;
static int model_fd = -1;
// Calls on the model file that are left until one of them fails; then what happens: an errno, SHORT or END.
static size_t n_left = SIZE_MAX;
static int fault;
static bool has_failed;

static bool fails(bool is_read)
{
    if (fault < 0 && !is_read)
        return false;
    const bool now = n_left == 0;
    n_left -= n_left != SIZE_MAX;
    has_failed = has_failed || now;
    if (now && fault > 0)
        errno = fault;
    return now;
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;
    va_start(arguments, flags);
    const int mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
    va_end(arguments);
    const bool is_model = strcmp(path, model_path) == 0;
    if (is_model && fails(false))
        return -1;
    const int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (is_model)
        model_fd = fd;
    return fd;
}

int statx(int fd, const char *path, int flags, unsigned mask, struct statx *out)
{
    if (fd == model_fd && fails(false))
        return -1;
    return (int)syscall(SYS_statx, fd, path, flags, mask, out);
}

ssize_t read(int fd, void *bytes, size_t n)
{
    if (fd == model_fd && fails(true)) {
        if (fault == END)
            return 0;
        if (fault != SHORT)
            return -1;
        n = n / 3 + 1;
    }
    return syscall(SYS_read, fd, bytes, n);
}

void *mmap64(void *at, size_t n, int protection, int flags, int fd, off64_t offset)
{
    if (fd >= 0 && fd == model_fd && fails(false))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, at, n, protection, flags, fd, offset);
}

// The lowest number that a file can get.
static int next_fd(void)
{
    const int fd = dup(0);
    close(fd);
    return fd;
}

static void decode(lg_model *model, uint32_t token, float *first_logit)
{
    lg_error error = {.struct_size = sizeof error};
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = 8};
    lg_session *session = NULL;
    const float *logits;
    size_t n;
    CALL(lg_session_new, (model, &params, &session, &error));
    CALL(lg_session_decode, (session, token, NULL, &error));
    CALL(lg_session_logits, (session, &logits, &n, &error));
    *first_logit = logits[0];
    lg_session_free(session);
}

// Opens the model with one call after the other failing like this; returns how many there are.
static size_t open_with_faults(uint32_t load, int kind, lg_status expected)
{
    lg_error error = {.struct_size = sizeof error};
    const lg_model_params params = {.struct_size = sizeof params, .load = load, .n_threads = 1};
    const int fd = next_fd();
    fault = kind;
    for (size_t n = 0;; n++) {
        lg_model *model = NULL;
        has_failed = false;
        n_left = n;
        const lg_status status = lg_model_open(model_path, &params, &model, &error);
        n_left = SIZE_MAX;
        CHECK(next_fd() == fd);
        if (!has_failed || expected == LG_OK) {
            CHECK(status == LG_OK && model);
            float has, again;
            decode(model, 65, &has);
            decode(model, 65, &again);
            CHECK(has == again);
            lg_model_free(model);
        } else {
            CHECK(status == expected && !model && error.code == status);
            CHECK(strstr(error.message, model_path) && strcmp(error.where, "lg_model_open") == 0);
        }
        if (!has_failed)
            return n;
    }
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    model_path = argv[1];
    const uint32_t loads[2] = {LG_LOAD_MAP, LG_LOAD_READ};
    for (int i = 0; i < 2; i++) {
        // Open, look, map or read.
        CHECK(open_with_faults(loads[i], EIO, LG_ERR_IO) >= 3);
        CHECK(open_with_faults(loads[i], ENOMEM, LG_ERR_OUT_OF_MEMORY) >= 3);
        CHECK(open_with_faults(loads[i], EACCES, LG_ERR_IO) >= 3);
    }
    // A read that was interrupted or brought less is no failure; an end before the file's is.
    CHECK(open_with_faults(LG_LOAD_READ, SHORT, LG_OK) >= 1);
    CHECK(open_with_faults(LG_LOAD_READ, END, LG_ERR_IO) >= 1);
    return 0;
}
