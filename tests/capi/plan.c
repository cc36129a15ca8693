// What sessions will take. Prints the plans of what the arguments ask for, and checks by brute force how a limit decides
// the length of a context.
// usage: plan MODEL [N_CTX CHUNK_TOKENS KV_TYPE PRECISION LOGITS_ROWS]...
#include "check.h"

#include <inttypes.h>

enum { N_CTX = 300, N_LIMITS = 25 };

static lg_error error = {.struct_size = sizeof error};

static lg_memory_plan plan_of(const lg_model *model, const lg_session_params *params)
{
    lg_memory_plan plan = {.struct_size = sizeof plan};
    CALL(lg_model_plan, (model, params, &plan, &error));
    CHECK(plan.struct_size == sizeof plan);
    return plan;
}

static void print_plans(const lg_model *model, const lg_session_params *params)
{
    const lg_memory_plan plan = plan_of(model, params);
    printf("%" PRIu32 " %" PRIu32 " %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64, plan.n_ctx, plan.chunk_tokens,
           plan.kv_bytes, plan.staging_bytes, plan.scratch_bytes, plan.activation_bytes);
    printf(" %" PRIu64 " %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", plan.workspace_bytes, plan.table_bytes,
           plan.logits_bytes, plan.total_bytes);
    for (uint32_t i = 0; i < lg_model_n_layers(model); i++) {
        lg_layer_plan layer = {.struct_size = sizeof layer};
        CALL(lg_model_plan_layer, (model, params, i, &layer, &error));
        printf("%" PRIu32 " %" PRIu32 " %" PRIu64 " %" PRIu64 "\n", layer.n_slots, layer.block_size, layer.kv_bytes,
               layer.staging_bytes);
    }
}

// The longest of the contexts up to N_CTX tokens that takes at most `n_bytes`, 0 if none does.
static uint32_t longest(const uint64_t *bytes_of, uint64_t n_bytes)
{
    uint32_t n_ctx = N_CTX;
    while (n_ctx > 0 && bytes_of[n_ctx] > n_bytes)
        n_ctx--;
    return n_ctx;
}

static void a_limit_decides_the_length_of_a_context(const lg_model *model)
{
    static uint64_t bytes_of[N_CTX + 1];
    lg_session_params params = {.struct_size = sizeof params, .chunk_tokens = 33, .kv_type = LG_KV_TYPE_Q8};
    for (params.n_ctx = 1; params.n_ctx <= N_CTX; params.n_ctx++)
        bytes_of[params.n_ctx] = plan_of(model, &params).total_bytes;

    for (uint64_t i = 0; i < N_LIMITS; i++) {
        const uint64_t n_bytes = bytes_of[N_CTX] * (i * i + 1) / (N_LIMITS * N_LIMITS) + i * 131;
        const uint32_t expected = longest(bytes_of, n_bytes);
        uint32_t n_ctx = 99;
        params.max_bytes = 0;
        params.n_ctx = N_CTX;
        CALL(lg_model_longest_context, (model, &params, n_bytes, &n_ctx, &error));
        CHECK(n_ctx == expected);

        lg_session *session = NULL;
        lg_memory_plan plan = {.struct_size = sizeof plan};
        params.max_bytes = n_bytes;
        if (n_bytes < bytes_of[N_CTX]) {
            char needed[24], fits[64];
            snprintf(needed, sizeof needed, " %" PRIu64 " bytes", bytes_of[N_CTX]);
            snprintf(fits, sizeof fits, "a context of %" PRIu32 " tokens would fit", expected);
            CHECK(lg_session_new(model, &params, &session, &error) == LG_ERR_OUT_OF_MEMORY && session == NULL);
            CHECK(strstr(error.message, needed) != NULL);
            CHECK((strstr(error.message, fits) != NULL) == (expected > 0));
            CHECK(lg_model_plan(model, &params, &plan, &error) == LG_ERR_OUT_OF_MEMORY && plan.n_ctx == 0);
        }
        // The model was trained for more than N_CTX tokens, but those take more than what is allowed.
        params.n_ctx = 0;
        if (n_bytes >= bytes_of[N_CTX] || expected == 0)
            continue;
        CHECK(plan_of(model, &params).n_ctx == expected);
        CALL(lg_session_new, (model, &params, &session, &error));
        CHECK(lg_session_n_ctx(session) == expected);
        lg_session_free(session);
    }
    // A limit that does not limit.
    params.n_ctx = 0;
    params.max_bytes = UINT64_MAX;
    CHECK(plan_of(model, &params).n_ctx == lg_model_n_ctx_train(model));
}

// What lies behind the struct of an older program stays, and what a newer one has becomes 0.
static void structs_of_other_versions_are_filled_as_far_as_they_go(const lg_model *model)
{
    struct {
        lg_memory_plan known;
        uint64_t unknown[2];
    } plan = {.unknown = {99, 99}};
    const lg_memory_plan expected = plan_of(model, NULL);
    plan.known.struct_size = sizeof plan.known;
    CALL(lg_model_plan, (model, NULL, &plan.known, &error));
    CHECK(memcmp(&plan.known, &expected, sizeof expected) == 0 && plan.unknown[0] == 99 && plan.unknown[1] == 99);
    plan.known.struct_size = sizeof plan.known + sizeof plan.unknown[0];
    CALL(lg_model_plan, (model, NULL, &plan.known, &error));
    CHECK(plan.known.total_bytes == expected.total_bytes && plan.unknown[0] == 0 && plan.unknown[1] == 99);
    CHECK(plan.known.struct_size == sizeof plan.known + sizeof plan.unknown[0]);
}

static void hostile(const lg_model *model)
{
    lg_session_params params = {.struct_size = sizeof params, .n_ctx = 8};
    lg_memory_plan plan = {.struct_size = sizeof plan, .n_ctx = 99};
    lg_layer_plan layer = {.struct_size = sizeof layer, .n_slots = 99};
    uint32_t n_ctx = 99;
    REFUSED(LG_ERR_INVALID, lg_model_plan, (NULL, &params, &plan, &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan, (model, &params, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan, (model, &params, (lg_memory_plan *)((char *)&plan + 1), &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan_layer, (NULL, &params, 0, &layer, &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan_layer, (model, &params, 0, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan_layer, (model, &params, lg_model_n_layers(model), &layer, &error));
    REFUSED(LG_ERR_INVALID, lg_model_plan_layer, (model, &params, UINT32_MAX, &layer, &error));
    REFUSED(LG_ERR_INVALID, lg_model_longest_context, (NULL, &params, 1 << 20, &n_ctx, &error));
    REFUSED(LG_ERR_INVALID, lg_model_longest_context, (model, &params, 1 << 20, NULL, &error));
    const size_t wrong_sizes[] = {0, 8, sizeof layer - 1, 4097, SIZE_MAX};
    for (size_t i = 0; i < sizeof wrong_sizes / sizeof *wrong_sizes; i++) {
        plan.struct_size = layer.struct_size = wrong_sizes[i];
        REFUSED(LG_ERR_INVALID, lg_model_plan, (model, &params, &plan, &error));
        REFUSED(LG_ERR_INVALID, lg_model_plan_layer, (model, &params, 0, &layer, &error));
    }
    plan.struct_size = sizeof plan - 1;
    REFUSED(LG_ERR_INVALID, lg_model_plan, (model, &params, &plan, &error));
    params.struct_size--;
    plan.struct_size = sizeof plan;
    layer.struct_size = sizeof layer;
    REFUSED(LG_ERR_INVALID, lg_model_plan, (model, &params, &plan, &error));
    for (int i = 0; i < 4; i++) {
        params = (lg_session_params){.struct_size = sizeof params, .n_ctx = 8};
        switch (i) {
        case 0: params.n_ctx = UINT32_MAX; break;
        case 1: params.kv_type = 9; break;
        case 2: params.precision = 9; break;
        case 3: params.reserved = 1; break;
        }
        // A context that is too long, and what this version does not know.
        const lg_status status = i == 0 ? LG_ERR_INVALID : LG_ERR_UNSUPPORTED;
        lg_session *session = NULL;
        REFUSED(status, lg_model_plan, (model, &params, &plan, &error));
        REFUSED(status, lg_model_plan_layer, (model, &params, 0, &layer, &error));
        REFUSED(status, lg_model_longest_context, (model, &params, 1 << 20, &n_ctx, &error));
        REFUSED(status, lg_session_new, (model, &params, &session, &error));
        CHECK(session == NULL);
    }
    CHECK(plan.n_ctx == 99 && layer.n_slots == 99 && n_ctx == 99);
    CALL(lg_model_longest_context, (model, NULL, 0, &n_ctx, &error));
    CHECK(n_ctx == 0);
    CALL(lg_model_longest_context, (model, NULL, UINT64_MAX, &n_ctx, &error));
    CHECK(n_ctx == lg_model_n_ctx_train(model));
}

int main(int argc, char **argv)
{
    CHECK(argc >= 2 && argc % 5 == 2);
    lg_model *model = NULL;
    CALL(lg_model_open, (argv[1], NULL, &model, &error));
    print_plans(model, NULL);
    for (int i = 2; i < argc; i += 5) {
        uint32_t numbers[5];
        for (int j = 0; j < 5; j++)
            numbers[j] = (uint32_t)strtoul(argv[i + j], NULL, 10);
        const lg_session_params params = {.struct_size = sizeof params,
                                          .n_ctx = numbers[0],
                                          .chunk_tokens = numbers[1],
                                          .kv_type = numbers[2],
                                          .precision = numbers[3],
                                          .logits_rows = numbers[4]};
        print_plans(model, &params);
    }
    a_limit_decides_the_length_of_a_context(model);
    structs_of_other_versions_are_filled_as_far_as_they_go(model);
    hostile(model);
    lg_model_free(model);
    return 0;
}
