#!/usr/bin/env bash
# Builds the library and the tools, and installs them:
#
#     bash tools/install.sh --prefix DIR [--libdir DIR] [--cuda]
#
#     --prefix DIR   where to; /usr/local for everybody, ~/.local for oneself
#     --libdir DIR   where the library goes within the prefix; lib by default, lib64 or lib/x86_64-linux-gnu elsewhere
#     --cuda         with the backend for NVIDIA cards; tools/nvcc.sh gets its compiler
#
# DESTDIR, if it is set, stands before the prefix, as packages are made. What is installed may be moved as a whole: the
# files for pkg-config and CMake find the rest from where they lie.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
    sed -n 's/^# \{0,1\}//; 2,8p' "$0" >&2
    exit 2
}

prefix=
libdir=lib
features=()
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --libdir)
        [ $# -ge 2 ] || usage
        declare "${1#--}=$2"
        shift
        ;;
    --cuda) features=(--features longgen-tools/cuda) ;;
    *) usage ;;
    esac
    shift
done
[ -n "$prefix" ] && [[ $libdir != /* ]] || usage
[[ $prefix == /* ]] || prefix=$PWD/$prefix
mkdir -p "${DESTDIR-}$prefix"
to=$(cd "${DESTDIR-}$prefix" && pwd)

cd "$root"
cargo build --release --locked --workspace "${features[@]}"
built=${CARGO_TARGET_DIR:-target}/release

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
soname=$(sed -n 's/^pub const LG_ABI_VERSION: u32 = \(.*\);/liblonggen.so.\1/p' src/capi/version.rs)
[ -n "$version" ] && [[ $soname =~ \.[0-9]+$ ]]

# From a template: with the versions, and the way from its folder to the prefix.
fill() {
    local from=tools/install/$1.in folder=$to/$2
    mkdir -p "$folder"
    sed -e "s|@VERSION@|$version|g" -e "s|@SONAME@|$soname|g" -e "s|@LIBDIR@|$libdir|g" \
        -e "s|@TO_PREFIX@|$(sed 's|[^/][^/]*|..|g' <<<"$2")|g" "$from" >"$folder/$1"
    chmod 644 "$folder/$1"
}

library=$to/$libdir/liblonggen.so.$version
install -d "$to/bin" "$to/include" "$to/$libdir"
install -m 755 "$built"/{lgconvert,lgrun,lgeval} "$to/bin"
install -m 644 include/longgen.h* "$to/include"
install -m 755 "$built/liblonggen.so" "$library"
install -m 644 "$built/liblonggen.a" "$to/$libdir"
# Line numbers are for developers, and most of what there is.
strip --strip-debug "$to"/bin/lg{convert,run,eval} "$library" "$to/$libdir/liblonggen.a"
ln -sf "liblonggen.so.$version" "$to/$libdir/$soname"
ln -sf "$soname" "$to/$libdir/liblonggen.so"
fill longgen.pc "$libdir/pkgconfig"
fill longgen-config.cmake "$libdir/cmake/longgen"
fill longgen-config-version.cmake "$libdir/cmake/longgen"

echo "installed longgen $version in $to"
