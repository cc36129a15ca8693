// The structs lie in memory as tests/abi.rs says, and versions agree.
#include "check.h"

int main(void)
{
    CHECK(sizeof(lg_error) == 648);
    CHECK(offsetof(lg_error, code) == 8 && offsetof(lg_error, message) == 12 && offsetof(lg_error, where) == 524);
    CHECK(sizeof(lg_model_params) == 24);
    CHECK(offsetof(lg_model_params, load) == 8 && offsetof(lg_model_params, verify) == 20);
    CHECK(sizeof(lg_session_params) == 24);
    CHECK(offsetof(lg_session_params, n_ctx) == 8 && offsetof(lg_session_params, precision) == 20);
    CHECK(sizeof(lg_sampler_params) == 40);
    CHECK(offsetof(lg_sampler_params, seed) == 8 && offsetof(lg_sampler_params, min_p) == 28);
    CHECK(offsetof(lg_sampler_params, repeat_penalty) == 32 && offsetof(lg_sampler_params, repeat_last_n) == 36);
    CHECK(sizeof(lg_counters) == 40);
    CHECK(offsetof(lg_counters, n_prompt_tokens) == 8 && offsetof(lg_counters, n_generated_tokens) == 16);
    CHECK(offsetof(lg_counters, prompt_ms) == 24 && offsetof(lg_counters, generated_ms) == 32);
    CHECK(sizeof(lg_token_logprob) == 8);
    CHECK(offsetof(lg_token_logprob, token) == 0 && offsetof(lg_token_logprob, logprob) == 4);
    CHECK(sizeof(lg_status) == 4);

    CHECK(lg_version() == LG_VERSION);
    CHECK(strcmp(lg_version_str(), LG_VERSION_STR) == 0);
    CHECK(lg_abi_version() == LG_ABI_VERSION);
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", LG_VERSION_MAJOR, LG_VERSION_MINOR, LG_VERSION_PATCH);
    CHECK(strcmp(text, LG_VERSION_STR) == 0);
    CHECK(LG_VERSION == LG_VERSION_MAJOR * 1000000 + LG_VERSION_MINOR * 1000 + LG_VERSION_PATCH);
    return 0;
}
