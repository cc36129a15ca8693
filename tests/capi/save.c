// A session that was saved goes on from its file as it would have; what is no such file is refused.
// usage: save MODEL FOLDER
#include "check.h"

enum { N_CTX = 300, N_TOKENS = 200 };

static lg_error error = {.struct_size = sizeof error};

typedef struct {
    size_t n_calls, n_done, n_total, stop_behind;
} Watch;

static bool on_progress(void *user, size_t n_done, size_t n_total)
{
    Watch *watch = user;
    watch->n_calls++;
    CHECK(n_done >= watch->n_done && n_done <= n_total);
    watch->n_done = n_done;
    watch->n_total = n_total;
    return n_done < watch->stop_behind;
}

static size_t size_of(const char *path)
{
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    const long size = ftell(file);
    fclose(file);
    return (size_t)size;
}

static void check_same_logits(const lg_session *a, const lg_session *b)
{
    const float *x, *y;
    size_t n, m;
    CALL(lg_session_logits, (a, &x, &n, &error));
    CALL(lg_session_logits, (b, &y, &m, &error));
    CHECK(n == m && memcmp(x, y, n * sizeof *x) == 0);
}

static void goes_on(const lg_model *model, const char *path, lg_session *session)
{
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = N_CTX + 50, .chunk_tokens = 64};
    uint32_t tokens[N_TOKENS], held[N_TOKENS];
    lg_session *loaded = NULL;
    Watch watch = {.stop_behind = SIZE_MAX};
    size_t n;
    CALL(lg_session_tokens, (session, tokens, N_TOKENS, &n, &error));
    CALL(lg_session_save, (session, path, on_progress, &watch, NULL, &error));
    CHECK(watch.n_calls > 1 && watch.n_done == watch.n_total && watch.n_total == size_of(path));
    watch = (Watch){.stop_behind = SIZE_MAX};
    CALL(lg_session_load, (model, path, &params, on_progress, &watch, NULL, &loaded, &error));
    CHECK(watch.n_calls > 1 && watch.n_done == watch.n_total && watch.n_total == size_of(path));
    CHECK(lg_session_n_ctx(loaded) == N_CTX + 50 && lg_session_n_tokens(loaded) == n);
    CALL(lg_session_tokens, (loaded, held, N_TOKENS, &n, &error));
    CHECK(memcmp(tokens, held, n * sizeof *held) == 0);
    const float *logits;
    size_t n_logits;
    REFUSED(LG_ERR_INVALID, lg_session_logits, (loaded, &logits, &n_logits, &error));
    // Its last token alone is computed again, for its logits.
    lg_prompt_result did = {.struct_size = sizeof did};
    CALL(lg_session_prompt, (loaded, tokens, n, NULL, NULL, NULL, &did, &error));
    CHECK(did.n_reused == n - 1 && did.n_computed == 1);
    check_same_logits(session, loaded);
    for (uint32_t token = 7; token < 60; token++) {
        CALL(lg_session_decode, (session, token, NULL, &error));
        CALL(lg_session_decode, (loaded, token, NULL, &error));
    }
    check_same_logits(session, loaded);
    lg_session_free(loaded);
}

static void what_stops_a_save_leaves_the_file(const lg_model *model, const char *path, const lg_session *session)
{
    const size_t size = size_of(path);
    lg_session *loaded = NULL;
    lg_cancel *cancel = NULL;
    Watch watch = {.stop_behind = 1};
    REFUSED(LG_ERR_CANCELLED, lg_session_save, (session, path, on_progress, &watch, NULL, &error));
    CALL(lg_cancel_new, (&cancel, &error));
    lg_cancel_set(cancel);
    REFUSED(LG_ERR_CANCELLED, lg_session_save, (session, path, NULL, NULL, cancel, &error));
    REFUSED(LG_ERR_CANCELLED, lg_session_load, (model, path, NULL, NULL, NULL, cancel, &loaded, &error));
    watch = (Watch){.stop_behind = 1};
    REFUSED(LG_ERR_CANCELLED, lg_session_load, (model, path, NULL, on_progress, &watch, NULL, &loaded, &error));
    CHECK(size_of(path) == size && loaded == NULL);
    lg_cancel_free(cancel);
}

static void what_is_no_session_of_this_kind_is_refused(const lg_model *model, const char *path, const char *model_path)
{
    const lg_session_params short_context = {.struct_size = sizeof short_context, .n_ctx = 20},
                            other_type = {.struct_size = sizeof other_type, .kv_type = LG_KV_TYPE_Q8},
                            unknown = {.struct_size = sizeof unknown, .kv_type = 99};
    lg_session *loaded = NULL;
    REFUSED(LG_ERR_CONTEXT_FULL, lg_session_load, (model, path, &short_context, NULL, NULL, NULL, &loaded, &error));
    REFUSED(LG_ERR_INVALID, lg_session_load, (model, path, &other_type, NULL, NULL, NULL, &loaded, &error));
    REFUSED(LG_ERR_UNSUPPORTED, lg_session_load, (model, path, &unknown, NULL, NULL, NULL, &loaded, &error));
    REFUSED(LG_ERR_FORMAT, lg_session_load, (model, model_path, NULL, NULL, NULL, NULL, &loaded, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_session_load, (model, "/no/such/session", NULL, NULL, NULL, NULL, &loaded, &error));
    FILE *file = fopen(path, "r+b");
    CHECK(file != NULL && fseek(file, -1000, SEEK_END) == 0);
    const int byte = fgetc(file);
    CHECK(byte != EOF && fseek(file, -1000, SEEK_END) == 0 && fputc(byte ^ 1, file) != EOF && fclose(file) == 0);
    REFUSED(LG_ERR_FORMAT, lg_session_load, (model, path, NULL, NULL, NULL, NULL, &loaded, &error));
    CHECK(loaded == NULL);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    const lg_model_params params = {.struct_size = sizeof params, .n_threads = 2};
    const lg_session_params session_params = {.struct_size = sizeof session_params, .n_ctx = N_CTX};
    lg_model *model = NULL;
    lg_session *session = NULL;
    char path[4096];
    uint32_t tokens[N_TOKENS];
    CHECK(snprintf(path, sizeof path, "%s/a session", argv[2]) < (int)sizeof path);
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    CALL(lg_session_new, (model, &session_params, &session, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_session_save, (session, "/no/such/folder/session", NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_IO, lg_session_save, (session, argv[2], NULL, NULL, NULL, &error));
    for (uint32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = i * 7919 % lg_model_n_vocab(model);
    CALL(lg_session_prefill, (session, tokens, N_TOKENS, NULL, NULL, NULL, &error));
    goes_on(model, path, session);
    what_stops_a_save_leaves_the_file(model, path, session);
    what_is_no_session_of_this_kind_is_refused(model, path, argv[1]);
    lg_session_free(session);
    lg_model_free(model);
    return 0;
}
