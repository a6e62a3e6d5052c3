"""Crops, masks and turns that keep the quality of an image visible, drawn on the device for many images at once.

Crops are windows at the native scale, never resized: resizing would change the seeing. Turns are flips and, of square
images, quarter turns. Noise and gain change by less than a reviewer would notice. Blur and jitter exist for ablations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hpcqa.config import SslConfig
from hpcqa.errors import ConfigError
from hpcqa.ssl import draws
from hpcqa.ssl.vit import StemShape


def turned(images: Tensor, keys: Tensor) -> Tensor:
    """Flip images (B, C, H, W) by their draws; square ones are also transposed, which makes quarter turns."""
    corner = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    return _cut(images, corner, corner, (images.shape[2], images.shape[3]), keys)


def windows(images: Tensor, size: tuple[int, int], keys: Tensor, turns: Tensor | None = None) -> Tensor:
    """A window (B, C, h, w) of each image, anywhere inside it; turned by the keys `turns`, if there are any.

    Raises:
        ConfigError: the window is larger than the image.
    """
    rows, cols = images.shape[2:]
    if size[0] > rows or size[1] > cols:
        raise ConfigError(
            f"a crop of {size[0]}x{size[1]} does not fit an image of {rows}x{cols}; make ssl.global_crop or "
            "ssl.local_crop smaller."
        )
    u = draws.uniform(keys, 2)
    top = (u[:, 0] * (rows - size[0] + 1)).long()
    left = (u[:, 1] * (cols - size[1] + 1)).long()
    return _cut(images, top, left, size, turns)


def _cut(images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int], turns: Tensor | None) -> Tensor:
    """Windows with these corners, turned in the same pass over the pixels, which costs less than a pass a turn."""
    batch, channels, _, cols = images.shape
    y, x = (torch.arange(side, device=images.device).expand(batch, -1) for side in size)
    u = None if turns is None else draws.uniform(turns, 3)
    if u is not None:
        y = torch.where(u[:, :1] < 0.5, size[0] - 1 - y, y)
        x = torch.where(u[:, 1:2] < 0.5, size[1] - 1 - x, x)
    down, across = (top[:, None] + y) * cols, left[:, None] + x
    if u is not None and size[0] == size[1]:
        down, across = torch.where(u[:, 2:] < 0.5, across, down), torch.where(u[:, 2:] < 0.5, down, across)
    place = (down[:, :, None] + across[:, None]).flatten(1)
    found = images.flatten(2).gather(2, place[:, None].expand(-1, channels, -1))
    return found.view(batch, channels, *size)


def crop_size(shape: StemShape, share: float) -> tuple[int, int]:
    """Sides of a crop: a share of the view's, in whole patches, at least one."""
    rows, cols = (max(1, round(share * side / shape.patch)) * shape.patch for side in (shape.rows, shape.cols))
    return rows, cols


def touched(images: Tensor, keys: Tensor, ssl: SslConfig) -> Tensor:
    """Small changes of noise and gain; blur and jitter where an ablation asks for them. Missing pixels stay 0."""
    u = draws.uniform(keys, 3)[..., None, None, None]
    changed = images * (1 + ssl.gain * (2 * u[:, 0] - 1))
    if ssl.noise:
        changed.add_(draws.normal(draws.derived(keys, 3), tuple(images.shape[1:])), alpha=ssl.noise)
    if ssl.blur:
        changed = _blurred(changed, u[:, 1].flatten() * ssl.blur)
    if ssl.jitter:
        changed = changed + ssl.jitter * (2 * u[:, 2] - 1)
    return changed * (images != 0)


def _blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a width for each image, in two passes."""
    reach = int(3 * float(sigma.max())) + 1
    offset = torch.arange(-reach, reach + 1, device=images.device).float()
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]).square())
    kernel = kernel / kernel.sum(1, keepdim=True)
    batch, channels, rows, cols = images.shape
    flat = images.reshape(1, batch * channels, rows, cols)
    kernel = kernel.repeat_interleave(channels, 0)[:, None]
    flat = F.conv2d(flat, kernel[..., None], padding=(reach, 0), groups=batch * channels)
    flat = F.conv2d(flat, kernel[:, :, None], padding=(0, reach), groups=batch * channels)
    return flat.view_as(images)


def masks(keys: Tensor, grid: tuple[int, int], ssl: SslConfig) -> Tensor:
    """Masked patches, bool (B, N): a rectangle in a share of the images. Source: BEiT's blocks (arXiv:2106.08254)."""
    rows, cols = grid
    u = draws.uniform(keys, 5)
    area = draws.between(u[:, 1], *ssl.mask_share) * rows * cols
    height = (area * rows / cols).sqrt() * draws.log_between(u[:, 2], 0.6, 1.7)
    height = height.round().clamp(1, rows)
    width = (area / height).round().clamp(1, cols)
    top = (u[:, 3] * (rows - height + 1)).floor()
    left = (u[:, 4] * (cols - width + 1)).floor()
    y = torch.arange(rows, device=keys.device)[None, :, None]
    x = torch.arange(cols, device=keys.device)[None, None, :]
    top, left, height, width = (value[:, None, None] for value in (top, left, height, width))
    inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    return (inside & (u[:, 0] < ssl.mask_probability)[:, None, None]).flatten(1)


@dataclass
class Crops:
    """The crops of a batch: two global ones (2, B, C, H, W), their masks (2, B, N), and local ones (L, B, C, h, w)."""

    large: Tensor
    masked: Tensor
    small: Tensor


def crops(images: Tensor, partners: Tensor, keys: Tensor, shape: StemShape, ssl: SslConfig) -> Crops:
    """Two global crops, the second of the partner (another CCD of the exposure, or the same), and local ones."""
    size, small_size = crop_size(shape, ssl.global_crop), crop_size(shape, ssl.local_crop)

    def one(source: Tensor, size: tuple[int, int], purpose: int) -> Tensor:
        own = draws.derived(keys, 10 + 4 * purpose)
        window = windows(source, size, draws.derived(own, 1), draws.derived(own, 2))
        return touched(window, draws.derived(own, 3), ssl)

    large = torch.stack([one(images, size, 0), one(partners, size, 1)])
    small = [one(images, small_size, 2 + number) for number in range(ssl.local_crops)]
    grid = (size[0] // shape.patch, size[1] // shape.patch)
    masked = torch.stack([masks(draws.derived(keys, 1000 + number), grid, ssl) for number in range(2)])
    empty = images.new_zeros(0, len(images), images.shape[1], *small_size)
    return Crops(large, masked, torch.stack(small) if small else empty)
