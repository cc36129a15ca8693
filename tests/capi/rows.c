// Rows of a prompt: their logits and hidden states are those of tokens that are decoded one by one.
// usage: rows MODEL
#include "check.h"

enum { N_TOKENS = 70, CHUNK = 16 };

static lg_error error = {.struct_size = sizeof error};
static uint32_t tokens[N_TOKENS];
// (N_TOKENS, n_vocab) and (N_TOKENS, n_hidden), token by token
static float *all_logits, *all_hidden;
static size_t n_vocab, n_hidden;

static lg_session *new_session(const lg_model *model)
{
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = 128, .chunk_tokens = CHUNK};
    lg_session *session = NULL;
    CALL(lg_session_new, (model, &params, &session, &error));
    return session;
}

static float *row(float *matrix, size_t i, size_t width)
{
    return matrix + i * width;
}

static void decode_one_by_one(const lg_model *model)
{
    lg_session *session = new_session(model);
    for (size_t i = 0; i < N_TOKENS; i++) {
        const float *logits, *hidden;
        CALL(lg_session_decode, (session, tokens[i], NULL, &error));
        CALL(lg_session_logits, (session, &logits, &n_vocab, &error));
        CALL(lg_session_hidden, (session, &hidden, &n_hidden, &error));
        if (i == 0) {
            all_logits = malloc(N_TOKENS * n_vocab * sizeof *all_logits);
            all_hidden = malloc(N_TOKENS * n_hidden * sizeof *all_hidden);
            CHECK(n_vocab == lg_model_n_vocab(model) && n_hidden > 0 && all_logits && all_hidden);
        }
        memcpy(row(all_logits, i, n_vocab), logits, n_vocab * sizeof *logits);
        memcpy(row(all_hidden, i, n_hidden), hidden, n_hidden * sizeof *hidden);
    }
    lg_session_free(session);
}

static bool on_progress(void *user, size_t n_done, size_t n_tokens)
{
    const size_t *stop_at = user;
    CHECK(n_done <= n_tokens);
    return n_done < *stop_at;
}

// Every row whose number `step` divides, of tokens[begin..]; a call that is stopped behind some chunks goes on there.
static void rows_are_those_of_single_tokens(const lg_model *model, size_t begin, size_t step, size_t stop_at)
{
    lg_session *session = new_session(model);
    size_t rows[N_TOKENS], n_rows = 0;
    for (size_t i = 0; i < N_TOKENS - begin; i += step)
        rows[n_rows++] = i;
    // Exactly as large as they must be.
    float *logits = malloc(n_rows * n_vocab * sizeof *logits), *hidden = malloc(n_rows * n_hidden * sizeof *hidden);
    CHECK(logits && hidden);
    if (begin > 0)
        CALL(lg_session_prefill, (session, tokens, begin, NULL, NULL, NULL, &error));
    size_t n_there = n_rows;
    if (stop_at < N_TOKENS - begin) {
        REFUSED(LG_ERR_CANCELLED, lg_session_prefill_rows,
                (session, tokens + begin, N_TOKENS - begin, rows, n_rows, on_progress, &stop_at, NULL, logits,
                 hidden, &error));
        const size_t n_done = lg_session_n_tokens(session) - begin;
        CHECK(n_done == (stop_at + CHUNK - 1) / CHUNK * CHUNK);
        for (n_there = 0; n_there < n_rows && rows[n_there] < n_done; n_there++)
            ;
    } else {
        CALL(lg_session_prefill_rows, (session, tokens + begin, N_TOKENS - begin, rows, n_rows, on_progress,
                                       &stop_at, NULL, logits, hidden, &error));
        const float *last;
        size_t n;
        const bool has_last = rows[n_rows - 1] == N_TOKENS - begin - 1;
        CHECK((lg_session_logits(session, &last, &n, NULL) == LG_OK) == has_last);
        CHECK(!has_last || memcmp(last, row(all_logits, N_TOKENS - 1, n_vocab), n * sizeof *last) == 0);
        CALL(lg_session_hidden, (session, &last, &n, &error));
        CHECK(memcmp(last, row(all_hidden, N_TOKENS - 1, n_hidden), n * sizeof *last) == 0);
    }
    for (size_t i = 0; i < n_there; i++) {
        const size_t token = begin + rows[i];
        CHECK(memcmp(row(logits, i, n_vocab), row(all_logits, token, n_vocab), n_vocab * sizeof *logits) == 0);
        CHECK(memcmp(row(hidden, i, n_hidden), row(all_hidden, token, n_hidden), n_hidden * sizeof *hidden) == 0);
    }
    lg_session_free(session);
    free(logits);
    free(hidden);
}

static void what_is_not_wanted_may_be_null(const lg_model *model)
{
    const size_t rows[2] = {0, N_TOKENS - 1};
    lg_session *session = new_session(model);
    float *hidden = malloc(2 * n_hidden * sizeof *hidden);
    CHECK(hidden);
    CALL(lg_session_prefill_rows,
         (session, tokens, N_TOKENS, rows, 2, NULL, NULL, NULL, NULL, hidden, &error));
    CHECK(memcmp(row(hidden, 1, n_hidden), row(all_hidden, N_TOKENS - 1, n_hidden), n_hidden * sizeof *hidden) == 0);
    CALL(lg_session_reset, (session, &error));
    CALL(lg_session_prefill_rows, (session, tokens, N_TOKENS, NULL, 0, NULL, NULL, NULL, NULL, NULL, &error));
    const float *logits;
    size_t n;
    REFUSED(LG_ERR_INVALID, lg_session_logits, (session, &logits, &n, &error));
    CHECK(lg_session_n_tokens(session) == N_TOKENS);
    lg_session_free(session);
    free(hidden);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    for (size_t i = 0; i < N_TOKENS; i++)
        tokens[i] = (uint32_t)(i * i * 5 + i * 11 + 3) % 256;
    const lg_model_params params = {.struct_size = sizeof params, .n_threads = 2};
    lg_model *model = NULL;
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    decode_one_by_one(model);
    for (size_t step = 1; step < 40; step += 6)
        rows_are_those_of_single_tokens(model, step % 2 * 9, step, step % 5 == 3 ? 20 : SIZE_MAX);
    what_is_not_wanted_may_be_null(model);
    lg_model_free(model);
    free(all_logits);
    free(all_hidden);
    return 0;
}
