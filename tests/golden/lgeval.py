"""Calls `lgeval` and reads what it writes. Import this; it is not a program."""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def run(program: Path, *arguments) -> str:
    """Runs `lgeval` and returns its standard output; a failing call ends the script with what `lgeval` said."""
    line = [str(word) for word in (program, *arguments)]
    try:
        result = subprocess.run(line, capture_output=True, encoding="utf-8")
    except OSError as error:
        sys.exit(f"{program}: {error}")
    if result.returncode != 0:
        sys.exit(f"{' '.join(line)}\nended with {result.returncode}: {result.stderr.strip()}")
    return result.stdout


def render(program: Path, sources: list[str], chats: list[dict], tokens: dict, seconds: int) -> list[list[dict]]:
    """What each chat template makes of each conversation, in one call: objects with `text` or `error`."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(i) for i in range(len(sources))]
        for file, source in zip(files, sources):
            file.write_bytes(source.encode())
        conversations = Path(folder) / "conversations.json"
        conversations.write_text(json.dumps(chats), encoding="ascii")
        words = [f"--token={name}={token}" for name, token in tokens.items()]
        output = run(program, "chat-template", "-f", conversations, "--time", seconds, *words, "-t", *files)
    answers = [json.loads(line) for line in output.removesuffix("\n").split("\n")]
    return [answers[i : i + len(chats)] for i in range(0, len(answers), len(chats))]


@dataclass(frozen=True)
class Lgeval:
    """A built `lgeval` and the model that it runs."""

    program: Path
    model: Path

    def call(self, command: str, *arguments) -> str:
        """Runs one command on the model and returns its standard output."""
        return run(self.program, command, "-m", self.model, *arguments)

    def tokenize(self, text: str) -> np.ndarray:
        """The token ids of a text."""
        return np.array(self.tokenize_all([text])[0], np.int64)

    def tokenize_all(self, texts: list[str]) -> list[list[int]]:
        """The token ids of each text, in one call."""
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / str(i) for i in range(len(texts))]
            for file, text in zip(files, texts):
                file.write_text(text, encoding="utf-8", newline="\n")
            lines = self.call("tokenize", "-f", *files).splitlines()
        return [[int(word) for word in line.split()] for line in lines]

    def logits(self, ids, *arguments) -> np.ndarray:
        """The logits of these tokens: float32 [n_tokens, n_vocab], or what `--last N` in the arguments leaves of it."""
        with tempfile.TemporaryDirectory() as folder:
            tokens, output = Path(folder) / "ids.txt", Path(folder) / "logits.npy"
            tokens.write_text(" ".join(str(token) for token in ids) + "\n", encoding="ascii")
            self.call("logits", "--tokens", tokens, "-o", output, *arguments)
            return np.load(output)

    def perplexity(self, text: Path, *arguments) -> float:
        """The perplexity of a text file."""
        return json.loads(self.call("perplexity", "-f", text, "--json", *arguments))["perplexity"]
