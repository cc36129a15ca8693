#!/usr/bin/env bash
# Builds the library and the tools, and installs them:
#
#     bash tools/install.sh --prefix DIR [--libdir DIR] [--cuda | --built]
#
#     --prefix DIR   where to; /usr/local for everybody, ~/.local for oneself
#     --libdir DIR   where the library goes within the prefix; lib by default, lib64 or lib/x86_64-linux-gnu elsewhere
#     --cuda         with the backend for NVIDIA cards; tools/nvcc.sh gets its compiler
#     --built        what `cargo build --release` has left; for root, who may have no Rust
#
# DESTDIR, if it is set, stands before the prefix, as packages are made. What is installed may be moved as a whole: the
# files for pkg-config and CMake find the rest from where they lie. Programs find the library in /usr/local/lib once
# ldconfig has run, elsewhere by LD_LIBRARY_PATH or by a path that they are linked with. Prints how to remove it all.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

usage() {
    sed -n 's/^# \{0,1\}//; 2,9p' "$0" >&2
    exit 2
}

prefix=
libdir=lib
built=false
features=()
while [ $# -gt 0 ]; do
    case $1 in
    --prefix | --libdir)
        [ $# -ge 2 ] || usage
        declare "${1#--}=$2"
        shift
        ;;
    --cuda) features=(--features longgen-tools/cuda) ;;
    --built) built=true ;;
    *) usage ;;
    esac
    shift
done
[ -n "$prefix" ] && [[ $libdir != /* ]] || usage
$built || command -v cargo >/dev/null || {
    echo "install.sh: cargo is not on the PATH: see https://rustup.rs; --built installs what somebody else has built" >&2
    exit 1
}

# All is made ready beside where it goes, and appears there by renames: a program that runs with an older library keeps
# that one, and one that starts meanwhile finds either.
[[ $prefix == /* ]] || prefix=$PWD/$prefix
mkdir -p "${DESTDIR-}$prefix"
to=$(cd "${DESTDIR-}$prefix" && pwd)
ready=$(mktemp -d "$to/.longgen.XXXXXX")
trap 'rm -rf "$ready"' EXIT

cd "$root"
target=${CARGO_TARGET_DIR:-target}
$built || cargo build --release --locked --workspace --target-dir "$target" "${features[@]}"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
soname=liblonggen.so.${version%%.*}

# From a template: with the versions, and the way from its folder to the prefix.
fill() {
    local from=tools/install/$1.in folder=$ready/$2
    mkdir -p "$folder"
    sed -e "s|@VERSION@|$version|g" -e "s|@SONAME@|$soname|g" -e "s|@LIBDIR@|$libdir|g" \
        -e "s|@TO_PREFIX@|$(sed 's|[^/][^/]*|..|g' <<<"$2")|g" "$from" >"$folder/$1"
    chmod 644 "$folder/$1"
}

library=$ready/$libdir
mkdir -p "$ready/bin" "$ready/include" "$library"
install -m 755 "$target"/release/{lgconvert,lgrun,lgeval} "$ready/bin"
install -m 644 include/longgen.h* "$ready/include"
install -m 755 "$target/release/liblonggen.so" "$library/liblonggen.so.$version"
install -m 644 "$target/release/liblonggen.a" "$library"
# Line numbers are for developers, and most of what there is.
strip --strip-debug "$ready"/bin/* "$library"/*
ln -s "liblonggen.so.$version" "$library/$soname"
ln -s "$soname" "$library/liblonggen.so"
fill longgen.pc "$libdir/pkgconfig"
fill longgen-config.cmake "$libdir/cmake/longgen"
fill longgen-config-version.cmake "$libdir/cmake/longgen"

# In this order links come behind what they point to.
mapfile -t files < <(cd "$ready" && find * ! -type d | sort -r)
for file in "${files[@]}"; do
    mkdir -p "$(dirname "$to/$file")"
    mv -fT "$ready/$file" "$to/$file"
done
echo "installed longgen $version in $to; this removes it:"
printf 'cd %q && rm%s && rmdir %q\n' "$to" "$(printf ' %q' "${files[@]}")" "$libdir/cmake/longgen"
