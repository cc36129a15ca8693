"""Writes data/quants.bin: a GGUF made by the gguf package, with numbers quantised and dequantised by it.

    python3 format/tests/quants.py      # needs gguf 0.19.0 and numpy 2

Tensors: `source`, and for every block type and BF16 and F16 `<type>`, its quantised form, and `<type>.back`, the numbers
that it stands for. `special` are numbers that only F16 and BF16 can hold (`special.F16`, `special.BF16`). Types that are only
read have random blocks.
"""

import pathlib

import gguf
import numpy as np

TYPES = [gguf.GGMLQuantizationType[name] for name in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1")]
BLOCK = 32
# Types that are only read, and where their blocks have numbers of half precision.
FOREIGN = {"Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
FOREIGN_BLOCKS = 5


def source() -> np.ndarray:
    rng = np.random.default_rng(20240607)
    normal = rng.standard_normal(BLOCK)
    blocks = [normal * scale for scale in (1, 0.02, 1e-3, 37, 1e4)]
    blocks.append(np.zeros(BLOCK))
    blocks.append(np.full(BLOCK, -0.0))
    blocks.append(np.full(BLOCK, 0.75))
    blocks.append(np.full(BLOCK, -3.5))
    # One large number among small ones, at either end, of either sign.
    blocks.append(np.where(np.arange(BLOCK) == 0, 100, normal))
    blocks.append(np.where(np.arange(BLOCK) == BLOCK - 1, -100, normal))
    # Equal magnitudes of both signs: the first one counts.
    blocks.append(np.where(np.arange(BLOCK) % 2 == 0, 2, -2) * 1.0)
    blocks.append(np.where(np.arange(BLOCK) % 2 == 0, -2, 2) * 1.0)
    # Numbers half-way between two steps: of Q8_0 (scale 1), of Q4_0 (scale 1), of Q4_1 (scale 1, minimum 0).
    blocks.append(np.concatenate([[127], np.arange(BLOCK - 1) - 15.5]))
    blocks.append(np.concatenate([[-8], np.arange(BLOCK - 1) / 2 - 7.5]))
    blocks.append(np.concatenate([[0, 15], np.arange(BLOCK - 2) / 2]))
    # Scales that are subnormal in half precision, and at its upper end.
    blocks.append(normal * 1e-4)
    blocks.append(normal * 1e-6)
    blocks.append(normal / abs(normal).max() * 65000)
    # One sign only.
    blocks.append(abs(normal))
    blocks.append(-abs(normal))
    return np.concatenate(blocks).astype(np.float32)


def special() -> np.ndarray:
    numbers = [np.inf, -np.inf, np.nan, 1e-8, -1e-8, 2.0**-24, 2.0**-25, 1.5 * 2.0**-25, 6.1e-5, 65504, 65519.996, 65520]
    numbers += [1 + 2.0**-11, 1 + 3 * 2.0**-11, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 3.4e38, 1e-40, -0.0, 1e5]
    return np.array(numbers, dtype=np.float32)


def random_blocks(qtype: gguf.GGMLQuantizationType, halves: list[int]) -> np.ndarray:
    """Blocks of any bits, but for the numbers of half precision: any that are finite."""
    rng = np.random.default_rng(qtype.value)
    blocks = rng.integers(0, 256, (FOREIGN_BLOCKS, gguf.GGML_QUANT_SIZES[qtype][1]), dtype=np.uint8)
    for at in halves:
        blocks[:, at + 1] = np.where(blocks[:, at + 1] & 0x7C == 0x7C, blocks[:, at + 1] ^ 0x40, blocks[:, at + 1])
    return blocks.reshape(-1)


def main() -> None:
    path = pathlib.Path(__file__).with_name("data") / "quants.bin"
    writer = gguf.GGUFWriter(path, "none")
    writer.add_tensor("source", source())
    quantised = {qtype: gguf.quantize(source(), qtype) for qtype in TYPES}
    foreign = {gguf.GGMLQuantizationType[name]: halves for name, halves in FOREIGN.items()}
    quantised |= {qtype: random_blocks(qtype, halves) for qtype, halves in foreign.items()}
    for qtype, blocks in quantised.items():
        writer.add_tensor(qtype.name, blocks, raw_dtype=qtype)
        writer.add_tensor(f"{qtype.name}.back", gguf.dequantize(blocks, qtype))
    writer.add_tensor("special", special())
    with np.errstate(over="ignore"):
        for qtype in TYPES[:2]:
            writer.add_tensor(f"special.{qtype.name}", gguf.quantize(special(), qtype), raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
