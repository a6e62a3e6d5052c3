"""Why a CCD image has no views: one bit each, stored with the shard's row. A failure is a row, never an exception."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

FAILURES: tuple[tuple[str, str], ...] = (
    ("missing_file", "the image file is not there"),
    ("unreadable_file", "the image file cannot be read or is not FITS"),
    ("missing_hdu", "the file has no image of this CCD"),
    ("wrong_shape", "the image is smaller than shard.min_size"),
    ("all_not_finite", "no pixel of the image is a finite number"),
    ("timed_out", "reading took longer than shard.read_timeout"),
    ("changed_file", "the file changed while it was read"),
    ("unreadable_pixels", "the image of this CCD cannot be decoded"),
    ("not_measured", "measuring failed on these pixels; please report the file"),
    ("wrong_sum", "the image's data contradict their DATASUM, which shard.checksums=fail does not let pass"),
)
BIT = {name: 1 << position for position, (name, _) in enumerate(FAILURES)}


def names_of(bits: int) -> list[str]:
    """The names of the failures that are set, in the order of the table."""
    return [name for name, _ in FAILURES if bits & BIT[name]]


def in_words(bits: int) -> str:
    """What the failures mean, joined by semicolons; empty if none is set."""
    return "; ".join(doc for name, doc in FAILURES if bits & BIT[name])


def count(failed: Iterable[int] | np.ndarray) -> dict[str, int]:
    """CCDs by failure, the most frequent first; a CCD with two failures counts twice."""
    bits = np.asarray(list(failed) if not isinstance(failed, np.ndarray) else failed, np.int64)
    counts = {name: int(np.count_nonzero(bits & bit)) for name, bit in BIT.items()}
    return dict(sorted(((name, n) for name, n in counts.items() if n), key=lambda item: (-item[1], item[0])))


@dataclass
class Tally:
    """What went wrong with some CCDs.

    Attributes:
        seen: CCDs. num_failed: those without views. failed: how often each reason.
        no_mask, bad_masks: CCDs without a mask, and with one of no use.
        wrong_sums: CCDs that were measured although their data contradict their DATASUM.
    """

    seen: int = 0
    num_failed: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    no_mask: int = 0
    bad_masks: int = 0
    wrong_sums: int = 0

    def add_failed(self, failed: np.ndarray) -> None:
        """Count CCDs, int64 (N,) of failure bits, of which nothing else is known."""
        self.seen += len(failed)
        self.num_failed += int(np.count_nonzero(failed))
        self.failed.update(count(failed))

    def add(self, other: Tally) -> None:
        self.seen += other.seen
        self.num_failed += other.num_failed
        self.failed.update(other.failed)
        self.no_mask += other.no_mask
        self.bad_masks += other.bad_masks
        self.wrong_sums += other.wrong_sums

    def in_words(self) -> str:
        reasons = "; ".join(f"{number} {name} ({in_words(BIT[name])})" for name, number in self.failed.most_common())
        return f"{self.num_failed} of {self.seen} CCDs have no views" + (f": {reasons}" if reasons else "")
