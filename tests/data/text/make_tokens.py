#!/usr/bin/env python3
"""Writes tokens.json and spaces.tokenizer.json: what the Python `tokenizers` package makes of hard texts.

    pip install tokenizers==0.22.2 gguf
    python make_tokens.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf
"""
import json
import pathlib
import random
import sys

import gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

HERE = pathlib.Path(__file__).parent

TEXTS = [
    "",
    " ",
    "  ",
    "\n",
    " \n \n\n  x",
    "\t\ttabs\tinside\t",
    "Hello, world!",
    "  leading and trailing  ",
    "a" * 300,
    " " * 130 + "x" + " " * 70,
    "\r\n\r\nwindows\r\nlines\r\n",
    "0 1 12 123 1234 12345 3.14159 1,000,000 0x7F ½ ² Ⅷ ١٢٣ १२",
    "I'm you're he'd we'll they've it's IT'S don'T",
    "snake_case camelCase kebab-case SCREAMING::path->to.member[0]",
    "for (int i = 0; i < n; ++i) {\n    sum += x[i] * 2;\n}\n",
    "naïve café Ångström coöperate e\u0301 ﬁ ǅ",
    "你好，世界。日本語のテキスト、한국어 텍스트",
    "Привет, мир! Γειά σου. שלום עולם مرحبا بالعالم",
    "😀👍🏽👨‍👩‍👧‍👦🇩🇪 emoji😀glued",
    "zero\u200bwidth\u00a0nbsp\u2028line\u3000ideographic\u00adsoft",
    "\x00\x01\x02\x1b[31mred\x7f\x80\x9f",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \U0010ffff \ufffd \ufeffbom",
    "<|bos|>", "<|eos|>", "a<|bos|>b<|eos|>c", "<|bos|><|bos|> <|eos|>", "<|bos", "<|bos|>>",
    "<|im_start|>user\nHi<|im_end|>\n", "<|endoftext|>", " <|im_end|> ", "<|im_start|", "<repo_name>x<file_sep>",
    "<s>text</s>", "<unk>", "<0x41>", "▁already▁there", "Ġbyte Ċlevel Ā letters",
    "\nThe secret code for walrus is 483920.\n",
    "# Heading\n\n* item **bold** `code`\n\n```rust\nfn main() {}\n```\n",
]


def random_texts(count):
    """Texts that join pieces of all the kinds above; the same every time."""
    choose = random.Random(20260)
    pieces = ["a", "the", "Ing", " ", "  ", "\n", "\t", "7", "42", "'s", "é", "中文", "😀", "\u0301", "_", "--", "...",
              "<|bos|>", "<|im_end|>", "<|", "|>", "\x00", "\u00a0", "ß", "ка", "1/2", "\r\n", "▁", "ſ", "İ"]
    return ["".join(choose.choice(pieces) for _ in range(choose.randrange(1, 24))) for _ in range(count)]


def cases(tokenizer):
    found = []
    for text in TEXTS + random_texts(100):
        tokenizer.encode_special_tokens = False
        special = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        found.append({
            "text": text,
            "special": special,
            "plain": plain,
            "decoded": tokenizer.decode(special, skip_special_tokens=False),
            "decoded_without_special": tokenizer.decode(special, skip_special_tokens=True),
        })
    return found


def tiny():
    return Tokenizer.from_file(str(HERE / "../longgen-tiny-8k/tokenizer.json"))


def smollm2(path):
    """Built by hand from the keys of the GGUF and what SmolLM's tokenizer is documented to do."""
    fields = gguf.GGUFReader(path).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]
    tokenizer = Tokenizer(models.BPE(vocab={token: id for id, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t, k in zip(tokens, types) if k == 3])
    return tokenizer


def spaces():
    """A small vocabulary in the manner of SentencePiece: ▁ for spaces, bytes for what it does not know."""
    specials = ["<unk>", "<s>", "</s>"]
    tokens = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    merges = []
    tokens += sorted(set("▁abcdefghijklmnopqrstuvwxyzTHI.,\n0123456789éка"))
    for word in ["▁the", "▁and", "ing", "▁is", "Hell", "▁▁▁▁", "ка", "12"]:
        for end in range(2, len(word) + 1):
            if word[:end] not in tokens:
                merges.append((word[:end - 1], word[end - 1]))
                tokens.append(word[:end])
    merges.append(("▁▁", "▁▁"))
    tokenizer = Tokenizer(models.BPE(
        vocab={token: id for id, token in enumerate(tokens)}, merges=merges, unk_token="<unk>", fuse_unk=True,
        byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in specials])
    tokenizer.add_tokens([AddedToken("▁▁", special=False, normalized=True)])
    tokenizer.save(str(HERE / "spaces.tokenizer.json"))
    return tokenizer


expected = {"tiny": cases(tiny()), "smollm2": cases(smollm2(sys.argv[1])), "spaces": cases(spaces())}
lines = ",\n".join(
    f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in found) + "\n]" for name, found in expected.items())
(HERE / "tokens.json").write_text("{\n" + lines + "\n}\n")
