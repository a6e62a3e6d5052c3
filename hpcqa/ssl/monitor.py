"""Does it learn? Collapse shows in the rank and spread of embeddings and in the teacher's entropy; worth in kNN."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """Effective rank: exp of the entropy of the normalised singular values of centred features (M, D).

    Source: Roy & Vetterli 2007, "The effective rank", definition 1; as RankMe (arXiv:2210.02885).
    """
    if len(features) < 2 or not bool(torch.isfinite(features).all()):
        return 0.0
    values = torch.linalg.svdvals((features - features.mean(0)).double())
    shares = values / values.sum().clamp(min=1e-300)
    return float(torch.exp(-(shares * torch.log(shares.clamp(min=1e-300))).sum()))


def spread(features: Tensor) -> float:
    """Mean standard deviation of normalised features (M, D) times sqrt(D): 1 for a uniform sphere, 0 for a point."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    return float(unit.std(0, correction=0).mean() * math.sqrt(features.shape[1]))


def entropies(targets: Tensor) -> tuple[float, float]:
    """Entropy of a target (mean over images), and of the mean target (over prototypes), as shares of log K.

    The first near 1 says that the teacher says nothing, the second near 0 that it says the same of every image.
    """
    log_k = math.log(targets.shape[1])
    each = -(targets * torch.log(targets.clamp(min=1e-12))).sum(1).mean() / log_k
    mean = targets.mean(0)
    return float(each), float(-(mean * torch.log(mean.clamp(min=1e-12))).sum() / log_k)
