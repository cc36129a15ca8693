// Prints what a model is, one fact or one layer a line.
// usage: info MODEL
#include "check.h"

#include <inttypes.h>

static lg_error error = {.struct_size = sizeof error};

static void numbers(const lg_model *model)
{
    printf("%s\n%s\n", lg_model_architecture(model), lg_model_device(model));
    printf("%" PRIu32 " layers, %" PRIu32 " heads, %" PRIu32 " kv heads of %" PRIu32 ", width %" PRIu32 "\n",
           lg_model_n_layers(model), lg_model_n_heads(model), lg_model_n_kv_heads(model), lg_model_head_dim(model),
           lg_model_d_model(model));
    printf("%" PRIu32 " tokens of context, %" PRIu32 " of vocabulary\n", lg_model_n_ctx_train(model),
           lg_model_n_vocab(model));
    printf("%" PRIu64 " parameters in %" PRIu64 " bytes\n", lg_model_n_params(model), lg_model_n_bytes(model));
}

static void tokens(const lg_model *model)
{
    const uint32_t which[] = {LG_SPECIAL_BOS,        LG_SPECIAL_EOS,        LG_SPECIAL_EOT,
                              LG_SPECIAL_EOM,        LG_SPECIAL_UNK,        LG_SPECIAL_SEP,
                              LG_SPECIAL_PAD,        LG_SPECIAL_CLS,        LG_SPECIAL_MASK,
                              LG_SPECIAL_FIM_PREFIX, LG_SPECIAL_FIM_SUFFIX, LG_SPECIAL_FIM_MIDDLE,
                              LG_SPECIAL_FIM_PAD,    LG_SPECIAL_FIM_REPOSITORY, LG_SPECIAL_FIM_SEPARATOR};
    for (size_t i = 0; i < sizeof which / sizeof *which; i++)
        printf("%" PRIu32 " ", lg_model_special_token(model, which[i]));
    printf("\nspecial:");
    for (uint32_t token = 0; token < lg_model_n_vocab(model); token++)
        if (lg_model_is_special(model, token))
            printf(" %" PRIu32, token);
    printf("\n");
    CHECK(!lg_model_is_special(model, lg_model_n_vocab(model)) && !lg_model_is_special(model, LG_TOKEN_NONE));
    CHECK(lg_model_special_token(model, LG_SPECIAL_FIM_SEPARATOR + 1) == LG_TOKEN_NONE);
    CHECK(lg_model_special_token(model, UINT32_MAX) == LG_TOKEN_NONE);
}

static void layers(const lg_model *model)
{
    for (uint32_t i = 0; i < lg_model_n_layers(model); i++) {
        lg_layer_attention layer = {.struct_size = sizeof layer, .reserved = 99};
        CALL(lg_model_layer_attention, (model, i, &layer, &error));
        CHECK(layer.struct_size == sizeof layer && layer.reserved == 0);
        switch (layer.kind) {
        case LG_ATTENTION_FULL: printf("full"); break;
        case LG_ATTENTION_WINDOW: printf("window %" PRIu32 " %" PRIu32, layer.window_tokens, layer.sink_tokens); break;
        case LG_ATTENTION_BLOCKS:
            printf("blocks %" PRIu32 " %" PRIu32 " %" PRIu32 " %" PRIu32, layer.block_size, layer.local_blocks,
                   layer.sink_blocks, layer.stride);
            break;
        default: CHECK(false);
        }
        CHECK((layer.window_tokens == 0) == (layer.kind != LG_ATTENTION_WINDOW));
        CHECK((layer.block_size == 0) == (layer.kind != LG_ATTENTION_BLOCKS));

        uint32_t phases[8];
        size_t n_phases, n_written;
        CALL(lg_model_layer_phases, (model, i, NULL, 0, &n_phases, &error));
        CHECK(n_phases == lg_model_n_heads(model) && n_phases <= 8);
        CALL(lg_model_layer_phases, (model, i, phases, 8, &n_written, &error));
        CHECK(n_written == n_phases);
        for (size_t head = 0; head < n_phases; head++)
            printf(" %" PRIu32, phases[head]);
        printf("\n");
    }
}

static void hostile(const lg_model *model)
{
    const uint32_t n_layers = lg_model_n_layers(model);
    lg_layer_attention layer = {.struct_size = sizeof layer, .kind = 99};
    uint32_t phases[8] = {99};
    size_t n = 99;
    REFUSED(LG_ERR_INVALID, lg_model_layer_attention, (NULL, 0, &layer, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_attention, (model, n_layers, &layer, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_attention, (model, UINT32_MAX, &layer, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_attention, (model, 0, NULL, &error));
    const size_t wrong_sizes[] = {0, 8, sizeof layer - 1, 4097, SIZE_MAX};
    for (size_t i = 0; i < sizeof wrong_sizes / sizeof *wrong_sizes; i++) {
        layer.struct_size = wrong_sizes[i];
        REFUSED(LG_ERR_INVALID, lg_model_layer_attention, (model, 0, &layer, &error));
    }
    REFUSED(LG_ERR_INVALID, lg_model_layer_phases, (NULL, 0, phases, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_phases, (model, n_layers, phases, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_phases, (model, 0, NULL, 8, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_phases, (model, 0, phases, SIZE_MAX, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_layer_phases, (model, 0, phases, 8, NULL, &error));
    CHECK(layer.kind == 99 && phases[0] == 99 && n == 99);
    REFUSED(LG_ERR_TOO_SMALL, lg_model_layer_phases, (model, 0, phases, 1, &n, &error));
    CHECK(phases[0] == 99 && n == lg_model_n_heads(model));

    CHECK(lg_model_architecture(NULL) == NULL && lg_model_device(NULL) == NULL);
    CHECK(lg_model_n_params(NULL) == 0 && lg_model_n_bytes(NULL) == 0);
    CHECK(lg_model_n_heads(NULL) == 0 && lg_model_n_kv_heads(NULL) == 0);
    CHECK(lg_model_head_dim(NULL) == 0 && lg_model_d_model(NULL) == 0);
    CHECK(lg_model_special_token(NULL, LG_SPECIAL_BOS) == LG_TOKEN_NONE && !lg_model_is_special(NULL, 0));
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    lg_model *model = NULL;
    const lg_model_params params = {.struct_size = sizeof params, .device = LG_DEVICE_CPU};
    CALL(lg_model_open, (argv[1], &params, &model, &error));
    numbers(model);
    tokens(model);
    layers(model);
    hostile(model);
    lg_model_free(model);
    return 0;
}
