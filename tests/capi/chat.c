// Writes what the model's chat template makes of conversations, or what it says against them, each with a zero byte behind.
// usage: chat MODEL (VARIABLES FLAGS N_MESSAGES (ROLE CONTENT)...)...
#include "check.h"

int main(int argc, char **argv)
{
    CHECK(argc > 1);
    lg_error error = {.struct_size = sizeof error};
    lg_model *model = NULL;
    CALL(lg_model_open, (argv[1], NULL, &model, &error));
    CHECK(lg_model_has_chat_template(model));
    for (int i = 2; i < argc;) {
        const char *const variables = argv[i++];
        const uint32_t flags = (uint32_t)strtoul(argv[i++], NULL, 10);
        const size_t n_messages = strtoul(argv[i++], NULL, 10);
        lg_message *messages = calloc(n_messages + 1, sizeof *messages);
        CHECK(messages != NULL);
        for (size_t j = 0; j < n_messages; j++, i += 2)
            messages[j] = (lg_message){argv[i], strlen(argv[i]), argv[i + 1], strlen(argv[i + 1])};

        size_t n_bytes = 0, n_written;
        const lg_status status = lg_model_apply_chat_template(model, messages, n_messages, variables, strlen(variables),
                                                              flags, NULL, 0, &n_bytes, &error);
        if (status == LG_OK) {
            char *text = calloc(n_bytes + 1, 1);
            CHECK(text != NULL);
            if (n_bytes > 0) {
                REFUSED(LG_ERR_TOO_SMALL, lg_model_apply_chat_template,
                        (model, messages, n_messages, variables, strlen(variables), flags, text, n_bytes - 1, &n_written,
                         &error));
                CHECK(n_written == n_bytes && text[0] == '\0');
            }
            CALL(lg_model_apply_chat_template, (model, messages, n_messages, variables, strlen(variables), flags, text,
                                                n_bytes, &n_written, &error));
            CHECK(n_written == n_bytes && strlen(text) == n_bytes);
            printf("%s", text);
            free(text);
        } else {
            printf("%s: %s", lg_status_str(status), error.message);
        }
        putchar('\0');
        free(messages);
    }
    lg_model_free(model);
    return 0;
}
