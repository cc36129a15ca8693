// A program of version 0.1: compiled with the header of that version, it runs with every later library of the same ABI.
// It uses every function and every struct once. Prints the answer that it gets.
// usage: client MODEL
#include "longgen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static lg_error error = {.struct_size = sizeof error};

static void check(bool is_so, int line)
{
    if (is_so)
        return;
    fprintf(stderr, "client.c:%d: %s: %s\n", line, error.where, error.message);
    exit(1);
}
#define OK(call) check((call) == LG_OK, __LINE__)
#define CHECK(condition) check(condition, __LINE__)

// How often callbacks were called.
typedef struct {
    size_t n_reports, n_messages, n_parts;
} Told;

static bool on_progress(void *user, size_t n_done, size_t n_total)
{
    CHECK(n_done <= n_total);
    ++((Told *)user)->n_reports;
    return true;
}

static void on_log(void *user, uint32_t level, const char *message)
{
    CHECK(level <= LG_LOG_WARNING && message[0] != '\0');
    ++((Told *)user)->n_messages;
}

static bool on_text(void *user, uint32_t token, const char *text, size_t n_bytes)
{
    (void)token;
    fwrite(text, 1, n_bytes, stdout);
    ++((Told *)user)->n_parts;
    return true;
}

static void ask_model(const lg_model *model)
{
    CHECK(lg_model_n_vocab(model) > 0 && lg_model_n_ctx_train(model) > 0 && lg_model_n_layers(model) > 0);
    CHECK(lg_model_n_heads(model) >= lg_model_n_kv_heads(model) && lg_model_head_dim(model) > 0);
    CHECK(lg_model_d_model(model) > 0 && lg_model_n_params(model) > 0 && lg_model_n_bytes(model) > 0);
    CHECK(lg_model_architecture(model)[0] != '\0' && lg_model_device(model)[0] != '\0');
    const uint32_t eos = lg_model_special_token(model, LG_SPECIAL_EOS);
    CHECK(eos != LG_TOKEN_NONE && lg_model_is_end_of_generation(model, eos) && lg_model_is_special(model, eos));

    lg_layer_attention attention = {.struct_size = sizeof attention};
    uint32_t phases[256];
    size_t n;
    OK(lg_model_layer_attention(model, 0, &attention, &error));
    OK(lg_model_layer_phases(model, 0, phases, 256, &n, &error));
    CHECK(n == lg_model_n_heads(model));

    lg_memory_plan plan = {.struct_size = sizeof plan};
    lg_layer_plan layer = {.struct_size = sizeof layer};
    uint32_t n_ctx;
    OK(lg_model_plan(model, NULL, &plan, &error));
    OK(lg_model_plan_layer(model, NULL, 0, &layer, &error));
    OK(lg_model_longest_context(model, NULL, plan.total_bytes, &n_ctx, &error));
    CHECK(n_ctx == plan.n_ctx && layer.kv_bytes <= plan.kv_bytes);

    char key[256], value[256];
    uint32_t type;
    bool is_array;
    CHECK(lg_model_n_metadata(model) > 0);
    OK(lg_model_metadata_key(model, 0, key, sizeof key, &n, &error));
    OK(lg_model_metadata_info(model, "general.architecture", &type, &n, &is_array, &error));
    CHECK(type == LG_METADATA_TEXT && n == 1 && !is_array);
    OK(lg_model_metadata_text(model, "general.architecture", 0, value, sizeof value, &n, &error));
    CHECK(n == strlen(lg_model_architecture(model)) && memcmp(value, lg_model_architecture(model), n) == 0);
    uint64_t u64;
    int64_t i64;
    double f64;
    bool boolean;
    CHECK(lg_model_metadata_u64(model, "no", 0, &u64, &error) == LG_ERR_NOT_FOUND);
    CHECK(lg_model_metadata_i64(model, "no", 0, &i64, &error) == LG_ERR_NOT_FOUND);
    CHECK(lg_model_metadata_f64(model, "no", 0, &f64, &error) == LG_ERR_NOT_FOUND);
    CHECK(lg_model_metadata_bool(model, "no", 0, &boolean, &error) == LG_ERR_NOT_FOUND);
}

static void texts(const lg_model *model)
{
    const char *const stops[] = {"###"};
    const lg_message message = {"user", 4, "Hi", 2};
    lg_text_stream *stream;
    const char *text;
    uint8_t bytes[64];
    uint32_t tokens[8];
    size_t n;
    OK(lg_model_tokenize(model, "Hi", 2, LG_TOKENIZE_SPECIAL | LG_TOKENIZE_ADD_BOS, tokens, 8, &n, &error));
    OK(lg_model_token_bytes(model, tokens[n - 1], bytes, sizeof bytes, &n, &error));
    OK(lg_text_stream_new(stops, 1, &stream, &error));
    OK(lg_text_stream_push_token(stream, model, tokens[0], &text, &n, &error));
    OK(lg_text_stream_push(stream, (const uint8_t *)"a###b", 5, &text, &n, &error));
    CHECK(n > 0 && text[n - 1] == 'a' && lg_text_stream_stop_index(stream) == 0);
    OK(lg_text_stream_finish(stream, &text, &n, &error));
    CHECK(n == 0);
    lg_text_stream_free(stream);
    CHECK(!lg_model_has_chat_template(model));
    CHECK(lg_model_apply_chat_template(model, &message, 1, NULL, 0, LG_CHAT_ADD_GENERATION_PROMPT, NULL, 0, &n, &error) ==
          LG_ERR_NOT_FOUND);
}

static void sample(lg_session *session)
{
    const lg_sampler_params params = {.struct_size = sizeof params,
                                      .seed = 7,
                                      .temperature = 1,
                                      .top_k = 40,
                                      .top_p = 0.9f,
                                      .min_p = 0.01f,
                                      .repeat_penalty = 1.1f,
                                      .repeat_last_n = 32,
                                      .typical_p = 0.9f,
                                      .frequency_penalty = 0.1f,
                                      .presence_penalty = 0.1f,
                                      .dry_multiplier = 0.8f,
                                      .dry_base = 1.75f,
                                      .dry_allowed_length = 2,
                                      .dry_last_n = 100};
    const lg_logit_bias bias = {3, -1};
    const uint32_t breaker = 10, mask[1] = {1u << 9};
    lg_sampler *sampler;
    lg_choice choices[64];
    uint32_t token;
    size_t n;
    OK(lg_sampler_new(&params, &sampler, &error));
    OK(lg_sampler_set_bias(sampler, &bias, 1, &error));
    OK(lg_sampler_set_dry_breakers(sampler, &breaker, 1, &error));
    OK(lg_sampler_sample(sampler, session, &token, &error));
    OK(lg_sampler_choices(sampler, choices, 64, &n, &error));
    CHECK(n >= 1 && n <= 40 && choices[0].p > 0);
    OK(lg_sampler_sample_masked(sampler, session, mask, 1, &token, &error));
    CHECK(token == 9);
    OK(lg_sampler_reset(sampler, &error));
    lg_sampler_free(sampler);
}

static void run(const lg_model *model)
{
    const lg_session_params params = {.struct_size = sizeof params,
                                      .n_ctx = 128,
                                      .chunk_tokens = 32,
                                      .kv_type = LG_KV_TYPE_F32,
                                      .precision = LG_PRECISION_EXACT,
                                      .logits_rows = 2,
                                      .max_bytes = UINT64_MAX};
    const uint32_t prompt[4] = {1, 2, 3, 4};
    const size_t rows[2] = {1, 3};
    const size_t n_vocab = lg_model_n_vocab(model), d_model = lg_model_d_model(model);
    float *all_logits = calloc(2 * n_vocab, sizeof(float)), *all_hidden = calloc(2 * d_model, sizeof(float));
    lg_session *session, *other;
    lg_cancel *cancel;
    Told told = {0};
    size_t n;
    OK(lg_session_new(model, &params, &session, &error));
    OK(lg_session_new(model, &params, &other, &error));
    OK(lg_cancel_new(&cancel, &error));
    OK(lg_session_prefill(session, prompt, 4, on_progress, &told, cancel, &error));
    OK(lg_session_prefill_rows(other, prompt, 4, rows, 2, NULL, NULL, cancel, all_logits, all_hidden, &error));
    CHECK(told.n_reports == 1 && lg_session_n_tokens(session) == 4 && lg_session_n_ctx(session) == 128);

    const float *logits, *hidden;
    OK(lg_session_logits(session, &logits, &n, &error));
    CHECK(n == n_vocab && memcmp(logits, all_logits + n_vocab, n * sizeof(float)) == 0);
    OK(lg_session_hidden(session, &hidden, &n, &error));
    CHECK(n == d_model && memcmp(hidden, all_hidden + d_model, n * sizeof(float)) == 0);
    lg_token_logprob top[2];
    float logprob;
    OK(lg_session_top_logprobs(session, top, 2, &error));
    OK(lg_session_logprob(session, top[0].token, &logprob, &error));
    CHECK(logprob == top[0].logprob && logprob >= top[1].logprob);
    sample(session);

    lg_session *const both[2] = {session, other};
    const uint32_t next[2] = {5, 6};
    OK(lg_session_decode(session, 4, cancel, &error));
    OK(lg_session_step_batch(both, next, NULL, 2, cancel, &error));
    lg_counters counters = {.struct_size = sizeof counters};
    uint32_t tokens[8];
    OK(lg_session_counters(session, &counters, &error));
    CHECK(counters.n_prompt_tokens == 4 && counters.n_generated_tokens == 2 && counters.generated_ms >= 0);
    OK(lg_session_tokens(session, tokens, 8, &n, &error));
    CHECK(n == 6 && tokens[5] == 5);
    CHECK(lg_session_n_bytes(session) > lg_session_kv_bytes(session) && lg_session_kv_bytes(session) > 0);
    OK(lg_session_rewind(session, 5, &n, &error));
    CHECK(n == 5);
    OK(lg_session_reset(session, &error));
    CHECK(lg_session_n_tokens(session) == 0);
    lg_cancel_set(cancel);
    CHECK(lg_session_prefill(session, prompt, 4, NULL, NULL, cancel, &error) == LG_ERR_CANCELLED);
    lg_cancel_reset(cancel);

    const lg_generate_params how = {.struct_size = sizeof how,
                                    .max_tokens = 20,
                                    .ignore_end = 1,
                                    .on_progress = on_progress,
                                    .on_text = on_text,
                                    .user = &told,
                                    .cancel = cancel};
    lg_generate_result result = {.struct_size = sizeof result};
    lg_sampler *greedy;
    OK(lg_sampler_new(NULL, &greedy, &error));
    OK(lg_session_generate(session, greedy, prompt, 4, &how, &result, &error));
    CHECK(result.n_tokens == 20 && result.reason == LG_STOP_LENGTH && result.end_token == LG_TOKEN_NONE);
    CHECK(told.n_reports == 2 && told.n_parts >= 20);
    lg_sampler_free(greedy);
    lg_cancel_free(cancel);
    lg_session_free(other);
    lg_session_free(session);
    free(all_logits);
    free(all_hidden);
}

int main(int argc, char **argv)
{
    Told told = {0};
    const lg_model_params params = {.struct_size = sizeof params,
                                    .load = LG_LOAD_READ,
                                    .device = LG_DEVICE_CPU,
                                    .n_threads = 2,
                                    .verify = 1,
                                    .on_progress = on_progress,
                                    .on_log = on_log,
                                    .user = &told};
    lg_model *model;
    CHECK(argc == 2 && lg_abi_version() == LG_ABI_VERSION && lg_version() >= LG_VERSION);
    CHECK(lg_version_str()[0] != '\0' && lg_build_info()[0] != '\0' && lg_status_str(LG_OK)[0] != '\0');
    OK(lg_model_open(argv[1], &params, &model, &error));
    CHECK(told.n_reports > 0 && told.n_messages > 0);
    ask_model(model);
    texts(model);
    run(model);
    lg_model_free(model);
    return 0;
}
