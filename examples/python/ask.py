#!/usr/bin/env python3
"""Answers a question about a text file, token by token, with the likeliest tokens. Ctrl-C stops.

    cargo build --release
    python3 examples/python/ask.py model.gguf README.md "What is this about?"

LONGGEN_LIBRARY is where liblonggen.so lies, if not in target/release. As a module it has one class:

    with Model("model.gguf") as model:
        for text in model.answer(model.prompt("Name the capital of France."), max_tokens=64):
            print(text, end="", flush=True)
"""

import contextlib
import ctypes
import os
import pathlib
import queue
import sys
import threading
from ctypes import byref, c_char, c_char_p, c_double, c_size_t, c_uint32, c_uint64, c_void_p, sizeof

ABI_VERSION = 0
CHAT_ADD_GENERATION_PROMPT = 1
TOKENIZE_SPECIAL = 1
TOKENIZE_ADD_BOS = 2
TOO_SMALL = 12
STOP_REASONS = ("end", "length", "string", "callback", "context full", "cancelled")
ON_PROGRESS = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_size_t, c_size_t)
ON_TEXT = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_uint32, c_void_p, c_size_t)


class Struct(ctypes.Structure):
    """A struct of longgen.h with its struct_size; what is not given is zero."""

    def __init__(self, **fields):
        super().__init__(struct_size=sizeof(self), **fields)


class CError(Struct):
    _fields_ = [("struct_size", c_size_t), ("code", c_uint32), ("message", c_char * 512), ("where", c_char * 124)]


class SessionParams(Struct):
    _fields_ = [("struct_size", c_size_t)] + [
        (name, c_uint32)
        for name in ("n_ctx", "chunk_tokens", "kv_type", "precision", "logits_rows", "reserved")
    ] + [("max_bytes", c_uint64), ("restore_bytes", c_uint64)]


class GenerateParams(Struct):
    _fields_ = [("struct_size", c_size_t), ("max_tokens", c_uint32), ("ignore_end", c_uint32),
                ("stops", c_void_p), ("n_stops", c_size_t), ("on_progress", ON_PROGRESS), ("on_text", ON_TEXT),
                ("user", c_void_p), ("cancel", c_void_p)]


class GenerateResult(Struct):
    _fields_ = [("struct_size", c_size_t), ("n_tokens", c_size_t)] + [
        (name, c_uint32) for name in ("reason", "stop_index", "pending_token", "end_token")
    ]


class Counters(Struct):
    _fields_ = [("struct_size", c_size_t), ("n_prompt_tokens", c_uint64), ("n_generated_tokens", c_uint64),
                ("prompt_ms", c_double), ("generated_ms", c_double)]


class Message(ctypes.Structure):
    _fields_ = [("role", c_char_p), ("role_bytes", c_size_t), ("content", c_char_p), ("content_bytes", c_size_t)]


class Error(Exception):
    """What a failed call has to say."""

    def __init__(self, error):
        self.code = error.code
        super().__init__(f"{lib.lg_status_str(error.code).decode()}: {error.message.decode()} ({error.where.decode()})")


def load():
    built = pathlib.Path(__file__).resolve().parents[2] / "target/release/liblonggen.so"
    lib = ctypes.CDLL(os.environ.get("LONGGEN_LIBRARY", built))
    if lib.lg_abi_version() != ABI_VERSION:
        raise OSError(f"liblonggen.so has the ABI {lib.lg_abi_version()}, this program needs {ABI_VERSION}")
    lib.lg_status_str.restype = c_char_p
    lib.lg_model_n_ctx_train.restype = c_uint32
    lib.lg_session_n_bytes.restype = c_uint64
    for name in ("lg_model_n_ctx_train", "lg_model_free", "lg_session_free", "lg_session_n_bytes", "lg_sampler_free",
                 "lg_cancel_set", "lg_cancel_free"):
        getattr(lib, name).argtypes = [c_void_p]
    return lib


lib = load()


def call(name, *arguments):
    """Calls a function that takes an lg_error last."""
    error = CError()
    if getattr(lib, name)(*arguments, byref(error)) != 0:
        raise Error(error)


def new(name, *arguments):
    """The handle that a function makes."""
    handle = c_void_p()
    call(name, *arguments, byref(handle))
    return handle


def filled(kind, name, *arguments):
    """What a function gives that takes a buffer, its room, and where to write how much there is."""
    n = c_size_t(4096)  # A guess, until the library says how much is needed.
    while True:
        buffer = (kind * n.value)()
        try:
            call(name, *arguments, buffer, c_size_t(len(buffer)), byref(n))
            return buffer[: n.value]
        except Error as error:
            if error.code != TOO_SMALL:
                raise


class Model:
    """An open model. Of its last answer, `stats` says what it took, `result` what lg_generate_result says, and `reason` why it
    ended: one of STOP_REASONS."""

    def __init__(self, path):
        self.stats = self.result = self.reason = self._model = None
        self._model = new("lg_model_open", os.fsencode(path), None)
        self.n_ctx = lib.lg_model_n_ctx_train(self._model)

    def close(self):
        lib.lg_model_free(self._model)
        self._model = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def prompt(self, text):
        """What a user's message is to the model: the tokens of what its chat template makes of it."""
        text = text.encode()
        message = Message(b"user", 4, text, len(text))
        flags = (c_uint32(CHAT_ADD_GENERATION_PROMPT), c_uint32(TOKENIZE_SPECIAL | TOKENIZE_ADD_BOS))
        made = filled(c_char, "lg_model_apply_chat_template", self._model, byref(message), c_size_t(1), None,
                      c_size_t(0), flags[0])
        return list(filled(c_uint32, "lg_model_tokenize", self._model, made, c_size_t(len(made)), flags[1]))

    def answer(self, prompt, max_tokens, on_progress=None):
        """Yields an answer's text as it comes; to close the generator stops it. `on_progress` is told how many tokens of the
        prompt are done, of how many, and stops it with false; it runs in another thread."""
        parts = queue.SimpleQueue()
        cancel = new("lg_cancel_new")

        @ON_PROGRESS
        def tell(_user, n_done, n_total):
            return on_progress is None or on_progress(n_done, n_total)

        @ON_TEXT
        def on_text(_user, _token, text, n_bytes):
            parts.put(ctypes.string_at(text, n_bytes).decode() if n_bytes else "")
            return True

        def run():
            try:
                how = GenerateParams(max_tokens=max_tokens, on_progress=tell, on_text=on_text, cancel=cancel)
                self._generate(prompt, how)
                parts.put(None)
            except BaseException as error:
                parts.put(error)

        # In a thread of its own, so that this one hears of Ctrl-C while the library computes.
        worker = threading.Thread(target=run)
        worker.start()
        try:
            while (part := parts.get()) is not None:
                if isinstance(part, BaseException):
                    raise part
                yield part
        finally:
            lib.lg_cancel_set(cancel)
            worker.join()
            lib.lg_cancel_free(cancel)

    def _generate(self, prompt, how):
        session = sampler = None
        try:
            session = new("lg_session_new", self._model, byref(SessionParams(n_ctx=len(prompt) + how.max_tokens)))
            sampler = new("lg_sampler_new", None)
            tokens = (c_uint32 * len(prompt))(*prompt)
            result = GenerateResult()
            call("lg_session_generate", session, sampler, tokens, c_size_t(len(prompt)), byref(how), byref(result))
            self.result, self.reason = result, STOP_REASONS[result.reason]
            took = Counters()
            call("lg_session_counters", session, byref(took))
            self.stats = (f"{len(prompt)} tokens of prompt in {took.prompt_ms / 1e3:.2f} s, {result.n_tokens} of answer in"
                          f" {took.generated_ms / 1e3:.2f} s, {lib.lg_session_n_bytes(session) / 1e6:.1f} MB")
        finally:
            lib.lg_sampler_free(sampler)
            lib.lg_session_free(session)


def ask(path, file, question, max_tokens):
    with Model(path) as model:
        text = pathlib.Path(file).read_bytes().decode()
        prompt = model.prompt(f"{text}\n\n{question}")
        if len(prompt) + max_tokens > model.n_ctx:
            raise ValueError(f"the text with the question: {len(prompt)} tokens and up to {max_tokens} of the answer"
                             f" do not fit into a context of {model.n_ctx}")
        with contextlib.closing(model.answer(prompt, max_tokens)) as parts:
            for part in parts:
                print(part, end="", flush=True)
        print()
        print(model.stats, file=sys.stderr)


def main():
    if len(sys.argv) < 4:
        print(f"usage: {sys.argv[0]} MODEL FILE QUESTION [TOKENS]", file=sys.stderr)
        return 2
    try:
        ask(*sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) > 4 else 256)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (Error, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
