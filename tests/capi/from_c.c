// The part of from_cpp.cpp that is C.
#include <longgen.h>

uint32_t version_in_c(void);

uint32_t version_in_c(void)
{
    return LG_VERSION;
}
