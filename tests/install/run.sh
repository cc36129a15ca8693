#!/usr/bin/env bash
# Installs into a folder, moves it, and builds programs against it with pkg-config and with CMake, as its users would; then
# installs over it, and removes it.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

DESTDIR=$work bash tools/install.sh --prefix /made --libdir lib/here
mkdir "$work/a place"
mv "$work/made" "$work/a place/moved"
prefix="$work/a place/moved"
library=$prefix/lib/here
cp tests/install/{version.c,CMakeLists.txt} "$work"
version=$("$prefix/bin/lgrun" --version | cut -d ' ' -f 2)

# runs PROGRAM: which prints the version of the header and of the library.
runs() {
    [ "$("$@")" = "$version $version" ] || {
        echo "$* says $("$@"), not $version twice" >&2
        exit 1
    }
}

files() {
    (cd "$prefix" && find . ! -type d | sort)
}

echo "== files"
files
[ "$(readlink "$library/liblonggen.so.0")" = "liblonggen.so.$version" ]

# has PROGRAM: or says what is left out; with CI set that is a failure.
has() {
    command -v "$1" >/dev/null && return
    echo "SKIPPED programs that are built with $1: it is not installed"
    [ -z "${CI-}" ] || exit 1
    return 1
}

if has pkg-config; then
    echo "== pkg-config"
    export PKG_CONFIG_PATH=$library/pkgconfig
    [ "$(pkg-config --modversion longgen)" = "$version" ]
    eval "flags=($(pkg-config --cflags --libs longgen))"
    ${CC:-cc} -o "$work/by_pkg_config" "$work/version.c" "${flags[@]}"
    LD_LIBRARY_PATH=$library runs "$work/by_pkg_config"
    eval "flags=($(pkg-config --cflags --libs --static longgen | sed 's/-llonggen/-l:liblonggen.a/'))"
    ${CC:-cc} -o "$work/by_pkg_config_static" "$work/version.c" "${flags[@]}"
    runs "$work/by_pkg_config_static"
fi

if has cmake; then
    echo "== CMake"
    cmake -S "$work" -B "$work/build" -DCMAKE_PREFIX_PATH="$prefix/lib/here/cmake"
    cmake --build "$work/build"
    runs "$work/build/shared"
    runs "$work/build/static"
fi

echo "== the shared library is lean"
du -k "$library/liblonggen.so.$version" "$library/liblonggen.a"
needed=$(readelf --dynamic --wide "$library/liblonggen.so.$version" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p')
echo "$needed"
[ -z "$(grep -vE '^(libc|libm|libgcc_s|ld-linux-.*)\.so\.' <<<"$needed")" ] || {
    echo "it needs more than libc, libm and libgcc_s" >&2
    exit 1
}

echo "== installed again, programs keep the files that they have"
before=$(files)
find "$prefix" -type f -exec sh -c 'echo old >"$1"' _ {} \;
cp -al "$prefix" "$work/old"
chmod 700 "$prefix/bin"
remove=$(cd "$work/a place" && bash "$root/tools/install.sh" --prefix moved --libdir lib/here --built | tail -n 1)
[ "$("$prefix/bin/lgrun" --version)" = "lgrun $version" ]
[ "$(stat -c %a "$prefix/bin")" = 700 ]
[ "$(files)" = "$before" ]
changed=$(grep -rLx old "$work/old" || true)
[ -z "$changed" ] || {
    echo "written in place: $changed" >&2
    exit 1
}

echo "== removed"
bash -c "$remove"
[ -z "$(files)" ]
