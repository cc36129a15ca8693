// Prints all key-value pairs of a model's file: key, type, whether it is an array, number of elements, elements. Texts
// are in hexadecimal, floats are the bits of a double.
// usage: metadata MODEL
#include "check.h"

#include <inttypes.h>

static lg_error error = {.struct_size = sizeof error};

static void print_bytes(const char *bytes, size_t n_bytes)
{
    for (size_t i = 0; i < n_bytes; i++)
        printf("%02x", (unsigned)(unsigned char)bytes[i]);
}

static void *allocate(size_t n_bytes)
{
    void *memory = malloc(n_bytes + 1);
    CHECK(memory != NULL);
    return memory;
}

static void print_text(const lg_model *model, const char *key, size_t index)
{
    size_t n_bytes, n_written = 99;
    CALL(lg_model_metadata_text, (model, key, index, NULL, 0, &n_bytes, &error));
    char *text = allocate(n_bytes);
    memset(text, 99, n_bytes + 1);
    if (n_bytes > 0) {
        REFUSED(LG_ERR_TOO_SMALL, lg_model_metadata_text, (model, key, index, text, n_bytes - 1, &n_written, &error));
        CHECK(n_written == n_bytes && text[0] == 99);
    }
    CALL(lg_model_metadata_text, (model, key, index, text, n_bytes, &n_written, &error));
    CHECK(n_written == n_bytes && text[n_bytes] == 99);
    print_bytes(text, n_bytes);
    free(text);
}

static void print_element(const lg_model *model, const char *key, uint32_t type, size_t index)
{
    uint64_t u64 = 99;
    int64_t i64 = 99;
    double f64 = 99;
    bool flag = true;
    size_t n_bytes = 99;
    printf(" ");
    switch (type) {
    case LG_METADATA_U8:
    case LG_METADATA_U16:
    case LG_METADATA_U32:
    case LG_METADATA_U64:
        CALL(lg_model_metadata_u64, (model, key, index, &u64, &error));
        printf("%" PRIu64, u64);
        // The other getter of integers takes it if it fits.
        if (u64 <= INT64_MAX) {
            CALL(lg_model_metadata_i64, (model, key, index, &i64, &error));
            CHECK((uint64_t)i64 == u64);
        } else {
            REFUSED(LG_ERR_INVALID, lg_model_metadata_i64, (model, key, index, &i64, &error));
        }
        break;
    case LG_METADATA_I8:
    case LG_METADATA_I16:
    case LG_METADATA_I32:
    case LG_METADATA_I64:
        CALL(lg_model_metadata_i64, (model, key, index, &i64, &error));
        printf("%" PRId64, i64);
        if (i64 >= 0) {
            CALL(lg_model_metadata_u64, (model, key, index, &u64, &error));
            CHECK(u64 == (uint64_t)i64);
        } else {
            REFUSED(LG_ERR_INVALID, lg_model_metadata_u64, (model, key, index, &u64, &error));
        }
        break;
    case LG_METADATA_F32:
    case LG_METADATA_F64:
        CALL(lg_model_metadata_f64, (model, key, index, &f64, &error));
        memcpy(&u64, &f64, sizeof u64);
        printf("%" PRIx64, u64);
        break;
    case LG_METADATA_BOOL:
        CALL(lg_model_metadata_bool, (model, key, index, &flag, &error));
        printf("%d", flag);
        break;
    case LG_METADATA_TEXT: print_text(model, key, index); break;
    default: CHECK(false);
    }
    // What is asked for as something else is refused, and nothing is written.
    f64 = 99;
    if (type != LG_METADATA_F32 && type != LG_METADATA_F64)
        REFUSED(LG_ERR_INVALID, lg_model_metadata_f64, (model, key, index, &f64, &error));
    if (type != LG_METADATA_TEXT)
        REFUSED(LG_ERR_INVALID, lg_model_metadata_text, (model, key, index, NULL, 0, &n_bytes, &error));
    if (type != LG_METADATA_BOOL) {
        REFUSED(LG_ERR_INVALID, lg_model_metadata_bool, (model, key, index, &flag, &error));
        CHECK(flag);
    }
    CHECK(f64 == 99 && n_bytes == 99);
}

static void print_value(const lg_model *model, const char *key)
{
    uint32_t type;
    size_t n_elements;
    bool is_array;
    CALL(lg_model_metadata_info, (model, key, &type, &n_elements, &is_array, &error));
    printf(" %" PRIu32 " %d %zu", type, is_array, n_elements);
    for (size_t i = 0; i < n_elements; i++)
        print_element(model, key, type, i);
    const size_t beyond[] = {n_elements, n_elements + 63, SIZE_MAX};
    for (size_t i = 0; i < 3; i++) {
        uint64_t value = 99;
        size_t n_bytes = 99;
        REFUSED(LG_ERR_INVALID, lg_model_metadata_u64, (model, key, beyond[i], &value, &error));
        REFUSED(LG_ERR_INVALID, lg_model_metadata_text, (model, key, beyond[i], NULL, 0, &n_bytes, &error));
        CHECK(value == 99 && n_bytes == 99);
    }
}

static void print_pairs(const lg_model *model)
{
    for (size_t i = 0; i < lg_model_n_metadata(model); i++) {
        size_t n_bytes, n_written = 99;
        CALL(lg_model_metadata_key, (model, i, NULL, 0, &n_bytes, &error));
        char *key = allocate(n_bytes);
        key[0] = 99;
        REFUSED(LG_ERR_TOO_SMALL, lg_model_metadata_key, (model, i, key, n_bytes - 1, &n_written, &error));
        CHECK(n_written == n_bytes && key[0] == 99);
        CALL(lg_model_metadata_key, (model, i, key, n_bytes, &n_written, &error));
        CHECK(n_written == n_bytes && key[n_bytes - 1] == '\0');
        print_bytes(key, n_bytes - 1);
        // Every key that is listed can be asked for.
        CHECK(strlen(key) + 1 == n_bytes);
        print_value(model, key);
        printf("\n");
        free(key);
    }
}

static void hostile(const lg_model *model)
{
    const char *key = "general.name";
    char text[16] = {99};
    uint64_t u64 = 99;
    int64_t i64 = 99;
    double f64 = 99;
    size_t n = 99;
    uint32_t type = 99;
    bool flag = true;
    CHECK(lg_model_n_metadata(NULL) == 0);
    REFUSED(LG_ERR_INVALID, lg_model_metadata_key, (NULL, 0, text, 16, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_key, (model, lg_model_n_metadata(model), text, 16, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_key, (model, SIZE_MAX, text, 16, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_key, (model, 0, NULL, 16, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_key, (model, 0, text, SIZE_MAX, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_key, (model, 0, text, 16, NULL, &error));

    REFUSED(LG_ERR_INVALID, lg_model_metadata_info, (NULL, key, &type, &n, &flag, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_info, (model, NULL, &type, &n, &flag, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_info, (model, key, NULL, &n, &flag, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_info, (model, key, &type, NULL, &flag, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_info, (model, key, &type, &n, NULL, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_info, (model, "general.\xff", &type, &n, &flag, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_metadata_info, (model, "general.name.", &type, &n, &flag, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_metadata_info, (model, "general.nam", &type, &n, &flag, &error));

    REFUSED(LG_ERR_INVALID, lg_model_metadata_u64, (NULL, key, 0, &u64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_u64, (model, NULL, 0, &u64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_u64, (model, key, 0, NULL, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_metadata_u64, (model, "absent", 0, &u64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_i64, (NULL, key, 0, &i64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_i64, (model, NULL, 0, &i64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_i64, (model, key, 0, NULL, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_metadata_i64, (model, "absent", 0, &i64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_f64, (NULL, key, 0, &f64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_f64, (model, NULL, 0, &f64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_f64, (model, key, 0, NULL, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_metadata_f64, (model, "absent", 0, &f64, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_bool, (NULL, key, 0, &flag, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_bool, (model, NULL, 0, &flag, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_bool, (model, key, 0, NULL, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_metadata_bool, (model, "absent", 0, &flag, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_text, (NULL, key, 0, text, 16, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_text, (model, NULL, 0, text, 16, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_text, (model, key, 0, NULL, 16, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_text, (model, key, 0, text, SIZE_MAX, &n, &error));
    REFUSED(LG_ERR_INVALID, lg_model_metadata_text, (model, key, 0, text, 16, NULL, &error));
    REFUSED(LG_ERR_NOT_FOUND, lg_model_metadata_text, (model, "absent", 0, text, 16, &n, &error));
    CHECK(u64 == 99 && i64 == 99 && f64 == 99 && n == 99 && type == 99 && flag && text[0] == 99);
}

int main(int argc, char **argv)
{
    CHECK(argc == 2);
    lg_model *model = NULL;
    CALL(lg_model_open, (argv[1], NULL, &model, &error));
    print_pairs(model);
    hostile(model);
    lg_model_free(model);
    return 0;
}
