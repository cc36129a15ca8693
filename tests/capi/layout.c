// The structs lie in memory as tests/abi.rs says, and versions agree. Prints what the library is if asked to.
// usage: layout [build]
#include "check.h"

int main(int argc, char **argv)
{
    CHECK(sizeof(lg_error) == 648);
    CHECK(offsetof(lg_error, code) == 8 && offsetof(lg_error, message) == 12 && offsetof(lg_error, where) == 524);
    CHECK(sizeof(lg_model_params) == 64);
    CHECK(offsetof(lg_model_params, load) == 8 && offsetof(lg_model_params, verify) == 20);
    CHECK(offsetof(lg_model_params, vocab_only) == 24 && offsetof(lg_model_params, on_progress) == 32);
    CHECK(offsetof(lg_model_params, on_log) == 40 && offsetof(lg_model_params, cancel) == 56);
    CHECK(sizeof(lg_session_params) == 48 && offsetof(lg_session_params, restore_bytes) == 40);
    CHECK(offsetof(lg_session_params, n_ctx) == 8 && offsetof(lg_session_params, precision) == 20);
    CHECK(offsetof(lg_session_params, logits_rows) == 24 && offsetof(lg_session_params, max_bytes) == 32);
    CHECK(sizeof(lg_layer_attention) == 40);
    CHECK(offsetof(lg_layer_attention, kind) == 8 && offsetof(lg_layer_attention, stride) == 24);
    CHECK(offsetof(lg_layer_attention, window_tokens) == 28 && offsetof(lg_layer_attention, reserved) == 36);
    CHECK(sizeof(lg_memory_plan) == 88 && offsetof(lg_memory_plan, restore_bytes) == 80);
    CHECK(offsetof(lg_memory_plan, n_ctx) == 8 && offsetof(lg_memory_plan, chunk_tokens) == 12);
    CHECK(offsetof(lg_memory_plan, kv_bytes) == 16 && offsetof(lg_memory_plan, total_bytes) == 72);
    CHECK(sizeof(lg_prompt_result) == 40 && offsetof(lg_prompt_result, n_common) == 8);
    CHECK(offsetof(lg_prompt_result, n_computed) == 24 && offsetof(lg_prompt_result, limiting_layer) == 36);
    CHECK(sizeof(lg_layer_plan) == 32);
    CHECK(offsetof(lg_layer_plan, n_slots) == 8 && offsetof(lg_layer_plan, block_size) == 12);
    CHECK(offsetof(lg_layer_plan, kv_bytes) == 16 && offsetof(lg_layer_plan, staging_bytes) == 24);
    CHECK(sizeof(lg_sampler_params) == 72);
    CHECK(offsetof(lg_sampler_params, seed) == 8 && offsetof(lg_sampler_params, min_p) == 28);
    CHECK(offsetof(lg_sampler_params, repeat_penalty) == 32 && offsetof(lg_sampler_params, repeat_last_n) == 36);
    CHECK(offsetof(lg_sampler_params, typical_p) == 40 && offsetof(lg_sampler_params, reserved) == 68);
    CHECK(sizeof(lg_logit_bias) == 8 && offsetof(lg_logit_bias, bias) == 4);
    CHECK(sizeof(lg_generate_params) == 64 && offsetof(lg_generate_params, stops) == 16);
    CHECK(offsetof(lg_generate_params, on_text) == 40 && offsetof(lg_generate_params, cancel) == 56);
    CHECK(sizeof(lg_generate_result) == 32 && offsetof(lg_generate_result, end_token) == 28);
    CHECK(sizeof(lg_message) == 32 && offsetof(lg_message, content) == 16 && offsetof(lg_message, content_bytes) == 24);
    CHECK(sizeof(lg_choice) == 12 && offsetof(lg_choice, p) == 8);
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

    const char *info = lg_build_info();
    CHECK(strstr(info, LG_VERSION_STR) != NULL && strchr(info, '\n') == NULL && lg_build_info() == info);
    if (argc == 2 && strcmp(argv[1], "build") == 0)
        printf("%s", info);
    return 0;
}
