"""Random numbers without state, on any device: a hash of (seed, purpose, step, image, place).

What is drawn for an image depends on the image and the step only, so it is the same on any number of ranks, after any
restart, and on the processor as on a GPU. The hash is splitmix64's finaliser (Steele, Lea & Flood 2014, fig. 16).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hpcqa.streams import stream_seed

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed number, as are the two below
FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
SECOND = -7723592293110705685  # 0x94D049BB133111EB


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own copies the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def scramble(x: Tensor) -> Tensor:
    """A bijection of int64 whose output bits look independent."""
    return _scrambled(x) if x.device.type != "cpu" else torch.from_numpy(_scrambled_by_numpy(x.numpy()))


def _scrambled_by_numpy(x: np.ndarray) -> np.ndarray:
    """On a processor, where most arrays are short and numpy's calls are: 6 instead of 20 microseconds for 32 keys."""
    bits = x.view(np.uint64) + np.uint64(GOLDEN % 2**64)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(FIRST % 2**64)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(SECOND % 2**64)
    bits ^= bits >> np.uint64(31)
    return bits.view(np.int64)


def _scrambled(x: Tensor) -> Tensor:
    x = x + GOLDEN
    x.bitwise_xor_(_shifted(x, 30)).mul_(FIRST)
    x.bitwise_xor_(_shifted(x, 27)).mul_(SECOND)
    return x.bitwise_xor_(_shifted(x, 31))


def image_keys(seed: int, purpose: str, step: int, expnum: np.ndarray, ccdnum: np.ndarray) -> Tensor:
    """One key for each image, int64 (B,): from the run's seed, a purpose and step, and the image's own key."""
    base = torch.tensor(stream_seed(seed, purpose, step), dtype=torch.int64)
    images = scramble(torch.from_numpy(np.asarray(expnum, np.int64))) ^ torch.from_numpy(np.asarray(ccdnum, np.int64))
    return scramble(scramble(images) ^ base)


def derived(keys: Tensor, purpose: int) -> Tensor:
    """Keys for another purpose."""
    return scramble(keys ^ (purpose * 2 + 1))


def _bits(keys: Tensor, count: int) -> Tensor:
    places = torch.arange(count, dtype=torch.int64, device=keys.device)
    return scramble(keys[:, None] + places * GOLDEN)


def uniform(keys: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1): float32 (B, count)."""
    return _shifted(_bits(keys, count), 40).float() * 2.0**-24


def normal(keys: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers: float32 (B, *shape), two from the halves of each hash (Box & Muller 1958)."""
    count = math.prod(shape)
    bits = _bits(keys, (count + 1) // 2)
    radius = _shifted(bits, 40).float().add_(0.5).mul_(2.0**-24).log_().mul_(-2).sqrt_()
    angle = bits.bitwise_and_(0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
    pairs = radius.new_empty(len(keys), 2 * radius.shape[1])
    torch.mul(angle.cos(), radius, out=pairs[:, : radius.shape[1]])
    torch.mul(angle.sin_(), radius, out=pairs[:, radius.shape[1] :])
    return pairs[:, :count].reshape(-1, *shape)


def between(u: Tensor, low: float, high: float) -> Tensor:
    """Uniform numbers stretched to [low, high)."""
    return low + (high - low) * u


def log_between(u: Tensor, low: float, high: float) -> Tensor:
    """Log-uniform numbers in [low, high)."""
    return low * (high / low) ** u


def groups(chosen: Tensor, count: int) -> Iterator[tuple[int, Tensor]]:
    """Each of `count` choices that was made, and the places (int64) where it was; negative ones are no choice.

    A device is waited for once, not once for each choice.
    """
    sizes = torch.bincount(chosen.clamp(min=-1) + 1, minlength=count + 1).tolist()
    places = torch.split(chosen.argsort(stable=True), sizes)
    return ((number, where) for number, where in enumerate(places[1:]) if len(where))
