#!/usr/bin/env bash
# Gets the programs that tests of the C interface need besides a compiler, where they are missing: with apt-get, as root.
# Elsewhere it says which are missing and what cannot be run without them; with CI set that is a failure.
#
#     bash tools/packages.sh
set -euo pipefail

# Command, Debian's package, what needs it.
needs='
go          golang-go   the example in Go
valgrind    valgrind    programs in C and C++ under valgrind
cmake       cmake       programs that are built with CMake
pkg-config  pkg-config  programs that are built with pkg-config
make        make        programs that are built with make
clang       clang       the headers with a second compiler
'

# Calls a function with each line of $needs whose command is missing.
for_missing() {
    local command package what
    while read -r command package what; do
        [ -z "$command" ] || command -v "$command" >/dev/null || "$1" "$command" "$package" "$what"
    done <<<"$needs"
}

package() {
    echo "$2"
}

say_skipped() {
    echo "SKIPPED $3: $1 is not installed, Debian has it in $2"
}

missing=$(for_missing package)
if [ -n "$missing" ] && [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    # Unquoted: one argument for each package. What could not be had is told below.
    { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends $missing; } >&2 ||
        echo "packages.sh: apt-get could not install" $missing >&2
fi
for_missing say_skipped
[ -z "${CI-}" ] || [ -z "$(for_missing package)" ]
