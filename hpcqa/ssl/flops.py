"""How much arithmetic a training step is, counted from the model; over a device's peak it is the utilisation (MFU).

Multiply-adds count two. Only what the recipe asks for counts, as in PaLM (Chowdhery et al. 2022, arXiv:2204.02311,
appendix B): not what activation checkpointing computes again, nor norms, softmaxes and augmentation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from hpcqa.config import SslConfig
from hpcqa.ssl import views
from hpcqa.ssl.vit import CONV_WIDTHS, Architecture, StemShape, swiglu_width

TRAINED, TAUGHT = 3, 1  # forward and twice as much backward; forward alone


def forward(architecture: Architecture, view: str, size: tuple[int, int], *, cls_only: bool = False) -> float:
    """FLOPs of one image of `size` pixels (rows, columns) through a view's stem and the trunk."""
    rows, cols = size
    dim, patch = architecture.dim, architecture.stems[view].patch
    tokens = rows * cols // patch**2
    stem = _stem(architecture, patch, rows * cols)
    tokens += 1 + architecture.registers
    wide = 3 * swiglu_width(dim) if architecture.ffn == "swiglu" else 8 * dim

    def block(answered: int) -> float:
        # k and v are 2 D^2 a token; q and the projection 2 D^2, scores and mixture 2 N D of each that is answered for.
        return 2.0 * dim * (tokens * 2 * dim + answered * (2 * dim + wide + 2 * tokens))

    return stem + (architecture.depth - 1) * block(tokens) + block(1 if cls_only else tokens)


def _stem(architecture: Architecture, patch: int, pixels: int) -> float:
    channels, total = architecture.in_channels, 0.0
    for width in CONV_WIDTHS if architecture.stem == "conv" else ():
        if patch % 2 == 0:
            pixels, patch = pixels // 4, patch // 2
            total += 2 * pixels * 9 * channels * width
            channels = width
    return total + 2 * pixels * channels * architecture.dim


def head(ssl: SslConfig, dim: int) -> float:
    """FLOPs of one vector through a projection head."""
    hidden, bottleneck = ssl.head_hidden, ssl.head_bottleneck
    return 2.0 * (dim * hidden + hidden**2 + hidden * bottleneck + bottleneck * ssl.prototypes)


def of_step(architecture: Architecture, ssl: SslConfig, counts: Mapping[str, int]) -> float:
    """FLOPs of one step over all ranks.

    Args:
        counts: images of each view in a step.
    """
    return sum(count * of_image(architecture, ssl, view) for view, count in counts.items())


def of_image(architecture: Architecture, ssl: SslConfig, view: str) -> float:
    """FLOPs of one image of a view in all its tasks."""
    shape, total = architecture.stems[view], 0.0
    if view in ssl.crop_views:
        total += _crops(architecture, ssl, view, shape)
    if view in architecture.defects:
        kinds, patches = len(architecture.defects[view]), shape.grid[0] * shape.grid[1]
        answers = 2.0 * architecture.dim * kinds * (3 + patches)
        total += TRAINED * (forward(architecture, view, (shape.rows, shape.cols)) + answers)
    return total


def _crops(architecture: Architecture, ssl: SslConfig, view: str, shape: StemShape) -> float:
    large_size, small_size = (views.crop_size(shape, share) for share in (ssl.global_crop, ssl.local_crop))
    large = forward(architecture, view, large_size, cls_only=not ssl.ibot_weight)
    small = forward(architecture, view, small_size, cls_only=True)
    one = head(ssl, architecture.dim)
    total = 2.0 * (TRAINED + TAUGHT) * large
    if ssl.dino_weight:
        total += 2 * (TRAINED + TAUGHT) * one + ssl.local_crops * TRAINED * (small + one)
    if ssl.ibot_weight:
        patches = large_size[0] * large_size[1] // shape.patch**2
        masked = ssl.mask_probability * sum(ssl.mask_share) / 2 * patches
        total += 2 * (TRAINED + TAUGHT) * masked * one
    return total


def measured_peak(device: torch.device, bf16: bool) -> float:
    """FLOP/s of this device in a large matrix product, the best of a few: the peak where none is told."""
    side, rounds = (8192, 10) if device.type == "cuda" else (768, 5)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    best = float("inf")
    for _ in range(rounds):
        began = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2.0 * side**3 / best
