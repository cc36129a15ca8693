// Answers a question about a text file, token by token, with the likeliest tokens. Ctrl-C stops.
//
//     cargo build --release
//     ln -sf liblonggen.so target/release/liblonggen.so.0
//     cc -std=c99 -Iinclude examples/c/ask.c -Ltarget/release -llonggen -Wl,-rpath,$PWD/target/release -o ask
//     ./ask model.gguf README.md "What is this about?"

#include <longgen.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static lg_error error = {.struct_size = sizeof error};
static lg_cancel *cancel;

// The first Ctrl-C stops the call at hand, a second one the program.
static void on_interrupt(int number)
{
    signal(number, SIG_DFL);
    lg_cancel_set(cancel);
}

static bool print_text(void *user, uint32_t token, const char *text, size_t n_bytes)
{
    (void)user, (void)token;
    fwrite(text, 1, n_bytes, stdout);
    fflush(stdout);
    return true;
}

// A failure that the library does not know of.
static lg_status failed(lg_status status, const char *what, const char *why)
{
    snprintf(error.message, sizeof error.message, "%s: %s", what, why);
    snprintf(error.where, sizeof error.where, "ask");
    return status;
}

// The file's text with the question behind it, which is `*n_bytes` long.
static lg_status read_message(const char *path, const char *question, char **text, size_t *n_bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL)
        return failed(LG_ERR_IO, path, strerror(errno));
    const size_t n_behind = 2 + strlen(question) + 1;
    size_t n = 0, n_read, cap = 0;
    char *buffer = NULL;
    do {
        cap = 2 * cap + 65536 + n_behind;
        char *larger = realloc(buffer, cap);
        if (larger == NULL) {
            free(buffer);
            fclose(file);
            return failed(LG_ERR_OUT_OF_MEMORY, path, "too long");
        }
        buffer = larger;
        n_read = fread(buffer + n, 1, cap - n_behind - n, file);
        n += n_read;
    } while (n_read > 0);
    const bool is_whole = !ferror(file);
    fclose(file);
    *text = buffer;
    *n_bytes = n + (size_t)sprintf(buffer + n, "\n\n%s", question);
    return is_whole ? LG_OK : failed(LG_ERR_IO, path, "cannot be read");
}

// What the message is to the model.
static lg_status make_prompt(const lg_model *model, const char *text, size_t n_bytes, uint32_t **tokens, size_t *n_tokens)
{
    const lg_message message = {.role = "user", .role_bytes = 4, .content = text, .content_bytes = n_bytes};
    const uint32_t chat = LG_CHAT_ADD_GENERATION_PROMPT, flags = LG_TOKENIZE_SPECIAL | LG_TOKENIZE_ADD_BOS;
    char *prompt = NULL;
    // How much room there is: a guess first, and what is needed where that was too little.
    size_t n = n_bytes + 1024;
    lg_status status;
    do {
        free(prompt);
        prompt = malloc(n);
        status = prompt == NULL ? failed(LG_ERR_OUT_OF_MEMORY, "the prompt", "too long")
                                : lg_model_apply_chat_template(model, &message, 1, NULL, 0, chat, prompt, n, &n, &error);
    } while (status == LG_ERR_TOO_SMALL);
    *n_tokens = n / 3 + 16;
    if (status == LG_OK) {
        do {
            free(*tokens);
            *tokens = calloc(*n_tokens, sizeof **tokens);
            status = *tokens == NULL ? failed(LG_ERR_OUT_OF_MEMORY, "the prompt", "too long")
                                     : lg_model_tokenize(model, prompt, n, flags, *tokens, *n_tokens, n_tokens, &error);
        } while (status == LG_ERR_TOO_SMALL);
    }
    free(prompt);
    return status;
}

// Answers in a session that is as long as it must be.
static lg_status answer(const lg_model *model, const uint32_t *tokens, size_t n_tokens, uint32_t max_tokens)
{
    const uint32_t n_ctx = lg_model_n_ctx_train(model);
    if (n_tokens + max_tokens > n_ctx) {
        char why[160];
        snprintf(why, sizeof why, "%zu tokens and up to %u of the answer do not fit into a context of %u", n_tokens,
                 (unsigned)max_tokens, (unsigned)n_ctx);
        return failed(LG_ERR_CONTEXT_FULL, "the text with the question", why);
    }
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = (uint32_t)n_tokens + max_tokens};
    const lg_generate_params how = {
        .struct_size = sizeof how, .max_tokens = max_tokens, .on_text = print_text, .cancel = cancel};
    lg_generate_result result = {.struct_size = sizeof result};
    lg_counters took = {.struct_size = sizeof took};
    lg_session *session = NULL;
    lg_sampler *sampler = NULL;
    lg_status status = lg_session_new(model, &params, &session, &error);
    if (status == LG_OK)
        status = lg_sampler_new(NULL, &sampler, &error);
    if (status == LG_OK)
        status = lg_session_generate(session, sampler, tokens, n_tokens, &how, &result, &error);
    if (status == LG_OK && result.reason == LG_STOP_CANCELLED)
        status = failed(LG_ERR_CANCELLED, "the answer", "stopped");
    if (status == LG_OK)
        status = lg_session_counters(session, &took, &error);
    if (status == LG_OK) {
        printf("\n");
        fprintf(stderr, "%zu tokens of prompt in %.2f s, %zu of answer in %.2f s, %.1f MB\n", n_tokens,
                took.prompt_ms / 1e3, result.n_tokens, took.generated_ms / 1e3, (double)lg_session_n_bytes(session) / 1e6);
    }
    lg_sampler_free(sampler);
    lg_session_free(session);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL FILE QUESTION [TOKENS]\n", argv[0]);
        return 2;
    }
    const uint32_t max_tokens = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 256;
    lg_model *model = NULL;
    char *text = NULL;
    uint32_t *tokens = NULL;
    size_t n_bytes = 0, n_tokens = 0;

    lg_status status = lg_cancel_new(&cancel, &error);
    signal(SIGINT, on_interrupt);
    const lg_model_params params = {.struct_size = sizeof params, .cancel = cancel};
    if (status == LG_OK)
        status = lg_model_open(argv[1], &params, &model, &error);
    if (status == LG_OK)
        status = read_message(argv[2], argv[3], &text, &n_bytes);
    if (status == LG_OK)
        status = make_prompt(model, text, n_bytes, &tokens, &n_tokens);
    if (status == LG_OK)
        status = answer(model, tokens, n_tokens, max_tokens);
    if (status != LG_OK)
        fprintf(stderr, "%s: %s (%s)\n", lg_status_str(status), error.message, error.where);

    signal(SIGINT, SIG_DFL);
    free(tokens);
    free(text);
    lg_model_free(model);
    lg_cancel_free(cancel);
    return status == LG_OK ? 0 : status == LG_ERR_CANCELLED ? 130 : 1;
}
