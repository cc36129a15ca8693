#!/usr/bin/env python3
"""Writes tokens.json and spaces.tokenizer.json: what the Python `tokenizers` package makes of hard texts.

For other ways to split text, what plain Python makes of them.

    pip install tokenizers==0.22.2 gguf regex
    python make_tokens.py path/to/SmolLM2-135M-Instruct.Q4_1.gguf
"""
import json
import pathlib
import random
import sys
import unicodedata

import gguf
import regex
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


CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT_2 = CONTRACTIONS + r"| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Of the models whose tokenizers llama.cpp calls llama-bpe and qwen2, as their tokenizer.json has them.
NEWER = (f"(?i:{CONTRACTIONS})" + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_characters():
    """GPT-2's alphabet: printable bytes are themselves, the others are numbered from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def by_hand(pattern, whole_words=False, form=None):
    """Byte-level BPE in plain Python, with the vocabulary of the tiny model and another way to split text."""
    model = json.loads((HERE / "../longgen-tiny-8k/tokenizer.json").read_text())["model"]
    vocab, ranks = model["vocab"], {tuple(pair): rank for rank, pair in enumerate(model["merges"])}
    characters, pattern = byte_characters(), regex.compile(pattern)
    found = []
    for text in TEXTS + random_texts(100):
        ids = []
        for word in pattern.findall(unicodedata.normalize(form, text) if form else text):
            parts = [characters[byte] for byte in word.encode()]
            if whole_words and "".join(parts) in vocab:
                parts = ["".join(parts)]
            while True:
                pairs = [pair for pair in zip(parts, parts[1:]) if pair in ranks]
                if not pairs:
                    break
                best, i = min(pairs, key=ranks.get), 0
                while i + 1 < len(parts):
                    if (parts[i], parts[i + 1]) == best:
                        parts[i:i + 2] = ["".join(best)]
                    i += 1
            ids += [vocab[part] for part in parts]
        found.append(ids)
    return found


expected = {
    "tiny": cases(tiny()),
    "smollm2": cases(smollm2(sys.argv[1])),
    "spaces": cases(spaces()),
    "gpt-2": by_hand(GPT_2),
    "llama-bpe": by_hand(NEWER.replace("DIGITS", "{1,3}"), whole_words=True),
    "qwen2": by_hand(NEWER.replace("DIGITS", ""), form="NFC"),
}
lines = ",\n".join(
    f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in found) + "\n]" for name, found in expected.items())
(HERE / "tokens.json").write_text("{\n" + lines + "\n}\n")
