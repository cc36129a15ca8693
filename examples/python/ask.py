#!/usr/bin/env python3
"""Answers questions about a text file, token by token, with the likeliest tokens. What the prompts have in common, the text,
is computed once. Ctrl-C stops.

    cargo build --release
    python3 examples/python/ask.py model.gguf README.md "What is this about?"

LONGGEN_LIBRARY is where liblonggen.so lies, if not in target/release. As a module it has two classes:

    with Model("model.gguf") as model, model.session(n_ctx=1024) as session:
        for text in session.answer(model.prompt("Name the capital of France."), max_tokens=64):
            print(text, end="", flush=True)
"""

import collections
import contextlib
import ctypes
import os
import pathlib
import queue
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_char, c_char_p, c_double, c_size_t, c_uint32, c_uint64, c_void_p, sizeof

ABI_VERSION = 0
CHAT_ADD_GENERATION_PROMPT = 1
TOKENIZE_SPECIAL = 1
TOKENIZE_ADD_BOS = 2
TOO_SMALL = 12
INDEX_NONE = 2**32 - 1
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


class PromptResult(Struct):
    _fields_ = [("struct_size", c_size_t), ("n_common", c_size_t), ("n_reused", c_size_t), ("n_computed", c_size_t),
                ("n_limiting_layers", c_uint32), ("limiting_layer", c_uint32)]


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
    lib.lg_session_n_tokens.restype = c_size_t
    lib.lg_session_n_bytes.restype = lib.lg_session_restore_bytes.restype = c_uint64
    for name in ("lg_model_n_ctx_train", "lg_model_free", "lg_session_free", "lg_session_n_tokens", "lg_session_n_bytes",
                 "lg_session_restore_bytes", "lg_sampler_free", "lg_cancel_set", "lg_cancel_free"):
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


@contextlib.contextmanager
def stoppable():
    """A thread to compute in, so that this one hears of Ctrl-C, and what stops it when the block is left."""
    cancel = new("lg_cancel_new")
    try:
        with ThreadPoolExecutor(1) as worker:
            try:
                yield worker, cancel
            finally:
                lib.lg_cancel_set(cancel)
    finally:
        lib.lg_cancel_free(cancel)


def call_stoppable(name, *arguments, on_progress, outputs=()):
    """Calls a function that takes a progress, its `user` and an lg_cancel behind its arguments, then outputs. Ctrl-C stops it;
    so does `on_progress`, which is told in another thread how much is done, of how much, with false."""
    with stoppable() as (worker, cancel):
        worker.submit(call, name, *arguments, told(on_progress), None, cancel, *outputs).result()


def told(on_progress):
    """The callback of the library that tells `on_progress`, if there is one."""

    @ON_PROGRESS
    def tell(_user, n_done, n_total):
        return on_progress is None or on_progress(n_done, n_total)

    return tell


Prompted = collections.namedtuple("Prompted", "n_common n_reused n_computed n_limiting_layers limiting_layer")
Prompted.__doc__ = """What Session.prompt has found in the session, and done: how many tokens at the beginning of the prompt the
session held, how many of them were kept, and how many were computed; how many layers had given up what they needed, where
fewer were kept than could have been, and the first of them, or None."""


class Handle:
    """What must be closed, and is at the end of a `with`."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Model(Handle):
    """An open model."""

    def __init__(self, path):
        self._model = None
        self._model = new("lg_model_open", os.fsencode(path), None)
        self.n_ctx = lib.lg_model_n_ctx_train(self._model)

    def close(self):
        lib.lg_model_free(self._model)
        self._model = None

    def prompt(self, text):
        """What a user's message is to the model: the tokens of what its chat template makes of it."""
        text = text.encode()
        message = Message(b"user", 4, text, len(text))
        flags = (c_uint32(CHAT_ADD_GENERATION_PROMPT), c_uint32(TOKENIZE_SPECIAL | TOKENIZE_ADD_BOS))
        made = filled(c_char, "lg_model_apply_chat_template", self._model, byref(message), c_size_t(1), None,
                      c_size_t(0), flags[0])
        return list(filled(c_uint32, "lg_model_tokenize", self._model, made, c_size_t(len(made)), flags[1]))

    def session(self, n_ctx):
        """A session for so many tokens."""
        return Session(new("lg_session_new", self._model, byref(SessionParams(n_ctx=n_ctx))))

    def load(self, path, n_ctx, on_progress=None):
        """A session for so many tokens with what Session.save has written: it goes on as that one would have. `on_progress`
        is told bytes."""
        session = c_void_p()
        call_stoppable("lg_session_load", self._model, os.fsencode(path), byref(SessionParams(n_ctx=n_ctx)),
                       on_progress=on_progress, outputs=(byref(session),))
        return Session(session)


class Session(Handle):
    """One sequence of tokens with its memory, and the sampler that goes on with it: it takes the likeliest tokens. Of its last
    answer, `stats` says what it took, `prompted` what its prompt has found, `result` what lg_generate_result says, and
    `reason` why it ended: one of STOP_REASONS."""

    def __init__(self, session):
        self.stats = self.prompted = self.result = self.reason = self._sampler = None
        self._session = session
        try:
            self._sampler = new("lg_sampler_new", None)
        except Error:
            self.close()
            raise

    def close(self):
        lib.lg_sampler_free(self._sampler)
        lib.lg_session_free(self._session)
        self._sampler = self._session = None

    def __len__(self):
        """Tokens that the session holds."""
        return lib.lg_session_n_tokens(self._session)

    def prompt(self, tokens, on_progress=None):
        """Makes the session hold `tokens` and nothing else: keeps what it holds of them already, and computes the rest, so that
        every prompt of a conversation can be given as a whole. Returns a Prompted. `on_progress` is told how many of the
        tokens to compute are done, of how many, and stops the call with false; it runs in another thread."""
        with stoppable() as (worker, cancel):
            return worker.submit(self._prompt, tokens, on_progress, cancel).result()

    def rewind(self, n_tokens):
        """Goes back to the first `n_tokens` tokens, and returns how many the session holds then: that many, or fewer where
        layers have given up what they would need and no restore point has it."""
        n_kept = c_size_t()
        call("lg_session_rewind", self._session, c_size_t(n_tokens), byref(n_kept))
        return n_kept.value

    def restore_points(self):
        """Positions, rising, that the session can go back to although layers have given up a part of the context since."""
        return list(filled(c_size_t, "lg_session_restore_points", self._session))

    def restore_bytes(self):
        """Memory that the restore points take now, beside the session's own."""
        return lib.lg_session_restore_bytes(self._session)

    def save(self, path, on_progress=None):
        """Writes the session to a file, for Model.load. A file that is there is replaced when the new one is complete.
        `on_progress` is told bytes."""
        call_stoppable("lg_session_save", self._session, os.fsencode(path), on_progress=on_progress)

    def answer(self, prompt, max_tokens, on_progress=None):
        """Yields the answer to a prompt, which is given as a whole, as it comes; to close the generator stops it.
        `on_progress` is that of `prompt`."""
        parts = queue.SimpleQueue()

        @ON_TEXT
        def on_text(_user, _token, text, n_bytes):
            parts.put(ctypes.string_at(text, n_bytes).decode() if n_bytes else "")
            return True

        def generate(cancel):
            try:
                before = self._took()
                self.prompted = self._prompt(prompt, on_progress, cancel)
                self._generate(GenerateParams(max_tokens=max_tokens, on_text=on_text, cancel=cancel))
                self._tell_stats(len(prompt), before)
                parts.put(None)
            except BaseException as error:
                parts.put(error)

        with stoppable() as (worker, cancel):
            worker.submit(generate, cancel)
            while (part := parts.get()) is not None:
                if isinstance(part, BaseException):
                    raise part
                yield part

    def _prompt(self, tokens, on_progress, cancel):
        did = PromptResult()
        call("lg_session_prompt", self._session, (c_uint32 * len(tokens))(*tokens), c_size_t(len(tokens)),
             told(on_progress), None, cancel, byref(did))
        layer = None if did.limiting_layer == INDEX_NONE else did.limiting_layer
        return Prompted(did.n_common, did.n_reused, did.n_computed, did.n_limiting_layers, layer)

    def _generate(self, how):
        result = GenerateResult()
        call("lg_session_generate", self._session, self._sampler, None, c_size_t(0), byref(how), byref(result))
        self.result, self.reason = result, STOP_REASONS[result.reason]

    def _took(self):
        took = Counters()
        call("lg_session_counters", self._session, byref(took))
        return took

    def _tell_stats(self, n_prompt, before):
        took = self._took()
        n_bytes = lib.lg_session_n_bytes(self._session)
        self.stats = (f"{n_prompt} tokens of prompt in {(took.prompt_ms - before.prompt_ms) / 1e3:.2f} s,"
                      f" {self.result.n_tokens} of answer in"
                      f" {(took.generated_ms - before.generated_ms) / 1e3:.2f} s, {n_bytes / 1e6:.1f} MB")
        if self.prompted.n_reused > 0:
            self.stats += (f"\n{self.prompted.n_reused} tokens of the prompt were there already,"
                           f" {self.prompted.n_computed} were computed")


def ask(path, file, questions, max_tokens):
    with Model(path) as model:
        text = pathlib.Path(file).read_bytes().decode()
        prompts = [model.prompt(f"{text}\n\n{question}") for question in questions]
        longest = max(map(len, prompts))
        if longest + max_tokens > model.n_ctx:
            raise ValueError(f"the text with the question: {longest} tokens and up to {max_tokens} of the answer"
                             f" do not fit into a context of {model.n_ctx}")
        with model.session(longest + max_tokens) as session:
            for prompt in prompts:
                with contextlib.closing(session.answer(prompt, max_tokens)) as parts:
                    for part in parts:
                        print(part, end="", flush=True)
                print()
                print(session.stats, file=sys.stderr)


def main():
    if len(sys.argv) < 4:
        print(f"usage: {sys.argv[0]} MODEL FILE QUESTION [TOKENS [QUESTION...]]", file=sys.stderr)
        return 2
    try:
        ask(*sys.argv[1:3], [sys.argv[3], *sys.argv[5:]], int(sys.argv[4]) if len(sys.argv) > 4 else 256)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (Error, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
