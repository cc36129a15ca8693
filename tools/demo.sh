#!/usr/bin/env bash
# From a fresh clone to an answer: builds the tools, gets a small model, converts it and asks it a question.
#
#     bash tools/demo.sh          # one question
#     bash tools/demo.sh chat     # opens the chat
#
# Needs Rust, pip and a C compiler. What is already there is used again.
set -euo pipefail
cd "$(dirname "$0")/.."

case "${1-}" in
'' | chat) ;;
*)
    echo "usage: bash tools/demo.sh [chat]" >&2
    exit 2
    ;;
esac
command -v cargo >/dev/null || {
    echo "demo.sh: cargo is not installed: see https://rustup.rs" >&2
    exit 1
}

say() {
    echo "== $*"
}

say "building lgconvert and lgrun"
cargo build --release --quiet --package longgen-tools
bin=${CARGO_TARGET_DIR:-target}/release

say "getting the model"
source=$(bash tools/models.sh)
model=models/SmolLM2-135M-Instruct.longgen.gguf
if [ -e "$model" ]; then
    say "using $model"
else
    say "converting it to $model"
    "$bin/lgconvert" "$source" -o "$model"
fi

if [ "${1-}" = chat ]; then
    exec "$bin/lgrun" -m "$model"
fi
question="Name the capital of France."
say "asking: $question"
"$bin/lgrun" -m "$model" -p "$question"
