#!/usr/bin/env bash
# Checks that a build with the feature `cuda` runs where there is no driver: `auto` says why it takes the CPU, `cuda`
# says that it cannot, and nothing else changes.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${CARGO_TARGET_DIR:-target}
cargo build -p longgen-tools --features longgen-tools/cuda
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$target/debug/lgconvert" tests/data/longgen-tiny-8k -o "$scratch/tiny.gguf"

answer() {
    "$target/debug/lgrun" -m "$scratch/tiny.gguf" -c 512 --raw -p "The" --temp 0 -n 8 --device "$1"
}
expected=$(answer cpu 2>"$scratch/cpu")
[ "$(answer auto 2>"$scratch/auto")" = "$expected" ]
grep "running on the CPU: cuda: " "$scratch/auto"
[ ! -s "$scratch/cpu" ]
if answer cuda >"$scratch/out" 2>"$scratch/cuda"; then
    echo "there is a card after all" >&2
    exit 1
fi
cat "$scratch/cuda"
grep -q "^lgrun: .*cuda: " "$scratch/cuda"
