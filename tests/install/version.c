// A program outside of the project, which says what it was compiled with and what it runs with.
#include <longgen.h>

#include <stdio.h>

int main(void)
{
    printf("%s %s\n", LG_VERSION_STR, lg_version_str());
    return lg_abi_version() == LG_ABI_VERSION ? 0 : 1;
}
