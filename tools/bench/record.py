#!/usr/bin/env python3
"""Appends the JSON lines of a bench to the raw results, with fields that it does not know, and prints them in short.

    COMMAND | python3 tools/bench/record.py RAW.jsonl KEY=VALUE...

Other lines are an error.
"""

import json
import sys


def result(line):
    """What a line says was measured."""
    if "error" in line:
        return line["error"]
    if "longest_ms" in line:
        prompt, decode = line["prompt_tokens_per_second"], line["decode_tokens_per_second"]
        return f"{prompt:10.1f} tokens/s, the others {decode:.1f}, who wait {line['longest_ms']:.1f} ms at most"
    if "ms" in line:
        bandwidth = f"  {line['gbs']:7.0f} GB/s" if line.get("gbs") else ""
        return f"{line['ms']['median']:10.4f} ms  {line['tflops']:6.1f} TFLOP/s{bandwidth}"
    return f"{line['median']:10.1f} tokens/s  ({line['min']:.1f} to {line['max']:.1f})"


def main():
    path, *pairs = sys.argv[1:]
    fields = dict(pair.split("=", 1) for pair in pairs)
    with open(path, "a", encoding="utf-8") as raw:

        def record(measured):
            line = fields | measured
            print(json.dumps(line), file=raw, flush=True)
            what = line.get("test") or line.get("implementation") or ""
            print(f"{line['bench']:<32} {what:<14} {result(line)}", flush=True)

        errors = []
        for text in filter(None, map(str.strip, sys.stdin)):
            try:
                measured = json.loads(text)
            except json.JSONDecodeError:
                errors.append(text)
            else:
                record(measured)
        if errors:
            record({"error": "; ".join(errors)[:500]})


if __name__ == "__main__":
    main()
