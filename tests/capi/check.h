// Checks that end the program with a message.
#ifndef CHECK_H
#define CHECK_H

#include <longgen.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                          \
    do {                                                                          \
        if (!(condition)) {                                                       \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                              \
        }                                                                         \
    } while (0)

// CALL(lg_f, (a, b, &error)): the call succeeds.
#define CALL(function, arguments) expect(LG_OK, function arguments, &error, #function, __FILE__, __LINE__)
// REFUSED(LG_ERR_INVALID, lg_f, (a, b, &error)): the call fails so, and the error tells status, reason and function.
#define REFUSED(status, function, arguments) expect(status, function arguments, &error, #function, __FILE__, __LINE__)

static inline void expect(lg_status expected, lg_status status, lg_error *error, const char *function,
                          const char *file, int line)
{
    if (status != expected) {
        fprintf(stderr, "%s:%d: %s: expected \"%s\", got \"%s\": %s\n", file, line, function, lg_status_str(expected),
                lg_status_str(status), error->message);
        exit(1);
    }
    if (expected == LG_OK)
        return;
    if (error->code != (uint32_t)status || error->message[0] == '\0' || strcmp(error->where, function) != 0) {
        fprintf(stderr, "%s:%d: %s: error says %u, \"%s\", \"%s\"\n", file, line, function, (unsigned)error->code,
                error->message, error->where);
        exit(1);
    }
    memset(error->message, 0, sizeof error->message);
    memset(error->where, 0, sizeof error->where);
    error->code = 0;
}

#endif
