#!/usr/bin/env bash
# Makes .venv with what the Python scripts in tests/golden need, unless it is there and current. Prints its Python.
#
#     python=$(bash tools/venv.sh)
#
# PYTHON chooses the interpreter (python3, 3.10 or later).
set -euo pipefail
cd "$(dirname "$0")/.."

requirements=tests/golden/requirements.txt
installed=.venv/requirements.txt # copied there last: a half-made environment is made again
python=${PYTHON:-python3}

fail() {
    echo "venv.sh: $*" >&2
    exit 1
}

if ! cmp -s "$requirements" "$installed"; then
    command -v "$python" >/dev/null || fail "$python is not installed"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || fail "$python is too old, 3.10 is needed"
    echo "making .venv" >&2
    rm -rf .venv
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv .venv >&2
    else
        # Debian splits ensurepip off; the system's pip can fill an environment that has none.
        "$python" -m venv --without-pip .venv >&2
    fi
    pip=("$python" -m pip --python .venv/bin/python)
    [ -x .venv/bin/pip ] && pip=(.venv/bin/python -m pip)
    "${pip[@]}" install --quiet --requirement "$requirements" >&2 || fail "pip could not install $requirements"
    cp "$requirements" "$installed"
fi
echo .venv/bin/python
