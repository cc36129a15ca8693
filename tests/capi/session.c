// What a session promises: chunks do not show, rewinds leave nothing behind, a stopped call can go on, any order of
// freeing works.
// usage: session MODEL
#include "check.h"

#include <math.h>

enum { N_TOKENS = 150, CHUNK = 16, N_CHUNKS = (N_TOKENS + CHUNK - 1) / CHUNK };

static lg_error error = {.struct_size = sizeof error};
static uint32_t tokens[N_TOKENS];

static size_t random_below(size_t n)
{
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (state >> 8) % n;
}

static lg_session *new_session(const lg_model *model, uint32_t chunk_tokens)
{
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = 256, .chunk_tokens = chunk_tokens};
    lg_session *session = NULL;
    CALL(lg_session_new, (model, &params, &session, &error));
    return session;
}

static void prefill(lg_session *session, size_t begin, size_t end)
{
    CALL(lg_session_prefill, (session, tokens + begin, end - begin, NULL, NULL, NULL, &error));
    CHECK(lg_session_n_tokens(session) == end);
}

// Whether the logits of both sessions are the same bits.
static bool same_logits(const lg_session *a, const lg_session *b)
{
    const float *x, *y;
    size_t n, m;
    CALL(lg_session_logits, (a, &x, &n, &error));
    CALL(lg_session_logits, (b, &y, &m, &error));
    return n == m && memcmp(x, y, n * sizeof *x) == 0;
}

static void chunks_do_not_show(const lg_model *model, const lg_session *expected)
{
    lg_session *session = new_session(model, 7);
    prefill(session, 0, 100);
    for (size_t i = 100; i < N_TOKENS; i++)
        CALL(lg_session_decode, (session, tokens[i], NULL, &error));
    CHECK(same_logits(session, expected));
    lg_session_free(session);
}

static void a_rewind_leaves_nothing_behind(const lg_model *model, const lg_session *expected)
{
    lg_session *session = new_session(model, CHUNK);
    size_t n_kept;
    prefill(session, 0, N_TOKENS - 9);
    for (uint32_t token = 0; token < 5; token++)
        CALL(lg_session_decode, (session, token, NULL, &error));
    CALL(lg_session_rewind, (session, N_TOKENS - 9, &n_kept, &error));
    CHECK(n_kept == N_TOKENS - 9 && lg_session_n_tokens(session) == n_kept);
    const float *logits;
    size_t n;
    REFUSED(LG_ERR_INVALID, lg_session_logits, (session, &logits, &n, &error));
    prefill(session, N_TOKENS - 9, N_TOKENS);
    CHECK(same_logits(session, expected));

    // So far back that the sparse layers have forgotten: what is missing is appended again.
    CALL(lg_session_rewind, (session, 20, &n_kept, &error));
    CHECK(n_kept < 20 && lg_session_n_tokens(session) == n_kept);
    prefill(session, n_kept, N_TOKENS);
    CHECK(same_logits(session, expected));
    REFUSED(LG_ERR_INVALID, lg_session_rewind, (session, N_TOKENS + 1, &n_kept, &error));
    lg_session_free(session);
}

typedef struct {
    lg_session *session;
    // What stops the call; NULL for the callback itself.
    lg_cancel *cancel;
    size_t stop_at;
    size_t n_calls;
    size_t n_done;
} Progress;

static bool on_progress(void *user, size_t n_done, size_t n_tokens)
{
    Progress *progress = user;
    CHECK(n_done > progress->n_done && n_done <= n_tokens);
    progress->n_calls++;
    progress->n_done = n_done;
    // The session is in use: calls into it are refused and harm nothing.
    REFUSED(LG_ERR_BUSY, lg_session_decode, (progress->session, 1, NULL, &error));
    REFUSED(LG_ERR_BUSY, lg_session_prefill, (progress->session, tokens, 1, NULL, NULL, NULL, &error));
    CHECK(lg_session_n_tokens(progress->session) == 0);
    CHECK(lg_session_n_ctx(progress->session) == 256 && lg_session_n_bytes(progress->session) > 0);
    if (n_done < progress->stop_at)
        return true;
    lg_cancel_set(progress->cancel);
    return progress->cancel != NULL;
}

static void a_stopped_call_can_go_on(const lg_model *model, const lg_session *expected)
{
    lg_cancel *cancel = NULL;
    CALL(lg_cancel_new, (&cancel, &error));
    for (size_t i = 0; i < 6; i++) {
        // Behind any chunk; behind the last a cancel object comes too late, and the callback does not.
        const bool by_cancel = i % 2 == 1;
        const size_t n_chunks = i == 0 ? N_CHUNKS : 1 + random_below(N_CHUNKS - 1);
        const size_t n_done = n_chunks == N_CHUNKS ? N_TOKENS : n_chunks * CHUNK;
        Progress progress = {
            .session = new_session(model, CHUNK), .cancel = by_cancel ? cancel : NULL, .stop_at = n_done};
        lg_session *session = progress.session;
        REFUSED(LG_ERR_CANCELLED, lg_session_prefill,
                (session, tokens, N_TOKENS, on_progress, &progress, progress.cancel, &error));
        CHECK(progress.n_calls == n_chunks && lg_session_n_tokens(session) == n_done);
        if (by_cancel) {
            REFUSED(LG_ERR_CANCELLED, lg_session_decode, (session, 1, cancel, &error));
            CHECK(lg_session_n_tokens(session) == n_done);
            lg_cancel_reset(cancel);
        }
        if (n_done < N_TOKENS) {
            progress = (Progress){.session = session, .stop_at = SIZE_MAX};
            CALL(lg_session_prefill,
                 (session, tokens + n_done, N_TOKENS - n_done, on_progress, &progress, cancel, &error));
            CHECK(progress.n_done == N_TOKENS - n_done);
        }
        CHECK(same_logits(session, expected));
        lg_session_free(session);
    }
    lg_cancel_free(cancel);
}

static void samplers_repeat_themselves(const lg_session *session)
{
    const lg_sampler_params params = {.struct_size = sizeof params, .seed = 5, .temperature = 1.0f, .top_k = 50};
    lg_sampler *a = NULL, *b = NULL;
    CALL(lg_sampler_new, (&params, &a, &error));
    CALL(lg_sampler_new, (&params, &b, &error));
    bool differ = false;
    uint32_t first = LG_TOKEN_NONE;
    for (int i = 0; i < 100; i++) {
        uint32_t x, y;
        CALL(lg_sampler_sample, (a, session, &x, &error));
        CALL(lg_sampler_sample, (b, session, &y, &error));
        CHECK(x == y);
        differ = differ || (i > 0 && x != first);
        first = x;
    }
    CHECK(differ);
    lg_sampler_free(b);
    lg_sampler_free(a);
}

// The token with the highest logit, those of the last `n_recent` tokens penalised.
static uint32_t likeliest(const lg_session *session, float repeat_penalty, size_t n_recent)
{
    const float *logits;
    size_t n_logits, n_tokens = lg_session_n_tokens(session);
    uint32_t best = 0;
    float highest = -INFINITY;
    CALL(lg_session_logits, (session, &logits, &n_logits, &error));
    for (uint32_t token = 0; token < n_logits; token++) {
        bool is_recent = false;
        for (size_t i = n_recent < n_tokens ? n_tokens - n_recent : 0; i < n_tokens; i++)
            is_recent = is_recent || tokens[i] == token;
        float logit = logits[token];
        if (is_recent)
            logit = logit > 0 ? logit / repeat_penalty : logit * repeat_penalty;
        if (logit > highest) {
            highest = logit;
            best = token;
        }
    }
    return best;
}

static void penalties_look_back_in_the_session(const lg_model *model)
{
    lg_session *session = new_session(model, 0);
    size_t n_changed = 0;
    // 0 is what a program leaves out: no penalty, and 64 tokens.
    const float penalties[] = {0, 1, 1.5f, 10, 0.3f};
    const uint32_t n_last[] = {0, 1, 20, UINT32_MAX};
    for (size_t i = 0; i < N_TOKENS; i++) {
        CALL(lg_session_decode, (session, tokens[i], NULL, &error));
        for (size_t j = 0; j < 5 * 4; j++) {
            const lg_sampler_params params = {.struct_size = sizeof params,
                                              .repeat_penalty = penalties[j % 5],
                                              .repeat_last_n = n_last[j / 5]};
            const float penalty = params.repeat_penalty == 0 ? 1 : params.repeat_penalty;
            lg_sampler *sampler = NULL;
            uint32_t token;
            CALL(lg_sampler_new, (&params, &sampler, &error));
            CALL(lg_sampler_sample, (sampler, session, &token, &error));
            CHECK(token == likeliest(session, penalty, params.repeat_last_n == 0 ? 64 : params.repeat_last_n));
            n_changed += token != likeliest(session, 1, 0);
            lg_sampler_free(sampler);
        }
    }
    CHECK(n_changed > 0);
    lg_session_free(session);
}

static void a_longer_context_costs_more(const lg_model *model)
{
    lg_session_params params = {.struct_size = sizeof params, .n_ctx = 256};
    lg_memory_plan plan = {.struct_size = sizeof plan}, longer = plan;
    CALL(lg_model_plan, (model, &params, &plan, &error));
    params.n_ctx = 512;
    CALL(lg_model_plan, (model, &params, &longer, &error));
    CHECK(0 < plan.total_bytes && plan.total_bytes < longer.total_bytes);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    for (size_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (uint32_t)(i * i * 7 + i * 3 + 1) % 256;
    const lg_model_params params = {.struct_size = sizeof params, .load = LG_LOAD_READ, .n_threads = 2, .verify = 1};
    lg_model *model = NULL;
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    CHECK(lg_model_n_layers(model) > 0 && lg_model_n_ctx_train(model) >= 256);
    a_longer_context_costs_more(model);

    lg_session *expected = new_session(model, 0);
    prefill(expected, 0, N_TOKENS);
    chunks_do_not_show(model, expected);
    a_rewind_leaves_nothing_behind(model, expected);
    a_stopped_call_can_go_on(model, expected);
    samplers_repeat_themselves(expected);
    penalties_look_back_in_the_session(model);

    // Sessions keep what they need of their model.
    lg_session *other = new_session(model, 32);
    lg_model_free(model);
    prefill(other, 0, N_TOKENS);
    CHECK(same_logits(other, expected));
    lg_session_free(expected);
    lg_session_free(other);
    return 0;
}
