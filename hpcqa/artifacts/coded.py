"""Text columns with few distinct values: codes into a short list of words; ten million rows cost ten million ints.

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

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

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


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values in order of first appearance, and each row's index into them: int64 (N,).

    By hashing: ten million values take a fraction of the second that sorting takes.
    """
    encoded = pa.array(np.ascontiguousarray(values)).dictionary_encode()
    return encoded.dictionary.to_numpy(zero_copy_only=False), encoded.indices.to_numpy().astype(np.int64)
