"""Checks that `lgrun` needs no more memory than it says beforehand.

    memory.py --lgrun target/release/lgrun --model model.gguf [--ctx 2048]

`lgrun --plan` prints the bytes of a session's KV cache. While answering a prompt that nearly fills the context, the most
that is ever resident must not exceed the mapped file, that cache, and 150 MB for everything else: program, tokenizer,
activations, threads.
"""

import argparse
import re
import resource
import subprocess
import sys
from pathlib import Path

from text import prose

OTHER_BYTES = 150_000_000
PROMPT_BYTES_PER_TOKEN = 3  # of context: English takes more than four bytes a token


def run(*line) -> str:
    """Runs a program to its end and returns its standard output."""
    result = subprocess.run([str(word) for word in line], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        sys.exit(f"{line[0]} ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def planned_bytes(table: str) -> int:
    """The cache of `lgrun --plan`: the largest number in its last line that begins with `KV cache`."""
    totals = [line for line in table.splitlines() if line.strip().startswith("KV cache")]
    numbers = re.findall(r"\d[\d,_]*", totals[-1]) if totals else []
    if not numbers:
        sys.exit(f"no line with the KV cache in the plan:\n{table}")
    return max(int(re.sub(r"[,_]", "", number)) for number in numbers)


def main():
    parser = argparse.ArgumentParser(description="peak memory of lgrun against its plan")
    parser.add_argument("--lgrun", required=True, type=Path, help="the program to test")
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file")
    parser.add_argument("--ctx", type=int, default=2048, help="tokens of context")
    options = parser.parse_args()

    command = (options.lgrun, "-m", options.model, "-c", options.ctx)
    plan = planned_bytes(run(*command, "--plan"))
    text = prose(PROMPT_BYTES_PER_TOKEN * options.ctx)
    answer = run(*command, "-n", 32, "-p", text + "\nSummarise this in one sentence.")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    file = options.model.stat().st_size
    print(f"peak {peak:,} bytes; file {file:,} + KV {plan:,} + {OTHER_BYTES:,} = {file + plan + OTHER_BYTES:,}")
    if not answer.strip():
        sys.exit("lgrun answered nothing")
    if peak > file + plan + OTHER_BYTES:
        sys.exit("more than planned")


if __name__ == "__main__":
    main()
