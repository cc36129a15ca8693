"""Measures how long `lgrun` takes from its start to the first token of an answer.

    startup.py --lgrun target/release/lgrun --model model.gguf

The file is in the page cache from the first run on, which does not count. The time is that until the process has ended,
median of five. The bound is ten times the goal: an idle machine with two cores needs less than that, a busy one may not.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

GOAL_SECONDS = 0.3
BUSY = 10
RUNS = 5


def seconds(line: list[str]) -> float:
    """The time of one run, which must print something behind the prompt."""
    started = time.monotonic()
    result = subprocess.run(line, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    elapsed = time.monotonic() - started
    # An answer has a line end behind it.
    if result.returncode != 0 or len(result.stdout) < 2:
        sys.exit(f"{line[0]} ended with {result.returncode} and printed {result.stdout!r}: {result.stderr.strip()}")
    return elapsed


def main():
    parser = argparse.ArgumentParser(description="time from the start of lgrun to its first token")
    parser.add_argument("--lgrun", required=True, type=Path, help="the program to test")
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file")
    options = parser.parse_args()

    line = [str(options.lgrun), "-m", str(options.model), "--raw", "-p", "Hello", "-n", "1", "--temp", "0"]
    seconds(line)
    times = sorted(seconds(line) for _ in range(RUNS))
    median = statistics.median(times)
    print(f"first token after {median:.3f} s ({times[0]:.3f} to {times[-1]:.3f}); the goal is {GOAL_SECONDS} s")
    if median > BUSY * GOAL_SECONDS:
        sys.exit(f"more than {BUSY} times the goal")


if __name__ == "__main__":
    main()
