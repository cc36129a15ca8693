"""Checks tokens against independent tokenizers: llama.cpp's own tests, Hugging Face's `tokenizers` and SentencePiece.

    tokens.py --lgeval target/release/lgeval --vocabs models/vocabs --model llama.gguf [MORE.gguf]

takes the vocabularies and texts that tools/vocabs.sh gets, with what llama.cpp makes of them, and a long text of
everything that is hard: code, scripts of the world, emoji, blanks, digits, bytes that were no UTF-8. The models are of
the kind that `tokenizer.ggml.pre` calls smollm.
"""

import argparse
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path

from lgeval import Lgeval
from text import prose

SEPARATOR = "\n__ggml_vocab_test__\n"
# The token that every text begins with: what the files say, or what such models do where they say nothing.
BEGINNINGS = {
    "command-r": [5],
    "gpt-2": [],
    "llama-bpe": [128000],
    "llama-spm": [1],
    "phi-3": [1],
    "qwen2": [],
    "refact": [],
    "starcoder": [],
}

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The patterns of the tokenizer.json of Llama 3 and Qwen 2.
NEWER = CONTRACTIONS + (
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

Tokens = Callable[[str], list[int]]


def metadata(path: Path) -> dict:
    """The keys of a GGUF file. The package `gguf` takes ten seconds for large vocabularies."""
    data, position = path.read_bytes(), 0
    formats = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

    def number(kind: str, count: int = 1) -> tuple:
        nonlocal position
        numbers = struct.unpack_from(f"<{count}{kind}", data, position)
        position += struct.calcsize(f"<{count}{kind}")
        return numbers

    def text() -> str:
        nonlocal position
        [length] = number("Q")
        position += length
        return data[position - length : position].decode("utf-8", "replace")

    def value(kind: int):
        if kind == 8:
            return text()
        if kind != 9:
            return number(formats[kind])[0]
        kind, count = *number("I"), *number("Q")
        return [text() for _ in range(count)] if kind == 8 else list(number(formats[kind], count))

    magic, version, _, n_keys = *number("I", 2), *number("Q", 2)
    assert magic == 0x46554747 and version in (2, 3), f"{path} is no GGUF file"
    return {text(): value(*number("I")) for _ in range(n_keys)}


def hard_text(n_bytes: int) -> str:
    """A mixture of everything, `n_bytes` bytes of UTF-8 or a few more; it depends on the version of Python alone."""
    rng = random.Random(20261)
    english = prose(200_000)
    code = Path(argparse.__file__).read_text(encoding="utf-8")
    scripts = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x700), (0x900, 0xE00)]
    scripts += [(0x1E00, 0x2070), (0x2070, 0x2800), (0x3000, 0x3100), (0x4E00, 0x9FA6), (0xAC00, 0xD7A4)]
    scripts += [(0xFF00, 0xFFF0), (0x1F300, 0x1F700)]
    emoji = ["👍", "🏽", "\u200d", "\ufe0f", "🇩🇪", "👩‍👩‍👧", "😀"]
    traps = ["I'm", "YOU'RE", " it's'll", "x'D", "'ſ", "ǅ", "ﬁ", "e\u0301", "½²Ⅷ", "<0x41>", "<s>", "Ġ"]

    def cut(text: str) -> str:
        start = rng.randrange(len(text))
        return text[start : start + rng.randrange(400)]

    def characters() -> str:
        first, end = rng.choice(scripts)
        return "".join(rng.choice(" " + chr(rng.randrange(first, end)) * 5) for _ in range(rng.randrange(60)))

    kinds = [
        lambda: cut(english),
        lambda: cut(code),
        characters,
        lambda: "".join(rng.choices(emoji, k=rng.randrange(12))),
        lambda: rng.choice(" \n\t\r\u00a0\u3000▁") * rng.choice([1, 2, 3, 4, 7, 16, 17, 33, 100]),
        lambda: "".join(rng.choices("  \n\t▁", k=rng.randrange(40))),
        lambda: str(rng.randrange(10 ** rng.randrange(1, 20))),
        lambda: rng.choice("aA-=*#._/'\"é中") * rng.randrange(1, 50),
        lambda: rng.choice(traps),
        lambda: rng.randbytes(rng.randrange(40)).decode("utf-8", "replace"),
    ]
    pieces, size = [], 0
    while size < n_bytes:
        pieces.append(rng.choice(kinds)())
        size += len(pieces[-1].encode())
    return "".join(pieces)


def hugging_face(path: Path, pattern: str | None, nfc: bool = False, ignore_merges: bool = False) -> Tokens:
    """The tokenizer of a vocabulary that spells bytes, by Hugging Face; without a pattern it splits as SmolLM does."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    keys = metadata(path)
    tokens = keys["tokenizer.ggml.tokens"]
    ids = {token: id for id, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in keys["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=ignore_merges))
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Digits(individual_digits=True)
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    kinds = zip(tokens, keys["tokenizer.ggml.token_type"])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == 4])
    return lambda text: tokenizer.encode(text, add_special_tokens=False).ids


def sentence_piece(path: Path) -> Tokens:
    """The tokenizer of a vocabulary with scores, by SentencePiece: its model file is made from the vocabulary."""
    from sentencepiece import SentencePieceProcessor

    def varint(number: int) -> bytes:
        head = b""
        while number > 0x7F:
            head += bytes([number & 0x7F | 0x80])
            number >>= 7
        return head + bytes([number])

    def field(number: int, value: int | float | bytes) -> bytes:
        """A field of a protocol buffer."""
        if isinstance(value, bytes):
            return varint(number << 3 | 2) + varint(len(value)) + value
        if isinstance(value, float):
            return varint(number << 3 | 5) + struct.pack("<f", value)
        return varint(number << 3) + varint(value)

    keys = metadata(path)
    pieces = zip(*(keys[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type")))
    model = b"".join(
        field(1, field(1, piece.encode()) + field(2, float(score)) + field(3, kind)) for piece, score, kind in pieces
    )
    # The trainer's model_type BPE and byte_fallback; the normalizer's name, add_dummy_prefix, remove_extra_whitespaces,
    # escape_whitespaces.
    model += field(2, field(3, 2) + field(35, 1))
    model += field(3, field(1, b"identity") + field(3, 1) + field(4, 0) + field(5, 1))
    processor = SentencePieceProcessor(model_proto=model)
    return processor.encode


def check(what: str, texts: list[str], tokens: list[list[int]], expected: list[list[int]]) -> bool:
    """Compares, and shows where the first difference is."""
    print(f"{what}: {len(texts)} texts, {sum(map(len, expected))} tokens", flush=True)
    if not len(texts) == len(tokens) == len(expected):
        print(f"  {len(tokens)} lists of tokens, {len(expected)} expected")
        return False
    for text, ours, theirs in zip(texts, tokens, expected):
        if ours != theirs:
            pairs = enumerate(zip(ours, theirs))
            i = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
            print(f"  {text[:60]!r}: at token {i} {ours[i : i + 8]} instead of {theirs[i : i + 8]}")
            return False
    return True


def main():
    parser = argparse.ArgumentParser(description="tokens against independent tokenizers")
    parser.add_argument("--lgeval", required=True, type=Path, help="the program to test")
    parser.add_argument("--vocabs", required=True, type=Path, help="the folder that tools/vocabs.sh makes")
    parser.add_argument("--model", required=True, type=Path, nargs="+", help="GGUF files that split as SmolLM does")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="how much of the long text")
    options = parser.parse_args()

    def vocab(name: str) -> Path:
        return options.vocabs / f"ggml-vocab-{name}.gguf"

    passed = []
    for name, beginning in BEGINNINGS.items():
        path = vocab(name)
        texts = Path(f"{path}.inp").read_bytes().decode().removesuffix(SEPARATOR).split(SEPARATOR)
        lines = Path(f"{path}.out").read_text(encoding="ascii").splitlines()
        expected = [beginning + [int(word) for word in line.split()] for line in lines]
        tokens = Lgeval(options.lgeval, path).tokenize_all(texts)
        passed.append(check(f"{name}, llama.cpp", texts, tokens, expected))

    text = hard_text(options.bytes)
    others = [(model, hugging_face(model, None), []) for model in options.model]
    for name, theirs in (
        ("llama-bpe", lambda path: hugging_face(path, NEWER.replace("DIGITS", "{1,3}"), ignore_merges=True)),
        ("qwen2", lambda path: hugging_face(path, NEWER.replace("DIGITS", ""), nfc=True)),
        ("llama-spm", sentence_piece),
    ):
        others.append((vocab(name), theirs(vocab(name)), BEGINNINGS[name]))
    for path, theirs, beginning in others:
        tokens = Lgeval(options.lgeval, path).tokenize_all([text])
        passed.append(check(f"{path.name}, long text", [text], tokens, [beginning + theirs(text)]))
    if not all(passed):
        sys.exit(f"{passed.count(False)} of {len(passed)} differ")


if __name__ == "__main__":
    main()
