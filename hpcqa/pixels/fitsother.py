"""Images that hpcqa's own decoder leaves to astropy: other codecs, and values that must be scaled."""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcqa.pixels.fitsheader import BLOCK, CARD

if TYPE_CHECKING:
    from numpy.typing import NDArray


def _stub() -> bytes:
    """The smallest primary HDU, so that one extension makes a file of its own."""
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   =                    0",
        "END",
    ]
    return "".join(card.ljust(CARD) for card in cards).ljust(BLOCK).encode()


def read_with_astropy(raw: bytes, is_primary: bool, shape: tuple[int, int]) -> NDArray[Any]:
    """The pixels of one HDU.

    Args:
        raw: the bytes of its header and data.
        is_primary: whether it is the first of its file.
        shape: (rows, columns) that the pixels must have.

    Raises:
        ValueError: astropy can't read it; says why.
    """
    from astropy.io import fits

    padding = b"\x00" * (-len(raw) % BLOCK)
    file = BytesIO((b"" if is_primary else _stub()) + raw + padding)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(file, memmap=False, lazy_load_hdus=False) as hdus:
                pixels = hdus[0 if is_primary else 1].data
    except Exception as problem:
        raise ValueError(" ".join(str(problem).split()) or type(problem).__name__) from problem
    if not isinstance(pixels, np.ndarray) or pixels.dtype.kind not in "iuf" or pixels.size != shape[0] * shape[1]:
        raise ValueError("its pixels are not what its header says")
    # Beyond the two axes there may be more of length one.
    return pixels.reshape(shape)
