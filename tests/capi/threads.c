// Several threads: sessions of one model and of two compute what they compute alone, and any thread can stop a call.
// usage: threads MODEL
#define _POSIX_C_SOURCE 200809L
#include "stop.h"

enum { N_PROMPT = 90, N_NEW = 20, CHUNK = 16 };

typedef struct {
    const lg_model *model;
    uint32_t seed;
    uint32_t tokens[N_NEW];
} Generation;

static void *generate(void *user)
{
    Generation *generation = user;
    lg_error error = {.struct_size = sizeof error};
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = 128, .chunk_tokens = CHUNK};
    lg_session *session = NULL;
    lg_sampler *sampler = NULL;
    CALL(lg_session_new, (generation->model, &params, &session, &error));
    CALL(lg_sampler_new, (NULL, &sampler, &error));

    char text[N_PROMPT];
    uint32_t prompt[N_PROMPT];
    size_t n_prompt;
    for (size_t i = 0; i < N_PROMPT; i++)
        text[i] = (char)('a' + (i * i + generation->seed * i) % 26);
    CALL(lg_model_tokenize, (generation->model, text, N_PROMPT, 0, prompt, N_PROMPT, &n_prompt, &error));
    CALL(lg_session_prefill, (session, prompt, n_prompt, NULL, NULL, NULL, &error));
    for (size_t i = 0; i < N_NEW; i++) {
        CALL(lg_sampler_sample, (sampler, session, &generation->tokens[i], &error));
        CALL(lg_session_decode, (session, generation->tokens[i], NULL, &error));
    }
    lg_session_free(session);
    lg_sampler_free(sampler);
    return NULL;
}

static void sessions_side_by_side_compute_what_they_compute_alone(const lg_model *model, const lg_model *other)
{
    enum { N = 4 };
    Generation alone[N], together[N];
    pthread_t threads[N];
    for (uint32_t i = 0; i < N; i++) {
        alone[i] = together[i] = (Generation){.model = i % 2 ? other : model, .seed = i};
        generate(&alone[i]);
    }
    for (size_t i = 0; i < N; i++)
        CHECK(pthread_create(&threads[i], NULL, generate, &together[i]) == 0);
    for (size_t i = 0; i < N; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(memcmp(alone[i].tokens, together[i].tokens, sizeof alone[i].tokens) == 0);
    }
    CHECK(memcmp(alone[0].tokens, alone[1].tokens, sizeof alone[0].tokens) != 0);
}

// The first chunk has finished.
static bool on_progress(void *user, size_t n_done, size_t n_tokens)
{
    Stop *state = user;
    CHECK(n_done == CHUNK && n_tokens == N_PROMPT);
    wait_until_set(state);
    return true;
}

static void another_thread_stops_a_call(const lg_model *model)
{
    lg_error error = {.struct_size = sizeof error};
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = 128, .chunk_tokens = CHUNK};
    lg_session *session = NULL;
    const uint32_t prompt[N_PROMPT] = {0};
    Stop state = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    pthread_t thread;
    CALL(lg_session_new, (model, &params, &session, &error));
    CALL(lg_cancel_new, (&state.cancel, &error));
    CHECK(pthread_create(&thread, NULL, stop, &state) == 0);
    REFUSED(LG_ERR_CANCELLED, lg_session_prefill,
            (session, prompt, N_PROMPT, on_progress, &state, state.cancel, &error));
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(lg_session_n_tokens(session) == CHUNK);
    lg_session_free(session);
    lg_cancel_free(state.cancel);
}

// A thread that sets a cancel object some time after each call began.
typedef struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    // Attempts that have begun, and those of them whose cancel object has been set.
    size_t n_begun, n_set;
    bool is_over;
    lg_cancel *cancel;
} Interrupter;

static void *interrupt(void *user)
{
    Interrupter *state = user;
    uint32_t random = 1;
    pthread_mutex_lock(&state->mutex);
    for (;;) {
        while (state->n_set == state->n_begun && !state->is_over)
            pthread_cond_wait(&state->changed, &state->mutex);
        if (state->is_over)
            break;
        pthread_mutex_unlock(&state->mutex);
        // Anything from at once to long after the call, and mostly little.
        random = random * 1664525u + 1013904223u;
        for (volatile uint32_t spins = (random >> 12) >> (random >> 3) % 18; spins > 0; spins--)
            ;
        pthread_mutex_lock(&state->mutex);
        lg_cancel_set(state->cancel);
        state->n_set++;
        pthread_cond_signal(&state->changed);
    }
    pthread_mutex_unlock(&state->mutex);
    return NULL;
}

static void begin(Interrupter *state)
{
    pthread_mutex_lock(&state->mutex);
    state->n_begun++;
    pthread_cond_signal(&state->changed);
    pthread_mutex_unlock(&state->mutex);
}

// Waits for the interruption, which may have come too late.
static void end(Interrupter *state)
{
    pthread_mutex_lock(&state->mutex);
    while (state->n_set < state->n_begun)
        pthread_cond_wait(&state->changed, &state->mutex);
    lg_cancel_reset(state->cancel);
    pthread_mutex_unlock(&state->mutex);
}

// Appends what is left of the tokens, until nobody stops it any more.
static void append(lg_session *session, const uint32_t *tokens, size_t end_position, Interrupter *state)
{
    lg_error error = {.struct_size = sizeof error};
    for (size_t n_attempts = 1; lg_session_n_tokens(session) < end_position; n_attempts++) {
        const size_t position = lg_session_n_tokens(session), n = end_position - position;
        const bool may_stop = n_attempts % 4 > 0;
        lg_cancel *cancel = may_stop ? state->cancel : NULL;
        if (may_stop)
            begin(state);
        const lg_status status =
            n == 1 ? lg_session_decode(session, tokens[position], cancel, &error)
                   : lg_session_prefill(session, tokens + position, n, NULL, NULL, cancel, &error);
        if (may_stop)
            end(state);
        CHECK(status == LG_OK || (status == LG_ERR_CANCELLED && may_stop));
        CHECK((status == LG_OK) == (lg_session_n_tokens(session) == end_position));
    }
}

static void calls_that_are_stopped_at_any_moment_add_up_to_one_that_is_not(const lg_model *model)
{
    lg_error error = {.struct_size = sizeof error};
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = 128, .chunk_tokens = CHUNK};
    uint32_t tokens[N_PROMPT + N_NEW];
    for (size_t i = 0; i < N_PROMPT; i++)
        tokens[i] = (uint32_t)(i * i * 3 + i + 1) % 256;
    Interrupter state = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    pthread_t thread;
    CALL(lg_cancel_new, (&state.cancel, &error));
    CHECK(pthread_create(&thread, NULL, interrupt, &state) == 0);
    lg_sampler *sampler = NULL;
    CALL(lg_sampler_new, (NULL, &sampler, &error));
    lg_session *expected = NULL, *session = NULL;
    CALL(lg_session_new, (model, &params, &expected, &error));
    CALL(lg_session_new, (model, &params, &session, &error));
    CALL(lg_session_prefill, (expected, tokens, N_PROMPT, NULL, NULL, NULL, &error));
    append(session, tokens, N_PROMPT, &state);
    for (size_t i = N_PROMPT; i < N_PROMPT + N_NEW; i++) {
        uint32_t token;
        CALL(lg_sampler_sample, (sampler, expected, &tokens[i], &error));
        CALL(lg_sampler_sample, (sampler, session, &token, &error));
        CHECK(token == tokens[i]);
        CALL(lg_session_decode, (expected, token, NULL, &error));
        append(session, tokens, i + 1, &state);
    }
    const float *x, *y;
    size_t n, m;
    CALL(lg_session_logits, (expected, &x, &n, &error));
    CALL(lg_session_logits, (session, &y, &m, &error));
    CHECK(n == m && memcmp(x, y, n * sizeof *x) == 0);

    pthread_mutex_lock(&state.mutex);
    state.is_over = true;
    pthread_cond_signal(&state.changed);
    pthread_mutex_unlock(&state.mutex);
    CHECK(pthread_join(thread, NULL) == 0);
    lg_session_free(session);
    lg_session_free(expected);
    lg_sampler_free(sampler);
    lg_cancel_free(state.cancel);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    lg_error error = {.struct_size = sizeof error};
    const lg_model_params params = {.struct_size = sizeof params, .n_threads = 2};
    lg_model *model = NULL;
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    lg_model *other = NULL;
    CALL(lg_model_open, (argv[1], NULL, &other, &error));
    sessions_side_by_side_compute_what_they_compute_alone(model, other);
    lg_model_free(other);
    another_thread_stops_a_call(model);
    calls_that_are_stopped_at_any_moment_add_up_to_one_that_is_not(model);
    lg_model_free(model);
    return 0;
}
