"""Opens a file with the gguf package and prints what is in it, one line a key or tensor; gguf_py.rs compares the lines."""

import sys

import gguf


def main() -> None:
    reader = gguf.GGUFReader(sys.argv[1])
    print("alignment", reader.alignment)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            print("key", key, [kind.name for kind in field.types], field.contents())
    for tensor in reader.tensors:
        numbers = gguf.dequantize(tensor.data, tensor.tensor_type).ravel().view("uint32")
        shape = [int(dim) for dim in tensor.shape]
        print("tensor", tensor.name, tensor.tensor_type.name, shape, int(tensor.data_offset), *(f"{x:08x}" for x in numbers))


if __name__ == "__main__":
    main()
