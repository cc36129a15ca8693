"""Checks that `lgconvert` needs little memory of its own, however large the model.

    convert_memory.py --lgconvert target/release/lgconvert --tokenizer tests/data/longgen-tiny-8k/tokenizer.json

Converts a folder of the shape of Llama 2 7B in f16, whose files are all holes and take no place on the disk. Pages of
files come and go as the system likes; what must stay below 1 GiB is what the program allocates, at any moment.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEAK_BYTES = 1 << 30
OUTPUT_BYTES = {"q4_0": 3_800_000_000, "q8_0": 7_200_000_000}
SPARE_BYTES = 1_000_000_000
POLL_SECONDS = 0.01
N_LAYERS, D_MODEL, D_FF, N_HEADS, N_VOCAB = 32, 4096, 11008, 32, 32000
CONFIG = {
    "model_type": "llama",
    "hidden_size": D_MODEL,
    "intermediate_size": D_FF,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "num_key_value_heads": N_HEADS,
    "vocab_size": N_VOCAB,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def shapes() -> dict[str, list[int]]:
    """The tensors of the model, outputs first."""
    shapes = {"model.embed_tokens.weight": [N_VOCAB, D_MODEL]}
    for i_layer in range(N_LAYERS):
        layer = {f"self_attn.{part}_proj": [D_MODEL, D_MODEL] for part in "qkvo"}
        layer |= {f"mlp.{part}_proj": [D_FF, D_MODEL] for part in ("gate", "up")}
        layer |= {"mlp.down_proj": [D_MODEL, D_FF], "input_layernorm": [D_MODEL], "post_attention_layernorm": [D_MODEL]}
        shapes |= {f"model.layers.{i_layer}.{part}.weight": shape for part, shape in layer.items()}
    return shapes | {"model.norm.weight": [D_MODEL], "lm_head.weight": [N_VOCAB, D_MODEL]}


def write_holes(file: Path, shapes: dict[str, list[int]]) -> int:
    """A safetensors file with these tensors, in f16, of which only the header is written; returns its length."""
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, n_elems = end, 1
        for dim in shape:
            n_elems *= dim
        end = begin + 2 * n_elems
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode("ascii")
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        return out.truncate(8 + len(text) + end)


def write_folder(folder: Path, tokenizer: Path) -> int:
    """The model as a Hugging Face folder of two files of weights; returns how long they are."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="ascii")
    shutil.copy(tokenizer, folder / "tokenizer.json")
    tensors = list(shapes().items())
    halves = tensors[: len(tensors) // 2], tensors[len(tensors) // 2 :]
    n_bytes, weight_map = 0, {}
    for i, half in enumerate(halves, start=1):
        name = f"model-{i:05}-of-00002.safetensors"
        n_bytes += write_holes(folder / name, dict(half))
        weight_map |= {tensor: name for tensor, _ in half}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="ascii")
    return n_bytes


def anonymous_bytes(pid: int) -> int:
    """What a process has allocated and touched; 0 when it has ended."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    kibibytes = [int(line.split()[1]) for line in lines if line.startswith("RssAnon:")]
    return 1024 * sum(kibibytes)


def convert(lgconvert: Path, folder: Path, output: Path, matrices: str) -> int:
    """Runs the conversion to its end and returns the most that it had allocated at any look."""
    line = [str(lgconvert), str(folder), "-o", str(output), "--type", matrices]
    process = subprocess.Popen(line, stdin=subprocess.DEVNULL)
    try:
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(POLL_SECONDS)
    finally:
        process.kill()
    if process.returncode != 0:
        sys.exit(f"lgconvert ended with {process.returncode}")
    return peak


def main():
    parser = argparse.ArgumentParser(description="peak memory of converting a large model")
    parser.add_argument("--lgconvert", required=True, type=Path, help="the program to test")
    parser.add_argument("--tokenizer", required=True, type=Path, help="any tokenizer.json of at most 32,000 tokens")
    parser.add_argument("--type", default="q4_0", choices=OUTPUT_BYTES, help="type of the matrices")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        free, needed = shutil.disk_usage(place).free, OUTPUT_BYTES[options.type] + SPARE_BYTES
        if free < needed:
            sys.exit(f"{place} has {free:,} bytes free, {needed:,} needed; TMPDIR names another place")
        n_bytes = write_folder(place / "model", options.tokenizer)
        output = place / "model.gguf"
        started = time.monotonic()
        peak = convert(options.lgconvert, place / "model", output, options.type)
        seconds = time.monotonic() - started
        written = output.stat().st_size
    print(f"{n_bytes:,} bytes to {written:,} in {seconds:.0f} s; peak {peak:,} bytes allocated, {PEAK_BYTES:,} allowed")
    if written < 0.9 * OUTPUT_BYTES[options.type]:
        sys.exit("the output is too small to hold the model")
    if not 0 < peak <= PEAK_BYTES:
        sys.exit("more than allowed")


if __name__ == "__main__":
    main()
