// Answers questions about a text file, token by token, with the likeliest tokens. What the prompts have in common, the text,
// is computed once. Ctrl-C stops.
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

// A question with the text, as the model gets it.
typedef struct {
    uint32_t *tokens;
    size_t n_tokens;
} prompt;

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
static lg_status make_prompt(const lg_model *model, const char *text, size_t n_bytes, prompt *out)
{
    const lg_message message = {.role = "user", .role_bytes = 4, .content = text, .content_bytes = n_bytes};
    const uint32_t chat = LG_CHAT_ADD_GENERATION_PROMPT, flags = LG_TOKENIZE_SPECIAL | LG_TOKENIZE_ADD_BOS;
    char *rendered = NULL;
    // How much room there is: a guess first, and what is needed where that was too little.
    size_t n = n_bytes + 1024;
    lg_status status;
    do {
        free(rendered);
        rendered = malloc(n);
        status = rendered == NULL
                     ? failed(LG_ERR_OUT_OF_MEMORY, "the prompt", "too long")
                     : lg_model_apply_chat_template(model, &message, 1, NULL, 0, chat, rendered, n, &n, &error);
    } while (status == LG_ERR_TOO_SMALL);
    out->n_tokens = n / 3 + 16;
    if (status == LG_OK) {
        do {
            free(out->tokens);
            out->tokens = calloc(out->n_tokens, sizeof *out->tokens);
            status = out->tokens == NULL ? failed(LG_ERR_OUT_OF_MEMORY, "the prompt", "too long")
                                         : lg_model_tokenize(model, rendered, n, flags, out->tokens, out->n_tokens,
                                                             &out->n_tokens, &error);
        } while (status == LG_ERR_TOO_SMALL);
    }
    free(rendered);
    return status;
}

// What a question is to the model.
static lg_status read_prompt(const lg_model *model, const char *path, const char *question, prompt *out)
{
    char *text = NULL;
    size_t n_bytes = 0;
    lg_status status = read_message(path, question, &text, &n_bytes);
    if (status == LG_OK)
        status = make_prompt(model, text, n_bytes, out);
    free(text);
    return status;
}

static lg_status answer(lg_session *session, lg_sampler *sampler, const prompt *prompt, uint32_t max_tokens)
{
    const lg_generate_params how = {
        .struct_size = sizeof how, .max_tokens = max_tokens, .on_text = print_text, .cancel = cancel};
    lg_prompt_result did = {.struct_size = sizeof did};
    lg_generate_result result = {.struct_size = sizeof result};
    lg_counters before = {.struct_size = sizeof before}, took = {.struct_size = sizeof took};
    lg_status status = lg_session_counters(session, &before, &error);
    if (status == LG_OK)
        status = lg_session_prompt(session, prompt->tokens, prompt->n_tokens, NULL, NULL, cancel, &did, &error);
    if (status == LG_OK)
        status = lg_session_generate(session, sampler, NULL, 0, &how, &result, &error);
    if (status == LG_OK && result.reason == LG_STOP_CANCELLED)
        status = failed(LG_ERR_CANCELLED, "the answer", "stopped");
    if (status == LG_OK)
        status = lg_session_counters(session, &took, &error);
    if (status == LG_OK) {
        printf("\n");
        fprintf(stderr, "%zu tokens of prompt in %.2f s, %zu of answer in %.2f s, %.1f MB\n", prompt->n_tokens,
                (took.prompt_ms - before.prompt_ms) / 1e3, result.n_tokens,
                (took.generated_ms - before.generated_ms) / 1e3, (double)lg_session_n_bytes(session) / 1e6);
        if (did.n_reused > 0)
            fprintf(stderr, "%zu tokens of the prompt were there already, %zu were computed\n", did.n_reused, did.n_computed);
    }
    return status;
}

// Answers in a session that is as long as it must be.
static lg_status answer_all(const lg_model *model, const prompt *prompts, size_t n_prompts, uint32_t max_tokens)
{
    const uint32_t n_ctx = lg_model_n_ctx_train(model);
    size_t longest = 0;
    for (size_t i = 0; i < n_prompts; i++)
        longest = prompts[i].n_tokens > longest ? prompts[i].n_tokens : longest;
    if (longest + max_tokens > n_ctx) {
        char why[160];
        snprintf(why, sizeof why, "%zu tokens and up to %u of the answer do not fit into a context of %u", longest,
                 (unsigned)max_tokens, (unsigned)n_ctx);
        return failed(LG_ERR_CONTEXT_FULL, "the text with the question", why);
    }
    const lg_session_params params = {.struct_size = sizeof params, .n_ctx = (uint32_t)longest + max_tokens};
    lg_session *session = NULL;
    lg_sampler *sampler = NULL;
    lg_status status = lg_session_new(model, &params, &session, &error);
    if (status == LG_OK)
        status = lg_sampler_new(NULL, &sampler, &error);
    for (size_t i = 0; i < n_prompts && status == LG_OK; i++)
        status = answer(session, sampler, &prompts[i], max_tokens);
    lg_sampler_free(sampler);
    lg_session_free(session);
    return status;
}

int main(int argc, char **argv)
{
    if (argc < 4) {
        fprintf(stderr, "usage: %s MODEL FILE QUESTION [TOKENS [QUESTION...]]\n", argv[0]);
        return 2;
    }
    const uint32_t max_tokens = argc > 4 ? (uint32_t)strtoul(argv[4], NULL, 10) : 256;
    const size_t n_prompts = argc > 5 ? (size_t)argc - 4 : 1;
    lg_model *model = NULL;
    prompt *prompts = calloc(n_prompts, sizeof *prompts);

    lg_status status = prompts == NULL ? failed(LG_ERR_OUT_OF_MEMORY, "the questions", "too many")
                                       : lg_cancel_new(&cancel, &error);
    signal(SIGINT, on_interrupt);
    const lg_model_params params = {.struct_size = sizeof params, .cancel = cancel};
    if (status == LG_OK)
        status = lg_model_open(argv[1], &params, &model, &error);
    // Behind the first question stands how many tokens there may be.
    for (size_t i = 0; i < n_prompts && status == LG_OK; i++)
        status = read_prompt(model, argv[2], argv[i == 0 ? 3 : 4 + i], &prompts[i]);
    if (status == LG_OK)
        status = answer_all(model, prompts, n_prompts, max_tokens);
    if (status != LG_OK)
        fprintf(stderr, "%s: %s (%s)\n", lg_status_str(status), error.message, error.where);

    signal(SIGINT, SIG_DFL);
    for (size_t i = 0; prompts != NULL && i < n_prompts; i++)
        free(prompts[i].tokens);
    free(prompts);
    lg_model_free(model);
    lg_cancel_free(cancel);
    return status == LG_OK ? 0 : status == LG_ERR_CANCELLED ? 130 : 1;
}
