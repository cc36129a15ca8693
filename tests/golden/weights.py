"""Opens a Llama-type model, a plain `llama` GGUF or a Hugging Face folder, for the reference implementation.

Tensors go by their GGUF names and come out as float32, one at a time, so only what is being computed with is in memory.
What the reference would compute wrongly (scaled RoPE, biases, other activations, unknown tensors) is refused.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# GGUF name of a layer's tensor -> Hugging Face name.
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
MODEL_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class Model:
    """A model's numbers, its own plan (a JSON object, None = every layer full), and access to its tensors."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    norm_epsilon: float
    rope_base: float
    rope_pairing: str  # adjacent: (0, 1), (2, 3), ...; halves: (0, head_dim / 2), ...
    plan: dict | None
    has_output: bool  # False: the logits use the embedding matrix
    tensor: Callable[[str], np.ndarray]  # GGUF name without ".weight" -> float32, matrices as [outputs, inputs]


def open_model(path) -> Model:
    """Opens a GGUF file or a Hugging Face folder."""
    path = Path(path)
    return open_folder(path) if path.is_dir() else open_gguf(path)


def expected_names(n_layers: int) -> dict[str, str]:
    """Every tensor that a model may have: GGUF name -> Hugging Face name, both without `.weight`."""
    names = dict(MODEL_TENSORS)
    for i_layer in range(n_layers):
        for ours, theirs in LAYER_TENSORS.items():
            names[f"blk.{i_layer}.{ours}"] = f"model.layers.{i_layer}.{theirs}"
    return names


def check_names(found: set[str], expected: set[str], output: str):
    """Refuses tensors that the reference would ignore, and missing ones; only `output` may be absent."""
    expected = {f"{name}.weight" for name in expected}
    unknown, missing = found - expected, expected - found - {f"{output}.weight"}
    if unknown or missing:
        raise ValueError(f"not a plain Llama-type model: unknown {sorted(unknown)}, missing {sorted(missing)}")


def open_gguf(path: Path) -> Model:
    """Opens a `llama` GGUF. Its Q and K rows are stored so that RoPE pairs adjacent elements."""
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)

    def value(key: str, default=None):
        field = reader.get_field(key)
        return default if field is None else field.contents()

    if value("general.architecture") != "llama":
        raise ValueError(f"{path}: architecture {value('general.architecture')!r}, only 'llama' is supported")
    for key in reader.fields:
        if key.startswith(("llama.rope.scaling.", "llama.attention.sliding_window")):
            raise ValueError(f"{path}: {key} is not supported")

    n_layers, n_heads = value("llama.block_count"), value("llama.attention.head_count")
    head_dim = value("llama.embedding_length") // n_heads
    for key in ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"):
        if value(key, head_dim) != head_dim:
            raise ValueError(f"{path}: {key} {value(key)} differs from the head's {head_dim}")

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    check_names(set(tensors), set(expected_names(n_layers)), "output")

    def tensor(name: str) -> np.ndarray:
        stored = tensors[f"{name}.weight"]
        return dequantize(stored.data, stored.tensor_type).astype(np.float32, copy=False)

    return Model(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=value("llama.attention.head_count_kv", n_heads),
        head_dim=head_dim,
        norm_epsilon=value("llama.attention.layer_norm_rms_epsilon"),
        rope_base=value("llama.rope.freq_base", 10000.0),
        rope_pairing="adjacent",
        plan=None,
        has_output="output.weight" in tensors,
        tensor=tensor,
    )


def read_safetensors(path: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Maps a safetensors file: name -> a function that reads the tensor as float32."""
    data = np.memmap(path, np.uint8, "r")
    header_bytes = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + header_bytes].tobytes())
    header.pop("__metadata__", None)
    body = data[8 + header_bytes :]

    def read(entry: dict) -> np.ndarray:
        start, end = entry["data_offsets"]
        raw = body[start:end]
        match entry["dtype"]:
            case "BF16":  # the upper half of a float32
                values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
            case "F16":
                values = raw.view("<f2").astype(np.float32)
            case "F32":
                values = raw.view("<f4").astype(np.float32)
            case dtype:
                raise ValueError(f"{path}: dtype {dtype} is not supported")
        return values.reshape(entry["shape"])

    return {name: lambda entry=entry: read(entry) for name, entry in header.items()}


def open_folder(path: Path) -> Model:
    """Opens a Hugging Face folder of the Llama type. RoPE pairs element k with element k + head_dim / 2."""
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    supported = {"model_type": "llama", "hidden_act": "silu"}
    unsupported = ("rope_scaling", "rope_parameters", "attention_bias", "mlp_bias", "sliding_window")
    for key, wanted in (supported | dict.fromkeys(unsupported)).items():
        if config.get(key, wanted) not in (wanted, False):
            raise ValueError(f"{path}: config.json: {key} {config[key]!r} is not supported")

    tensors = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= read_safetensors(file)
    names = expected_names(config["num_hidden_layers"])
    check_names(set(tensors), set(names.values()), "lm_head")

    n_heads = config["num_attention_heads"]
    return Model(
        n_layers=config["num_hidden_layers"],
        n_heads=n_heads,
        n_kv_heads=config.get("num_key_value_heads", n_heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // n_heads,
        norm_epsilon=config["rms_norm_eps"],
        rope_base=config.get("rope_theta", 10000.0),
        rope_pairing="halves",
        plan=config.get("longgen"),
        has_output="lm_head.weight" in tensors and not config.get("tie_word_embeddings", False),
        tensor=lambda name: tensors[f"{names[name]}.weight"](),
    )
