"""From images to what neighbours are looked up in: embeddings, patch tokens, and the answers of the defect heads."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpcqa.ssl.vit import Architecture, Tokens, VisionTransformer

POOLS = ("cls", "mean", "std")


def lowers(device: torch.device, precision: str) -> bool:
    """Whether to compute in bfloat16: where it is asked for, or on a GPU by "auto"."""
    return precision == "bf16" or (precision == "auto" and device.type == "cuda")


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 where `lowers` says so, otherwise float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=lowers(device, precision))


def as_images(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Cutouts (B, H, W) or (B, C, H, W) of any float as float32 (B, C, H, W) on the device."""
    images = torch.as_tensor(values).to(device, non_blocking=True).float()
    return images[:, None] if images.ndim == 3 else images


@torch.inference_mode()
def tokens(model: VisionTransformer, images: Tensor, view: str, precision: str = "auto") -> Tokens:
    """CLS and patch tokens, float32; the patches serve for local novelty."""
    with autocast(images.device, precision):
        found = model(images, view)
    return Tokens(found.cls.float(), found.patches.float(), found.grid)


def pooled(found: Tokens) -> Tensor:
    """CLS, mean and standard deviation of the patch tokens, side by side: (B, 3 D)."""
    spread = found.patches.std(1, correction=0)
    return torch.cat([found.cls, found.patches.mean(1), spread], dim=-1)


def encode(model: VisionTransformer, images: Tensor, view: str = "context", precision: str = "auto") -> Tensor:
    """Embeddings of images.

    Args:
        model: in evaluation mode.
        images: float32 (B, C, H, W), network-ready, on the model's device.
        view: whose stem reads them.

    Returns:
        float32 (B, 3 D): CLS, mean and standard deviation of the patch tokens.
    """
    return pooled(tokens(model, images, view, precision))


def defect_names(architecture: Architecture, view: str) -> list[str]:
    """What each column of `defect_answers` is; empty if the view has no head."""
    kinds = architecture.defects.get(view, ())
    return [f"{view}:{kind}:{pool}" for pool in ("whole", "patch") for kind in kinds]


@torch.inference_mode()
def _answers(model: VisionTransformer, found: Tokens, view: str) -> Tensor:
    if view not in model.defects:
        return found.cls.new_zeros(len(found.cls), 0)
    whole, patch = model.defects[view](found)
    return torch.cat([whole, patch.amax(1)], dim=-1).float().clamp(-12, 12)


def defect_answers(model: VisionTransformer, images: Tensor, view: str, precision: str = "auto") -> Tensor:
    """Log-odds of each kind of defect, of the whole image and of its most suspicious patch: float32 (B, 2 K)."""
    return _answers(model, tokens(model, images, view, precision), view)


def encode_with_answers(
    model: VisionTransformer, images: Tensor, view: str, precision: str = "auto"
) -> tuple[Tensor, Tensor]:
    """`encode` and `defect_answers` from one pass through the network."""
    found = tokens(model, images, view, precision)
    return pooled(found), _answers(model, found, view)
