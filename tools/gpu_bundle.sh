#!/usr/bin/env bash
# Gathers in gpu-bundle/ what a machine with a GPU but without Rust needs to test the CUDA backend:
#
#     bash tools/gpu_bundle.sh
#
# makes  gpu-bundle/tools.tar.gz  lgconvert, lgrun and lgeval, stripped
#        gpu-bundle/tests-*.tar.gz  test programs, in archives of four
#        gpu-bundle/models        the model in parts of at most 40 MB, with checksums
#
# Take the checkout with gpu-bundle there and run `bash tools/gpu_run.sh`. Where not everything travels at once, take
# the parts one by one and run `bash tools/gpu_run.sh keep` with each: it puts them aside and joins them in the end.
set -euo pipefail
cd "$(dirname "$0")/.."

bundle=gpu-bundle
target=${CARGO_TARGET_DIR:-target}
part_bytes=40000000

bash tools/models.sh >/dev/null
cargo build --release --features longgen-tools/cuda -p longgen-tools
cargo test --features cuda -p longgen --no-run
tests=$(cargo test --features cuda -p longgen --no-run --message-format=json 2>/dev/null |
    python3 -c '
import json, sys
for line in sys.stdin:
    made = json.loads(line)
    if made.get("executable") and made["target"]["name"] in (
        "longgen", "ops", "kv", "session", "fork", "prompt", "save", "soak"
    ):
        print(made["target"]["name"], made["executable"])')

rm -rf $bundle
mkdir -p $bundle/bin $bundle/models
for tool in lgconvert lgrun lgeval; do
    cp "$target/release/$tool" $bundle/bin/
done
while read -r name program; do
    cp "$program" "$bundle/bin/test_$name"
done <<<"$tests"
strip $bundle/bin/*
(
    cd $bundle
    tar czf tools.tar.gz bin/lg*
    printf '%s\n' bin/test_* | split --lines 4 --numeric-suffixes --suffix-length 1 - list.
    for list in list.*; do
        tar czf "tests-${list#list.}.tar.gz" --files-from "$list"
        rm "$list"
    done
)
rm -r $bundle/bin

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
split --bytes $part_bytes --numeric-suffixes --suffix-length 1 "$model" "$bundle/models/$(basename $model).part"
(cd models && sha256sum "$(basename $model)") >$bundle/models/sha256sums
du -sh $bundle/*.tar.gz $bundle/models/*
