// What a sampler leaves to choose is what the definitions leave, computed here from the logits of all tokens.
// usage: sampler MODEL
#include "check.h"

#include <math.h>

enum { N_TOKENS = 60, MAX_VOCAB = 512, N_WORDS = MAX_VOCAB / 32 };

static lg_error error = {.struct_size = sizeof error};
static uint32_t tokens[N_TOKENS];

static size_t min(size_t a, size_t b)
{
    return a < b ? a : b;
}

// Length of the longest end of the text that stands before an earlier place of `token`, too.
static size_t repeated(uint32_t token, size_t n_last, uint32_t breaker)
{
    const uint32_t *text = tokens + N_TOKENS - min(N_TOKENS, n_last);
    const size_t n_text = min(N_TOKENS, n_last);
    size_t longest = 0;
    for (size_t place = 0; place < n_text && token != breaker; place++) {
        if (text[place] != token)
            continue;
        size_t n = 0;
        while (n < place && text[place - 1 - n] == text[n_text - 1 - n] && text[n_text - 1 - n] != breaker)
            n++;
        longest = n > longest ? n : longest;
    }
    return longest;
}

static double changed(const lg_sampler_params *params, const lg_logit_bias *bias, uint32_t breaker, uint32_t token,
                      double logit)
{
    for (size_t i = 0; i < 2; i++)
        logit += bias[i].token == token ? (double)bias[i].bias : 0;
    size_t n_recent = 0;
    for (size_t i = N_TOKENS - min(N_TOKENS, params->repeat_last_n); i < N_TOKENS; i++)
        n_recent += tokens[i] == token;
    if (n_recent > 0) {
        logit = logit > 0 ? logit / params->repeat_penalty : logit * params->repeat_penalty;
        logit -= (double)n_recent * params->frequency_penalty + params->presence_penalty;
    }
    const size_t n = repeated(token, params->dry_last_n, breaker);
    if (n >= params->dry_allowed_length)
        logit -= params->dry_multiplier * pow(params->dry_base, (double)(n - params->dry_allowed_length));
    return logit;
}

static bool near(double a, double b)
{
    return fabs(a - b) < 1e-4 * (1 + fabs(b));
}

// Likeliest first, probabilities with sum 1; returns how many there are.
static size_t choices_of(lg_sampler *sampler, lg_choice *choices)
{
    size_t n, asked;
    CALL(lg_sampler_choices, (sampler, NULL, 0, &asked, &error));
    if (asked > 0) {
        choices[0].token = LG_TOKEN_NONE;
        REFUSED(LG_ERR_TOO_SMALL, lg_sampler_choices, (sampler, choices, asked - 1, &n, &error));
        CHECK(n == asked && choices[0].token == LG_TOKEN_NONE);
    }
    CALL(lg_sampler_choices, (sampler, choices, MAX_VOCAB, &n, &error));
    CHECK(n == asked);
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        CHECK(i == 0 || choices[i - 1].logit >= choices[i].logit);
        sum += (double)choices[i].p;
    }
    CHECK(n == 0 || near(sum, 1));
    return n;
}

static void choices_are_those_of_the_definitions(const lg_session *session)
{
    const lg_logit_bias bias[] = {{.token = 40, .bias = 1.5f}, {.token = tokens[0], .bias = -INFINITY}};
    const uint32_t breaker = tokens[N_TOKENS - 4];
    const float *logits;
    size_t n_vocab, n_dry = 0;
    CALL(lg_session_logits, (session, &logits, &n_vocab, &error));
    for (uint32_t i = 0; i < 64; i++) {
        const lg_sampler_params params = {.struct_size = sizeof params,
                                          .seed = i,
                                          .temperature = 0.8f,
                                          .repeat_penalty = i & 1 ? 1.3f : 1.0f,
                                          .frequency_penalty = i & 2 ? 0.4f : -0.1f,
                                          .presence_penalty = i & 4 ? 0.7f : 0.0f,
                                          .repeat_last_n = 1 + i,
                                          .dry_multiplier = i & 8 ? 0.9f : 0.0f,
                                          .dry_base = 1.2f,
                                          .dry_allowed_length = 1 + i % 3,
                                          .dry_last_n = i & 16 ? 40 : UINT32_MAX};
        lg_sampler *sampler = NULL;
        uint32_t token;
        CALL(lg_sampler_new, (&params, &sampler, &error));
        CALL(lg_sampler_set_bias, (sampler, bias, 2, &error));
        CALL(lg_sampler_set_dry_breakers, (sampler, &breaker, i & 32 ? 1 : 0, &error));
        CALL(lg_sampler_sample, (sampler, session, &token, &error));

        double expected[MAX_VOCAB], sum = 0;
        const uint32_t stop = i & 32 ? breaker : LG_TOKEN_NONE;
        for (uint32_t t = 0; t < n_vocab; t++) {
            expected[t] = changed(&params, bias, stop, t, (double)logits[t]);
            sum += exp(expected[t] / params.temperature);
            n_dry += params.dry_multiplier > 0 && repeated(t, params.dry_last_n, stop) >= params.dry_allowed_length;
        }
        lg_choice choices[MAX_VOCAB];
        CHECK(choices_of(sampler, choices) == n_vocab - 1);
        bool is_there = false;
        for (size_t j = 0; j < n_vocab - 1; j++) {
            const lg_choice choice = choices[j];
            CHECK(choice.token != tokens[0] && near(choice.logit, expected[choice.token]));
            CHECK(fabs(choice.p - exp(expected[choice.token] / params.temperature) / sum) < 1e-5);
            is_there = is_there || choice.token == token;
        }
        CHECK(is_there);

        // None of it any more: the biases are gone, too.
        CALL(lg_sampler_set_bias, (sampler, NULL, 0, &error));
        CALL(lg_sampler_sample, (sampler, session, &token, &error));
        CHECK(choices_of(sampler, choices) == n_vocab);
        lg_sampler_free(sampler);
    }
    CHECK(n_dry > 50);
}

static void typical_leaves_what_is_closest_to_the_entropy(const lg_session *session)
{
    const lg_sampler_params all_params = {.struct_size = sizeof all_params, .temperature = 0.6f};
    lg_sampler_params params = all_params;
    lg_choice all[MAX_VOCAB], left[MAX_VOCAB];
    lg_sampler *sampler = NULL;
    uint32_t token;
    CALL(lg_sampler_new, (&all_params, &sampler, &error));
    CALL(lg_sampler_sample, (sampler, session, &token, &error));
    const size_t n_all = choices_of(sampler, all);
    lg_sampler_free(sampler);
    double entropy = 0;
    for (size_t i = 0; i < n_all; i++)
        entropy -= (double)all[i].p * log((double)all[i].p);

    for (params.typical_p = 0.05f; params.typical_p < 1; params.typical_p += 0.1f) {
        CALL(lg_sampler_new, (&params, &sampler, &error));
        CALL(lg_sampler_sample, (sampler, session, &token, &error));
        const size_t n_left = choices_of(sampler, left);
        lg_sampler_free(sampler);
        // They reach what is asked for, without the furthest they do not, and nobody outside is closer than that.
        double reached = 0, furthest = -1, p_furthest = 0, closest_outside = INFINITY;
        for (size_t i = 0; i < n_all; i++) {
            const double distance = fabs(-log((double)all[i].p) - entropy);
            bool is_left = false;
            for (size_t j = 0; j < n_left; j++)
                is_left = is_left || left[j].token == all[i].token;
            if (!is_left) {
                closest_outside = fmin(closest_outside, distance);
                continue;
            }
            reached += (double)all[i].p;
            if (distance > furthest) {
                furthest = distance;
                p_furthest = (double)all[i].p;
            }
        }
        CHECK(n_left < n_all && furthest < closest_outside + 1e-5);
        CHECK(reached > params.typical_p - 1e-5 && reached - p_furthest < params.typical_p + 1e-5);
    }
}

static void masks_leave_what_they_allow(const lg_session *session)
{
    const float *logits;
    size_t n_vocab;
    CALL(lg_session_logits, (session, &logits, &n_vocab, &error));
    for (uint32_t i = 0; i < 40; i++) {
        const lg_sampler_params params = {.struct_size = sizeof params,
                                          .seed = i,
                                          .temperature = i % 2 ? 1.0f : 0.0f,
                                          .top_k = i % 3 * 4};
        lg_sampler *sampler = NULL;
        uint32_t mask[N_WORDS] = {0}, best = LG_TOKEN_NONE, n_allowed = 0, token = 99;
        const size_t n_words = 1 + i % 9;
        for (uint32_t t = 0; t < n_vocab; t++) {
            if ((t + t / 7 + i) % 7 > 1)
                continue;
            mask[t / 32] |= UINT32_C(1) << t % 32;
            if (t < n_words * 32) {
                best = best == LG_TOKEN_NONE || logits[t] > logits[best] ? t : best;
                n_allowed++;
            }
        }
        CALL(lg_sampler_new, (&params, &sampler, &error));
        for (int round = 0; round < 20; round++) {
            CALL(lg_sampler_sample_masked, (sampler, session, mask, n_words, &token, &error));
            CHECK(token < n_words * 32 && (mask[token / 32] >> token % 32 & 1) == 1);
            CHECK(params.temperature > 0 || token == best);
        }
        lg_choice choices[MAX_VOCAB];
        const size_t n_wanted = params.temperature == 0 ? 1 : params.top_k == 0 ? n_allowed : params.top_k;
        CHECK(choices_of(sampler, choices) == min(n_wanted, n_allowed) && choices[0].token == best);
        // Nothing is allowed: nothing is left to choose, and nothing is written.
        const uint32_t before = token;
        REFUSED(LG_ERR_INVALID, lg_sampler_sample_masked, (sampler, session, NULL, 0, &token, &error));
        CHECK(token == before && choices_of(sampler, choices) == 0);
        lg_sampler_free(sampler);
    }
}

static void a_reset_begins_again(const lg_session *session)
{
    const lg_sampler_params params = {.struct_size = sizeof params, .seed = 3, .temperature = 1.5f};
    lg_sampler *sampler = NULL;
    uint32_t first[50], again[50];
    CALL(lg_sampler_new, (&params, &sampler, &error));
    for (int i = 0; i < 50; i++)
        CALL(lg_sampler_sample, (sampler, session, &first[i], &error));
    CALL(lg_sampler_reset, (sampler, &error));
    for (int i = 0; i < 50; i++)
        CALL(lg_sampler_sample, (sampler, session, &again[i], &error));
    CHECK(memcmp(first, again, sizeof first) == 0);
    CALL(lg_sampler_sample, (sampler, session, &again[0], &error));
    lg_sampler_free(sampler);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    lg_model *model = NULL;
    lg_session *session = NULL;
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = N_TOKENS};
    // A text that ends as it went before, twice.
    for (uint32_t i = 0; i < N_TOKENS; i++)
        tokens[i] = 60 + i % 20 % 7 + (i < 20 ? i % 2 : 0);
    CALL(lg_model_open, (argv[1], NULL, &model, &error));
    CHECK(lg_model_n_vocab(model) <= MAX_VOCAB);
    CALL(lg_session_new, (model, &params, &session, &error));
    CALL(lg_session_prefill, (session, tokens, N_TOKENS, NULL, NULL, NULL, &error));
    choices_are_those_of_the_definitions(session);
    typical_leaves_what_is_closest_to_the_entropy(session);
    masks_leave_what_they_allow(session);
    a_reset_begins_again(session);
    lg_session_free(session);
    lg_model_free(model);
    return 0;
}
