"""Columns with few distinct values: codes into a short list of words, so that ten million rows cost ten million ints.

What is asked of a word (does the file exist, which band is it) is asked once for each word, not once for each row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Coded:
    """A text column of N rows: `codes` int32 (N,), `words` the distinct values."""

    codes: np.ndarray
    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def expand(self) -> np.ndarray:
        """The words row by row: object (N,); equal rows share one string."""
        return self.take(self.words, object)

    def take(self, answers: Sequence[Any], dtype: Any) -> np.ndarray:
        """One answer for each word, handed out to the rows: (N,)."""
        table = np.empty(len(answers), dtype)
        table[:] = answers
        if not len(table):
            return np.empty(0, dtype)
        return np.asarray(table[self.codes])

    def ask(self, question: Callable[[str], Any], dtype: Any) -> np.ndarray:
        """The answer of `question` to each row's word: (N,)."""
        return self.take([question(word) for word in self.words], dtype)

    def rename(self, change: Callable[[str], str]) -> Coded:
        """The same column with other words."""
        return Coded(self.codes, tuple(change(word) for word in self.words))


def constant(word: str, rows: int) -> Coded:
    """A column that says the same in every row."""
    return Coded(np.zeros(rows, np.int32), (word,))


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in order of first appearance, and each row's index into them: int64 (N,).

    By hashing: ten million values take a fraction of the second that sorting takes.
    """
    encoded = pa.array(np.ascontiguousarray(values)).dictionary_encode()
    return encoded.dictionary.to_numpy(zero_copy_only=False), encoded.indices.to_numpy().astype(np.int64)


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
