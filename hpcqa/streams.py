"""Random streams by name: the same key gives the same numbers on any rank, worker, restart or machine."""

from __future__ import annotations

import hashlib

import numpy as np


def stream_seed(seed: int, *key: str | int) -> int:
    """A 63-bit seed from the run's seed and a key such as ("crops", epoch, expnum, ccdnum)."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def stream(seed: int, *key: str | int) -> np.random.Generator:
    """A generator of its own for a key."""
    return np.random.default_rng(stream_seed(seed, *key))
