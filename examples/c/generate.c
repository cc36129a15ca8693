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

// Writes the text of a token to the standard output. A token may end within a character; the next one completes it.
static lg_status print_token(const lg_model *model, uint32_t token, lg_error *error)
{
    uint8_t bytes[512];
    size_t n_bytes;
    lg_status status = lg_model_token_bytes(model, token, bytes, sizeof bytes, &n_bytes, error);
    if (status == LG_OK) {
        fwrite(bytes, 1, n_bytes, stdout);
        fflush(stdout);
    }
    return status;
}

// Appends the prompt to the session.
static lg_status read_prompt(const lg_model *model, lg_session *session, const char *prompt, lg_error *error)
{
    const uint32_t flags = LG_TOKENIZE_ADD_BOS;
    size_t n_tokens;
    lg_status status = lg_model_tokenize(model, prompt, strlen(prompt), flags, NULL, 0, &n_tokens, error);
    if (status != LG_OK)
        return status;
    uint32_t *tokens = calloc(n_tokens + 1, sizeof *tokens);
    if (tokens == NULL)
        return LG_ERR_OUT_OF_MEMORY;
    status = lg_model_tokenize(model, prompt, strlen(prompt), flags, tokens, n_tokens, &n_tokens, error);
    if (status == LG_OK)
        status = lg_session_prefill(session, tokens, n_tokens, NULL, NULL, NULL, error);
    free(tokens);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL PROMPT [TOKENS]\n", argv[0]);
        return 2;
    }
    const long n_new = argc > 3 ? strtol(argv[3], NULL, 10) : 64;

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
        status = read_prompt(model, session, argv[2], &error);

    for (long i = 0; status == LG_OK && i < n_new; i++) {
        uint32_t token;
        status = lg_sampler_sample(sampler, session, &token, &error);
        if (status != LG_OK || lg_model_is_end_of_generation(model, token))
            break;
        status = print_token(model, token, &error);
        if (status == LG_OK && i + 1 < n_new)
            status = lg_session_decode(session, token, NULL, &error);
    }
    if (status != LG_OK)
        fprintf(stderr, "%s: %s (%s)\n", lg_status_str(status), error.message, error.where);

    lg_sampler_free(sampler);
    lg_session_free(session);
    lg_model_free(model);
    return status == LG_OK ? 0 : 1;
}
