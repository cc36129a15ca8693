// An answer in one call is what the calls one by one give, wherever it ends and goes on.
// usage: generate MODEL
#include "check.h"

#include <math.h>

enum { N_PROMPT = 20, CHUNK = 4, MAX_TOKENS = 64, N_CTX = N_PROMPT + MAX_TOKENS };

static lg_error error = {.struct_size = sizeof error};
static uint32_t prompt[N_PROMPT];

// What was told, and when to stop it: behind so many tokens of the answer, or of the prompt.
typedef struct {
    lg_session *session;
    lg_sampler *sampler;
    lg_cancel *cancel;
    size_t stop_at, cancel_at, stop_prompt_at, cancel_prompt_at;
    size_t n_done;
    uint32_t tokens[MAX_TOKENS + 1];
    size_t n_tokens;
    char text[4 * MAX_TOKENS];
    size_t n_bytes;
    bool has_ended;
} Answer;

// Both are in use: calls into them are refused and harm nothing.
static void are_busy(const Answer *answer)
{
    uint32_t other;
    lg_error inner = {.struct_size = sizeof inner};
    CHECK(lg_session_decode(answer->session, 1, NULL, &inner) == LG_ERR_BUSY);
    CHECK(lg_sampler_reset(answer->sampler, &inner) == LG_ERR_BUSY);
    CHECK(lg_sampler_sample(answer->sampler, answer->session, &other, &inner) == LG_ERR_BUSY);
}

static bool on_progress(void *user, size_t n_done, size_t n_tokens)
{
    Answer *answer = user;
    CHECK(n_done > answer->n_done && n_done <= n_tokens);
    answer->n_done = n_done;
    are_busy(answer);
    if (n_done == answer->cancel_prompt_at)
        lg_cancel_set(answer->cancel);
    return n_done != answer->stop_prompt_at;
}

static bool on_text(void *user, uint32_t token, const char *text, size_t n_bytes)
{
    Answer *answer = user;
    CHECK(!answer->has_ended && answer->n_bytes + n_bytes <= sizeof answer->text);
    memcpy(answer->text + answer->n_bytes, text, n_bytes);
    answer->n_bytes += n_bytes;
    if (token == LG_TOKEN_NONE) {
        CHECK(n_bytes > 0);
        answer->has_ended = true;
        return true;
    }
    CHECK(answer->n_tokens <= MAX_TOKENS);
    answer->tokens[answer->n_tokens++] = token;
    are_busy(answer);
    if (answer->n_tokens == answer->cancel_at)
        lg_cancel_set(answer->cancel);
    answer->has_ended = answer->n_tokens == answer->stop_at;
    return !answer->has_ended;
}

static lg_session *new_session(const lg_model *model)
{
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = N_CTX, .chunk_tokens = CHUNK};
    lg_session *session = NULL;
    CALL(lg_session_new, (model, &params, &session, &error));
    return session;
}

static lg_sampler *new_sampler(uint64_t seed)
{
    const lg_sampler_params params = {.struct_size = sizeof params, .seed = seed, .temperature = 1.0f};
    lg_sampler *sampler = NULL;
    CALL(lg_sampler_new, (&params, &sampler, &error));
    return sampler;
}

static Answer new_answer(const lg_model *model, uint64_t seed)
{
    return (Answer){.session = new_session(model), .sampler = new_sampler(seed)};
}

static void free_answer(Answer *answer)
{
    lg_session_free(answer->session);
    lg_sampler_free(answer->sampler);
}

// One whose tokens are one character each.
static Answer new_ascii_answer(const lg_model *model, uint64_t seed)
{
    const Answer answer = new_answer(model, seed);
    lg_logit_bias biases[512];
    size_t n = 0;
    for (uint32_t token = 128; token < lg_model_n_vocab(model); token++)
        biases[n++] = (lg_logit_bias){token, -INFINITY};
    CALL(lg_sampler_set_bias, (answer.sampler, biases, n, &error));
    return answer;
}

static lg_generate_params told(Answer *answer, const lg_generate_params *params)
{
    lg_generate_params all = *params;
    all.on_progress = on_progress;
    all.on_text = on_text;
    all.user = answer;
    all.cancel = answer->cancel;
    answer->n_done = 0;
    return all;
}

static lg_generate_result generate(Answer *answer, const uint32_t *tokens, size_t n_tokens,
                                   const lg_generate_params *params)
{
    const lg_generate_params all = told(answer, params);
    lg_generate_result result = {.struct_size = sizeof result};
    CALL(lg_session_generate, (answer->session, answer->sampler, tokens, n_tokens, &all, &result, &error));
    answer->has_ended = false;
    return result;
}

// The prompt is not done, or the answer not begun: that is an error, and the session holds this much.
static void is_cancelled(Answer *answer, const uint32_t *tokens, size_t n_tokens, const lg_generate_params *params,
                         size_t n_held)
{
    const lg_generate_params all = told(answer, params);
    lg_generate_result result = {.struct_size = sizeof result, .n_tokens = 99};
    REFUSED(LG_ERR_CANCELLED, lg_session_generate,
            (answer->session, answer->sampler, tokens, n_tokens, &all, &result, &error));
    CHECK(result.n_tokens == 99 && answer->n_tokens == 0 && answer->n_bytes == 0);
    CHECK(lg_session_n_tokens(answer->session) == n_held);
}

static bool ends(const lg_generate_result *result, uint32_t reason, size_t n_tokens, uint32_t pending)
{
    return result->struct_size == sizeof *result && result->reason == reason && result->n_tokens == n_tokens &&
           result->pending_token == pending && (result->reason == LG_STOP_STRING) == (result->stop_index != LG_INDEX_NONE) &&
           (result->reason == LG_STOP_END) == (result->end_token != LG_TOKEN_NONE);
}

static bool same(const Answer *a, const Answer *b)
{
    return a->n_tokens == b->n_tokens && memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) == 0 &&
           a->n_bytes == b->n_bytes && memcmp(a->text, b->text, a->n_bytes) == 0;
}

// With one call for each step; the model must not end it.
static Answer by_hand(const lg_model *model, Answer answer, size_t n)
{
    lg_text_stream *stream = NULL;
    const char *text;
    size_t n_bytes;
    CALL(lg_text_stream_new, (NULL, 0, &stream, &error));
    CALL(lg_session_prefill, (answer.session, prompt, N_PROMPT, NULL, NULL, NULL, &error));
    while (answer.n_tokens < n) {
        uint32_t *token = &answer.tokens[answer.n_tokens++];
        CALL(lg_sampler_sample, (answer.sampler, answer.session, token, &error));
        CHECK(!lg_model_is_end_of_generation(model, *token));
        CALL(lg_text_stream_push_token, (stream, model, *token, &text, &n_bytes, &error));
        memcpy(answer.text + answer.n_bytes, text, n_bytes);
        answer.n_bytes += n_bytes;
        CALL(lg_session_decode, (answer.session, *token, NULL, &error));
    }
    CALL(lg_text_stream_finish, (stream, &text, &n_bytes, &error));
    memcpy(answer.text + answer.n_bytes, text, n_bytes);
    answer.n_bytes += n_bytes;
    lg_text_stream_free(stream);
    return answer;
}

static void it_is_what_the_calls_give_one_by_one(const lg_model *model)
{
    const uint32_t lengths[] = {1, 7, 40};
    for (uint64_t seed = 0; seed < 6; seed++) {
        const uint32_t n = lengths[seed % 3];
        const lg_generate_params params = {.struct_size = sizeof params, .max_tokens = n};
        Answer expected = by_hand(model, new_answer(model, seed), n), answer = new_answer(model, seed);
        // The prompt by itself, or with the answer.
        if (seed < 3)
            CALL(lg_session_prefill, (answer.session, prompt, N_PROMPT, NULL, NULL, NULL, &error));
        const lg_generate_result result = generate(&answer, seed < 3 ? NULL : prompt, seed < 3 ? 0 : N_PROMPT, &params);
        CHECK(ends(&result, LG_STOP_LENGTH, n, expected.tokens[n - 1]) && same(&answer, &expected));
        CHECK(lg_session_n_tokens(answer.session) == N_PROMPT + n - 1);
        // Nobody needs to be told.
        Answer silent = new_answer(model, seed);
        lg_generate_result again = {.struct_size = sizeof again};
        CALL(lg_session_generate, (silent.session, silent.sampler, prompt, N_PROMPT, &params, &again, &error));
        CHECK(ends(&again, LG_STOP_LENGTH, n, expected.tokens[n - 1]));
        free_answer(&silent);
        free_answer(&answer);
        free_answer(&expected);
    }
}

// Where `part` first begins in the text.
static size_t find(const Answer *answer, const char *part)
{
    size_t i = 0;
    while (i + strlen(part) <= answer->n_bytes && memcmp(answer->text + i, part, strlen(part)) != 0)
        i++;
    return i;
}

static void a_stop_string_ends_it(const lg_model *model)
{
    size_t n_cases = 0;
    for (uint64_t seed = 0; seed < 8; seed++) {
        Answer expected = by_hand(model, new_answer(model, seed), 40);
        char part[8] = {0};
        size_t start = 10 + seed, end = start;
        while ((expected.text[start] & 0xc0) == 0x80)
            start++;
        for (end = start + 2; (expected.text[end] & 0xc0) == 0x80;)
            end++;
        memcpy(part, expected.text + start, end - start);
        if (strlen(part) == end - start) {
            const char *const stops[] = {"no such text", part};
            const lg_generate_params params = {
                .struct_size = sizeof params, .max_tokens = 40, .stops = stops, .n_stops = 2};
            Answer answer = new_answer(model, seed);
            const lg_generate_result result = generate(&answer, prompt, N_PROMPT, &params);
            CHECK(ends(&result, LG_STOP_STRING, answer.n_tokens, answer.tokens[answer.n_tokens - 1]));
            CHECK(result.stop_index == 1 && answer.n_tokens <= 40);
            CHECK(memcmp(answer.tokens, expected.tokens, answer.n_tokens * sizeof *answer.tokens) == 0);
            expected.n_bytes = find(&expected, part);
            CHECK(answer.n_bytes == expected.n_bytes && memcmp(answer.text, expected.text, answer.n_bytes) == 0);
            free_answer(&answer);
            n_cases++;
        }
        free_answer(&expected);
    }
    CHECK(n_cases > 4);
}

static void it_stops_where_it_is_told_to_and_goes_on_from_there(const lg_model *model)
{
    const lg_generate_params params = {.struct_size = sizeof params, .max_tokens = 30};
    Answer expected = by_hand(model, new_ascii_answer(model, 5), 30);
    lg_cancel *cancel = NULL;
    CALL(lg_cancel_new, (&cancel, &error));
    for (size_t n = 1; n < 30; n += 3) {
        Answer answer = new_ascii_answer(model, 5);
        lg_generate_params begin = params, rest = params;
        rest.max_tokens = (uint32_t)(30 - n);
        // With this stop string the last character is held back until the end, which tells it unless the callback stops.
        const char stop[] = {expected.text[n - 1], 'n', 'e', 'v', 'e', 'r', '\0'};
        const char *const stops[] = {stop};
        begin.stops = stops;
        begin.n_stops = 1;
        const bool by_cancel = n % 2 == 0;
        answer.cancel = cancel;
        *(by_cancel ? &answer.cancel_at : &answer.stop_at) = n;
        lg_generate_result result = generate(&answer, prompt, N_PROMPT, &begin);
        CHECK(ends(&result, by_cancel ? LG_STOP_CANCELLED : LG_STOP_CALLBACK, n, expected.tokens[n - 1]));
        CHECK(answer.n_tokens == n && lg_session_n_tokens(answer.session) == N_PROMPT + n - 1);
        CHECK(answer.n_bytes == (by_cancel ? n : n - 1));
        answer.text[n - 1] = expected.text[n - 1];
        answer.n_bytes = n;
        lg_cancel_reset(cancel);
        result = generate(&answer, &result.pending_token, 1, &rest);
        CHECK(ends(&result, LG_STOP_LENGTH, 30 - n, expected.tokens[29]) && same(&answer, &expected));
        free_answer(&answer);
    }
    lg_cancel_free(cancel);
    free_answer(&expected);
}

static void a_prompt_that_is_stopped_goes_on(const lg_model *model)
{
    const lg_generate_params params = {.struct_size = sizeof params, .max_tokens = 30};
    Answer expected = by_hand(model, new_answer(model, 6), 30);
    lg_cancel *cancel = NULL;
    CALL(lg_cancel_new, (&cancel, &error));
    for (size_t n = CHUNK; n <= N_PROMPT; n += CHUNK) {
        for (int by_cancel = 0; by_cancel < 2; by_cancel++) {
            Answer answer = new_answer(model, 6);
            answer.cancel = cancel;
            *(by_cancel ? &answer.cancel_prompt_at : &answer.stop_prompt_at) = n;
            is_cancelled(&answer, prompt, N_PROMPT, &params, n);
            if (by_cancel) {
                is_cancelled(&answer, prompt, N_PROMPT, &params, n);
                is_cancelled(&answer, NULL, 0, &params, n);
                lg_cancel_reset(cancel);
            }
            answer.cancel_prompt_at = answer.stop_prompt_at = 0;
            const lg_generate_result result = generate(&answer, prompt + n, N_PROMPT - n, &params);
            CHECK(ends(&result, LG_STOP_LENGTH, 30, expected.tokens[29]) && same(&answer, &expected));
            free_answer(&answer);
        }
    }
    lg_cancel_free(cancel);
    free_answer(&expected);
}

static void it_ends_with_the_context(const lg_model *model)
{
    Answer answer = new_answer(model, 1);
    const lg_generate_params forever = {.struct_size = sizeof forever, .ignore_end = 1};
    const lg_generate_result result = generate(&answer, prompt, N_PROMPT, &forever);
    CHECK(ends(&result, LG_STOP_CONTEXT_FULL, MAX_TOKENS + 1, answer.tokens[MAX_TOKENS]));
    CHECK(lg_session_n_tokens(answer.session) == N_CTX && answer.n_tokens == MAX_TOKENS + 1);
    free_answer(&answer);
}

static void the_model_ends_it_unless_that_is_ignored(const lg_model *model)
{
    const uint32_t eos = 257;
    CHECK(lg_model_is_end_of_generation(model, eos));
    const lg_logit_bias bias = {eos, 100};
    lg_generate_params params = {.struct_size = sizeof params, .max_tokens = 3};
    Answer answer = new_answer(model, 1);
    CALL(lg_sampler_set_bias, (answer.sampler, &bias, 1, &error));
    lg_generate_result result = generate(&answer, prompt, N_PROMPT, &params);
    CHECK(ends(&result, LG_STOP_END, 0, LG_TOKEN_NONE) && answer.n_tokens == 0 && answer.n_bytes == 0);
    CHECK(result.end_token == eos && lg_model_is_end_of_generation(model, result.end_token));
    CHECK(lg_session_n_tokens(answer.session) == N_PROMPT);
    params.ignore_end = 1;
    result = generate(&answer, NULL, 0, &params);
    CHECK(ends(&result, LG_STOP_LENGTH, 3, eos) && answer.n_tokens == 3 && answer.n_bytes == 0);
    free_answer(&answer);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    const lg_model_params params = {.struct_size = sizeof params, .n_threads = 2};
    lg_model *model = NULL;
    for (uint32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = i * i * 7 % 256;
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    it_is_what_the_calls_give_one_by_one(model);
    a_stop_string_ends_it(model);
    it_stops_where_it_is_told_to_and_goes_on_from_there(model);
    a_prompt_that_is_stopped_goes_on(model);
    it_ends_with_the_context(model);
    the_model_ends_it_unless_that_is_ignored(model);
    lg_model_free(model);
    return 0;
}
