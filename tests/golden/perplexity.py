"""Checks that the fast kernels cost next to no quality: `--precision fast` against `exact` on the same text.

    perplexity.py --lgeval target/release/lgeval --model llama.gguf [--bytes 24000] [--device cuda]

fails if the two perplexities differ by more than 0.5 %, or are not those of a model that works.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from lgeval import Lgeval
from text import prose

TOLERANCE = 0.005
PLAUSIBLE = 100  # a model that predicts noise is far above


def main():
    parser = argparse.ArgumentParser(description="perplexity of fast against exact kernels")
    parser.add_argument("--lgeval", required=True, type=Path, help="the program to test")
    parser.add_argument("--model", required=True, type=Path, help="a GGUF file")
    parser.add_argument("--bytes", type=int, default=24_000, help="how much text")
    parser.add_argument("--ctx", type=int, default=512, help="tokens of context")
    parser.add_argument("--device", default="cpu", help="where the fast kernels run; the exact ones run on the CPU")
    options = parser.parse_args()

    lgeval = Lgeval(options.lgeval, options.model)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(prose(options.bytes), encoding="utf-8", newline="\n")
        exact, fast = (
            lgeval.perplexity(text, "--ctx", options.ctx, "--precision", precision, "--device", device)
            for precision, device in (("exact", "cpu"), ("fast", options.device))
        )
    difference = fast / exact - 1
    print(f"perplexity exact {exact:.4f}, fast {fast:.4f}: {difference:+.3%}")
    if not (1 < exact < PLAUSIBLE and abs(difference) <= TOLERANCE):
        sys.exit(f"more than {TOLERANCE:.1%} apart, or above {PLAUSIBLE}")


if __name__ == "__main__":
    main()
