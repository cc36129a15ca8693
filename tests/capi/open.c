// What happens while a model is opened: progress, cancel, log; and what is left of one that is opened for its text alone.
// Prints the log.
// usage: open MODEL TEXT_ALONE; both files are emptied in the end
#define _POSIX_C_SOURCE 200809L
#include "stop.h"

#include <unistd.h>

static lg_error error = {.struct_size = sizeof error};

typedef struct {
    pthread_t thread;
    // What stops the call; NULL for the callback itself.
    lg_cancel *cancel;
    // Progress: calls so far, the call that stops, and what was told last.
    size_t n_calls, stop_at, n_done, n_total;
    size_t n_messages;
} Watch;

static bool on_progress(void *user, size_t n_done, size_t n_total)
{
    Watch *watch = user;
    CHECK(pthread_equal(watch->thread, pthread_self()));
    CHECK(n_done > watch->n_done && n_done <= n_total);
    CHECK(watch->n_total == 0 || watch->n_total == n_total);
    watch->n_done = n_done;
    watch->n_total = n_total;
    watch->n_calls++;
    if (watch->n_calls != watch->stop_at)
        return true;
    lg_cancel_set(watch->cancel);
    return watch->cancel != NULL;
}

static void on_log(void *user, uint32_t level, const char *message)
{
    Watch *watch = user;
    CHECK(pthread_equal(watch->thread, pthread_self()));
    CHECK(level == LG_LOG_INFO || level == LG_LOG_WARNING);
    CHECK(message[0] != '\0' && strchr(message, '\n') == NULL);
    watch->n_messages++;
    // How long it took is another number each time.
    if (strncmp(message, "opened in ", 10) == 0)
        message = "opened";
    printf("%s%s\n", level == LG_LOG_WARNING ? "warning: " : "", message);
}

static size_t size_of(const char *path)
{
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0);
    const long size = ftell(file);
    fclose(file);
    CHECK(size > 0);
    return (size_t)size;
}

// A call that was told to stop is stopped by this very report.
static void stops(const char *path, const lg_model_params *params, Watch *watch)
{
    lg_model *model = NULL;
    REFUSED(LG_ERR_CANCELLED, lg_model_open, (path, params, &model, &error));
    CHECK(watch->n_calls == watch->stop_at && model == NULL);
}

// Every way to open a file: each reports all the bytes that it goes through, and can be stopped by any report; a cancel
// object comes too late in the last.
static void progress_is_told_and_stops_the_call(const char *path, bool has_tensors)
{
    for (uint32_t i = 0; i < 8; i++) {
        Watch watch = {.thread = pthread_self()};
        lg_model_params params = {.struct_size = sizeof params,
                                  .load = i & 1 ? LG_LOAD_READ : LG_LOAD_MAP,
                                  .n_threads = 1,
                                  .verify = i >> 1 & 1,
                                  .vocab_only = i >> 2 & 1,
                                  .on_progress = on_progress,
                                  .user = &watch};
        if (!has_tensors && !params.vocab_only)
            continue;
        // Of a text alone only the header is copied, unless the rest is verified.
        const bool copies_all = params.load == LG_LOAD_READ && (params.verify || !params.vocab_only);
        const size_t n_passes = copies_all + params.verify + !params.vocab_only;
        lg_model *model = NULL;
        CALL(lg_model_open, (path, &params, &model, &error));
        CHECK(watch.n_total == n_passes * size_of(path) && watch.n_done == watch.n_total);
        lg_model_free(model);

        const size_t n_calls = watch.n_calls;
        CHECK((n_calls > 0) == (n_passes > 0));
        lg_cancel *cancel = NULL;
        CALL(lg_cancel_new, (&cancel, &error));
        for (size_t stop_at = 0; stop_at < n_calls; stop_at += 1 + n_calls / 6) {
            watch = (Watch){.thread = watch.thread, .cancel = cancel, .stop_at = stop_at};
            params.cancel = cancel;
            if (stop_at == 0)
                lg_cancel_set(cancel);
            stops(path, &params, &watch);
            lg_cancel_reset(cancel);
            watch = (Watch){.thread = watch.thread, .stop_at = n_calls - stop_at};
            params.cancel = NULL;
            stops(path, &params, &watch);
        }
        lg_cancel_free(cancel);
    }
}

// The first tensor is there.
static bool until_stopped(void *user, size_t n_done, size_t n_total)
{
    Stop *state = user;
    CHECK(!state->has_started && n_done < n_total);
    wait_until_set(state);
    return true;
}

static void another_thread_stops_the_call(const char *path)
{
    Stop state = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    CALL(lg_cancel_new, (&state.cancel, &error));
    const lg_model_params params = {.struct_size = sizeof params,
                                    .on_progress = until_stopped,
                                    .user = &state,
                                    .cancel = state.cancel};
    lg_model *model = NULL;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, stop, &state) == 0);
    REFUSED(LG_ERR_CANCELLED, lg_model_open, (path, &params, &model, &error));
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(model == NULL);
    lg_cancel_free(state.cancel);
}

static void what_is_found_is_logged(const char *path, const char *text_alone)
{
    Watch watch = {.thread = pthread_self()};
    lg_model_params params = {.struct_size = sizeof params,
                              .device = LG_DEVICE_CPU,
                              .n_threads = 1,
                              .on_log = on_log,
                              .user = &watch};
    lg_model *model = NULL;
    CALL(lg_model_open, (path, &params, &model, &error));
    CHECK(watch.n_messages == 3);

    // What is computed with the model is no news.
    lg_session *session = NULL;
    CALL(lg_session_new, (model, NULL, &session, &error));
    CALL(lg_session_decode, (session, 1, NULL, &error));
    lg_session_free(session);
    lg_model_free(model);
    CHECK(watch.n_messages == 3);

    params.vocab_only = 1;
    CALL(lg_model_open, (text_alone, &params, &model, &error));
    CHECK(watch.n_messages == 5);
    lg_model_free(model);

    model = NULL;
    CHECK(lg_model_open("/no/such/file", &params, &model, &error) == LG_ERR_NOT_FOUND && model == NULL);
    CHECK(watch.n_messages == 5);
}

static void without_a_device_of_choice_there_is_a_reason(const char *path)
{
    Watch watch = {.thread = pthread_self()};
    const lg_model_params params = {.struct_size = sizeof params, .n_threads = 1, .on_log = on_log, .user = &watch};
    lg_model *model = NULL;
    CALL(lg_model_open, (path, &params, &model, &error));
    lg_model_free(model);
}

static void texts_are_the_same(const lg_model *a, const lg_model *b)
{
    const char text[] = "A d\xc3\xb6g, <|bos|>\n<|eos|>\t 12345";
    for (uint32_t flags = 0; flags < 4; flags++) {
        uint32_t tokens[2][64];
        size_t n[2];
        CALL(lg_model_tokenize, (a, text, sizeof text - 1, flags, tokens[0], 64, &n[0], &error));
        CALL(lg_model_tokenize, (b, text, sizeof text - 1, flags, tokens[1], 64, &n[1], &error));
        CHECK(n[0] == n[1] && n[0] > 0 && memcmp(tokens[0], tokens[1], n[0] * sizeof *tokens[0]) == 0);
    }
    CHECK(lg_model_n_vocab(a) == lg_model_n_vocab(b));
    for (uint32_t token = 0; token < lg_model_n_vocab(a); token++) {
        uint8_t bytes[2][64];
        size_t n[2];
        CALL(lg_model_token_bytes, (a, token, bytes[0], 64, &n[0], &error));
        CALL(lg_model_token_bytes, (b, token, bytes[1], 64, &n[1], &error));
        CHECK(n[0] == n[1] && memcmp(bytes[0], bytes[1], n[0]) == 0);
        CHECK(lg_model_is_special(a, token) == lg_model_is_special(b, token));
        CHECK(lg_model_is_end_of_generation(a, token) == lg_model_is_end_of_generation(b, token));
    }
    for (uint32_t which = LG_SPECIAL_BOS; which <= LG_SPECIAL_FIM_SEPARATOR; which++)
        CHECK(lg_model_special_token(a, which) == lg_model_special_token(b, which));
}

// The model's file can be emptied: everything is in memory.
static void a_copied_file_is_not_needed_any_more(const char *path, const char *text_alone)
{
    const lg_model_params params = {.struct_size = sizeof params, .load = LG_LOAD_READ, .n_threads = 1};
    const lg_model_params of_text = {.struct_size = sizeof of_text, .load = LG_LOAD_READ, .vocab_only = 1};
    lg_model *model = NULL, *text = NULL, *other = NULL;
    CALL(lg_model_open, (path, &params, &model, &error));
    CALL(lg_model_open, (path, &of_text, &text, &error));
    CALL(lg_model_open, (text_alone, &of_text, &other, &error));
    CHECK(truncate(path, 0) == 0 && truncate(text_alone, 0) == 0);

    texts_are_the_same(model, text);
    texts_are_the_same(model, other);
    CHECK(strcmp(lg_model_architecture(text), "longgen") == 0 && strcmp(lg_model_architecture(other), "unheard-of") == 0);
    CHECK(lg_model_n_params(text) == lg_model_n_params(model) && lg_model_n_params(other) == 0);
    CHECK(lg_model_n_metadata(text) == lg_model_n_metadata(model));
    for (size_t i = 0; i < lg_model_n_vocab(model); i++) {
        char token[3][64];
        size_t n[3];
        const char *key = "tokenizer.ggml.tokens";
        CALL(lg_model_metadata_text, (model, key, i, token[0], 64, &n[0], &error));
        CALL(lg_model_metadata_text, (text, key, i, token[1], 64, &n[1], &error));
        CALL(lg_model_metadata_text, (other, key, i, token[2], 64, &n[2], &error));
        CHECK(n[0] == n[1] && n[0] == n[2]);
        CHECK(memcmp(token[0], token[1], n[0]) == 0 && memcmp(token[0], token[2], n[0]) == 0);
    }
    lg_session *session = NULL;
    CALL(lg_session_new, (model, NULL, &session, &error));
    CALL(lg_session_decode, (session, 65, NULL, &error));
    lg_session_free(session);
    lg_model_free(model);
    lg_model_free(text);
    lg_model_free(other);
}

static void a_text_alone_has_no_sessions(const char *path)
{
    const lg_model_params params = {.struct_size = sizeof params, .vocab_only = 1};
    lg_model *model = NULL;
    lg_session *session = NULL;
    lg_memory_plan plan = {.struct_size = sizeof plan};
    lg_layer_plan layer_plan = {.struct_size = sizeof layer_plan};
    lg_layer_attention layer = {.struct_size = sizeof layer};
    uint32_t n_ctx = 99;
    size_t n_phases = 99;
    CALL(lg_model_open, (path, &params, &model, &error));
    CHECK(strcmp(lg_model_device(model), "") == 0);
    CHECK(lg_model_n_layers(model) == 0 && lg_model_n_ctx_train(model) == 0 && lg_model_n_heads(model) == 0);
    REFUSED(LG_ERR_INVALID, lg_session_new, (model, NULL, &session, &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan, (model, NULL, &plan, &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan_layer, (model, NULL, 0, &layer_plan, &error));
    REFUSED(LG_ERR_INVALID, lg_model_longest_context, (model, NULL, 1 << 30, &n_ctx, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_attention, (model, 0, &layer, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_phases, (model, 0, NULL, 0, &n_phases, &error));
    CHECK(session == NULL && n_ctx == 99 && n_phases == 99);
    lg_model_free(model);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    progress_is_told_and_stops_the_call(argv[1], true);
    progress_is_told_and_stops_the_call(argv[2], false);
    another_thread_stops_the_call(argv[1]);
    what_is_found_is_logged(argv[1], argv[2]);
    without_a_device_of_choice_there_is_a_reason(argv[1]);
    a_text_alone_has_no_sessions(argv[1]);
    a_text_alone_has_no_sessions(argv[2]);
    a_copied_file_is_not_needed_any_more(argv[1], argv[2]);
    return 0;
}
