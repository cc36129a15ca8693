#!/usr/bin/env python3
"""Tables in Markdown from the JSON lines that tools/gpu_run.sh bench leaves.

    python3 tools/bench/table.py RAW.jsonl...                                # prints them
    python3 tools/bench/table.py --update tools/bench/h100.md RAW.jsonl...   # puts them between the page's markers

Of a bench that was measured several times, the last one counts.
"""

import argparse
import json
import sys
from pathlib import Path

BEGIN, END = "<!-- made by tools/bench/table.py -->", "<!-- end of what it made -->"
OURS, PORTABLE = "longgen", "longgen-portable"


def table(head, rows):
    """Rows of cells as Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def number(x):
    """Three digits or more."""
    digits = 0 if x >= 100 else 1 if x >= 10 else 2 if x >= 1 else 4
    return f"{x:,.{digits}f}"


def attention(plan):
    """A mask in words, as bench-attention tells it."""
    if plan["kind"] != "blocks":
        return plan["kind"]
    sink = f"first {plan['sink_blocks']}, " if plan["sink_blocks"] else ""
    stride = f", 1 in {plan['stride']}" if plan["stride"] else ""
    return f"blocks of {plan['block_size']}: {sink}last {plan['local_blocks']}{stride}"


def attention_table(benches, unit):
    """Ours beside every other, in this unit, and how many times the best peer's speed ours is."""
    measured = {name: None for lines in benches.values() for name in lines}
    peers = [name for name in measured if name not in (OURS, PORTABLE)]
    names = [name for name in (PORTABLE,) if name in measured] + peers
    head = ["attention", "heads", "context", "queries", "cache", "ms", f"LongGen, {unit}"]
    rows = []
    for lines in benches.values():
        ours = lines[OURS]
        speed = {name: line.get(unit_key(unit)) for name, line in lines.items()}
        best = max((speed[name] for name in peers if speed.get(name)), default=None)
        cells = [number(speed[name]) if speed.get(name) else "failed" if name in lines else "" for name in names]
        rows.append(
            [
                attention(ours["attention"]),
                f"{ours['heads']} / {ours['kv_heads']} of {ours['head_dim']}",
                f"{ours['tokens']:,}",
                f"{ours['queries']:,}",
                ours["kv"],
                number(ours["ms"]["median"]),
                number(speed[OURS]),
                *cells,
                f"{speed[OURS] / best:.2f}" if best else "",
            ]
        )
    names = ["for every card" if name == PORTABLE else name for name in names]
    return table([*head, *names, "to the best"], rows)


def unit_key(unit):
    return {"TFLOP/s": "tflops", "GB/s": "gbs"}[unit]


def model_row(line):
    """What a row about a whole model begins with."""
    return [Path(line["model"]).name, line.get("type") or "", line.get("attention") or "as its file says", line["kv"]]


def memory(line):
    return f"{int(line['memory_mib']) * 2**20 / 1e9:.1f}" if line.get("memory_mib") else ""


def prompt_row(line):
    n, speed = int(line["test"].removeprefix("pp").split()[0]), line["median"]
    return [*model_row(line), f"{n:,}", f"{line['depth']:,}", number(speed), number(n / speed), memory(line)]


def decode_row(line):
    speed, sessions = line["median"], line["sessions"]
    gbs = number(line["bytes_per_token"] * speed / 1e9)
    return [*model_row(line), sessions, f"{line['depth']:,}", number(speed), gbs, memory(line)]


def mixed_row(line):
    numbers = line["prompt_tokens_per_second"], line["decode_tokens_per_second"], line["longest_ms"]
    part = f"{line['part']:,}" if line["part"] else "alone, first"
    return [*model_row(line), f"{line['n_prompt']:,}", part, line["sessions"], f"{line['depth']:,}", *map(number, numbers)]


def tables(lines):
    """All of them, as text."""
    of_attention, of_models, errors = {}, {}, []
    for line in lines:
        implementation, test = line.get("implementation"), line.get("test")
        if "error" in line:
            errors.append(f"- {line['bench']}, {implementation or OURS}: {line['error']}\n")
        if implementation:
            of_attention.setdefault(line["bench"], {})[implementation] = line
        elif test:
            of_models[line["bench"], test] = line
    measured = {name: lines for name, lines in of_attention.items() if "ms" in lines.get(OURS, {})}
    has_portable = any(PORTABLE in lines for lines in measured.values())
    prefill = {name: lines for name, lines in measured.items() if lines[OURS]["queries"] > 1}
    decode = {name: lines for name, lines in measured.items() if lines[OURS]["queries"] == 1}
    prompts = [prompt_row(line) for line in of_models.values() if line["test"].startswith("pp")]
    decoding = [decode_row(line) for line in of_models.values() if line["test"].startswith("tg")]
    mixed = [mixed_row(line) for line in of_models.values() if "part" in line]
    devices = {f"{line['device']} (driver {line.get('driver', 'unknown')})" for line in lines if "device" in line}

    parts = [f"Measured on {', '.join(sorted(devices)) or 'nothing'}. Numbers are medians.\n"]
    if measured:
        parts.append(
            "### Attention alone\n\nOne layer, random numbers; peers are PyTorch's, in bf16. Heads are query / KV heads. A "
            "FLOP counts where the mask keeps the pair, and a byte of keys and values once.\n"
            + ("Kernels for every card are those that cards before Hopper have.\n" if has_portable else "")
        )
    if prefill:
        parts.append(attention_table(prefill, "TFLOP/s"))
    if decode:
        parts.append(attention_table(decode, "GB/s"))
    columns = ["model", "matrices", "attention", "cache"]
    if prompts:
        head = [*columns, "prompt", "at depth", "tokens/s", "seconds", "GB of the card"]
        parts.append("### Prompts\n\n" + table(head, prompts))
    if decoding:
        head = [*columns, "sessions", "at depth", "tokens/s", "GB/s", "GB of the card"]
        parts.append("### Decoding\n\n" + table(head, decoding))
    if mixed:
        head = [*columns, "prompt", "in parts of", "sessions", "at depth", "tokens/s of the prompt", "of the sessions"]
        parts.append(
            "### A prompt beside sessions that decode\n\nThe last column is the longest time between two tokens of a session.\n\n"
            + table([*head, "ms"], mixed)
        )
    if errors:
        parts.append("What failed:\n\n" + "".join(errors))
    return "\n".join(parts)


def update(page, text):
    """The page with the text between its markers."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--update", type=Path, metavar="PAGE", help="put them between this page's markers")
    parser.add_argument("raw", type=Path, nargs="+")
    args = parser.parse_args()
    lines = [json.loads(line) for path in args.raw for line in path.read_text(encoding="utf-8").splitlines()]
    text = tables(lines)
    if args.update:
        page = args.update.read_text(encoding="utf-8")
        args.update.write_text(update(page, text), encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    sys.exit(main())
