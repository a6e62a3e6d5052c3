"""Generic shapes of large-scale defects on a map, in [-1, 1]; drawn from uniform numbers, for many maps at once.

Each shape is a function of the coordinates y (H, 1) and x (1, W), in units of half the longer side with the origin in
the centre, and of uniform numbers u (B, 8), each broadcast as (B, 1, 1). None imitates a particular camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hpcqa.ssl import draws
from hpcqa.ssl.draws import between, log_between

Draws = list[Tensor]
NUM_DRAWS = 8


def coordinates(rows: int, cols: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates y (H, 1) and x (1, W) in units of half the longer side."""
    half = max(rows, cols) / 2
    y = (torch.arange(rows, device=device, dtype=torch.float32) - (rows - 1) / 2) / half
    x = (torch.arange(cols, device=device, dtype=torch.float32) - (cols - 1) / 2) / half
    return y[:, None], x[None, :]


def _centre(y: Tensor, x: Tensor, u: Draws, reach: float = 1.0) -> tuple[Tensor, Tensor]:
    """Coordinates about a centre anywhere on the map (or beyond it for reach above 1)."""
    return y - reach * between(u[0], -1, 1) * y.abs().max(), x - reach * between(u[1], -1, 1) * x.abs().max()


def _rotated(y: Tensor, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    return y * torch.cos(angle) - x * torch.sin(angle), y * torch.sin(angle) + x * torch.cos(angle)


def _along(y: Tensor, x: Tensor, choice: Tensor) -> Tensor:
    """One of the two axes of the map."""
    return torch.where(choice < 0.5, y + 0 * x, x + 0 * y)


def half_step(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """One side of a line along an axis; half of them through the middle, as between two amplifiers."""
    extent = torch.where(u[0] < 0.5, y.abs().max(), x.abs().max())
    offset = torch.where(u[1] < 0.5, torch.zeros_like(u[1]), between(u[2], -0.7, 0.7) * extent)
    side = torch.where(u[3] < 0.5, -1.0, 1.0)
    return ((_along(y, x, u[0]) - offset) * side > 0).float()


def edge_glow(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """Light that falls off from an edge, or from a corner."""
    side_y, side_x = torch.where(u[0] < 0.5, -1.0, 1.0), torch.where(u[1] < 0.5, -1.0, 1.0)
    from_y, from_x = y.abs().max() - side_y * y, x.abs().max() - side_x * x
    distance = torch.where(u[2] < 0.35, from_y + 0 * x, torch.where(u[2] < 0.7, from_x + 0 * y, from_y + from_x))
    return torch.exp(-distance / log_between(u[3], 0.04, 0.4))


def gradient(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """A slope in any direction, straight or bent."""
    along, _ = _rotated(y, x, between(u[0], -math.pi, math.pi))
    slope = along / along.abs().amax((-2, -1), keepdim=True)
    return torch.where(u[1] < 0.6, slope, slope.square() * between(u[2], 0.5, 1) + slope * 0.3)


def disc(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """A filled circle with a soft edge."""
    dy, dx = _centre(y, x, u)
    radius = log_between(u[2], 0.15, 1.0)
    return torch.sigmoid((radius - torch.hypot(dy, dx)) / (radius * between(u[3], 0.03, 0.25)))


def _ring(y: Tensor, x: Tensor, u: Draws) -> tuple[Tensor, Tensor, Tensor]:
    dy, dx = _centre(y, x, u, reach=1.2)
    radius = log_between(u[2], 0.2, 1.3)
    width = radius * between(u[3], 0.06, 0.35)
    return torch.exp(-0.5 * ((torch.hypot(dy, dx) - radius) / width).square()), dy, dx


def ring(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """A soft annulus."""
    return _ring(y, x, u)[0]


def arc(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """A part of an annulus."""
    annulus, dy, dx = _ring(y, x, u)
    turned = torch.cos(torch.atan2(dy, dx + 0 * dy) - between(u[4], -math.pi, math.pi))
    return annulus * torch.sigmoid((turned - between(u[5], -0.5, 0.8)) * 8)


def streak(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """A line across the map at any angle, thin or broad."""
    dy, dx = _centre(y, x, u, reach=0.8)
    across, _ = _rotated(dy, dx, between(u[2], -math.pi / 2, math.pi / 2))
    return torch.exp(-0.5 * (across / log_between(u[3], 0.02, 0.2)).square())


def stripes(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """Waves, mostly along rows or columns."""
    tilted, _ = _rotated(y, x, between(u[0], -math.pi / 2, math.pi / 2))
    along = torch.where(u[1] < 0.7, _along(y, x, u[0]), tilted)
    return torch.cos(2 * math.pi * (along / log_between(u[2], 0.12, 1.0) + u[3]))


def blob(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """An elliptical Gaussian."""
    dy, dx = _rotated(*_centre(y, x, u), between(u[2], -math.pi / 2, math.pi / 2))
    size = log_between(u[3], 0.06, 0.6)
    return torch.exp(-0.5 * ((dy / size).square() + (dx / (size * between(u[4], 0.4, 1))).square()))


def box(y: Tensor, x: Tensor, u: Draws) -> Tensor:
    """A rectangle: in the mosaic, about one CCD or a group of them."""
    dy, dx = _centre(y, x, u)
    return ((dy.abs() < log_between(u[2], 0.06, 0.5)) & (dx.abs() < log_between(u[3], 0.06, 0.5))).float()


SHAPES: dict[str, Callable[[Tensor, Tensor, Draws], Tensor]] = {
    "half_step": half_step,
    "edge_glow": edge_glow,
    "gradient": gradient,
    "disc": disc,
    "ring": ring,
    "arc": arc,
    "streak": streak,
    "stripes": stripes,
    "blob": blob,
    "box": box,
}


def mottle(keys: Tensor, rows: int, cols: int) -> Tensor:
    """Smooth random waves on one of three scales: (B, H, W)."""
    fields = []
    for cell in (2, 4, 8):
        coarse = draws.normal(draws.derived(keys, cell), (1, max(2, rows // cell) + 1, max(2, cols // cell) + 1))
        fields.append(F.interpolate(coarse, (rows, cols), mode="bicubic", align_corners=True)[:, 0])
    chosen = (draws.uniform(keys, 1)[:, 0] * 3).long()
    return torch.stack(fields, 1)[torch.arange(len(keys), device=keys.device), chosen]


KINDS: tuple[str, ...] = (*SHAPES, "mottle")


def patterns(kinds: tuple[str, ...], chosen: Tensor, keys: Tensor, rows: int, cols: int) -> Tensor:
    """The chosen shape for each map, largest absolute value 1.

    Args:
        kinds: names that `chosen` indexes.
        chosen: int64 (B,).
        keys: int64 (B,) of draws.

    Returns:
        float32 (B, rows, cols); all zero where a shape fell outside the map.
    """
    result = torch.zeros(len(keys), rows, cols, device=keys.device)
    y, x = coordinates(rows, cols, keys.device)
    u = draws.uniform(keys, NUM_DRAWS)[..., None, None]
    for number, where in draws.groups(chosen, len(kinds)):
        if kinds[number] == "mottle":
            result[where] = mottle(keys[where], rows, cols)
        else:
            result[where] = SHAPES[kinds[number]](y, x, list(u[where].unbind(1))).expand(len(where), rows, cols)
    peak = result.abs().amax((1, 2), keepdim=True)
    return result / peak.clamp(min=1e-3)
