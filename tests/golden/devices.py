"""Compares a device's logits with those of the CPU's exact kernels, token by token of the same text.

    devices.py --lgeval target/release/lgeval --model llama.gguf --device cuda [--tokens 2500] [--kv f16]
        [--attention PLAN] [--max 0.15] [--mean 0.02]

fails if a logit differs by more than --max, if they differ by more than --mean on average, or if the largest logit is
of another token where the exact two largest are further apart than twice --max. The defaults are for products in f16.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from lgeval import Lgeval
from text import prose


def main():
    parser = argparse.ArgumentParser(description="a device's logits against the CPU's exact ones")
    parser.add_argument("--lgeval", required=True, type=Path, help="the program to test")
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="fast")
    parser.add_argument("--tokens", type=int, default=2500)
    parser.add_argument("--kv", default="f16")
    parser.add_argument("--attention", help="plan, as lgeval takes it")
    parser.add_argument("--max", type=float, default=0.15)
    parser.add_argument("--mean", type=float, default=0.02)
    options = parser.parse_args()

    lgeval = Lgeval(options.lgeval, options.model)
    tokens = lgeval.tokenize(prose(8 * options.tokens))[: options.tokens]
    flags = ["--kv", options.kv]
    if options.attention:
        flags += ["--attention", options.attention]
    exact = lgeval.logits(tokens, "--device", "cpu", "--precision", "exact", *flags)
    actual = lgeval.logits(tokens, "--device", options.device, "--precision", options.precision, *flags)

    difference = np.abs(exact - actual)
    difference[~np.isfinite(difference)] = np.inf
    second, first = np.partition(exact, -2, axis=-1)[:, -2:].T
    flips = (exact.argmax(axis=-1) != actual.argmax(axis=-1)) & (first - second > 2 * options.max)
    worst, mean = float(difference.max()), float(difference.mean())
    row = int(difference.max(axis=-1).argmax())
    print(f"{len(tokens)} tokens: max {worst:.4f} at token {row}, mean {mean:.5f}, {flips.sum()} other choices")
    sys.exit(not (worst <= options.max and mean <= options.mean and not flips.any()))


if __name__ == "__main__":
    main()
