"""Defects of star images, put into the stamps of the detail view: blur, trails, doubling, donuts, noise.

Each is a convolution of the linear pixels of every stamp with a kernel of sum 1, after which the noise that the kernel
smoothed away is put back, so that the change is in the stars and not in the grain of the sky.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpcqa.ssl import draws
from hpcqa.ssl.draws import between, log_between

KINDS: tuple[str, ...] = ("blur", "trail", "double", "donut", "noise")


def _grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Offsets from the origin of a periodic stamp: the corner pixel is 0."""
    offset = torch.fft.fftfreq(side, 1 / side, device=device)
    return offset[:, None], offset[None, :]


def _gaussian(y: Tensor, x: Tensor, sigma: Tensor | float) -> Tensor:
    return torch.exp(-0.5 * (y.square() + x.square()) / sigma**2)


def _kernels(kind: str, u: list[Tensor], side: int, device: torch.device) -> Tensor:
    """Kernels (B, side, side) of sum 1, centred on the corner pixel."""
    y, x = _grid(side, device)
    angle = between(u[0], -math.pi / 2, math.pi / 2)
    dy, dx = torch.sin(angle), torch.cos(angle)
    if kind == "blur":
        kernel = _gaussian(y, x, log_between(u[1], 0.5, 3.0))
    elif kind == "trail":
        along, across = y * dy + x * dx, y * dx - x * dy
        half = log_between(u[1], 0.8, 0.25 * side)
        kernel = torch.sigmoid((half - along.abs()) * 4) * torch.exp(-0.5 * (across / 0.5).square())
    elif kind == "double":
        shift = log_between(u[1], 1.5, 0.3 * side)
        second = _gaussian(y - shift * dy, x - shift * dx, 0.5)
        kernel = _gaussian(y, x, 0.5) + between(u[2], 0.3, 1) * second
    else:
        radius = log_between(u[1], 1.5, 0.2 * side)
        kernel = torch.exp(-0.5 * ((torch.hypot(y, x) - radius) / (0.3 * radius)).square())
        kernel = kernel * (1 + between(u[2], 0, 0.6) * torch.cos(torch.atan2(y, x) - angle))
    kernel = kernel.expand(len(u[0]), side, side)
    return kernel / kernel.sum((1, 2), keepdim=True)


def _split(images: Tensor, side: int) -> Tensor:
    """(B, H, W) to stamps (B, S, side, side)."""
    batch, rows, cols = images.shape
    return images.view(batch, rows // side, side, cols // side, side).transpose(2, 3).reshape(batch, -1, side, side)


def _join(stamps: Tensor, rows: int, cols: int) -> Tensor:
    """Stamps (B, S, side, side) back to (B, rows, cols)."""
    side = stamps.shape[-1]
    return stamps.view(-1, rows // side, cols // side, side, side).transpose(2, 3).reshape(-1, rows, cols)


def _convolved(z: Tensor, kernel: Tensor, side: int, grain: Tensor) -> Tensor:
    stamps = _split(z, side)
    mixed = torch.fft.irfft2(torch.fft.rfft2(stamps) * torch.fft.rfft2(kernel)[:, None], s=(side, side))
    lost = (1 - kernel.square().sum((1, 2))).clamp(min=0).sqrt()
    return _join(mixed, *z.shape[1:]) + lost[:, None, None] * grain


def _noisy(z: Tensor, u: list[Tensor], grain: Tensor) -> Tensor:
    """More noise: white, or the same along rows (as a bad readout does)."""
    rows = math.sqrt(z.shape[-1]) * grain.mean(-1, keepdim=True).expand_as(grain)
    return z + log_between(u[1], 0.2, 3.0) * torch.where(u[2] < 0.6, grain, rows)


def inject(z: Tensor, chosen: Tensor, keys: Tensor, side: int) -> Tensor:
    """Put the chosen defect into every stamp.

    Args:
        z: float32 (B, H, W), linear pixels in units of the noise.
        chosen: int64 (B,) index of KINDS.
        keys: int64 (B,) of draws.
        side: of a stamp, in pixels; divides H and W.
    """
    result = z.clone()
    u, grains = draws.uniform(keys, 4)[..., None, None], draws.derived(keys, 7)
    for number, where in draws.groups(chosen, len(KINDS)):
        own = list(u[where].unbind(1))
        grain = draws.normal(grains[where], tuple(z.shape[1:]))
        if KINDS[number] == "noise":
            result[where] = _noisy(z[where], own, grain)
        else:
            result[where] = _convolved(z[where], _kernels(KINDS[number], own, side, z.device), side, grain)
    return result
