// Arguments that no program should pass: each gets its status and an error that names the function, and changes nothing.
// usage: hostile MODEL FOLDER
#include "check.h"

#include <math.h>

static lg_error error = {.struct_size = sizeof error};
// What an output holds before a call that must not write it.
static void *const UNTOUCHED = (void *)&error;

static void open_model(const char *path, const char *folder)
{
    lg_model *model = UNTOUCHED;
    lg_model_params params = {.struct_size = sizeof params};
    REFUSED(LG_ERR_INVALID, lg_model_open, (NULL, NULL, &model, &error));
    REFUSED(LG_ERR_INVALID, lg_model_open, (path, NULL, NULL, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_open, ("/no/such/file", NULL, &model, &error));
    REFUSED(LG_ERR_IO, lg_model_open, (folder, NULL, &model, &error));
    REFUSED(LG_ERR_FORMAT, lg_model_open, (__FILE__, NULL, &model, &error));

    const size_t wrong_sizes[] = {0, 1, 8, sizeof params - 1, 4097, SIZE_MAX};
    for (size_t i = 0; i < sizeof wrong_sizes / sizeof *wrong_sizes; i++) {
        params.struct_size = wrong_sizes[i];
        REFUSED(LG_ERR_INVALID, lg_model_open, (path, &params, &model, &error));
    }
    params.struct_size = sizeof params;
    params.load = 7;
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_open, (path, &params, &model, &error));
    params.load = LG_LOAD_READ;
    params.device = UINT32_MAX;
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_open, (path, &params, &model, &error));
    params.device = LG_DEVICE_CUDA + 256;
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_open, (path, &params, &model, &error));
    // A card that this build cannot use, or that this machine does not have.
    params.device = LG_DEVICE_CUDA + 255;
    lg_status status = lg_model_open(path, &params, &model, &error);
    CHECK(status == LG_ERR_UNSUPPORTED || status == LG_ERR_DEVICE);
    CHECK(error.message[0] != 0 && model == UNTOUCHED);
    params.device = LG_DEVICE_CPU;
    params.verify = 2;
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_open, (path, &params, &model, &error));
    params.verify = 0;
    params.vocab_only = 2;
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_open, (path, &params, &model, &error));
    params.vocab_only = 0;
    params.reserved = 1;
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_open, (path, &params, &model, &error));
    params.reserved = 0;
    params.cancel = (const lg_cancel *)((const char *)&params + 1);
    REFUSED(LG_ERR_INVALID, lg_model_open, (path, &params, &model, &error));

    // A newer program's struct: fine as long as it does not use what this library does not know.
    struct {
        lg_model_params known;
        uint32_t unknown[2];
    } newer = {{.struct_size = sizeof newer, .n_threads = 1}, {0, 1}};
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_open, (path, &newer.known, &model, &error));
    CHECK(model == UNTOUCHED);
    newer.unknown[1] = 0;
    CALL(lg_model_open, (path, &newer.known, &model, &error));
    lg_model_free(model);
}

static void errors(const char *path)
{
    lg_model *model = UNTOUCHED;
    CHECK(lg_model_open(NULL, NULL, &model, NULL) == LG_ERR_INVALID);
    lg_error small = {.code = 77};
    for (size_t i = 0; i < 2; i++) {
        small.struct_size = i == 0 ? 16 : sizeof small - 1;
        CHECK(lg_model_open(path, NULL, &model, &small) == LG_ERR_INVALID);
        CHECK(small.code == 77 && model == UNTOUCHED);
    }
    // A newer program's: this version knows a part of it.
    struct {
        lg_error known;
        uint64_t unknown;
    } newer = {{.struct_size = sizeof newer}, 99};
    CHECK(lg_model_open("/no/such/file", NULL, &model, &newer.known) == LG_ERR_NOT_FOUND);
    CHECK(newer.known.code == LG_ERR_NOT_FOUND && newer.known.message[0] != '\0' && newer.unknown == 99);

    for (uint32_t status = 0; status <= LG_ERR_BUSY; status++)
        CHECK(strcmp(lg_status_str(status), lg_status_str(UINT32_MAX)) != 0);
    CHECK(strcmp(lg_status_str(LG_ERR_BUSY + 1), lg_status_str(UINT32_MAX)) == 0);
}

static void tokenize(const lg_model *model)
{
    uint32_t tokens[8] = {99, 99, 99, 99, 99, 99, 99, 99};
    size_t n = 99;
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (NULL, "abc", 3, 0, tokens, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (model, NULL, 3, 0, tokens, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (model, "abc", SIZE_MAX, 0, tokens, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (model, "a\xff", 2, 0, tokens, 8, &n, &error));
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_tokenize, (model, "abc", 3, 4, tokens, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (model, "abc", 3, 0, NULL, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (model, "abc", 3, 0, tokens, SIZE_MAX, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (model, "abc", 3, 0, tokens, 8, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_model_tokenize, (model, "abc", 3, 0, (uint32_t *)((char *)tokens + 1), 4, &n, &error));
    CHECK(n == 99 && tokens[0] == 99);
    for (size_t cap = 0; cap < 3; cap++) {
        n = 99;
        REFUSED(LG_ERR_TOO_SMALL, lg_model_tokenize, (model, "abc", 3, 0, tokens, cap, &n, &error));
        CHECK(n == 3 && tokens[0] == 99);
    }
    CALL(lg_model_tokenize, (model, NULL, 0, 0, NULL, 0, &n, &error));
    CHECK(n == 0);
    CALL(lg_model_tokenize, (model, "abc", 3, LG_TOKENIZE_ADD_BOS, NULL, 0, &n, &error));
    CHECK(n == 4);
    CALL(lg_model_tokenize, (model, "abc", 3, LG_TOKENIZE_ADD_BOS, tokens, 4, &n, &error));
    CHECK(tokens[0] == lg_model_special_token(model, LG_SPECIAL_BOS) && tokens[3] == 'c' && tokens[4] == 99);
    CALL(lg_model_tokenize, (model, "<|eos|>", 7, LG_TOKENIZE_SPECIAL, tokens, 8, &n, &error));
    CHECK(n == 1 && tokens[0] == lg_model_special_token(model, LG_SPECIAL_EOS));
    CALL(lg_model_tokenize, (model, "<|eos|>", 7, 0, tokens, 8, &n, &error));
    CHECK(n == 7);

    uint8_t bytes[4] = {99, 99, 99, 99};
    REFUSED(LG_ERR_INVALID, lg_model_token_bytes, (NULL, 65, bytes, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_token_bytes, (model, lg_model_n_vocab(model), bytes, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_token_bytes, (model, LG_TOKEN_NONE, bytes, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_token_bytes, (model, 65, NULL, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_token_bytes, (model, 65, bytes, 4, NULL, &error));
    n = 99;
    REFUSED(LG_ERR_TOO_SMALL, lg_model_token_bytes, (model, 65, bytes, 0, &n, &error));
    CHECK(n == 1 && bytes[0] == 99);
    CALL(lg_model_token_bytes, (model, 65, NULL, 0, &n, &error));
    CHECK(n == 1);
    CALL(lg_model_token_bytes, (model, 65, bytes, 4, &n, &error));
    CHECK(n == 1 && bytes[0] == 'A' && bytes[1] == 99);
}

static void text_streams(const lg_model *model)
{
    lg_text_stream *stream = UNTOUCHED;
    const char *text = UNTOUCHED;
    const char *const stops[] = {"x", NULL}, *const not_utf8[] = {"\xff"};
    const uint8_t byte = 'a';
    size_t n = 99;
    REFUSED(LG_ERR_INVALID, lg_text_stream_new, (NULL, 0, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_new, (NULL, 1, &stream, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_new, (stops, 2, &stream, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_new, (not_utf8, 1, &stream, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_new, (stops, SIZE_MAX, &stream, &error));
    CHECK(stream == UNTOUCHED);
    CALL(lg_text_stream_new, (stops, 1, &stream, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push, (NULL, &byte, 1, &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push, (stream, NULL, 1, &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push, (stream, &byte, SIZE_MAX, &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push, (stream, &byte, 1, NULL, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push, (stream, &byte, 1, &text, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push_token, (NULL, model, 65, &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push_token, (stream, NULL, 65, &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push_token, (stream, model, lg_model_n_vocab(model), &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push_token, (stream, model, LG_TOKEN_NONE, &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push_token, (stream, model, 65, NULL, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_push_token, (stream, model, 65, &text, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_finish, (NULL, &text, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_finish, (stream, NULL, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_text_stream_finish, (stream, &text, NULL, &error));
    CHECK(text == UNTOUCHED && n == 99);
    // None of that has left anything in it.
    CALL(lg_text_stream_push, (stream, NULL, 0, &text, &n, &error));
    CHECK(n == 0);
    CALL(lg_text_stream_finish, (stream, &text, &n, &error));
    CHECK(n == 0 && lg_text_stream_stop_index(stream) == LG_INDEX_NONE);
    lg_text_stream_free(stream);
}

// This model has no chat template; tests/capi/chat.c is for those that have one.
static void chat_templates(const lg_model *model)
{
    const lg_message messages[] = {{"user", 4, "Hi", 2}, {NULL, 1, "Hi", 2}, {"user", 4, "\xff", 1}};
    char text[4] = "abc";
    size_t n = 99;
    CHECK(!lg_model_has_chat_template(model));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_apply_chat_template, (model, messages, 1, NULL, 0, 1, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (NULL, messages, 1, NULL, 0, 0, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, NULL, 1, NULL, 0, 0, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, messages, 2, NULL, 0, 0, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, messages + 2, 1, NULL, 0, 0, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, messages, SIZE_MAX, NULL, 0, 0, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, messages, 1, NULL, 9, 0, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, messages, 1, "\xff", 1, 0, text, 4, &n, &error));
    REFUSED(LG_ERR_UNSUPPORTED, lg_model_apply_chat_template, (model, messages, 1, NULL, 0, 2, text, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, messages, 1, NULL, 0, 0, NULL, 4, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_apply_chat_template, (model, messages, 1, NULL, 0, 0, text, 4, NULL, &error));
    CHECK(n == 99 && text[0] == 'a');
}

static void what_sessions_say(lg_session *session)
{
    uint32_t tokens[2] = {99, 99};
    size_t n = 99;
    REFUSED(LG_ERR_INVALID, lg_session_reset, (NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_tokens, (NULL, tokens, 2, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_tokens, (session, NULL, 2, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_tokens, (session, tokens, SIZE_MAX, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_tokens, (session, (uint32_t *)((char *)tokens + 1), 1, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_tokens, (session, tokens, 2, NULL, &error));
    CHECK(n == 99 && tokens[0] == 99);

    struct {
        lg_counters known;
        uint64_t unknown;
    } newer = {{.struct_size = sizeof newer, .n_prompt_tokens = 77}, 77};
    REFUSED(LG_ERR_INVALID, lg_session_counters, (NULL, &newer.known, &error));
    REFUSED(LG_ERR_INVALID, lg_session_counters, (session, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_counters, (session, (lg_counters *)((char *)&newer + 4), &error));
    const size_t wrong_sizes[] = {0, 8, sizeof(lg_counters) - 1, 4097, SIZE_MAX};
    for (size_t i = 0; i < sizeof wrong_sizes / sizeof *wrong_sizes; i++) {
        newer.known.struct_size = wrong_sizes[i];
        REFUSED(LG_ERR_INVALID, lg_session_counters, (session, &newer.known, &error));
    }
    CHECK(newer.known.n_prompt_tokens == 77);
    newer.known.struct_size = sizeof newer;
    CALL(lg_session_counters, (session, &newer.known, &error));
    CHECK(newer.known.n_prompt_tokens == 0 && newer.unknown == 0);

    lg_token_logprob top[2] = {{.token = 99}};
    float logprob = 99;
    REFUSED(LG_ERR_INVALID, lg_session_top_logprobs, (NULL, top, 2, &error));
    REFUSED(LG_ERR_INVALID, lg_session_top_logprobs, (session, NULL, 2, &error));
    REFUSED(LG_ERR_INVALID, lg_session_top_logprobs, (session, top, SIZE_MAX, &error));
    REFUSED(LG_ERR_INVALID, lg_session_logprob, (NULL, 0, &logprob, &error));
    REFUSED(LG_ERR_INVALID, lg_session_logprob, (session, 0, NULL, &error));
    CHECK(top[0].token == 99 && logprob == 99);

    const float *hidden = UNTOUCHED;
    REFUSED(LG_ERR_INVALID, lg_session_hidden, (NULL, &hidden, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_hidden, (session, NULL, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_hidden, (session, &hidden, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_hidden, (session, &hidden, &n, &error));
    CHECK(hidden == UNTOUCHED && n == 99);

    lg_session *misaligned[1] = {(lg_session *)((char *)session + 1)};
    const size_t one[1] = {1};
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (misaligned, tokens, NULL, 1, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (&session, NULL, one, 1, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (&session, tokens, (const size_t *)((const char *)one + 1), 1, NULL, &error));
}

static void rows_of_prompts(lg_session *session)
{
    const uint32_t tokens[3] = {1, 2, 3};
    const size_t rows[3] = {0, 2, 1}, beyond[1] = {3};
    float logits[2] = {99, 99}, *misaligned = (float *)((char *)logits + 1);
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (NULL, tokens, 3, rows, 2, NULL, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, NULL, 3, rows, 2, NULL, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, tokens, 0, rows, 0, NULL, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, tokens, 3, NULL, 2, NULL, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, tokens, 3, rows, SIZE_MAX, NULL, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, tokens, 3, rows, 3, NULL, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, tokens, 3, beyond, 1, NULL, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, tokens, 3, rows, 2, NULL, NULL, NULL, misaligned, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill_rows,
            (session, tokens, 3, rows, 2, NULL, NULL, NULL, NULL, misaligned, &error));
    CHECK(logits[0] == 99 && lg_session_n_tokens(session) == 0);
}

static void sessions(const lg_model *model)
{
    lg_session *session = UNTOUCHED;
    lg_session_params params = {.struct_size = sizeof params, .n_ctx = 8};
    REFUSED(LG_ERR_INVALID, lg_session_new, (NULL, &params, &session, &error));
    REFUSED(LG_ERR_INVALID, lg_session_new, (model, &params, NULL, &error));
    params.kv_type = 9;
    REFUSED(LG_ERR_UNSUPPORTED, lg_session_new, (model, &params, &session, &error));
    const uint32_t types[4] = {LG_KV_TYPE_F32, LG_KV_TYPE_F16, LG_KV_TYPE_BF16, LG_KV_TYPE_Q8};
    uint64_t of_type[4];
    for (int i = 0; i < 4; i++) {
        params.kv_type = types[i];
        lg_memory_plan plan = {.struct_size = sizeof plan};
        CALL(lg_model_plan, (model, &params, &plan, &error));
        of_type[i] = plan.kv_bytes;
    }
    CHECK(of_type[0] > of_type[1] && of_type[1] == of_type[2] && of_type[2] > of_type[3]);
    params.kv_type = LG_KV_TYPE_F32;
    params.precision = 9;
    REFUSED(LG_ERR_UNSUPPORTED, lg_session_new, (model, &params, &session, &error));
    params.precision = LG_PRECISION_EXACT;
    params.n_ctx = UINT32_MAX;
    REFUSED(LG_ERR_INVALID, lg_session_new, (model, &params, &session, &error));
    for (size_t i = 0; i < 2; i++) {
        params.struct_size = i == 0 ? 4 : sizeof params - 1;
        REFUSED(LG_ERR_INVALID, lg_session_new, (model, &params, &session, &error));
    }
    CHECK(session == UNTOUCHED);

    params.struct_size = sizeof params;
    params.n_ctx = 8;
    CALL(lg_session_new, (model, &params, &session, &error));
    CHECK(lg_session_n_ctx(session) == 8 && lg_session_n_tokens(session) == 0);
    uint32_t tokens[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    REFUSED(LG_ERR_INVALID, lg_session_prefill, (NULL, tokens, 3, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill, (session, NULL, 3, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill, (session, NULL, 0, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prefill, (session, tokens, SIZE_MAX, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_CONTEXT_FULL, lg_session_prefill, (session, tokens, 9, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_decode, (NULL, 1, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_decode, (session, lg_model_n_vocab(model), NULL, &error));
    tokens[2] = LG_TOKEN_NONE;
    REFUSED(LG_ERR_INVALID, lg_session_prefill, (session, tokens, 3, NULL, NULL, NULL, &error));
    CHECK(lg_session_n_tokens(session) == 0);

    const float *logits = UNTOUCHED;
    size_t n = 99;
    REFUSED(LG_ERR_INVALID, lg_session_logits, (NULL, &logits, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_logits, (session, &logits, &n, &error));
    lg_prompt_result did = {.struct_size = sizeof did, .n_common = 99};
    REFUSED(LG_ERR_INVALID, lg_session_prompt, (NULL, tokens, 2, NULL, NULL, NULL, &did, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prompt, (session, NULL, 2, NULL, NULL, NULL, &did, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prompt, (session, NULL, 0, NULL, NULL, NULL, &did, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prompt, (session, tokens, SIZE_MAX, NULL, NULL, NULL, &did, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prompt, (session, tokens, 3, NULL, NULL, NULL, &did, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prompt, (session, tokens, 2, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_prompt,
            (session, tokens, 2, NULL, NULL, (const lg_cancel *)((const char *)&did + 1), &did, &error));
    const uint32_t nine[9] = {0};
    REFUSED(LG_ERR_CONTEXT_FULL, lg_session_prompt, (session, nine, 9, NULL, NULL, NULL, &did, &error));
    REFUSED(LG_ERR_INVALID, lg_session_restore_points, (NULL, NULL, 0, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_restore_points, (session, NULL, 1, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_restore_points, (session, NULL, 0, NULL, &error));
    CHECK(did.n_common == 99 && lg_session_restore_bytes(NULL) == 0);
    lg_session *loaded = UNTOUCHED;
    REFUSED(LG_ERR_INVALID, lg_session_save, (NULL, "unwritten", NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_save, (session, NULL, NULL, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_load, (NULL, "unread", NULL, NULL, NULL, NULL, &loaded, &error));
    REFUSED(LG_ERR_INVALID, lg_session_load, (model, NULL, NULL, NULL, NULL, NULL, &loaded, &error));
    REFUSED(LG_ERR_INVALID, lg_session_load, (model, "unread", NULL, NULL, NULL, NULL, NULL, &error));
    CHECK(loaded == UNTOUCHED);
    lg_session *fork = UNTOUCHED;
    params.struct_size = 3;
    REFUSED(LG_ERR_INVALID, lg_session_fork, (NULL, NULL, &fork, &error));
    REFUSED(LG_ERR_INVALID, lg_session_fork, (session, NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_fork, (session, &params, &fork, &error));
    params.struct_size = sizeof params;
    CHECK(fork == UNTOUCHED);
    REFUSED(LG_ERR_INVALID, lg_session_rewind, (NULL, 0, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_rewind, (session, 1, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_rewind, (session, 0, NULL, &error));
    CHECK(logits == UNTOUCHED && n == 99);
    what_sessions_say(session);
    rows_of_prompts(session);

    lg_sampler *sampler = NULL;
    uint32_t token = 99;
    CALL(lg_sampler_new, (NULL, &sampler, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample, (NULL, session, &token, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample, (sampler, NULL, &token, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample, (sampler, session, &token, &error));
    CALL(lg_session_decode, (session, 1, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample, (sampler, session, NULL, &error));
    CHECK(token == 99);
    CALL(lg_sampler_sample, (sampler, session, &token, &error));
    CHECK(token < lg_model_n_vocab(model));
    const uint32_t mask[1] = {1};
    token = 99;
    REFUSED(LG_ERR_INVALID, lg_sampler_sample_masked, (NULL, session, mask, 1, &token, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample_masked, (sampler, NULL, mask, 1, &token, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample_masked, (sampler, session, NULL, 1, &token, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample_masked, (sampler, session, mask, SIZE_MAX, &token, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample_masked, (sampler, session, NULL, 0, &token, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_sample_masked, (sampler, session, mask, 1, NULL, &error));
    CHECK(token == 99);
    REFUSED(LG_ERR_INVALID, lg_session_logits, (session, NULL, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_session_logits, (session, &logits, NULL, &error));

    lg_generate_result result = {.struct_size = sizeof result, .n_tokens = 99};
    const char *const stops[] = {NULL};
    const lg_generate_params wrong[] = {
        {.struct_size = sizeof *wrong, .n_stops = 1},
        {.struct_size = sizeof *wrong, .stops = stops, .n_stops = 1},
        {.struct_size = sizeof *wrong, .cancel = (const lg_cancel *)((const char *)&result + 1)},
        {.struct_size = sizeof *wrong - 1},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        REFUSED(LG_ERR_INVALID, lg_session_generate, (session, sampler, mask, 1, &wrong[i], &result, &error));
    const lg_generate_params unknown = {.struct_size = sizeof unknown, .ignore_end = 2};
    REFUSED(LG_ERR_UNSUPPORTED, lg_session_generate, (session, sampler, mask, 1, &unknown, &result, &error));
    REFUSED(LG_ERR_INVALID, lg_session_generate, (NULL, sampler, mask, 1, NULL, &result, &error));
    REFUSED(LG_ERR_INVALID, lg_session_generate, (session, NULL, mask, 1, NULL, &result, &error));
    REFUSED(LG_ERR_INVALID, lg_session_generate, (session, sampler, NULL, 1, NULL, &result, &error));
    REFUSED(LG_ERR_INVALID, lg_session_generate, (session, sampler, mask, 1, NULL, NULL, &error));
    const uint32_t beyond = lg_model_n_vocab(model);
    REFUSED(LG_ERR_INVALID, lg_session_generate, (session, sampler, &beyond, 1, NULL, &result, &error));
    const uint32_t long_prompt[9] = {0};
    REFUSED(LG_ERR_CONTEXT_FULL, lg_session_generate,
            (session, sampler, long_prompt, 9, NULL, &result, &error));
    size_t n_kept;
    const size_t position = lg_session_n_tokens(session);
    CALL(lg_session_rewind, (session, 0, &n_kept, &error));
    CHECK(position > 0);
    REFUSED(LG_ERR_INVALID, lg_session_generate, (session, sampler, NULL, 0, NULL, &result, &error));
    for (size_t i = 0; i < 2; i++) {
        result.struct_size = i == 0 ? 8 : sizeof result - 1;
        REFUSED(LG_ERR_INVALID, lg_session_generate, (session, sampler, mask, 1, NULL, &result, &error));
    }
    CHECK(result.n_tokens == 99 && lg_session_n_tokens(session) == 0);
    lg_sampler_free(sampler);
    lg_session_free(session);
}

static void samplers(void)
{
    lg_sampler *sampler = UNTOUCHED;
    const lg_sampler_params wrong[] = {
        {.struct_size = sizeof *wrong, .temperature = -1.0f}, {.struct_size = sizeof *wrong, .temperature = NAN},
        {.struct_size = sizeof *wrong, .top_p = 1.5f},        {.struct_size = sizeof *wrong, .top_p = -0.5f},
        {.struct_size = sizeof *wrong, .min_p = 1.5f},        {.struct_size = sizeof *wrong, .min_p = -0.5f},
        {.struct_size = sizeof *wrong, .min_p = NAN},         {.struct_size = sizeof *wrong, .repeat_penalty = -1.0f},
        {.struct_size = sizeof *wrong, .repeat_penalty = NAN}, {.struct_size = sizeof *wrong, .repeat_penalty = INFINITY},
        {.struct_size = sizeof *wrong, .typical_p = 1.5f},    {.struct_size = sizeof *wrong, .typical_p = NAN},
        {.struct_size = sizeof *wrong, .dry_multiplier = -1}, {.struct_size = sizeof *wrong, .dry_base = 0.5f},
        {.struct_size = sizeof *wrong, .frequency_penalty = NAN},
        {.struct_size = sizeof *wrong, .presence_penalty = -INFINITY},
        {.struct_size = sizeof *wrong - 1},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        REFUSED(LG_ERR_INVALID, lg_sampler_new, (&wrong[i], &sampler, &error));
    struct {
        lg_sampler_params known;
        uint64_t unknown;
    } newer = {{.struct_size = sizeof newer}, 1};
    REFUSED(LG_ERR_UNSUPPORTED, lg_sampler_new, (&newer.known, &sampler, &error));
    newer.unknown = 0;
    newer.known.reserved = 1;
    REFUSED(LG_ERR_UNSUPPORTED, lg_sampler_new, (&newer.known, &sampler, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_new, (NULL, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_cancel_new, (NULL, &error));
    CHECK(sampler == UNTOUCHED);

    CALL(lg_sampler_new, (NULL, &sampler, &error));
    const lg_logit_bias not_a_number[] = {{1, 0}, {2, NAN}}, infinite[] = {{1, INFINITY}}, twice[] = {{7, 1}, {7, 2}};
    const uint32_t breaker = 1;
    lg_choice choice = {.token = 99};
    size_t n = 99;
    REFUSED(LG_ERR_INVALID, lg_sampler_set_bias, (NULL, twice, 1, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_bias, (sampler, NULL, 1, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_bias, (sampler, twice, SIZE_MAX, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_bias, (sampler, twice, 2, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_bias, (sampler, not_a_number, 2, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_bias, (sampler, infinite, 1, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_dry_breakers, (NULL, &breaker, 1, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_dry_breakers, (sampler, NULL, 1, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_set_dry_breakers, (sampler, &breaker, SIZE_MAX, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_choices, (NULL, &choice, 1, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_choices, (sampler, NULL, 1, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_choices, (sampler, &choice, SIZE_MAX, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_choices, (sampler, &choice, 1, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_sampler_reset, (NULL, &error));
    CHECK(n == 99 && choice.token == 99);
    CALL(lg_sampler_choices, (sampler, NULL, 0, &n, &error));
    CHECK(n == 0);
    CALL(lg_sampler_set_bias, (sampler, NULL, 0, &error));
    CALL(lg_sampler_set_dry_breakers, (sampler, NULL, 0, &error));
    CALL(lg_sampler_reset, (sampler, &error));
    lg_sampler_free(sampler);
}

static void nothing(void)
{
    lg_model_free(NULL);
    lg_session_free(NULL);
    lg_sampler_free(NULL);
    lg_text_stream_free(NULL);
    CHECK(lg_text_stream_stop_index(NULL) == LG_INDEX_NONE && !lg_model_has_chat_template(NULL));
    lg_cancel_free(NULL);
    lg_cancel_set(NULL);
    lg_cancel_reset(NULL);
    CHECK(lg_model_n_vocab(NULL) == 0 && lg_model_n_ctx_train(NULL) == 0 && lg_model_n_layers(NULL) == 0);
    CHECK(!lg_model_is_end_of_generation(NULL, 0));
    CHECK(lg_session_n_tokens(NULL) == 0 && lg_session_n_ctx(NULL) == 0);
    CHECK(lg_session_n_bytes(NULL) == 0 && lg_session_kv_bytes(NULL) == 0);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    lg_model *model = NULL;
    nothing();
    errors(argv[1]);
    open_model(argv[1], argv[2]);
    samplers();
    CALL(lg_model_open, (argv[1], NULL, &model, &error));
    CHECK(lg_model_is_end_of_generation(model, lg_model_special_token(model, LG_SPECIAL_EOS)));
    CHECK(!lg_model_is_end_of_generation(model, 65) && !lg_model_is_end_of_generation(model, LG_TOKEN_NONE));
    tokenize(model);
    text_streams(model);
    chat_templates(model);
    sessions(model);
    lg_model_free(model);
    return 0;
}
