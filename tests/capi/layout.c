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
    CHECK(sizeof(lg_sampler_params) == 72);
    CHECK(offsetof(lg_sampler_params, seed) == 8 && offsetof(lg_sampler_params, min_p) == 28);
    CHECK(offsetof(lg_sampler_params, repeat_penalty) == 32 && offsetof(lg_sampler_params, repeat_last_n) == 36);
    CHECK(offsetof(lg_sampler_params, typical_p) == 40 && offsetof(lg_sampler_params, reserved) == 68);
    CHECK(sizeof(lg_logit_bias) == 8 && offsetof(lg_logit_bias, bias) == 4);
    CHECK(sizeof(lg_generate_params) == 32 && offsetof(lg_generate_params, stops) == 16);
    CHECK(sizeof(lg_generate_result) == 32 && offsetof(lg_generate_result, reserved) == 28);
    CHECK(sizeof(lg_message) == 32 && offsetof(lg_message, content) == 16 && offsetof(lg_message, content_bytes) == 24);
    CHECK(sizeof(lg_choice) == 12 && offsetof(lg_choice, p) == 8);
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
