"""Natural English text that every machine with Python has: the language reference inside the standard library.

    text.py -o out.txt --bytes 120000

writes that many bytes of it at most, cut at the end of a line. The text depends on Python's version, on nothing else.
"""

import argparse
import sys
from pathlib import Path
from pydoc_data.topics import topics


def prose(max_bytes: int) -> str:
    """The topics of Python's help in alphabetical order, up to the last line end within `max_bytes` bytes of UTF-8."""
    text = "\n\n".join(topics[name].strip() for name in sorted(topics)).encode()
    if len(text) < max_bytes:
        raise ValueError(f"Python's help has {len(text)} bytes, {max_bytes} wanted")
    return text[: text.rindex(b"\n", 0, max_bytes) + 1].decode()


def main():
    parser = argparse.ArgumentParser(description="write natural English text")
    parser.add_argument("-o", "--output", required=True, type=Path)
    parser.add_argument("--bytes", type=int, default=120_000, help="how much at most")
    options = parser.parse_args()
    try:
        options.output.write_text(prose(options.bytes), encoding="utf-8", newline="\n")
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
