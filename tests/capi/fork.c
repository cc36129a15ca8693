// Many answers to one prompt: forks of its session say what sessions of their own would, whoever is freed first.
// usage: fork MODEL
#include "check.h"

enum { N_CTX = 300, N_TOKENS = 90, N_FORKS = 3, N_ANSWER = 8 };

static lg_error error = {.struct_size = sizeof error};

static void check_same_logits(const lg_session *a, const lg_session *b)
{
    const float *x, *y;
    size_t n, m;
    CALL(lg_session_logits, (a, &x, &n, &error));
    CALL(lg_session_logits, (b, &y, &m, &error));
    CHECK(n == m && memcmp(x, y, n * sizeof *x) == 0);
}

static lg_session *session_of(const lg_model *model, const uint32_t *tokens)
{
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = N_CTX, .chunk_tokens = 64};
    lg_session *session = NULL;
    CALL(lg_session_new, (model, &params, &session, &error));
    CALL(lg_session_prefill, (session, tokens, N_TOKENS, NULL, NULL, NULL, &error));
    return session;
}

static void answers_to_one_prompt(const lg_model *model, const uint32_t *tokens)
{
    lg_session *prompt = session_of(model, tokens), *forks[N_FORKS];
    for (size_t i = 0; i < N_FORKS; i++) {
        CALL(lg_session_fork, (prompt, NULL, &forks[i], &error));
        CHECK(lg_session_n_tokens(forks[i]) == N_TOKENS && lg_session_n_ctx(forks[i]) == N_CTX);
        CHECK(lg_session_kv_bytes(forks[i]) < lg_session_kv_bytes(prompt));
        check_same_logits(forks[i], prompt);
    }
    lg_session_free(prompt);
    for (uint32_t step = 0; step < N_ANSWER; step++) {
        uint32_t next[N_FORKS];
        for (uint32_t i = 0; i < N_FORKS; i++)
            next[i] = 3 * i + 5 * step;
        CALL(lg_session_step_batch, (forks, next, NULL, N_FORKS, NULL, &error));
    }
    for (uint32_t i = 0; i < N_FORKS; i++) {
        lg_session *alone = session_of(model, tokens);
        for (uint32_t step = 0; step < N_ANSWER; step++)
            CALL(lg_session_decode, (alone, 3 * i + 5 * step, NULL, &error));
        check_same_logits(forks[i], alone);
        lg_session_free(alone);
        lg_session_free(forks[i]);
    }
}

static void what_a_fork_cannot_be_is_refused(const lg_model *model, const uint32_t *tokens)
{
    lg_session *session = session_of(model, tokens), *before = session_of(model, tokens), *fork = NULL;
    const lg_session_params short_context = {.struct_size = sizeof short_context, .n_ctx = N_TOKENS - 1},
                            other_type = {.struct_size = sizeof other_type, .kv_type = LG_KV_TYPE_Q8},
                            little_memory = {.struct_size = sizeof little_memory, .max_bytes = 1000},
                            longer = {.struct_size = sizeof longer, .n_ctx = 2 * N_CTX};
    REFUSED(LG_ERR_CONTEXT_FULL, lg_session_fork, (session, &short_context, &fork, &error));
    REFUSED(LG_ERR_INVALID, lg_session_fork, (session, &other_type, &fork, &error));
    REFUSED(LG_ERR_OUT_OF_MEMORY, lg_session_fork, (session, &little_memory, &fork, &error));
    CHECK(fork == NULL);
    check_same_logits(session, before);
    CALL(lg_session_fork, (session, &longer, &fork, &error));
    CHECK(lg_session_n_ctx(fork) == 2 * N_CTX);
    // What they share is not lost to one when the other goes back.
    size_t kept;
    CALL(lg_session_rewind, (session, 0, &kept, &error));
    CALL(lg_session_prefill, (session, tokens + 1, N_TOKENS - 1, NULL, NULL, NULL, &error));
    CALL(lg_session_decode, (fork, 9, NULL, &error));
    CALL(lg_session_decode, (before, 9, NULL, &error));
    check_same_logits(fork, before);
    lg_session_free(session);
    lg_session_free(before);
    lg_session_free(fork);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    const lg_model_params params = {.struct_size = sizeof params, .n_threads = 2};
    lg_model *model = NULL;
    uint32_t tokens[N_TOKENS];
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    for (uint32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = i * 7919 % lg_model_n_vocab(model);
    answers_to_one_prompt(model, tokens);
    what_a_fork_cannot_be_is_refused(model, tokens);
    lg_model_free(model);
    return 0;
}
