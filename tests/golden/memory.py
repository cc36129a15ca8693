"""Checks that `lgrun` needs no more memory than it says beforehand.

    memory.py --lgrun target/release/lgrun --model model.gguf [--ctx 8192]

`lgrun --plan` prints the bytes of a session. While answering a long prompt in that context, the most that is ever
resident must not exceed the mapped file, that plan, and 150 MB for everything else (program, tokenizer, threads).
"""

import argparse
import re
import resource
import subprocess
import sys
from pathlib import Path

from text import prose

OTHER_BYTES = 150_000_000
PROMPT_BYTES = 20_000  # some 5,000 tokens


def run(*line) -> str:
    """Runs a program to its end and returns its standard output."""
    result = subprocess.run([str(word) for word in line], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if result.returncode != 0:
        sys.exit(f"{line[0]} ended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def planned_bytes(table: str) -> int:
    """The total of `lgrun --plan`: the largest number in its last line that begins with `total`."""
    totals = [line for line in table.splitlines() if line.strip().lower().startswith("total")]
    numbers = re.findall(r"\d[\d,_]*", totals[-1]) if totals else []
    if not numbers:
        sys.exit(f"no line with a total in the plan:\n{table}")
    return max(int(re.sub(r"[,_]", "", number)) for number in numbers)


def main():
    parser = argparse.ArgumentParser(description="peak memory of lgrun against its plan")
    parser.add_argument("--lgrun", required=True, type=Path, help="the program to test")
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file")
    parser.add_argument("--ctx", type=int, default=8192, help="tokens of context")
    options = parser.parse_args()

    command = (options.lgrun, "-m", options.model, "-c", options.ctx)
    plan = planned_bytes(run(*command, "--plan"))
    answer = run(*command, "-p", prose(PROMPT_BYTES) + "\nSummarise this in one sentence.")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    file = options.model.stat().st_size
    print(f"peak {peak:,} bytes; file {file:,} + plan {plan:,} + {OTHER_BYTES:,} = {file + plan + OTHER_BYTES:,}")
    if not answer.strip():
        sys.exit("lgrun answered nothing")
    if peak > file + plan + OTHER_BYTES:
        sys.exit("more than planned")


if __name__ == "__main__":
    main()
