"""Makes tests/data/checkpoints: tiny random models as `transformers` saves them, with the logits that it computes.

    checkpoints.py tests/data/checkpoints      # needs torch 2.15.0 and transformers 5.24.0, 5 GB from PyPI

Each folder has a speciality that a conversion may get wrong. Where it does not show in the tensors, the model is computed
a second time without it: logits that do not tell the difference are refused.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

N_TOKENS = 300  # many windows, and beyond the context that LLAMA3 stretches
POSITIONS = (0, 1, 2, 19, 20, 21, 22, 63, 64, 65, 66, 90, 128, 160, 200, 230, 255, 256, 270, 299)
N_VOCAB = 258  # a token per byte, then two that begin and end a text
MUST_DIFFER = 0.1

COMMON = {
    "vocab_size": N_VOCAB,
    "hidden_size": 32,
    "intermediate_size": 44,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "tie_word_embeddings": True,
    "attn_implementation": "eager",
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Case:
    """A model to be made: its classes, the fields of its config, and those that take its speciality away."""

    config: type
    model: type
    fields: dict = field(default_factory=dict)
    without: dict = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    largest_file: str = "1GB"

    def build(self, more: dict | None = None) -> torch.nn.Module:
        """The model in float32, with its own fields and more."""
        return self.model(self.config(**(COMMON | self.fields | (more or {})))).eval()


def llama(**more) -> Case:
    """A Llama."""
    return Case(LlamaConfig, LlamaForCausalLM, **more)


def scaled(scaling: dict) -> Case:
    """A Llama with scaled rotary frequencies."""
    plain = {"rope_type": "default", "rope_theta": scaling["rope_theta"]}
    return llama(fields={"rope_parameters": scaling}, without={"rope_parameters": plain})


LINEAR = {"rope_type": "linear", "rope_theta": 5000.0, "factor": 2.5}
WINDOW = 21
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
CASES = {
    "llama-mha": llama(fields={"num_key_value_heads": 4, "head_dim": 8}),
    "llama-gqa-untied": llama(fields={"tie_word_embeddings": False}),
    "llama-linear": scaled(LINEAR),
    "llama-llama3": scaled(LLAMA3),
    "llama-biases": llama(fields={"attention_bias": True, "mlp_bias": True}),
    "llama-f16-shards": llama(dtype=torch.float16, largest_file="40KB"),
    "mistral-window": Case(
        MistralConfig, MistralForCausalLM, {"sliding_window": WINDOW}, without={"sliding_window": None}
    ),
    "ministral-layer-types": Case(
        MinistralConfig,
        MinistralForCausalLM,
        {"num_hidden_layers": len(LAYER_TYPES), "sliding_window": WINDOW, "layer_types": LAYER_TYPES},
        without={"layer_types": LAYER_TYPES[::-1]},
    ),
}


def weights(model: torch.nn.Module, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Random float32 weights that `dtype` holds exactly, of a size at which attention is far from even."""
    random = np.random.default_rng(seed)
    state = {}
    for name, old in model.state_dict().items():
        scale, mean = 1.2 * old.shape[-1] ** -0.5, 0
        if "embed_tokens" in name:
            scale = 1
        elif "norm" in name:
            scale, mean = 0.2, 1
        elif name.endswith("bias"):
            scale = 0.5
        elif "q_proj" in name or "k_proj" in name:
            scale *= 1.5
        numbers = torch.from_numpy(random.standard_normal(tuple(old.shape)) * scale + mean)
        state[name] = numbers.to(dtype).to(torch.float32)
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    return state


def logits(model: torch.nn.Module, state: dict[str, torch.Tensor], ids: np.ndarray) -> np.ndarray:
    """The logits at POSITIONS with these weights, float32 [n_positions, n_vocab]."""
    model.load_state_dict(state)
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None].long()).logits[0, list(POSITIONS)].numpy()


def write_tokenizer(folder: Path):
    """A token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def main():
    root = Path(sys.argv[1])
    torch.set_num_threads(1)
    for seed, (name, case) in enumerate(CASES.items()):
        ids = np.random.default_rng(1000 + seed).integers(0, 256, N_TOKENS, dtype=np.int32)
        model = case.build()
        state = weights(model, case.dtype, seed)
        expected = logits(model, state, ids)
        if case.without:
            difference = np.abs(expected - logits(case.build(case.without), state, ids)).max()
            if difference < MUST_DIFFER:
                sys.exit(f"{name}: without {', '.join(case.without)} logits differ by {difference} only")
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        model.to(case.dtype).save_pretrained(folder, max_shard_size=case.largest_file)
        (folder / "generation_config.json").unlink()
        write_tokenizer(folder)
        np.save(folder / "golden_ids.npy", ids)
        np.save(folder / "golden_positions.npy", np.array(POSITIONS, np.int32))
        np.save(folder / "golden_logits.npy", expected)
        n_bytes = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {n_bytes} bytes, logits up to {np.abs(expected).max():.1f}")


if __name__ == "__main__":
    main()
