"""Making and joining coded columns: constants, distinct values and pairs, growth block by block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcqa.artifacts.coded import Coded as Coded
from hpcqa.artifacts.coded import distinct as distinct


def constant(word: str, rows: int) -> Coded:
    """A column that says the same in every row."""
    return Coded(np.zeros(rows, np.int32), (word,))


def pairs(first: np.ndarray, second: np.ndarray, num_second: int) -> tuple[list[tuple[int, int]], np.ndarray]:
    """Distinct pairs of two code columns, and each row's index into them."""
    keys, index = distinct(first.astype(np.int64) * max(1, num_second) + second)
    return [divmod(int(key), max(1, num_second)) for key in keys], index


class CodedBuilder:
    """Grows one Coded column block by block."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}
        self._blocks: list[np.ndarray] = []

    def add(self, codes: np.ndarray, words: Sequence[str]) -> None:
        """A block with a vocabulary of its own."""
        table = np.array([self._words.setdefault(word, len(self._words)) for word in words], np.int32)
        self._blocks.append(table[codes] if len(table) else np.empty(0, np.int32))

    def finish(self) -> Coded:
        codes = np.concatenate(self._blocks) if self._blocks else np.empty(0, np.int32)
        self._blocks = []
        return Coded(codes, tuple(self._words))
