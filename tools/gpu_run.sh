#!/usr/bin/env bash
# Tests the CUDA backend on this machine with what tools/gpu_bundle.sh gathered, and ends with a summary.
#
#     bash tools/gpu_run.sh keep     # puts what is here aside, and joins the parts of the model once all are
#     bash tools/gpu_run.sh          # tests and the main figures; needs Python with numpy
#     bash tools/gpu_run.sh bench    # all figures alone, or those of the groups that follow:
#                                    # attention, peers, seven, ratio, seventy, small, sessions
#
# Figures are appended to bench.jsonl, of which tools/bench/table.py makes tables. Peers need PyTorch.
#
# LONGGEN_KEEP names the folder outside the checkout where programs and model are kept.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

bundle=$PWD/gpu-bundle
keep=${LONGGEN_KEEP:-/tmp/longgen}
bin=$keep/bin
golden=tests/golden
tiny=tests/data/longgen-tiny-8k
model=$keep/SmolLM2-135M-Instruct.Q4_1.gguf
logs=${OUT:-$keep}/logs
raw=${OUT:-$keep}/bench.jsonl
export LONGGEN_DEVICE=cuda CI=true PYTHONDONTWRITEBYTECODE=1
mkdir -p "$keep" "$logs"
passed=0
failed=0

keep_parts() {
    local archive
    for archive in "$bundle"/*.tar.gz; do
        [ ! -f "$archive" ] || tar xzf "$archive" -C "$keep"
    done
    cp "$bundle"/models/* "$keep/" 2>/dev/null
    [ -f "$keep/sha256sums" ] && [ ! -f "$model" ] || return
    cat "$model".part? >"$model.joined" 2>/dev/null
    if (cd "$keep" && sed 's/gguf$/gguf.joined/' sha256sums | sha256sum --status --check); then
        mv "$model.joined" "$model"
        echo "the model is complete"
    else
        rm -f "$model.joined"
        echo "parts so far: $(cd "$keep" && echo *.part?)"
    fi
}

# step NAME COMMAND...: runs it and prints its name, what became of it, the time, and its last line.
step() {
    local name=$1 started=$SECONDS log=$logs/${1//[^a-zA-Z0-9]/-}.log
    shift
    # A machine without a device would pass everything.
    if timeout 240 "$@" >"$log" 2>&1 </dev/null && ! grep -q SKIPPED "$log"; then
        passed=$((passed + 1))
        printf '%-40s ok     %4d s  %s\n' "$name" $((SECONDS - started)) "$(grep -v '^$' "$log" | tail -n 1 | cut -c1-90)"
    else
        failed=$((failed + 1))
        printf '%-40s FAILED %4d s\n' "$name" $((SECONDS - started))
        grep SKIPPED "$log" | sort -u
        grep -v '^$' "$log" | tail -n 15 | cut -c1-300 | sed 's/^/    /'
    fi
}

tests() {
    step "test longgen" "$bin/test_longgen" backend::cuda
    for name in ops kv session fork prompt save soak; do
        step "test $name" "$bin/test_$name"
    done
    step "convert the tiny model" "$bin/lgconvert" $tiny -o "$keep/tiny.gguf"
    step "tiny model: PyTorch's logits" python3 $golden/run.py --lgeval "$bin/lgeval" --model "$keep/tiny.gguf" \
        --pytorch $tiny
    for kv in f32 f16 bf16 q8; do
        step "tiny model: needles, $kv" python3 $golden/needle.py --lgeval "$bin/lgeval" --model "$keep/tiny.gguf" \
            --kv $kv --chunk 512 --lengths 1024 4096 8192 --expect 24
    done
    if [ -f "$model" ]; then
        step "SmolLM2: exact logits" python3 $golden/devices.py --lgeval "$bin/lgeval" --model "$model" \
            --precision exact --kv f32 --tokens 1000 --max 0.02 --mean 0.002
        for plan in full longgen-sink longgen-blocks; do
            step "SmolLM2: logits, $plan" python3 $golden/devices.py --lgeval "$bin/lgeval" --model "$model" \
                --attention $plan
        done
        step "SmolLM2 in bf16: convert" "$bin/lgconvert" "$model" --type bf16 -o "$keep/bf16.gguf"
        step "SmolLM2 in bf16: logits" python3 $golden/devices.py --lgeval "$bin/lgeval" --model "$keep/bf16.gguf" \
            --max 1.0 --mean 0.1
        step "SmolLM2: perplexity" python3 $golden/perplexity.py --lgeval "$bin/lgeval" --model "$model" --device cuda
        step "SmolLM2: an answer" "$bin/lgrun" -m "$model" -p "Name the capital of France." --temp 0 -n 24 --stats
        # shellcheck disable=SC2016
        step "SmolLM2: a context that does not fit" bash -c \
            'said=$("$0" -m "$1" -c 8000000 -p hi 2>&1) && exit 1; grep "tokens would fit" <<<"$said"' "$bin/lgrun" "$model"
    else
        echo "SmolLM2 is not here: its steps are left out"
    fi
    if command -v compute-sanitizer >/dev/null; then
        step "compute-sanitizer" compute-sanitizer --error-exitcode 1 "$bin/test_session" tokens_decoded
        step "compute-sanitizer, products" compute-sanitizer --error-exitcode 1 "$bin/test_ops" products_are_as_near
        step "compute-sanitizer, attention" compute-sanitizer --error-exitcode 1 "$bin/test_ops" to_blocks_far_away
    fi
}

# record FIELD=VALUE...: what a bench says on standard input, for the raw results and in short.
record() {
    python3 tools/bench/record.py "$raw" "driver=$driver" "$@"
}

# bench NAME ARGUMENTS...: what lgeval bench measures, and the most memory that the card held meanwhile.
bench() {
    local name=$1 used=$logs/memory said sampler
    shift
    nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits --loop-ms=200 >"$used" &
    sampler=$!
    said=$(timeout 300 "$bin/lgeval" bench --json "$@" 2>&1 </dev/null || echo "ended with status $?")
    kill $sampler
    record "bench=$name" "memory_mib=$(sort -n "$used" | tail -n 1)" <<<"$said"
}

# attention NAME IMPLEMENTATION ARGUMENTS...: what lgeval bench-attention measures.
attention() {
    local name=$1 implementation=$2
    shift 2
    { timeout 120 "$bin/lgeval" bench-attention --json "$@" 2>&1 </dev/null || echo "ended with status $?"; } |
        record "bench=$name" "implementation=$implementation"
}

# Attention alone; of some cases with the kernels for older cards, too.
bench_attention() {
    local name flags
    while read -r name flags; do
        [[ $name == [a-z]* ]] || continue
        # shellcheck disable=SC2086
        attention "$name" longgen $flags
        [[ $name =~ ^(prefill-mha|sink-mha|decode-mha|decode-gqa)-(4k|32k)$ ]] || continue
        # shellcheck disable=SC2086
        attention "$name" longgen-portable --portable $flags
    done <tools/bench/attention_cases.txt
}

bench_peers() {
    timeout 500 python3 tools/bench/peers.py 2>"$logs/peers.log" | record
    [ "${PIPESTATUS[0]}" -eq 0 ] || tail -n 15 "$logs/peers.log"
}

seven=(--synthetic llama-2-7b --attention longgen-sink)

# The 7B shape, as the paper's table has it.
main_benches() {
    bench "7B, bf16" "${seven[@]}" --type bf16 -p 4096 -n 64 -r 3
    bench "7B, bf16, 16 sessions" "${seven[@]}" --type bf16 -d 1000 -p 0 -n 64 -r 2 -s 16
    bench "7B, bf16, 128K deep" "${seven[@]}" --type bf16 -d 131008 -p 0 -n 64 -r 2
    bench "7B, bf16, 128K prompt" "${seven[@]}" --type bf16 -p 131072 -n 0 -r 1
}

bench_seven() {
    local ty blocks=(--synthetic llama-2-7b --attention longgen-blocks --type bf16)
    main_benches
    bench "7B, bf16, 4K deep" "${seven[@]}" --type bf16 -d 4096 -p 0 -n 64 -r 3
    bench "7B, bf16, 32K deep" "${seven[@]}" --type bf16 -d 32768 -p 0 -n 64 -r 3
    bench "7B, bf16, 8-bit cache, 128K deep" "${seven[@]}" --type bf16 --kv q8 -d 131008 -p 0 -n 64 -r 2
    for ty in q8_0 q4_0; do
        bench "7B, $ty" "${seven[@]}" --type $ty -p 4096 -n 64 -r 3
        bench "7B, $ty, 4K deep" "${seven[@]}" --type $ty -d 4096 -p 0 -n 64 -r 3
    done
    bench "7B, q4_0, 128K deep" "${seven[@]}" --type q4_0 -d 131008 -p 0 -n 64 -r 2
    bench "7B, bf16, blocks, 128K prompt" "${blocks[@]}" -p 131072 -n 0 -r 1
    bench "7B, bf16, blocks, 128K deep" "${blocks[@]}" -d 131008 -p 0 -n 64 -r 2
}

# What sparse layers spare, as the paper has it: quantised, so that the cache of 32 full layers fits.
bench_ratio() {
    local plan shape=(--synthetic llama-2-7b --type q8_0)
    for plan in full longgen-sink; do
        bench "7B, q8_0, $plan, 128K prompt" "${shape[@]}" --attention $plan -p 131072 -n 0 -r 1
        bench "7B, q8_0, $plan, 128K deep" "${shape[@]}" --attention $plan -d 131008 -p 0 -n 64 -r 2
    done
}

bench_seventy() {
    local seventy=(--synthetic llama-2-70b --type q4_0 --attention longgen-sink)
    bench "70B, q4_0, 128K prompt" "${seventy[@]}" -p 131072 -n 0 -r 1
    bench "70B, q4_0, 128K deep" "${seventy[@]}" -d 131008 -p 0 -n 64 -r 2
}

bench_small() {
    bench "7B, bf16, full, 32K prompt" --synthetic llama-2-7b --type bf16 --attention full -p 32768 -n 0 -r 1
    bench "Llama-3-8B, q4_0, 4K deep" --synthetic llama-3-8b --type q4_0 --attention full -d 4096 -p 0 -n 64 -r 3
    bench "SmolLM2-135M, f16, 4K deep" --synthetic smollm2-135m --type f16 --attention full -d 4096 -p 4096 -n 64 -r 3
}

# Several sessions of a model, and prompts that arrive while others decode.
bench_sessions() {
    bench "7B, bf16, sessions" "${seven[@]}" --type bf16 -d 1000 -p 0 -n 64 -r 2 -s 1,2,4,8
    timeout 300 "$bin/lgeval" bench-mixed --json "${seven[@]}" --type bf16 -p 4096 --parts 256,512,1024 -s 4 -d 1000 2>&1 |
        record "bench=7B, bf16, mixed"
}

usage() {
    echo "usage: bash tools/gpu_run.sh [keep | bench [attention | peers | seven | ratio | seventy | small | sessions]...]" >&2
    exit 2
}

driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
keep_parts
case "${1-}" in
keep) ;;
bench)
    shift
    [ $# -gt 0 ] || set -- attention peers seven ratio seventy small sessions
    for group; do
        [[ $group =~ ^(attention|peers|seven|ratio|seventy|small|sessions)$ ]] || usage
    done
    for group; do
        "bench_$group"
    done
    ;;
'')
    tests
    echo "$passed passed, $failed failed"
    main_benches
    [ "$failed" -eq 0 ]
    ;;
*) usage ;;
esac
