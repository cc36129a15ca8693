// What a session says about itself: its tokens, memory, counters and probabilities; batches and a reset.
// usage: state MODEL
#define _POSIX_C_SOURCE 200809L
#include "check.h"

#include <math.h>
#include <time.h>

enum { N_CTX = 300, CHUNK = 16, N_BATCH = 5 };

static lg_error error = {.struct_size = sizeof error};
static uint32_t state = 1;

static uint32_t random_below(uint32_t n)
{
    state = state * 1664525u + 1013904223u;
    return (uint32_t)((uint64_t)(state >> 8) * n >> 24);
}

static lg_session *new_session(const lg_model *model, uint32_t kv_type)
{
    const lg_session_params params = {
        .struct_size = sizeof params, .n_ctx = N_CTX, .chunk_tokens = CHUNK, .kv_type = kv_type};
    lg_session *session = NULL;
    lg_memory_plan plan = {.struct_size = sizeof plan};
    CALL(lg_session_new, (model, &params, &session, &error));
    CALL(lg_model_plan, (model, &params, &plan, &error));
    CHECK(lg_session_n_bytes(session) == plan.total_bytes);
    return session;
}

static void fill(const lg_model *model, uint32_t *tokens, size_t n)
{
    for (size_t i = 0; i < n; i++)
        tokens[i] = random_below(lg_model_n_vocab(model));
}

static void prefill(lg_session *session, const uint32_t *tokens, size_t n)
{
    CALL(lg_session_prefill, (session, tokens, n, NULL, NULL, NULL, &error));
}

static void check_tokens(const lg_session *session, const uint32_t *expected, size_t n_expected)
{
    uint32_t tokens[N_CTX + 1];
    size_t n = SIZE_MAX;
    CALL(lg_session_tokens, (session, NULL, 0, &n, &error));
    CHECK(n == n_expected && n == lg_session_n_tokens(session));
    tokens[n] = LG_TOKEN_NONE;
    CALL(lg_session_tokens, (session, tokens, n, &n, &error));
    CHECK(n == n_expected && memcmp(tokens, expected, n * sizeof *tokens) == 0 && tokens[n] == LG_TOKEN_NONE);
}

static bool same_logits(const lg_session *a, const lg_session *b)
{
    const float *x, *y;
    size_t n, m;
    CALL(lg_session_logits, (a, &x, &n, &error));
    CALL(lg_session_logits, (b, &y, &m, &error));
    return n == m && memcmp(x, y, n * sizeof *x) == 0;
}

static void check_counters(const lg_session *session, uint64_t n_prompt, uint64_t n_generated)
{
    lg_counters counters = {.struct_size = sizeof counters};
    CALL(lg_session_counters, (session, &counters, &error));
    CHECK(counters.struct_size == sizeof counters);
    CHECK(counters.n_prompt_tokens == n_prompt && counters.n_generated_tokens == n_generated);
    CHECK((counters.prompt_ms > 0) == (n_prompt > 0) && (counters.generated_ms > 0) == (n_generated > 0));
}

static double now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static bool stop_behind_40(void *user, size_t n_done, size_t n_tokens)
{
    (void)user, (void)n_tokens;
    return n_done < 40;
}

static void tokens_and_counters_tell_what_was_done(const lg_model *model)
{
    lg_session *session = new_session(model, LG_KV_TYPE_F16);
    lg_cancel *cancel = NULL;
    uint32_t tokens[N_CTX];
    size_t n_kept;
    const double begun = now_ms();
    fill(model, tokens, N_CTX);
    CALL(lg_cancel_new, (&cancel, &error));
    check_tokens(session, tokens, 0);
    check_counters(session, 0, 0);
    REFUSED(LG_ERR_CANCELLED, lg_session_prefill, (session, tokens, 100, stop_behind_40, NULL, NULL, &error));
    check_tokens(session, tokens, 3 * CHUNK);
    check_counters(session, 3 * CHUNK, 0);
    lg_cancel_set(cancel);
    REFUSED(LG_ERR_CANCELLED, lg_session_decode, (session, 1, cancel, &error));
    REFUSED(LG_ERR_INVALID, lg_session_decode, (session, LG_TOKEN_NONE, NULL, &error));
    check_counters(session, 3 * CHUNK, 0);
    for (size_t i = 3 * CHUNK; i < 60; i++)
        CALL(lg_session_decode, (session, tokens[i], NULL, &error));
    check_tokens(session, tokens, 60);
    check_counters(session, 3 * CHUNK, 60 - 3 * CHUNK);
    // Behind a rewind what was done stays done.
    CALL(lg_session_rewind, (session, 55, &n_kept, &error));
    prefill(session, tokens + 55, 1);
    check_tokens(session, tokens, 56);
    check_counters(session, 3 * CHUNK + 1, 60 - 3 * CHUNK);
    uint32_t few[55] = {99};
    size_t n = 99;
    REFUSED(LG_ERR_TOO_SMALL, lg_session_tokens, (session, few, 55, &n, &error));
    CHECK(n == 56 && few[0] == 99);

    lg_counters counters = {.struct_size = sizeof counters};
    CALL(lg_session_counters, (session, &counters, &error));
    CHECK(counters.prompt_ms + counters.generated_ms <= now_ms() - begun);
    lg_cancel_free(cancel);
    lg_session_free(session);
}

static void a_cache_takes_what_its_type_takes(const lg_model *model)
{
    lg_session *half = new_session(model, LG_KV_TYPE_F16), *full = new_session(model, LG_KV_TYPE_F32);
    CHECK(2 * lg_session_kv_bytes(half) == lg_session_kv_bytes(full));
    CHECK(lg_session_kv_bytes(full) < lg_session_n_bytes(full));
    lg_session_free(half);
    lg_session_free(full);
}

static void a_reset_session_is_a_new_one(const lg_model *model)
{
    lg_session *session = new_session(model, LG_KV_TYPE_F16), *fresh = new_session(model, LG_KV_TYPE_F16);
    uint32_t tokens[N_CTX];
    const float *logits;
    size_t n;
    for (int i = 0; i < 3; i++) {
        fill(model, tokens, N_CTX);
        prefill(session, tokens, N_CTX);
        CALL(lg_session_reset, (session, &error));
        CALL(lg_session_reset, (session, &error));
        check_tokens(session, tokens, 0);
        check_counters(session, 0, 0);
        REFUSED(LG_ERR_INVALID, lg_session_logits, (session, &logits, &n, &error));
    }
    prefill(session, tokens, 90);
    prefill(fresh, tokens, 90);
    CHECK(same_logits(session, fresh));
    check_counters(session, 90, 0);
    lg_session_free(session);
    lg_session_free(fresh);
}

// What a session holds is kept where a prompt begins like it, as far as it can be gone back to.
static void a_prompt_is_what_a_new_session_computes(const lg_model *model)
{
    lg_session *session = new_session(model, LG_KV_TYPE_F16);
    uint32_t tokens[N_CTX];
    lg_prompt_result did = {.struct_size = sizeof did};
    size_t n_tokens = 200, points[N_CTX], n_points;
    fill(model, tokens, N_CTX);
    for (int i = 0; i < 20; i++) {
        lg_session *fresh = new_session(model, LG_KV_TYPE_F16);
        const size_t n_held = lg_session_n_tokens(session);
        const size_t n_common = n_held < n_tokens ? n_held : n_tokens - 1;
        const size_t n_changed = i % 3 == 0 ? 0 : random_below((uint32_t)n_common);
        for (size_t j = n_common - n_changed; j < n_tokens; j++)
            tokens[j] = (tokens[j] + 1) % lg_model_n_vocab(model);
        CALL(lg_session_prompt, (session, tokens, n_tokens, NULL, NULL, NULL, &did, &error));
        CHECK(did.n_common == n_common - n_changed && did.n_reused <= did.n_common);
        CHECK(did.n_reused + did.n_computed == n_tokens);
        CHECK((did.n_reused < did.n_common) == (did.n_limiting_layers > 0));
        CHECK((did.n_limiting_layers > 0) == (did.limiting_layer != LG_INDEX_NONE));
        check_tokens(session, tokens, n_tokens);
        prefill(fresh, tokens, n_tokens);
        CHECK(same_logits(session, fresh));
        CALL(lg_session_restore_points, (session, points, N_CTX, &n_points, &error));
        CHECK(n_points > 0 && points[n_points - 1] == n_tokens && lg_session_restore_bytes(session) > 0);
        if (n_points > 1)
            REFUSED(LG_ERR_TOO_SMALL, lg_session_restore_points, (session, points, 1, &n_points, &error));
        n_tokens = 50 + random_below(N_CTX - 50);
        lg_session_free(fresh);
    }
    // The same again needs nothing.
    n_tokens = lg_session_n_tokens(session);
    CALL(lg_session_prompt, (session, tokens, n_tokens, NULL, NULL, NULL, &did, &error));
    CHECK(did.n_common == n_tokens && did.n_reused == n_tokens && did.n_computed == 0);
    lg_session_free(session);
}

typedef struct {
    lg_session *const *batch;
    size_t n_calls;
} Nested;

// The first session is in use, so a batch with it is refused as a whole.
static bool on_progress(void *user, size_t n_done, size_t n_tokens)
{
    Nested *nested = user;
    const uint32_t tokens[N_BATCH] = {0};
    (void)n_done, (void)n_tokens;
    nested->n_calls++;
    REFUSED(LG_ERR_BUSY, lg_session_step_batch, (nested->batch, tokens, NULL, N_BATCH, NULL, &error));
    REFUSED(LG_ERR_BUSY, lg_session_reset, (nested->batch[0], &error));
    CHECK(lg_session_n_bytes(nested->batch[0]) > lg_session_kv_bytes(nested->batch[0]));
    return true;
}

static void a_batch_gives_each_session_what_it_gets_alone(const lg_model *model, const lg_model *other_model)
{
    lg_session *batch[N_BATCH + 1], *alone[N_BATCH];
    uint32_t held[N_BATCH][N_CTX], next[N_BATCH + 1] = {0};
    size_t n[N_BATCH];
    for (size_t i = 0; i < N_BATCH; i++) {
        n[i] = 1 + random_below(100);
        fill(model, held[i], n[i]);
        batch[i] = new_session(model, LG_KV_TYPE_F16);
        alone[i] = new_session(model, LG_KV_TYPE_F16);
        prefill(batch[i], held[i], n[i]);
        prefill(alone[i], held[i], n[i]);
    }
    lg_cancel *cancel = NULL;
    CALL(lg_cancel_new, (&cancel, &error));
    lg_cancel_set(cancel);
    REFUSED(LG_ERR_CANCELLED, lg_session_step_batch, (batch, next, NULL, N_BATCH, cancel, &error));
    lg_cancel_reset(cancel);
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (batch, next, NULL, 0, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (NULL, NULL, NULL, 0, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (NULL, next, NULL, N_BATCH, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (batch, NULL, NULL, N_BATCH, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (batch, next, NULL, SIZE_MAX, NULL, &error));
    lg_session *const unfit[] = {NULL, batch[0], batch[N_BATCH - 1], new_session(other_model, LG_KV_TYPE_F16),
                                 new_session(model, LG_KV_TYPE_F32)};
    for (size_t i = 0; i < sizeof unfit / sizeof *unfit; i++) {
        batch[N_BATCH] = unfit[i];
        REFUSED(LG_ERR_INVALID, lg_session_step_batch, (batch, next, NULL, N_BATCH + 1, NULL, &error));
    }
    next[N_BATCH - 1] = lg_model_n_vocab(model);
    REFUSED(LG_ERR_INVALID, lg_session_step_batch, (batch, next, NULL, N_BATCH, NULL, &error));
    lg_session_free(unfit[3]);
    lg_session_free(unfit[4]);

    // A token each, then parts of prompts beside single tokens.
    uint64_t n_prompt[N_BATCH], n_generated[N_BATCH] = {0};
    for (size_t i = 0; i < N_BATCH; i++)
        n_prompt[i] = n[i];
    for (size_t step = 0; step < 20; step++) {
        uint32_t parts[N_BATCH * 3];
        size_t lengths[N_BATCH], n_parts = 0;
        for (size_t i = 0; i < N_BATCH; i++) {
            CHECK(same_logits(batch[i], alone[i]));
            check_tokens(batch[i], held[i], n[i]);
            check_counters(batch[i], n_prompt[i], n_generated[i]);
            lengths[i] = step % 2 == 0 ? 1 : 1 + random_below(3);
            fill(model, held[i] + n[i], lengths[i]);
            memcpy(parts + n_parts, held[i] + n[i], lengths[i] * sizeof *parts);
            prefill(alone[i], held[i] + n[i], lengths[i]);
            *(lengths[i] == 1 ? &n_generated[i] : &n_prompt[i]) += lengths[i];
            n[i] += lengths[i], n_parts += lengths[i];
        }
        CALL(lg_session_step_batch, (batch, parts, step % 2 == 0 ? NULL : lengths, N_BATCH, cancel, &error));
    }
    Nested nested = {.batch = batch};
    CALL(lg_session_prefill, (batch[0], next, 1, on_progress, &nested, NULL, &error));
    CHECK(nested.n_calls == 1);
    for (size_t i = 0; i < N_BATCH; i++) {
        CHECK(lg_session_n_tokens(batch[i]) == n[i] + (i == 0));
        lg_session_free(batch[i]);
        lg_session_free(alone[i]);
    }
    lg_cancel_free(cancel);
}

static void probabilities_are_the_softmax_of_the_logits(const lg_model *model)
{
    const uint32_t n_vocab = lg_model_n_vocab(model);
    lg_session *session = new_session(model, LG_KV_TYPE_F16);
    lg_token_logprob top[256] = {{.token = 99}};
    float logprob = 99;
    REFUSED(LG_ERR_INVALID, lg_session_top_logprobs, (session, top, 3, &error));
    REFUSED(LG_ERR_INVALID, lg_session_logprob, (session, 0, &logprob, &error));
    for (size_t step = 0; step < 10; step++) {
        CALL(lg_session_decode, (session, random_below(n_vocab), NULL, &error));
        const float *logits;
        size_t n_logits;
        CALL(lg_session_logits, (session, &logits, &n_logits, &error));
        double total = 0, all = 0;
        for (size_t i = 0; i < n_logits; i++)
            total += exp(logits[i]);
        for (uint32_t token = 0; token < n_vocab; token++) {
            CALL(lg_session_logprob, (session, token, &logprob, &error));
            CHECK(fabs(logprob - (logits[token] - log(total))) < 1e-5);
            all += exp(logprob);
        }
        CHECK(fabs(all - 1) < 1e-5);

        const size_t n = random_below(257);
        CALL(lg_session_top_logprobs, (session, top, n, &error));
        for (size_t i = 0; i < n; i++) {
            size_t n_before = 0;
            for (uint32_t token = 0; token < n_vocab; token++)
                n_before += logits[token] > logits[top[i].token] ||
                            (logits[token] == logits[top[i].token] && token < top[i].token);
            CHECK(n_before == i);
            CALL(lg_session_logprob, (session, top[i].token, &logprob, &error));
            CHECK(top[i].logprob == logprob);
        }
    }
    logprob = 99;
    REFUSED(LG_ERR_INVALID, lg_session_logprob, (session, n_vocab, &logprob, &error));
    REFUSED(LG_ERR_INVALID, lg_session_top_logprobs, (session, top, 257, &error));
    CALL(lg_session_top_logprobs, (session, NULL, 0, &error));
    CHECK(logprob == 99);
    lg_session_free(session);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    const lg_model_params params = {.struct_size = sizeof params, .n_threads = 2};
    lg_model *model = NULL, *other_model = NULL;
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    CALL(lg_model_open, (argv[1], &params, &other_model, &error));
    tokens_and_counters_tell_what_was_done(model);
    a_cache_takes_what_its_type_takes(model);
    a_reset_session_is_a_new_one(model);
    a_prompt_is_what_a_new_session_computes(model);
    a_batch_gives_each_session_what_it_gets_alone(model, other_model);
    probabilities_are_the_softmax_of_the_logits(model);
    lg_model_free(other_model);
    lg_model_free(model);
    return 0;
}
