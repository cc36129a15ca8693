// Continues a prompt, token by token, with the likeliest tokens.
//
//     cargo build --release
//     ln -sf liblonggen.so target/release/liblonggen.so.0
//     cc -std=c99 -Iinclude examples/c/generate.c -Ltarget/release -llonggen -Wl,-rpath,$PWD/target/release -o generate
//     ./generate model.gguf "Once upon a time" 64

#include <longgen.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Writes what has come of the text to the standard output.
static bool print_text(void *user, uint32_t token, const char *text, size_t n_bytes)
{
    (void)user, (void)token;
    fwrite(text, 1, n_bytes, stdout);
    fflush(stdout);
    return true;
}

// Appends the prompt to the session and generates at most `n_new` tokens behind it.
static lg_status answer(const lg_model *model, lg_session *session, lg_sampler *sampler, const char *prompt,
                        uint32_t n_new, lg_error *error)
{
    const uint32_t flags = LG_TOKENIZE_ADD_BOS;
    size_t n_tokens;
    lg_status status = lg_model_tokenize(model, prompt, strlen(prompt), flags, NULL, 0, &n_tokens, error);
    if (status != LG_OK)
        return status;
    uint32_t *tokens = calloc(n_tokens + 1, sizeof *tokens);
    if (tokens == NULL)
        return LG_ERR_OUT_OF_MEMORY;
    const lg_generate_params params = {.struct_size = sizeof params, .max_tokens = n_new};
    lg_generate_result result = {.struct_size = sizeof result};
    status = lg_model_tokenize(model, prompt, strlen(prompt), flags, tokens, n_tokens, &n_tokens, error);
    if (status == LG_OK)
        status = lg_session_generate(session, sampler, tokens, n_tokens, &params, print_text, NULL, NULL, &result, error);
    free(tokens);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT [TOKENS]\n", argv[0]);
        return 2;
    }
    const uint32_t n_new = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : 64;

    lg_error error = {.struct_size = sizeof error};
    lg_model *model = NULL;
    lg_session *session = NULL;
    lg_sampler *sampler = NULL;
    lg_memory_plan plan = {.struct_size = sizeof plan};

    lg_status status = lg_model_open(argv[1], NULL, &model, &error);
    if (status == LG_OK)
        status = lg_model_plan(model, NULL, &plan, &error);
    if (status == LG_OK) {
        fprintf(stderr, "a session takes %.1f MB\n", (double)plan.total_bytes / 1e6);
        status = lg_session_new(model, NULL, &session, &error);
    }
    if (status == LG_OK)
        status = lg_sampler_new(NULL, &sampler, &error);
    if (status == LG_OK)
        status = answer(model, session, sampler, argv[2], n_new, &error);
    if (status != LG_OK)
        fprintf(stderr, "%s: %s (%s)\n", lg_status_str(status), error.message, error.where);

    lg_sampler_free(sampler);
    lg_session_free(session);
    lg_model_free(model);
    return status == LG_OK ? 0 : 1;
}
