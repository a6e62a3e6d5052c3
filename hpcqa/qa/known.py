"""What label lists say of exposures and CCDs, merged: several lists may name the same one, and bad outweighs good."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpcqa.artifacts.labelled import merge
from hpcqa.qa.embedded import Embedded
from hpcqa.qa.learn import BAD, GOOD, UNKNOWN, Examples


@dataclass(frozen=True)
class Known:
    """Labels by key, sorted by (expnum, ccdnum); ccdnum -1 is the whole exposure.

    Attributes:
        expnum: int64; ccdnum: int32; bad: bool; reasons: int64 bits, 0 if good.
    """

    expnum: np.ndarray
    ccdnum: np.ndarray
    bad: np.ndarray
    reasons: np.ndarray

    @classmethod
    def of_labels(cls, labels: Mapping[str, np.ndarray]) -> Known:
        """From columns expnum, ccdnum, bad and reasons of the label table."""
        merged = merge(labels)
        return cls(merged.expnum, merged.ccdnum, merged.bad, merged.reasons)

    def exposures(self) -> np.ndarray:
        """Every exposure that a label names: int64, sorted."""
        return np.unique(self.expnum)

    def select(self, keep: np.ndarray) -> Known:
        """The labels of some exposures (a mask or rows)."""
        return Known(self.expnum[keep], self.ccdnum[keep], self.bad[keep], self.reasons[keep])

    def whole(self, expnum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State (int8: BAD, GOOD, UNKNOWN) and reasons (int64) of exposures as a whole."""
        return self._look_up(expnum, np.full(len(expnum), -1, np.int64))

    def ccds(self, expnum: np.ndarray, ccdnum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """State and reasons of CCDs by themselves."""
        return self._look_up(expnum, ccdnum.astype(np.int64))

    def _look_up(self, expnum: np.ndarray, ccdnum: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        state = np.full(len(expnum), UNKNOWN, np.int8)
        reasons = np.zeros(len(expnum), np.int64)
        place = {key: row for row, key in enumerate(zip(self.expnum.tolist(), self.ccdnum.tolist(), strict=True))}
        for row, key in enumerate(zip(expnum.tolist(), ccdnum.tolist(), strict=True)):
            found = place.get(key)
            if found is not None:
                state[row] = BAD if self.bad[found] else GOOD
                reasons[row] = self.reasons[found]
        return state, reasons


def as_examples(embedded: Embedded, known: Known) -> Examples:
    """Embedded exposures with what labels say of them."""
    sizes = embedded.raw.sizes()
    whole, reasons = known.whole(embedded.expnum)
    ccd, ccd_reasons = known.ccds(np.repeat(embedded.expnum, sizes), embedded.ccdnum)
    if len(sizes):
        of_ccds = np.bitwise_or.reduceat(ccd_reasons, embedded.raw.starts)
        # Where the CCDs' own labels explain all that is said of the exposure, it is bad in those CCDs alone.
        whole[(whole == BAD) & (of_ccds != 0) & (reasons & ~of_ccds == 0)] = UNKNOWN
        reasons = reasons | of_ccds
    return Examples(embedded.raw, embedded.expnum, embedded.night, embedded.ccdnum, whole, reasons, ccd, ccd_reasons)
