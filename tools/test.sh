#!/usr/bin/env bash
# Runs the project's checks and ends with one line: N passed, N failed.
#
#     bash tools/test.sh          # what must pass before a change lands: 12 minutes on two cores
#     bash tools/test.sh --all    # everything: 30 minutes; what CI runs
#
# Every step runs whatever became of the others. Their output is kept in the target folder under test-logs/; a failed
# step's last lines are printed, and so is what was skipped. Gets what it needs: programs (tools/packages.sh), a model
# (tools/models.sh), vocabularies (tools/vocabs.sh), a Python environment (tools/venv.sh).
set -uo pipefail
cd "$(dirname "$0")/.." || exit

all=false
case "${1-}" in
'') ;;
--all) all=true ;;
*)
    echo "usage: bash tools/test.sh [--all]" >&2
    exit 2
    ;;
esac

target=${CARGO_TARGET_DIR:-target}
bin=$target/release
logs=$target/test-logs
made=$target/test-models
golden=tests/golden
tiny=tests/data/longgen-tiny-8k
limit_s=2400 # of a step: one that hangs is a failed one
passed=0
failed=0
running=

# Steps run in process groups of their own, which Ctrl-C does not reach.
trap '[ -z "$running" ] || kill "$running" 2>/dev/null; echo; exit 130' INT TERM

rm -rf "$logs"
mkdir -p "$logs" "$made"

# OpenBLAS' threads wait by spinning: on a busy machine more than one is many times slower than one.
export OPENBLAS_NUM_THREADS=1
export PYTHONDONTWRITEBYTECODE=1

# step NAME COMMAND...: runs it and prints its name, what became of it, and the time.
step() {
    local name=$1 log started=$SECONDS status
    log=$logs/$(printf '%02d' $((passed + failed + 1)))-${name//[^a-zA-Z0-9]/-}.log
    shift
    printf '%-34s' "$name"
    timeout --kill-after=10 "$limit_s" "$@" >"$log" 2>&1 </dev/null &
    running=$!
    wait "$running"
    status=$?
    if [ $status -eq 0 ]; then
        passed=$((passed + 1))
        printf 'ok     %4d s\n' $((SECONDS - started))
        sed -n 's/^SKIPPED/    &/p' "$log" | sort -u
    else
        failed=$((failed + 1))
        printf 'FAILED %4d s   status %d, %s\n' $((SECONDS - started)) $status "$log"
        tail -n 40 "$log" | sed 's/^/    /'
    fi
}

step "packages" bash tools/packages.sh
step "formatting" cargo fmt --all --check
step "clippy" cargo clippy --workspace --all-targets -- -D warnings
step "documentation" env RUSTDOCFLAGS=-Dwarnings cargo doc --workspace --no-deps
step "model" bash tools/models.sh
step "vocabularies" bash tools/vocabs.sh
step "cargo test" cargo test --workspace
step "release build" cargo build --workspace --release

step "install" bash tests/install/run.sh

# The kernels for every card, and that a build with them runs where there is no card. Their tests need one: gpu_run.sh.
step "nvcc" bash tools/nvcc.sh
step "clippy, with CUDA" cargo clippy --workspace --all-targets --features longgen-tools/cuda -- -D warnings
step "cargo test, with CUDA" cargo test -p longgen --features cuda --lib --test ops --test kv --test house --test session --test fork
if ! nvidia-smi >/dev/null 2>&1; then
    echo "SKIPPED: what runs on CUDA devices; tools/gpu_bundle.sh and tools/gpu_run.sh take it to a machine that has one"
    step "without a card" bash tools/no_card.sh
fi

step "python environment" bash tools/venv.sh
python=.venv/bin/python
model=models/SmolLM2-135M-Instruct.Q4_1.gguf
cache=models/reference

# The reference itself against PyTorch, which had computed RoPE's angles in float64.
step "reference: run" "$python" $golden/reference.py logits --model $tiny --tokens $tiny/golden_ids.npy \
    --angles float64 -o "$made/reference.npy"
step "reference: PyTorch's logits" "$python" $golden/compare.py $tiny/golden_logits.npy "$made/reference.npy" \
    --positions $tiny/golden_positions.npy --tolerance 1e-4

rm -f "$made"/*.gguf
step "convert a folder" "$bin/lgconvert" $tiny -o "$made/tiny.gguf"
step "verify it" "$bin/lgconvert" verify "$made/tiny.gguf"
step "convert a GGUF" "$bin/lgconvert" $model -o "$made/smol.gguf"
step "verify it, too" "$bin/lgconvert" verify "$made/smol.gguf"

lgeval() {
    local name=$1 script=$2
    shift 2
    step "$name" "$python" "$golden/$script" --lgeval "$bin/lgeval" "$@"
}
lgeval "tokens" tokens.py --vocabs models/vocabs --model $model "$made/smol.gguf"
lgeval "chat templates" chat.py --templates models/vocabs/templates tests/data/text/templates --model $model
lgeval "logits: PyTorch's" run.py --model "$made/tiny.gguf" --pytorch $tiny
for folder in tests/data/checkpoints/*/; do
    name=$(basename "$folder")
    step "convert $name" "$bin/lgconvert" "$folder" -o "$made/$name.gguf"
    lgeval "logits: $name" run.py --model "$made/$name.gguf" --pytorch "$folder"
done
lgeval "logits: a converted GGUF" run.py --model "$made/smol.gguf" --source $model --cache $cache --quick \
    --plans full mixed

if $all; then
    lgeval "logits: all plans and lengths" run.py --model $model --cache $cache
    for kv in f32 f16; do
        for chunk in 64 512; do
            lgeval "needle: $kv, chunk $chunk" needle.py --model "$made/tiny.gguf" --kv $kv --chunk $chunk \
                --lengths 1024 4096 8192 --expect 24
        done
    done
    for kv in bf16 q8; do
        lgeval "needle: $kv, chunk 512" needle.py --model "$made/tiny.gguf" --kv $kv --chunk 512 \
            --lengths 1024 4096 8192 --expect 24
    done
    lgeval "needle: every layer sparse" needle.py --model "$made/tiny.gguf" --attention $tiny/sink.json \
        --lengths 8192 --at-most 6
    lgeval "perplexity: fast and exact" perplexity.py --model $model --bytes 120000
    step "memory of lgrun" "$python" $golden/memory.py --lgrun "$bin/lgrun" --model "$made/smol.gguf"
    step "memory of lgconvert" "$python" $golden/convert_memory.py --lgconvert "$bin/lgconvert" \
        --tokenizer $tiny/tokenizer.json
else
    lgeval "logits: all plans" run.py --model $model --cache $cache --quick
    lgeval "needle" needle.py --model "$made/tiny.gguf" --lengths 1024 --expect 24
    lgeval "perplexity: fast and exact" perplexity.py --model $model
fi
step "time to the first token" "$python" $golden/startup.py --lgrun "$bin/lgrun" --model $model

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
