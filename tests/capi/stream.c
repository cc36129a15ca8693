// What comes out of a text stream is the text that went in, however it was cut, up to a stop string.
// usage: stream MODEL
#include "check.h"

static lg_error error = {.struct_size = sizeof error};

typedef struct {
    char text[256];
    size_t n;
} Text;

static lg_text_stream *new_stream(const char *const *stops, size_t n_stops)
{
    lg_text_stream *stream = NULL;
    CALL(lg_text_stream_new, (stops, n_stops, &stream, &error));
    CHECK(lg_text_stream_stop_index(stream) == LG_INDEX_NONE);
    return stream;
}

static void append(Text *to, const char *text, size_t n)
{
    CHECK(to->n + n <= sizeof to->text);
    memcpy(to->text + to->n, text, n);
    to->n += n;
}

static void push(lg_text_stream *stream, const char *bytes, size_t n_bytes, Text *to)
{
    const char *text;
    size_t n;
    CALL(lg_text_stream_push, (stream, (const uint8_t *)bytes, n_bytes, &text, &n, &error));
    append(to, text, n);
}

static void finish(lg_text_stream *stream, Text *to)
{
    const char *text;
    size_t n;
    CALL(lg_text_stream_finish, (stream, &text, &n, &error));
    append(to, text, n);
}

static bool is(const Text *text, const char *expected)
{
    return text->n == strlen(expected) && memcmp(text->text, expected, text->n) == 0;
}

static void characters_are_whole_at_every_cut(void)
{
    const char *const bytes = "d\xc3\xb6g \xf0\x9f\x98\x80 \xff\xe2\x82. \xe2\x82\xac";
    const char *const expected = "d\xc3\xb6g \xf0\x9f\x98\x80 \xef\xbf\xbd\xef\xbf\xbd. \xe2\x82\xac";
    const size_t n_bytes = strlen(bytes);
    lg_text_stream *stream = new_stream(NULL, 0);
    // One stream after the other: it can be used again when it has ended.
    for (size_t first = 0; first <= n_bytes; first++) {
        for (size_t second = first; second <= n_bytes; second++) {
            Text text = {.n = 0};
            push(stream, bytes, first, &text);
            push(stream, bytes + first, second - first, &text);
            push(stream, bytes + second, n_bytes - second, &text);
            CHECK(is(&text, expected));
            finish(stream, &text);
            CHECK(is(&text, expected));
        }
    }
    Text cut = {.n = 0};
    push(stream, "a\xf0\x9f", 3, &cut);
    CHECK(is(&cut, "a"));
    finish(stream, &cut);
    CHECK(is(&cut, "a\xef\xbf\xbd"));
    lg_text_stream_free(stream);
}

static void the_first_stop_string_ends_it(void)
{
    const char *const stops[] = {"", "<|user|>", "\n\n", "user"};
    const struct {
        const char *bytes, *text;
        uint32_t stop;
    } cases[] = {
        {"one <|us ing|> \n two\n", "one <|us ing|> \n two\n", LG_INDEX_NONE},
        {"one\n\n<|user|>", "one", 2},
        {"a <|user|> b", "a <|", 3},
        {"\n\n", "", 2},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const size_t n_bytes = strlen(cases[i].bytes);
        for (size_t cut = 0; cut <= n_bytes; cut++) {
            lg_text_stream *stream = new_stream(stops, 4);
            Text text = {.n = 0};
            push(stream, cases[i].bytes, cut, &text);
            push(stream, cases[i].bytes + cut, n_bytes - cut, &text);
            const uint32_t stopped = lg_text_stream_stop_index(stream);
            finish(stream, &text);
            CHECK(is(&text, cases[i].text) && stopped == cases[i].stop && lg_text_stream_stop_index(stream) == stopped);
            if (stopped != LG_INDEX_NONE) {
                push(stream, "more", 4, &text);
                CHECK(is(&text, cases[i].text));
            }
            lg_text_stream_free(stream);
        }
    }
}

static void tokens_are_their_bytes_and_special_ones_nothing(const lg_model *model)
{
    const char *const words = "caf\xc3\xa9 <|eos|>!";
    uint32_t tokens[64];
    size_t n_tokens;
    CALL(lg_model_tokenize, (model, words, strlen(words), LG_TOKENIZE_SPECIAL, tokens, 64, &n_tokens, &error));
    lg_text_stream *stream = new_stream(NULL, 0);
    Text text = {.n = 0};
    for (size_t i = 0; i < n_tokens; i++) {
        const char *part;
        size_t n;
        CALL(lg_text_stream_push_token, (stream, model, tokens[i], &part, &n, &error));
        append(&text, part, n);
    }
    finish(stream, &text);
    CHECK(is(&text, "caf\xc3\xa9 !"));
    lg_text_stream_free(stream);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    lg_model *model = NULL;
    CALL(lg_model_open, (argv[1], NULL, &model, &error));
    characters_are_whole_at_every_cut();
    the_first_stop_string_ends_it();
    tokens_are_their_bytes_and_special_ones_nothing(model);
    lg_model_free(model);
    return 0;
}
