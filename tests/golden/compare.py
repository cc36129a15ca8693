"""Compares two files of logits and prints the worst place.

    compare.py expected.npy actual.npy [--positions positions.npy] [--tolerance 0.02]

Both hold float32 [n, n_vocab]. They agree if no logit differs by more than the tolerance, and if the largest logit of a
row is the same token wherever the expected row's two largest differ by more than 0.05. Anything that is not finite
differs. With --positions, row r of the expected file belongs to row positions[r] of the actual one.
"""

import argparse
import sys

import numpy as np

CLEAR_LEAD = 0.05
ROW_TILE = 256


class Comparison:
    """Collects the differences of rows that arrive in tiles."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.n_rows = 0
        self.worst = -1.0
        self.worst_place = "nothing compared"
        self.flips = []  # (row, expected token, actual token)

    def add(self, expected: np.ndarray, actual: np.ndarray, rows: np.ndarray):
        """Adds a tile, float32 [len(rows), n_vocab] each; `rows` are the numbers to report."""
        if expected.shape != actual.shape or actual.dtype != np.float32:
            raise ValueError(f"expected float32 {expected.shape}, got {actual.dtype} {actual.shape}")
        if len(rows) == 0:
            return
        with np.errstate(invalid="ignore"):  # infinite minus infinite
            difference = np.abs(expected - actual)
        difference[~np.isfinite(difference)] = np.inf
        row, token = np.unravel_index(np.argmax(difference), difference.shape)
        if difference[row, token] > self.worst:
            self.worst = float(difference[row, token])
            values = f"expected {expected[row, token]:.6f}, got {actual[row, token]:.6f}"
            self.worst_place = f"row {rows[row]}, token {token}: {values}"

        second, first = np.partition(expected, -2, axis=-1)[:, -2:].T
        wanted, got = expected.argmax(axis=-1), actual.argmax(axis=-1)
        for row in np.flatnonzero((first - second > CLEAR_LEAD) & (wanted != got)):
            self.flips.append((int(rows[row]), int(wanted[row]), int(got[row])))
        self.n_rows += len(rows)

    @property
    def agrees(self) -> bool:
        """Whether everything added so far agrees (nothing added does not)."""
        return 0 <= self.worst <= self.tolerance and not self.flips

    def __str__(self) -> str:
        text = f"{self.n_rows} rows, max difference {self.worst:.2e} at {self.worst_place}"
        if self.flips:
            row, wanted, got = self.flips[0]
            text += f"; {len(self.flips)} rows choose another token, first row {row}: {wanted} expected, got {got}"
        return text


def main():
    parser = argparse.ArgumentParser(description="compare two files of logits")
    parser.add_argument("expected")
    parser.add_argument("actual")
    parser.add_argument("--positions", help=".npy: the actual file's row for each expected row")
    parser.add_argument("--tolerance", type=float, default=0.02)
    options = parser.parse_args()

    expected, actual = np.load(options.expected, mmap_mode="r"), np.load(options.actual, mmap_mode="r")
    if options.positions:
        positions = np.load(options.positions)
    elif len(expected) == len(actual):
        positions = np.arange(len(expected))
    else:
        sys.exit(f"{len(expected)} expected rows, {len(actual)} actual ones")
    comparison = Comparison(options.tolerance)
    for start in range(0, len(expected), ROW_TILE):
        rows = positions[start : start + ROW_TILE]
        comparison.add(expected[start : start + ROW_TILE], actual[rows], rows)
    print(("agree: " if comparison.agrees else "DIFFER: ") + str(comparison))
    sys.exit(not comparison.agrees)


if __name__ == "__main__":
    main()
