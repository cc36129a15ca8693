#!/usr/bin/env bash
# Gets vocabularies, each with texts and what llama.cpp makes of them, into models/vocabs/, and chat templates of many
# models into models/vocabs/templates/, unless they are there. Prints the folder.
#
#     vocabs=$(bash tools/vocabs.sh)
#
# They come out of the source of the PyPI package llama-cpp-python (MIT, 77 MB), which has llama.cpp's tests.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/pypi.sh

package=llama-cpp-python==0.3.36
inside=llama_cpp_python-0.3.36/vendor/llama.cpp/models
sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
names=(command-r gpt-2 llama-bpe llama-spm phi-3 qwen2 refact starcoder)
vocabs=models/vocabs

has_all() {
    local name
    [ -d "$vocabs/templates" ] || return 1
    for name in "${names[@]}"; do
        [ -e "$vocabs/ggml-vocab-$name.gguf.out" ] || return 1
    done
}

if has_all; then # the folder is made whole, by a rename
    echo "$vocabs"
    exit
fi

download "the source of $package (77 MB)" "$package" --no-binary llama-cpp-python
echo "$sha256  $(echo "$partial"/*.tar.gz)" | sha256sum --check --status ||
    fail "the SHA-256 sum of the source of $package is wrong"
members=()
for name in "${names[@]}"; do
    members+=("$inside/ggml-vocab-$name.gguf" "$inside/ggml-vocab-$name.gguf.inp" "$inside/ggml-vocab-$name.gguf.out")
done
mkdir "$partial/vocabs"
tar -xzf "$partial"/*.tar.gz -C "$partial/vocabs" --strip-components=4 --wildcards \
    "$inside/templates/*.jinja" "${members[@]}" || fail "the source of $package lacks templates or a vocabulary"
rm -rf "$vocabs"
mv "$partial/vocabs" "$vocabs"
echo "$vocabs"
