"""Compares the logits of `lgeval` with the reference's, for every kind of attention and many lengths.

    run.py --lgeval target/release/lgeval --model llama.gguf --cache models/reference [--quick]
    run.py --lgeval target/release/lgeval --pytorch tests/data/longgen-tiny-8k --model tiny.gguf

The first form runs a plain `llama` GGUF under several plans (or, with --source llama.gguf, what was made of that). What
comes later never changes the logits of a token, so one reference run of the longest text serves all lengths of a plan;
its final states are kept in the cache folder, under a hash of everything that they depend on. The second form compares
with the logits that PyTorch left in a model's Hugging Face folder (golden_ids.npy, golden_logits.npy,
golden_positions.npy); the GGUF was made from that folder by `lgconvert`.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from compare import ROW_TILE, Comparison
from lgeval import Lgeval
from plan import plan_from_json
from reference import final_states, head
from text import prose
from weights import Model, open_model

LENGTHS = (1, 63, 64, 65, 257, 1000, 2500)
QUICK_LENGTHS = (65, 1000)
TEXT_BYTES = 16_000  # some 4,000 tokens
TOLERANCE = 0.02
# PyTorch computed RoPE's angles in float64; float32 angles alone differ from that by 5e-4 in these logits.
PYTORCH_TOLERANCE = 2e-3
EXACT = ("--precision", "exact", "--kv", "f32")


def plans(model: Model) -> dict[str, dict]:
    """The plans to test, by name, as JSON objects."""
    full = {"kind": "full"}
    window = {"kind": "window", "window_tokens": 200, "sink_tokens": 4}
    sink = {"kind": "blocks", "block_size": 64, "local_blocks": 3, "sink_blocks": 1, "stride": 0}
    sink["phases"] = [0] * model.n_heads
    blocks = {"kind": "blocks", "block_size": 64, "local_blocks": 2, "sink_blocks": 0, "stride": 3}
    per_query_head = blocks | {"phases": [head % 3 for head in range(model.n_heads)]}
    per_kv_head = blocks | {"phases": [head % 3 for head in range(model.n_kv_heads)]}
    small = {"kind": "blocks", "block_size": 16, "local_blocks": 3, "sink_blocks": 2, "stride": 5}
    small["phases"] = [2 * head % 5 for head in range(model.n_kv_heads)]
    cycles = {
        "full": [full],
        "window": [window],
        "sink": [sink],
        "blocks": [per_kv_head],
        "blocks-query-heads": [per_query_head],
        "mixed": [full, window, per_query_head, sink, small, {"kind": "window", "window_tokens": 65}],
    }
    return {
        name: {"attention": [cycle[i_layer % len(cycle)] for i_layer in range(model.n_layers)]}
        for name, cycle in cycles.items()
    }


def cached_states(cache: Path, model_hash: str, model: Model, plan: dict, ids: np.ndarray) -> np.ndarray:
    """The reference's final states, from the cache if it has them."""
    key = hashlib.sha256(model_hash.encode() + json.dumps(plan, sort_keys=True).encode() + ids.tobytes())
    for source in ("plan.py", "reference.py", "weights.py"):
        key.update((Path(__file__).parent / source).read_bytes())
    file = cache / f"{key.hexdigest()[:32]}.npy"
    if not file.exists():
        layers = plan_from_json(plan, model.n_layers, model.n_heads, model.n_kv_heads)
        states = final_states(model, layers, ids)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, delete=False) as partial:
            np.save(partial, states)
        os.replace(partial.name, file)
    return np.load(file)


def compare_plans(lgeval: Lgeval, source: Path, cache: Path, lengths: tuple[int, ...], only: list[str] | None) -> bool:
    """Compares all plans at all lengths, prints a line each, and says whether all agree."""
    model = open_model(source)
    model_hash = hashlib.sha256(source.read_bytes()).hexdigest()
    ids = lgeval.tokenize(prose(TEXT_BYTES))[: max(lengths)]
    if len(ids) < max(lengths):
        sys.exit(f"the text has {len(ids)} tokens, {max(lengths)} wanted")

    output = head(model)
    all_agree = True
    for name, plan in plans(model).items():
        if only and name not in only:
            continue
        states = cached_states(cache, model_hash, model, plan, ids)
        with tempfile.TemporaryDirectory() as folder:
            plan_file = Path(folder) / "plan.json"
            plan_file.write_text(json.dumps(plan), encoding="ascii")
            for length in lengths:
                started = time.monotonic()
                actual = lgeval.logits(ids[:length], *EXACT, "--attention", plan_file)
                seconds = time.monotonic() - started
                comparison = Comparison(TOLERANCE)
                if len(actual) != length:
                    sys.exit(f"{name}: {length} tokens, {len(actual)} rows of logits")
                for start in range(0, length, ROW_TILE):
                    rows = np.arange(start, min(start + ROW_TILE, length))
                    comparison.add(states[rows] @ output.T, actual[rows], rows)
                all_agree &= comparison.agrees
                print(f"{verdict(comparison)} {name:18} {length:5} tokens {seconds:6.1f} s: {comparison}", flush=True)
    return all_agree


def compare_pytorch(lgeval: Lgeval, folder: Path) -> bool:
    """Compares with the logits in a Hugging Face folder."""
    ids, positions = np.load(folder / "golden_ids.npy"), np.load(folder / "golden_positions.npy")
    comparison = Comparison(PYTORCH_TOLERANCE)
    comparison.add(np.load(folder / "golden_logits.npy"), lgeval.logits(ids, *EXACT)[positions], positions)
    print(f"{verdict(comparison)} {folder.name}, PyTorch: {comparison}")
    return comparison.agrees


def verdict(comparison: Comparison) -> str:
    """One word for a printed line."""
    return "agree " if comparison.agrees else "DIFFER"


def main():
    parser = argparse.ArgumentParser(description="compare lgeval with the numpy reference")
    parser.add_argument("--lgeval", required=True, type=Path, help="the program to test")
    parser.add_argument("--model", required=True, type=Path, help="the GGUF file that lgeval runs")
    parser.add_argument("--source", type=Path, help="the llama GGUF for the reference, if not the model")
    parser.add_argument("--cache", type=Path, help="folder for the reference's results")
    parser.add_argument("--quick", action="store_true", help="two lengths instead of seven")
    parser.add_argument("--plans", nargs="+", metavar="NAME", help="only these plans")
    parser.add_argument("--pytorch", type=Path, metavar="FOLDER", help="compare with the logits in this folder instead")
    options = parser.parse_args()

    lgeval = Lgeval(options.lgeval, options.model)
    if options.pytorch:
        agrees = compare_pytorch(lgeval, options.pytorch)
    elif options.cache:
        lengths = QUICK_LENGTHS if options.quick else LENGTHS
        agrees = compare_plans(lgeval, options.source or options.model, options.cache, lengths, options.plans)
    else:
        parser.error("--cache is needed")
    sys.exit(not agrees)


if __name__ == "__main__":
    main()
