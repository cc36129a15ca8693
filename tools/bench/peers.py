#!/usr/bin/env python3
"""Times the attention of PyTorch 2.11 on a CUDA device, case by case as lgeval bench-attention does.

    python3 tools/bench/peers.py [CASE...] >>RAW.jsonl     # all of attention_cases.txt unless some are named

Prints a JSON object per case and peer, with the keys of lgeval's: everything is bf16, whatever the case's cache holds.
Peers are scaled_dot_product_attention with cuDNN and with its own FlashAttention, and, where the mask is not theirs, a
compiled flex_attention with the exact mask in blocks. A peer that fails or computes something else leaves an "error".
"""

import argparse
import json
import math
import shlex
import statistics
import sys
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

CASES = Path(__file__).with_name("attention_cases.txt")
ROTATED_BYTES = 256 << 20  # read before any is read again: several times what the second-level cache holds
SAMPLE_MS = 50
REPEATED_CALLS = 8  # of one query, at least, that a graph has
UNBOUNDED = 1 << 30  # local blocks of a mask that hides nothing


def cases(names):
    """The cases of these names, or all, as (name, flags)."""
    parser = argparse.ArgumentParser()
    for flag in ("--heads", "--kv-heads", "--head-dim", "--tokens", "--chunk"):
        parser.add_argument(flag, type=int)
    for flag, default in (("--block", 64), ("--local", UNBOUNDED), ("--sink", 0), ("--stride", 0)):
        parser.add_argument(flag, type=int, default=default)
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--attention", default="full")
    parser.add_argument("--kv")
    found = {}
    for line in CASES.read_text().splitlines():
        words = shlex.split(line, comments=True)
        if words:
            found[words[0]] = parser.parse_args(words[1:])
    return [(name, found[name]) for name in names or found]


class Mask:
    """Who sees whom; see src/attention/mask.rs."""

    def __init__(self, case, device):
        self.block, self.local, self.sink, self.stride = case.block, case.local, case.sink, case.stride
        self.queries = 1 if case.decode else case.chunk or case.tokens
        self.tokens, self.offset = case.tokens, case.tokens - self.queries
        group = case.heads // case.kv_heads
        phases = [head // group * self.stride // case.kv_heads for head in range(case.heads)]
        self.phases = torch.tensor(phases, device=device)

    def sees(self, head, i, j):
        """Whether the query at position i sees the key at position j."""
        query_block, block = i // self.block, j // self.block
        seen = (query_block - block < self.local) | (block < self.sink)
        if self.stride:
            seen = seen | ((block + self.phases[head]) % self.stride == 0)
        return (j <= i) & seen

    def blocks(self):
        """Per head, query block and key block: whether the last query of the one sees the first key of the other."""
        device = self.phases.device
        heads = torch.arange(len(self.phases) if self.stride else 1, device=device)[:, None, None]
        i = torch.arange(self.offset + self.block - 1, self.tokens, self.block, device=device)[None, :, None]
        j = torch.arange(0, self.tokens, self.block, device=device)[None, None, :]
        return self.sees(heads, i, j)

    def pairs(self):
        """Pairs of a query and a key that it sees, of all heads."""
        if self.queries == 1:
            heads = torch.arange(len(self.phases), device=self.phases.device)[:, None]
            j = torch.arange(self.tokens, device=self.phases.device).expand(len(self.phases), -1)
            return int(self.sees(heads, torch.full_like(j, self.tokens - 1), j).sum())
        seen = self.blocks()
        # Of its own block, a query sees half.
        n_own = seen.shape[0] * seen.shape[1]
        of_head = (int(seen.sum()) - n_own) * self.block**2 + n_own * self.block * (self.block + 1) // 2
        return of_head * len(self.phases) // seen.shape[0]

    def block_mask(self, q_size, kv_size):
        """The same for flex_attention, in blocks of q_size queries and kv_size keys."""
        seen = self.blocks()
        own = (torch.arange(seen.shape[1], device=seen.device) + self.offset // self.block)[:, None]
        whole = seen & (torch.arange(seen.shape[2], device=seen.device) < own)
        sizes = [q_size // self.block, kv_size // self.block]
        tiles = [blocks.unflatten(2, (-1, sizes[1])).unflatten(1, (-1, sizes[0])) for blocks in (seen, whole)]
        full, some = tiles[1].all(4).all(2), tiles[0].any(4).any(2)

        def listed(tiles):
            order = tiles.int().argsort(dim=-1, descending=True, stable=True)
            return tiles.sum(-1).int()[None], order.int()[None]

        return BlockMask.from_kv_blocks(
            *listed(some & ~full),
            *listed(full),
            BLOCK_SIZE=(q_size, kv_size),
            mask_mod=lambda batch, head, i, j: self.sees(head, i + self.offset, j),
            seq_lengths=(self.queries, self.tokens),
        )


def peers(case, mask):
    """The peers of a case: names, and functions of (q, k, v)."""
    gqa = case.heads != case.kv_heads

    def sdpa(backend, **kwargs):
        def attend(q, k, v):
            with sdpa_kernel(backend):
                return scaled_dot_product_attention(q, k, v, enable_gqa=gqa, **kwargs)

        return attend

    def flex(q_size, kv_size):
        block_mask = mask.block_mask(q_size, kv_size)
        compiled = torch.compile(flex_attention, dynamic=False)
        return lambda q, k, v: compiled(q, k, v, block_mask=block_mask, enable_gqa=gqa)

    if case.attention == "full":
        # One query sees everything; cuDNN's causal mask is aligned to the first key, not to the last.
        if mask.queries in (1, case.tokens):
            kwargs = {"is_causal": mask.queries > 1}
            yield "SDPA cuDNN", lambda: sdpa(SDPBackend.CUDNN_ATTENTION, **kwargs)
        else:
            kwargs = {"attn_mask": causal_lower_right(mask.queries, case.tokens)}
        yield "SDPA flash", lambda: sdpa(SDPBackend.FLASH_ATTENTION, **kwargs)
    if case.attention != "full" or mask.queries not in (1, case.tokens):
        yield "flex 128x128", lambda: flex(128, 128)
        yield "flex 128x64", lambda: flex(128, 64)


def check(out, q, k, v, mask):
    """Compares some rows with their definition."""
    group = q.shape[1] // k.shape[1]
    for head in (0, q.shape[1] - 1):
        for row in (0, q.shape[2] // 2, q.shape[2] - 1):
            keys, values = k[0, head // group].float(), v[0, head // group].float()
            scores = keys @ q[0, head, row].float() / math.sqrt(q.shape[3])
            j = torch.arange(mask.tokens, device=q.device)
            seen = mask.sees(torch.tensor(head, device=q.device), torch.full_like(j, row + mask.offset), j)
            expected = scores.masked_fill(~seen, -math.inf).softmax(0) @ values
            worst = (out[0, head, row].float() - expected).abs().max().item()
            # bf16 rounds the result to 1 in 256, and weights before.
            limit = 0.02 * expected.abs().max().item() + 1e-3
            if not worst <= limit:
                raise ValueError(f"head {head}, query {row}: differs by {worst:.3g}, at most {limit:.3g} expected")


def sample_ms(once, n):
    """Milliseconds of n runs."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(n):
        once()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def measure(attend, q, caches, mask, repeat):
    """Milliseconds of one call, one number a sample, and calls of a sample."""
    check(attend(q, *caches[0]), q, *caches[0], mask)
    n_round = 1 if mask.queries > 1 else math.ceil(REPEATED_CALLS / len(caches)) * len(caches)

    def once():
        for i in range(n_round):
            attend(q, *caches[i % len(caches)])

    if mask.queries == 1:
        # A graph, as decoders have: launched one by one, such calls wait for Python.
        once()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
        once = graph.replay
    once()
    n = 1
    while sample_ms(once, n) < SAMPLE_MS:
        n *= 2
    return [sample_ms(once, n) / n / n_round for _ in range(repeat)], n * n_round


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", nargs="*", help="a name in attention_cases.txt")
    parser.add_argument("-r", "--repeat", type=int, default=10)
    args = parser.parse_args()
    torch.manual_seed(0)
    for name, case in cases(args.case):
        mask = Mask(case, "cuda")
        n_cached = 2 * case.kv_heads * case.tokens * case.head_dim * torch.bfloat16.itemsize
        n_caches = math.ceil(ROTATED_BYTES / n_cached) if case.decode else 1

        def random(heads, tokens):
            return torch.randn(1, heads, tokens, case.head_dim, device="cuda", dtype=torch.bfloat16)

        q = random(case.heads, mask.queries)
        caches = [[random(case.kv_heads, case.tokens) for _ in range(2)] for _ in range(n_caches)]
        for peer, make in peers(case, mask):
            line = {
                "bench": name,
                "device": torch.cuda.get_device_name(),
                "implementation": peer,
                "version": torch.__version__,
                "attention": case.attention,
                "heads": case.heads,
                "kv_heads": case.kv_heads,
                "head_dim": case.head_dim,
                "tokens": case.tokens,
                "queries": mask.queries,
                "kv": "bf16",
            }
            try:
                ms, calls = measure(make(), q, caches, mask, args.repeat)
                median, pairs = statistics.median_high(ms), mask.pairs()
                line |= {
                    "pairs": pairs,
                    "caches": n_caches,
                    "calls": calls,
                    "ms": {"min": min(ms), "median": median, "max": max(ms)},
                    "tflops": 4 * case.head_dim * pairs / median / 1e9,
                    "gbs": n_cached / median / 1e6 if case.decode else None,
                }
            except Exception as error:  # whatever a peer cannot do must not end the others
                line["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            print(json.dumps(line), flush=True)
            torch.compiler.reset()
            torch.cuda.empty_cache()
        del q, caches


if __name__ == "__main__":
    sys.exit(main())
