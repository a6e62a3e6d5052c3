"""Evidence in words: which measured numbers stand out, which CCDs are worst, which labelled exposures are nearest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpcqa.qa.blocks import squash
from hpcqa.qa.classifier import References
from hpcqa.reasons import REASONS, from_bits

STANDS_OUT = 3.0
# In all CCDs at once less is remarkable than in the worst of sixty.
RARE_ALL_OVER, RARE_ON_ONE = 1.0, 3.0
PLACES, PLACE_STANDS_OUT = 2, 3.0
REASON_SHARE = 0.25


def outstanding(deviations: np.ndarray, rarity: np.ndarray, names: Sequence[str], least: float, most: int = 4) -> str:
    """The rarest numbers with their deviations, e.g. "fwhm +8.2, sky_noise +4.1"; empty if none stands out.

    Args:
        deviations: float (number,), in units of the survey's scatter; NaN unknown.
        rarity: float (number,), see blocks.Tails: 20 sigma are usual for one number and unheard of for another.
        least: rarity from which a number is named.
    """
    order = np.argsort(-rarity[: len(names)], kind="stable")[:most]
    chosen = [
        place for place in order if rarity[place] >= least and abs(np.nan_to_num(deviations[place])) >= STANDS_OUT
    ]
    return ", ".join(f"{names[place]} {deviations[place]:+.1f}" for place in chosen)


def exposure_evidence(
    deviations: np.ndarray, rarity: np.ndarray, ccd_p_bad: np.ndarray, ccd_names: Sequence[str], names: Sequence[str]
) -> str:
    """What stands out in the mean over an exposure's CCDs, and in its worst CCD.

    Args:
        deviations, rarity: float (ccd, number); ccd_p_bad: float (ccd,), NaN unknown.
    """
    # The mean of squashed deviations is not carried away by a single CCD.
    mean = 2.0 * np.sinh(squash(deviations).mean(axis=0) / 2.0)
    usual = rarity.mean(axis=0)
    said = [text for text in [outstanding(mean, usual, names, RARE_ALL_OVER)] if text]
    worst = int(np.argmax(np.nan_to_num(ccd_p_bad)))
    own = outstanding(deviations[worst] - mean, rarity[worst] - usual, names, RARE_ON_ONE, 2)
    if own and len(deviations) > 1:
        said.append(f"{ccd_names[worst]} alone: {own}")
    return "; ".join(said)


def where_on_ccd(deviations: np.ndarray, down: np.ndarray, across: np.ndarray) -> str:
    """Where a CCD's background deviates most, e.g. "x 513-1024 y 1-512 +9.3"; empty if nowhere much.

    Args:
        deviations: float (rows, columns) of a coarse map, NaN unknown.
        down, across: int, edges of its regions in native pixels from 0.
    """
    size = np.abs(np.nan_to_num(deviations.astype(np.float64)))
    said = []
    for place in np.argsort(-size, axis=None, kind="stable")[:PLACES]:
        row, col = np.unravel_index(place, size.shape)
        if size[row, col] >= PLACE_STANDS_OUT:
            said.append(
                f"x {across[col] + 1}-{across[col + 1]} y {down[row] + 1}-{down[row + 1]} {deviations[row, col]:+.1f}"
            )
    return "; ".join(said)


def worst_ccds(ccd_p_bad: np.ndarray, names: Sequence[str], most: int = 5, least: float = 0.1) -> str:
    """The worst CCDs with their probabilities, e.g. "N4 0.98, S7 0.61"."""
    order = np.argsort(-np.nan_to_num(ccd_p_bad), kind="stable")[:most]
    return ", ".join(f"{names[row]} {ccd_p_bad[row]:.2f}" for row in order if ccd_p_bad[row] >= least)


def nearest_text(rows: np.ndarray, references: References) -> str:
    """The nearest labelled exposures, e.g. "1234 (ghost), 1250 (good)"."""
    said = []
    for row in rows[rows >= 0]:
        what = "|".join(from_bits(int(references.reasons[row]))) or "bad"
        said.append(f"{references.expnum[row]} ({what if references.bad[row] else 'good'})")
    return ", ".join(said)


def reason_codes(shares: np.ndarray, p_bad: np.ndarray, least: float) -> np.ndarray:
    """Up to three reasons of each row, most probable first, packed into one int64: 8 bits each, 0 for none.

    Args:
        shares: float (row, reason), probability of each reason if bad.
        p_bad: float (row,); rows below `least` have no reasons.
    """
    order = np.argsort(-shares, axis=1, kind="stable")[:, :3]
    enough = np.take_along_axis(shares, order, axis=1) >= REASON_SHARE
    codes = np.where(enough & (np.nan_to_num(p_bad) >= least)[:, None], order + 1, 0).astype(np.int64)
    packed: np.ndarray = codes[:, 0] | codes[:, 1] << 8 | codes[:, 2] << 16
    return packed


def reason_words(codes: np.ndarray) -> np.ndarray:
    """Packed reasons as comma-separated names: object (row,)."""
    unique, inverse = np.unique(codes, return_inverse=True)
    words = [
        ",".join(REASONS[code - 1] for code in (value & 255, value >> 8 & 255, value >> 16 & 255) if code)
        for value in unique.tolist()
    ]
    return np.array([*words, ""], dtype=object)[:-1][inverse] if len(words) else np.zeros(0, object)
