"""An independent float32 implementation of Llama-type transformers whose layers do not all attend alike.

    reference.py logits --model F --tokens ids.txt [--plan plan.json] -o out.npy

writes the logits of every token, float32 [n_tokens, n_vocab]. F is a plain `llama` GGUF (dequantised to float32) or a
Hugging Face folder; ids.txt holds token ids with blanks between them (an .npy file of integers will do, too). The plan
is the given one, else the one in the folder's config.json, else full attention. It shares no code with the runtime and
is written to be read, not to be fast; attention goes in tiles of queries so that thousands of tokens fit into memory.
On a busy machine set OPENBLAS_NUM_THREADS=1: OpenBLAS' threads wait for each other by spinning.
"""

import argparse
from pathlib import Path

import numpy as np

from plan import LayerAttention, plan_from_json, read_plan
from weights import Model, open_model

QUERY_TILE = 256


def rms_norm(x: np.ndarray, weight: np.ndarray, epsilon: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + epsilon) * weight, along the last axis."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon)) * weight


def rope(x: np.ndarray, base: float, pairing: str, angles=np.float32) -> np.ndarray:
    """Rotates x [n_tokens, n_heads, head_dim] by position.

    `angles` is the type that they are computed in. float32 is what `transformers` and the runtime do: frequencies and
    products are rounded, an error of the angle that grows with the position.
    """
    n_tokens, _, head_dim = x.shape
    frequency = angles(1) / angles(base) ** (np.arange(0, head_dim, 2, dtype=angles) / angles(head_dim))
    angle = np.arange(n_tokens, dtype=angles)[:, None, None] * frequency
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    half = head_dim // 2
    first, second = {
        "adjacent": (slice(0, None, 2), slice(1, None, 2)),
        "halves": (slice(0, half), slice(half, None)),
    }[pairing]
    a, b = x[..., first], x[..., second]
    rotated = np.empty_like(x)
    rotated[..., first] = a * cos - b * sin
    rotated[..., second] = b * cos + a * sin
    return rotated


def attend(layer: LayerAttention, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """softmax(q k^T / sqrt(head_dim)) v under the layer's mask.

    q [n_tokens, n_heads, head_dim]; k, v [n_tokens, n_kv_heads, head_dim]; the result is shaped like q.
    """
    n_tokens, n_heads, head_dim = q.shape
    group = n_heads // k.shape[1]
    scale = np.float32(head_dim**-0.5)
    out = np.empty_like(q)
    for start in range(0, n_tokens, QUERY_TILE):
        end = min(start + QUERY_TILE, n_tokens)
        i, j = np.arange(start, end), np.arange(end)
        masks = {phase: layer.visible(phase, i, j) for phase in set(layer.phases)}
        for head in range(n_heads):
            scores = (q[start:end, head] * scale) @ k[:end, head // group].T
            scores[~masks[layer.phases[head]]] = -np.inf
            scores -= scores.max(axis=-1, keepdims=True)
            weights = np.exp(scores, out=scores)
            weights /= weights.sum(axis=-1, keepdims=True)
            out[start:end, head] = weights @ v[:end, head // group]
    return out


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), with a sigmoid that cannot overflow."""
    return x * (np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x)))


def layer_output(model: Model, i_layer: int, layer: LayerAttention, x: np.ndarray, angles) -> np.ndarray:
    """One layer: x [n_tokens, d_model] plus attention, plus the feed-forward network."""
    n_tokens = len(x)

    def weight(name: str) -> np.ndarray:
        return model.tensor(f"blk.{i_layer}.{name}")

    def heads(x: np.ndarray, name: str) -> np.ndarray:
        return (x @ weight(name).T).reshape(n_tokens, -1, model.head_dim)

    normed = rms_norm(x, weight("attn_norm"), model.norm_epsilon)
    q = rope(heads(normed, "attn_q"), model.rope_base, model.rope_pairing, angles)
    k = rope(heads(normed, "attn_k"), model.rope_base, model.rope_pairing, angles)
    v = heads(normed, "attn_v")
    x = x + attend(layer, q, k, v).reshape(n_tokens, -1) @ weight("attn_output").T

    normed = rms_norm(x, weight("ffn_norm"), model.norm_epsilon)
    gated = silu(normed @ weight("ffn_gate").T) * (normed @ weight("ffn_up").T)
    return x + gated @ weight("ffn_down").T


def final_states(model: Model, plan: list[LayerAttention], ids: np.ndarray, angles=np.float32) -> np.ndarray:
    """Runs the transformer: the normalised states that the logits are made of, float32 [n_tokens, d_model]."""
    x = model.tensor("token_embd")[ids]
    for i_layer, layer in enumerate(plan):
        x = layer_output(model, i_layer, layer, x, angles)
    return rms_norm(x, model.tensor("output_norm"), model.norm_epsilon)


def head(model: Model) -> np.ndarray:
    """The matrix that turns final states into logits, float32 [n_vocab, d_model]: logits = states @ head.T."""
    return model.tensor("output" if model.has_output else "token_embd")


def choose_plan(model: Model, plan_file=None) -> list[LayerAttention]:
    """The plan of the file, else the model's own, else full attention."""
    shape = (model.n_layers, model.n_heads, model.n_kv_heads)
    if plan_file is not None:
        return read_plan(plan_file, *shape)
    return plan_from_json(model.plan or {"attention": [{"kind": "full"}] * model.n_layers}, *shape)


def read_ids(path) -> np.ndarray:
    """Token ids from a text file or an .npy file."""
    path = Path(path)
    if path.suffix == ".npy":
        return np.load(path).astype(np.int64)
    return np.array(path.read_text(encoding="ascii").split(), np.int64)


def main():
    parser = argparse.ArgumentParser(description="logits of a Llama-type model in float32 numpy")
    logits = parser.add_subparsers(required=True).add_parser("logits", help="write the logits of every token")
    logits.add_argument("--model", required=True, help="a llama GGUF or a Hugging Face folder")
    logits.add_argument("--tokens", required=True, help="token ids: text, or .npy")
    logits.add_argument("--plan", help="JSON plan to use instead of the model's own")
    logits.add_argument("--angles", choices=("float32", "float64"), default="float32", help="type of RoPE's angles")
    logits.add_argument("-o", "--output", required=True, help=".npy file to write")
    options = parser.parse_args()

    model = open_model(options.model)
    plan, ids = choose_plan(model, options.plan), read_ids(options.tokens)
    states = final_states(model, plan, ids, np.dtype(options.angles).type)
    np.save(options.output, states @ head(model).T)


if __name__ == "__main__":
    main()
