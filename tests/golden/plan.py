"""What each layer may look at: reads attention plans (the object that `lgconvert --attention` takes) and builds masks.

A plan is `{"attention": [{"kind": ...}, ...]}`, one entry per layer, or that object under the key `longgen`. With query
token i, key token j, block size b, I = i // b, J = j // b and query head g, key j <= i is visible in a layer of kind

    full     always
    window   i - j < window_tokens, or j < sink_tokens
    blocks   I - J < local_blocks, or J < sink_blocks, or (stride > 0 and (J + phase[g]) % stride == 0)
"""

import json
from dataclasses import dataclass

import numpy as np

BLOCK_SIZES = (16, 32, 64, 128, 256)
REQUIRED = {"full": set(), "window": {"window_tokens"}, "blocks": {"block_size", "local_blocks"}}
OPTIONAL = {"full": set(), "window": {"sink_tokens"}, "blocks": {"sink_blocks", "stride", "phases"}}


@dataclass(frozen=True)
class LayerAttention:
    """One layer's entry of a plan. `phases` has one number per query head; the fields of other kinds are 0."""

    kind: str
    phases: tuple[int, ...]
    window_tokens: int = 0
    sink_tokens: int = 0
    block_size: int = 0
    local_blocks: int = 0
    sink_blocks: int = 0
    stride: int = 0

    def visible(self, phase: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """The mask of a query head with this phase: bool [len(i), len(j)] for query tokens i and key tokens j."""
        i, j = i[:, None], j[None, :]
        causal = j <= i
        if self.kind == "full":
            return causal
        if self.kind == "window":
            return causal & ((i - j < self.window_tokens) | (j < self.sink_tokens))
        i_block, j_block = i // self.block_size, j // self.block_size
        kept = (i_block - j_block < self.local_blocks) | (j_block < self.sink_blocks)
        if self.stride > 0:
            kept |= (j_block + phase) % self.stride == 0
        return causal & kept


def layer_from_json(entry: dict, n_heads: int, n_kv_heads: int) -> LayerAttention:
    """Checks one entry. Phases given per KV head are repeated for the query heads of its group."""
    fields = dict(entry)
    kind = fields.pop("kind", None)
    if kind not in REQUIRED:
        raise ValueError(f"unknown attention kind {kind!r}")
    missing = REQUIRED[kind] - fields.keys()
    unknown = fields.keys() - REQUIRED[kind] - OPTIONAL[kind]
    if missing or unknown:
        raise ValueError(f"attention kind {kind!r}: missing {sorted(missing)}, unknown {sorted(unknown)}")
    if kind == "blocks" and fields["block_size"] not in BLOCK_SIZES:
        raise ValueError(f"block_size {fields['block_size']} is none of {BLOCK_SIZES}")
    if fields.get("window_tokens", 1) < 1 or fields.get("local_blocks", 1) < 1:
        raise ValueError(f"a query must see itself: {entry}")

    phases = fields.pop("phases", None)
    if phases is None:
        if fields.get("stride", 0) > 1:
            raise ValueError(f"a stride needs phases: {entry}")
        phases = [0] * n_heads
    elif len(phases) == n_kv_heads:
        phases = [phase for phase in phases for _ in range(n_heads // n_kv_heads)]
    if len(phases) != n_heads:
        raise ValueError(f"{len(phases)} phases for {n_heads} query heads and {n_kv_heads} KV heads")
    return LayerAttention(kind=kind, phases=tuple(phases), **fields)


def plan_from_json(plan: dict, n_layers: int, n_heads: int, n_kv_heads: int) -> list[LayerAttention]:
    """Checks a whole plan."""
    layers = plan.get("longgen", plan)["attention"]
    if len(layers) != n_layers:
        raise ValueError(f"the plan has {len(layers)} layers, the model {n_layers}")
    return [layer_from_json(layer, n_heads, n_kv_heads) for layer in layers]


def read_plan(path, n_layers: int, n_heads: int, n_kv_heads: int) -> list[LayerAttention]:
    """Reads a plan file."""
    with open(path, encoding="utf-8") as file:
        return plan_from_json(json.load(file), n_layers, n_heads, n_kv_heads)
