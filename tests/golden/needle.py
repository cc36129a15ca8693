"""Hides a number in documents and checks that a model finds it: 24 depths from start to end, several lengths.

    needle.py --lgeval target/release/lgeval --model tiny.gguf --lengths 1024 4096 8192 --expect 24
    needle.py --reference tests/data/longgen-tiny-8k --lengths 1024 --attention plan.json --at-most 6

A document of T tokens is `<|bos|>`, technical prose with the line `The secret code for WORD is DDDDDD.` in it, and at
the end that sentence once more, up to the number. The number is found if every one of its six digits is the likeliest
next token after the ones before it: that is what greedy decoding would produce, so one prompt with five digits appended
tells. The rows of the table are depths (0 the start, 23 the end), the columns lengths; `+` found, `.` not.
"""

import argparse
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from lgeval import Lgeval
from reference import choose_plan, final_states, head
from text import prose
from weights import open_model

N_DEPTHS = 24
N_DIGITS = 6
TEXT_BYTES = 400_000
TINY = Path(__file__).parent.parent / "data" / "longgen-tiny-8k"
WORDS = """
anvil barnacle caraway dulcimer estuary falcon gazebo halibut isthmus juniper kestrel lichen
marmot nutmeg obelisk parsnip quartz rhubarb sextant thimble urchin verbena walnut yarrow
""".split()

# Token ids -> logits of the last N_DIGITS of them, float32 [N_DIGITS, n_vocab].
LastLogits = Callable[[list[int]], np.ndarray]


class Documents:
    """Makes documents; the same depth and length always give the same one."""

    def __init__(self, tokenizer_file: Path):
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.bos = self.tokenizer.token_to_id("<|bos|>")
        self.filler = self.tokens(prose(TEXT_BYTES))

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def make(self, depth: int, n_tokens: int) -> tuple[list[int], list[int]]:
        """A document that ends before the number, and the number's tokens; together `n_tokens` long."""
        rng = random.Random(f"needle {depth} {n_tokens}")
        word, code = rng.choice(WORDS), f"{rng.randrange(10**N_DIGITS):0{N_DIGITS}}"
        needle = self.tokens(f"\nThe secret code for {word} is {code}.\n")
        question = self.tokens(f"\nThe secret code for {word} is {code}")
        question, digits = question[:-N_DIGITS], question[-N_DIGITS:]

        n_filler = n_tokens - 1 - len(needle) - len(question) - N_DIGITS
        start = rng.randrange(len(self.filler) - n_filler)
        filler = self.filler[start : start + n_filler]
        place = n_filler * depth // (N_DEPTHS - 1)
        return [self.bos, *filler[:place], *needle, *filler[place:], *question], digits


def is_found(last_logits: LastLogits, document: list[int], digits: list[int]) -> bool:
    """Whether greedy decoding would continue the document with the digits."""
    return last_logits(document + digits[:-1]).argmax(axis=-1).tolist() == digits


def reference_logits(folder: Path, plan_file: Path | None) -> LastLogits:
    """The numpy reference on a Hugging Face folder."""
    model = open_model(folder)
    plan, output = choose_plan(model, plan_file), head(model)
    return lambda ids: final_states(model, plan, np.array(ids))[-N_DIGITS:] @ output.T


def lgeval_logits(options) -> LastLogits:
    """`lgeval` with the command line's choices."""
    lgeval = Lgeval(options.lgeval, options.model)
    arguments = ["--kv", options.kv, "--last", N_DIGITS]
    for name, value in (("--chunk", options.chunk), ("--attention", options.attention)):
        arguments += [name, value] if value is not None else []
    return lambda ids: lgeval.logits(ids, *arguments)


def main():
    parser = argparse.ArgumentParser(description="needle test")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--lgeval", type=Path, help="the program to test")
    who.add_argument("--reference", type=Path, metavar="FOLDER", help="test the numpy reference on this folder instead")
    parser.add_argument("--model", type=Path, help="the GGUF file for lgeval")
    parser.add_argument("--tokenizer", type=Path, default=TINY / "tokenizer.json", help="the model's tokenizer.json")
    parser.add_argument("--kv", default="f32", help="type of the KV cache")
    parser.add_argument("--chunk", type=int, help="tokens per step of the prompt")
    parser.add_argument("--attention", help="plan or preset to use instead of the model's own")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024], help="tokens of a document with its answer")
    parser.add_argument("--expect", type=int, help="fail if fewer are found at any length")
    parser.add_argument("--at-most", type=int, help="fail if more are found at any length")
    options = parser.parse_args()

    if options.reference:
        last_logits = reference_logits(options.reference, options.attention)
    elif options.model:
        last_logits = lgeval_logits(options)
    else:
        parser.error("--lgeval needs --model")

    documents = Documents(options.tokenizer)
    found = dict.fromkeys(options.lengths, 0)
    print("depth " + "".join(f"{length:>7}" for length in options.lengths))
    for depth in range(N_DEPTHS):
        row = []
        for length in options.lengths:
            hit = is_found(last_logits, *documents.make(depth, length))
            found[length] += hit
            row.append("+" if hit else ".")
        print(f"{depth:5} " + "".join(f"{mark:>7}" for mark in row), flush=True)
    print("found " + "".join(f"{n:>7}" for n in found.values()) + f"   of {N_DEPTHS}")

    if options.expect is not None and min(found.values()) < options.expect:
        sys.exit(f"expected {options.expect} at every length")
    if options.at_most is not None and max(found.values()) > options.at_most:
        sys.exit(f"expected {options.at_most} at most at every length")


if __name__ == "__main__":
    main()
