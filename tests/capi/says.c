// What errors say: which argument, what is wrong with it, and the number that would be right.
// usage: says MODEL FOLDER
#include "check.h"

#include <math.h>

static lg_error error = {.struct_size = sizeof error};

// SAYS(LG_ERR_INVALID, "what it says", lg_f, (a, b, &error)): the call fails so, and its message has these words.
#define SAYS(status, words, function, arguments)                                                             \
    do {                                                                                                     \
        const lg_status returned = function arguments;                                                       \
        if (strstr(error.message, words) == NULL)                                                            \
            fprintf(stderr, "%s:%d: \"%s\" is not in \"%s\"\n", __FILE__, __LINE__, words, error.message);   \
        CHECK(strstr(error.message, words) != NULL);                                                         \
        expect(status, returned, &error, #function, __FILE__, __LINE__);                                     \
    } while (0)

static void open_model(const char *path, const char *folder)
{
    lg_model *model;
    SAYS(LG_ERR_INVALID, "path is NULL", lg_model_open, (NULL, NULL, &model, &error));
    SAYS(LG_ERR_INVALID, "out is NULL", lg_model_open, (path, NULL, NULL, &error));
    SAYS(LG_ERR_NOT_FOUND, "/no/such/file: ", lg_model_open, ("/no/such/file", NULL, &model, &error));
    SAYS(LG_ERR_IO, folder, lg_model_open, (folder, NULL, &model, &error));
    SAYS(LG_ERR_FORMAT, __FILE__ ": not a GGUF file", lg_model_open, (__FILE__, NULL, &model, &error));

    struct {
        lg_model_params known;
        uint32_t newer[2];
    } params = {{.struct_size = 1}, {0, 0}};
#define OPEN (path, &params.known, &model, &error)
    SAYS(LG_ERR_INVALID, "lg_model_params: struct_size 1 is no size of it, 64 is", lg_model_open, OPEN);
    params.known = (lg_model_params){.struct_size = sizeof params, .load = 7};
    SAYS(LG_ERR_UNSUPPORTED, "load: this version knows no 7", lg_model_open, OPEN);
    params.known = (lg_model_params){.struct_size = sizeof params, .device = 9};
    SAYS(LG_ERR_UNSUPPORTED, "device: this version knows no 9", lg_model_open, OPEN);
    params.known = (lg_model_params){.struct_size = sizeof params, .verify = 2};
    SAYS(LG_ERR_UNSUPPORTED, "verify: this version knows no 2", lg_model_open, OPEN);
    params.known = (lg_model_params){.struct_size = sizeof params, .vocab_only = 3};
    SAYS(LG_ERR_UNSUPPORTED, "vocab_only: this version knows no 3", lg_model_open, OPEN);
    params.known = (lg_model_params){.struct_size = sizeof params, .reserved = 4};
    SAYS(LG_ERR_UNSUPPORTED, "reserved: 4, this version knows only 0", lg_model_open, OPEN);
    params.known = (lg_model_params){.struct_size = sizeof params, .n_threads = 5000};
    SAYS(LG_ERR_INVALID, "5000 threads: 1 to 4096 work", lg_model_open, OPEN);
    params.known = (lg_model_params){.struct_size = sizeof params};
    params.newer[1] = 1;
    SAYS(LG_ERR_UNSUPPORTED, "lg_model_params: byte 68 is set, this version knows 64 bytes", lg_model_open, OPEN);
}

static void ask_model(const lg_model *model)
{
    lg_layer_attention attention = {.struct_size = sizeof attention};
    lg_layer_plan layer_plan = {.struct_size = sizeof layer_plan};
    lg_memory_plan plan = {.struct_size = 3};
    uint64_t u64;
    double f64;
    char key[4];
    size_t n;
    SAYS(LG_ERR_INVALID, "layer 4 of 4", lg_model_layer_attention, (model, 4, &attention, &error));
    SAYS(LG_ERR_INVALID, "layer 9 of 4", lg_model_plan_layer, (model, NULL, 9, &layer_plan, &error));
    SAYS(LG_ERR_INVALID, "lg_memory_plan: struct_size 3 is no size of it, 88 is", lg_model_plan, (model, NULL, &plan, &error));
    SAYS(LG_ERR_INVALID, "n_ctx is NULL", lg_model_longest_context, (model, NULL, 1, NULL, &error));
    SAYS(LG_ERR_NOT_FOUND, "no.such.key", lg_model_metadata_u64, (model, "no.such.key", 0, &u64, &error));
    SAYS(LG_ERR_INVALID, "general.architecture", lg_model_metadata_f64, (model, "general.architecture", 0, &f64, &error));
    SAYS(LG_ERR_INVALID, "no element 7, there are 1", lg_model_metadata_u64, (model, "longgen.block_count", 7, &u64, &error));
    SAYS(LG_ERR_INVALID, "key is NULL", lg_model_metadata_u64, (model, NULL, 0, &u64, &error));
    SAYS(LG_ERR_INVALID, "key 9999 of ", lg_model_metadata_key, (model, 9999, NULL, 0, &n, &error));
    SAYS(LG_ERR_TOO_SMALL, "do not fit in a buffer for 4", lg_model_metadata_key, (model, 0, key, 4, &n, &error));
}

static void texts(const lg_model *model)
{
    lg_text_stream *stream;
    const char *text;
    const char *const stops[] = {"\xff"};
    const lg_message message = {"user", 4, "Hi", 2};
    uint32_t token;
    uint8_t byte[1];
    size_t n;
    SAYS(LG_ERR_INVALID, "text is no UTF-8", lg_model_tokenize, (model, "a\xff", 2, 0, NULL, 0, &n, &error));
    SAYS(LG_ERR_INVALID, "text is NULL", lg_model_tokenize, (model, NULL, 1, 0, NULL, 0, &n, &error));
    SAYS(LG_ERR_UNSUPPORTED, "flags: bits 0x8, this version knows 0x3", lg_model_tokenize, (model, "a", 1, 9, NULL, 0, &n, &error));
    SAYS(LG_ERR_TOO_SMALL, "3 elements do not fit in a buffer for 1", lg_model_tokenize, (model, "abc", 3, 0, &token, 1, &n, &error));
    SAYS(LG_ERR_INVALID, "token 258 of a vocabulary of 258", lg_model_token_bytes, (model, 258, byte, 1, &n, &error));
    SAYS(LG_ERR_INVALID, "stops[0] is no UTF-8", lg_text_stream_new, (stops, 1, &stream, &error));
    CALL(lg_text_stream_new, (NULL, 0, &stream, &error));
    SAYS(LG_ERR_INVALID, "token 300 of a vocabulary of 258", lg_text_stream_push_token, (stream, model, 300, &text, &n, &error));
    lg_text_stream_free(stream);
    SAYS(LG_ERR_NOT_FOUND, "no chat template", lg_model_apply_chat_template, (model, &message, 1, NULL, 0, 0, NULL, 0, &n, &error));
    SAYS(LG_ERR_INVALID, "model is NULL", lg_model_apply_chat_template, (NULL, &message, 1, NULL, 0, 0, NULL, 0, &n, &error));
}

static void open_session(const lg_model *model)
{
    lg_session *session;
    lg_session_params params = {.struct_size = sizeof params, .kv_type = 9};
#define NEW (model, &params, &session, &error)
    SAYS(LG_ERR_UNSUPPORTED, "kv_type: this version knows no 9", lg_session_new, NEW);
    params = (lg_session_params){.struct_size = sizeof params, .precision = 5};
    SAYS(LG_ERR_UNSUPPORTED, "precision: this version knows no 5", lg_session_new, NEW);
    params = (lg_session_params){.struct_size = sizeof params, .n_ctx = UINT32_MAX};
    SAYS(LG_ERR_INVALID, "context of 4294967295 tokens: at most 1073741824 work", lg_session_new, NEW);
    SAYS(LG_ERR_INVALID, "model is NULL", lg_session_new, (NULL, NULL, &session, &error));

    lg_memory_plan plan = {.struct_size = sizeof plan};
    params = (lg_session_params){.struct_size = sizeof params, .n_ctx = 100};
    CALL(lg_model_plan, (model, &params, &plan, &error));
    char needed[32];
    snprintf(needed, sizeof needed, " %llu bytes", (unsigned long long)plan.total_bytes);
    params.n_ctx = 50;
    CALL(lg_model_plan, (model, &params, &plan, &error));
    params = (lg_session_params){.struct_size = sizeof params, .n_ctx = 100, .max_bytes = plan.total_bytes};
    SAYS(LG_ERR_OUT_OF_MEMORY, needed, lg_session_new, NEW);
    uint32_t longest;
    CALL(lg_model_longest_context, (model, &params, plan.total_bytes, &longest, &error));
    char fits[64];
    snprintf(fits, sizeof fits, "a context of %u tokens would fit", (unsigned)longest);
    SAYS(LG_ERR_OUT_OF_MEMORY, fits, lg_session_new, NEW);
    params = (lg_session_params){.struct_size = sizeof params, .max_bytes = 10};
    SAYS(LG_ERR_OUT_OF_MEMORY, "max_bytes is 10; no context is short enough", lg_session_new, NEW);
}

static bool on_progress(void *user, size_t n_done, size_t n_total)
{
    (void)n_done, (void)n_total;
    SAYS(LG_ERR_BUSY, "the session is in use by another call", lg_session_decode, (user, 1, NULL, &error));
    return true;
}

static bool stop_at_once(void *user, size_t n_done, size_t n_total)
{
    (void)user, (void)n_done, (void)n_total;
    return false;
}

static void sessions(const lg_model *model, const lg_model *other)
{
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = 64, .chunk_tokens = 16};
    lg_session *session, *foreign;
    lg_cancel *cancel;
    CALL(lg_session_new, (model, &params, &session, &error));
    CALL(lg_session_new, (other, &params, &foreign, &error));
    CALL(lg_cancel_new, (&cancel, &error));
    uint32_t tokens[65] = {1, 2, 300};
    const float *floats;
    float logprob;
    lg_token_logprob top[1];
    size_t n;

    SAYS(LG_ERR_INVALID, "no tokens", lg_session_prefill, (session, tokens, 0, NULL, NULL, NULL, &error));
    SAYS(LG_ERR_INVALID, "token 300 of a vocabulary of 258", lg_session_prefill, (session, tokens, 3, NULL, NULL, NULL, &error));
    tokens[2] = 3;
    SAYS(LG_ERR_CONTEXT_FULL, "65 more tokens behind 0 do not fit in a context of 64", lg_session_prefill,
         (session, tokens, 65, NULL, NULL, NULL, &error));
    SAYS(LG_ERR_INVALID, "tokens: 18446744073709551615 elements are more than memory can hold", lg_session_prefill,
         (session, tokens, SIZE_MAX, NULL, NULL, NULL, &error));
    SAYS(LG_ERR_INVALID, "is not aligned to 4 bytes", lg_session_prefill,
         (session, (const uint32_t *)((const char *)tokens + 1), 2, NULL, NULL, NULL, &error));
    SAYS(LG_ERR_INVALID, "session is NULL", lg_session_prefill, (NULL, tokens, 3, NULL, NULL, NULL, &error));
    SAYS(LG_ERR_INVALID, "token 4294967295 of a vocabulary of 258", lg_session_decode, (session, LG_TOKEN_NONE, NULL, &error));
    SAYS(LG_ERR_INVALID, "no logits", lg_session_logits, (session, &floats, &n, &error));
    SAYS(LG_ERR_INVALID, "no hidden state", lg_session_hidden, (session, &floats, &n, &error));
    SAYS(LG_ERR_INVALID, "cannot rewind to 9 tokens, the session holds 0", lg_session_rewind, (session, 9, &n, &error));

    const size_t falling[2] = {2, 1}, beyond[1] = {3};
    SAYS(LG_ERR_INVALID, "rows must rise: 1 behind 2", lg_session_prefill_rows,
         (session, tokens, 3, falling, 2, NULL, NULL, NULL, NULL, NULL, &error));
    SAYS(LG_ERR_INVALID, "row 3 of 3 tokens", lg_session_prefill_rows,
         (session, tokens, 3, beyond, 1, NULL, NULL, NULL, NULL, NULL, &error));

    lg_session *const twice[2] = {session, session}, *const strangers[2] = {session, foreign}, *const none[1] = {NULL};
    SAYS(LG_ERR_INVALID, "a batch of no sessions", lg_session_step_batch, (NULL, NULL, NULL, 0, NULL, &error));
    SAYS(LG_ERR_INVALID, "sessions[1] is in the batch already", lg_session_step_batch, (twice, tokens, NULL, 2, NULL, &error));
    SAYS(LG_ERR_INVALID, "sessions of several models", lg_session_step_batch, (strangers, tokens, NULL, 2, NULL, &error));
    SAYS(LG_ERR_INVALID, "sessions[0] is NULL", lg_session_step_batch, (none, tokens, NULL, 1, NULL, &error));
    lg_session *other_session;
    CALL(lg_session_new, (model, &params, &other_session, &error));
    lg_session *const both[2] = {session, other_session};
    const size_t none_of_second[2] = {1, 0}, many_of_second[2] = {1, 17}, many[2] = {10, 7}, endless[2] = {2, SIZE_MAX};
    SAYS(LG_ERR_INVALID, "session 1 of the batch: no tokens", lg_session_step_batch,
         (both, tokens, none_of_second, 2, NULL, &error));
    SAYS(LG_ERR_INVALID, "session 1 of the batch: 17 tokens: its chunks hold 16", lg_session_step_batch,
         (both, tokens, many_of_second, 2, NULL, &error));
    SAYS(LG_ERR_INVALID, "a batch of 17 tokens: the first session's chunks hold 16", lg_session_step_batch,
         (both, tokens, many, 2, NULL, &error));
    SAYS(LG_ERR_INVALID, "tokens: 18446744073709551615 elements are more than memory can hold", lg_session_step_batch,
         (both, tokens, endless, 2, NULL, &error));
    SAYS(LG_ERR_INVALID, "n_tokens at ", lg_session_step_batch,
         (both, tokens, (const size_t *)((const char *)many + 1), 2, NULL, &error));
    lg_session_free(other_session);

    lg_cancel_set(cancel);
    SAYS(LG_ERR_CANCELLED, "stopped at the caller's request", lg_session_prefill, (session, tokens, 3, NULL, NULL, cancel, &error));
    SAYS(LG_ERR_CANCELLED, "stopped at the caller's request", lg_session_prefill,
         (foreign, tokens, 3, stop_at_once, NULL, NULL, &error));
    CALL(lg_session_prefill, (session, tokens, 64, on_progress, session, NULL, &error));
    SAYS(LG_ERR_CONTEXT_FULL, "1 more tokens behind 64 do not fit in a context of 64", lg_session_decode, (session, 1, NULL, &error));
    SAYS(LG_ERR_INVALID, "the 1000 likeliest tokens: at most ", lg_session_top_logprobs, (session, top, 1000, &error));
    SAYS(LG_ERR_INVALID, "token 258 of a vocabulary of 258", lg_session_logprob, (session, 258, &logprob, &error));
    lg_session_free(session);
    lg_session_free(foreign);
    lg_cancel_free(cancel);
}

static void samplers(const lg_model *model)
{
    lg_sampler *sampler;
    lg_sampler_params params = {.struct_size = sizeof params, .temperature = -1};
#define MAKE (&params, &sampler, &error)
    SAYS(LG_ERR_INVALID, "temperature -1 is not a finite number from 0 on", lg_sampler_new, MAKE);
    params = (lg_sampler_params){.struct_size = sizeof params, .top_p = 2};
    SAYS(LG_ERR_INVALID, "top-p 2 is not within (0, 1]", lg_sampler_new, MAKE);
    params = (lg_sampler_params){.struct_size = sizeof params, .typical_p = -1};
    SAYS(LG_ERR_INVALID, "typical-p -1 is not within (0, 1]", lg_sampler_new, MAKE);
    params = (lg_sampler_params){.struct_size = sizeof params, .min_p = 1.5f};
    SAYS(LG_ERR_INVALID, "min-p 1.5 is not within [0, 1]", lg_sampler_new, MAKE);
    params = (lg_sampler_params){.struct_size = sizeof params, .repeat_penalty = -2};
    SAYS(LG_ERR_INVALID, "repeat penalty -2 is not a finite number above 0", lg_sampler_new, MAKE);
    params = (lg_sampler_params){.struct_size = sizeof params, .frequency_penalty = NAN};
    SAYS(LG_ERR_INVALID, "frequency penalty NaN is not a finite number", lg_sampler_new, MAKE);
    params = (lg_sampler_params){.struct_size = sizeof params, .dry_base = 0.5f};
    SAYS(LG_ERR_INVALID, "dry base 0.5 is not a finite number from 1 on", lg_sampler_new, MAKE);

    const lg_session_params small = {.struct_size = sizeof small, .n_ctx = 32};
    const lg_logit_bias wrong[1] = {{5, INFINITY}}, twice[2] = {{7, 1}, {7, 2}};
    lg_generate_params how = {.struct_size = sizeof how, .ignore_end = 2};
    lg_generate_result result = {.struct_size = 2};
    lg_session *session;
    const char *const stops[1] = {NULL};
    const uint32_t nothing[1] = {0}, prompt[1] = {1};
    uint32_t token;
    CALL(lg_sampler_new, (NULL, &sampler, &error));
    CALL(lg_session_new, (model, &small, &session, &error));
    SAYS(LG_ERR_INVALID, "bias inf of token 5", lg_sampler_set_bias, (sampler, wrong, 1, &error));
    SAYS(LG_ERR_INVALID, "token 7 has more than one bias", lg_sampler_set_bias, (sampler, twice, 2, &error));
    SAYS(LG_ERR_INVALID, "no logits", lg_sampler_sample, (sampler, session, &token, &error));
    CALL(lg_session_prefill, (session, prompt, 1, NULL, NULL, NULL, &error));
    SAYS(LG_ERR_INVALID, "no token to choose", lg_sampler_sample_masked, (sampler, session, nothing, 1, &token, &error));
    SAYS(LG_ERR_INVALID, "lg_generate_result: struct_size 2 is no size of it, 32 is", lg_session_generate,
         (session, sampler, prompt, 1, NULL, &result, &error));
    result.struct_size = sizeof result;
    SAYS(LG_ERR_UNSUPPORTED, "ignore_end: this version knows no 2", lg_session_generate,
         (session, sampler, prompt, 1, &how, &result, &error));
    how = (lg_generate_params){.struct_size = sizeof how, .stops = stops, .n_stops = 1};
    SAYS(LG_ERR_INVALID, "stops[0] is NULL", lg_session_generate,
         (session, sampler, prompt, 1, &how, &result, &error));
    SAYS(LG_ERR_INVALID, "sampler is NULL", lg_session_generate,
         (session, NULL, prompt, 1, NULL, &result, &error));
    lg_session_free(session);
    lg_sampler_free(sampler);
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    const lg_model_params text_alone = {.struct_size = sizeof text_alone, .vocab_only = 1};
    lg_model *model, *other, *text;
    lg_session *session;
    open_model(argv[1], argv[2]);
    CALL(lg_model_open, (argv[1], NULL, &model, &error));
    CALL(lg_model_open, (argv[1], NULL, &other, &error));
    ask_model(model);
    texts(model);
    open_session(model);
    sessions(model, other);
    samplers(model);
    CALL(lg_model_open, (argv[1], &text_alone, &text, &error));
    SAYS(LG_ERR_INVALID, "opened for its text alone", lg_session_new, (text, NULL, &session, &error));
    lg_model_free(text);
    lg_model_free(model);
    lg_model_free(other);
    return 0;
}
