"""The losses, each for the images of one rank and right over all of them.

Every loss returns a sum over this rank's images times `share`, which is (number of ranks) / (images of all ranks): the
mean of the ranks' gradients, which is what data-parallel training takes, is then the gradient of the mean over the
global batch, however unevenly it was split.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hpcqa.parallel.torchdist import World

SINKHORN_ITERATIONS = 3
_ROWS_AT_ONCE = 1024


@torch.no_grad()
def sinkhorn(groups: Sequence[Tensor], temperature: float, world: World) -> list[Tensor]:
    """Balanced targets: every image has mass 1, every prototype gets the same over the global batch.

    Args:
        groups: float (M, K) scores of the teacher, each group balanced by itself; M may differ between ranks and be 0.
        temperature: of the teacher.

    Returns:
        float32 (M, K) of each group, rows of sum 1.

    Source: Caron et al. 2020 (arXiv:2006.09882) algorithm 1; used in DINOv2 (arXiv:2304.07193) section 4.
    """
    groups = [scores.float() / temperature for scores in groups]
    # The largest score of the global batch goes out first, so that exp() cannot overflow.
    highest = world.max(*(scores.max() if scores.numel() else scores.new_tensor(-torch.inf) for scores in groups))
    groups = [scores.sub_(top).exp_() for scores, top in zip(groups, highest, strict=True)]
    # The published form also divides by the sum of all and by the numbers of prototypes and images. Such factors cancel
    # in the next division of the rows, and each would be one more collective.
    for _ in range(SINKHORN_ITERATIONS):
        columns = world.sum(*(targets.sum(0) for targets in groups))
        for targets, column in zip(groups, columns, strict=True):
            targets.div_(column.clamp(min=1e-30))
            targets.div_(targets.sum(1, keepdim=True).clamp(min=1e-30))
    return groups


@torch.no_grad()
def centred(scores: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """Softmax targets (M, K) about a running centre (K,). Source: Caron et al. 2021 (arXiv:2104.14294) eq. 4 and 2."""
    return F.softmax((scores.float() - centre) / temperature, dim=-1)


@torch.no_grad()
def moved_centre(centre: Tensor, scores: Tensor, world: World, momentum: float = 0.9) -> Tensor:
    """The centre (K,) after a batch of teacher scores (M, K) over all ranks. Source: arXiv:2104.14294 eq. 4."""
    total, count = world.sum(scores.float().sum(0), centre.new_tensor(float(len(scores))))
    return centre * momentum + (1 - momentum) * total / count.clamp(min=1)


def cross_entropy(scores: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """-sum_k targets_k log softmax(scores / temperature)_k for each row: (M, K), (M, K) to (M,)."""
    return -(targets * F.log_softmax(scores.float() / temperature, dim=-1)).sum(-1)


def dino(student: list[Tensor], teacher: list[Tensor], temperature: float, share: float) -> Tensor:
    """Cross-entropy between every student's crop and every other teacher's crop.

    Args:
        student: scores (B, K) of each crop; the global ones first, in the teacher's order.
        teacher: targets (B, K) of each global crop.

    Source: Caron et al. 2021 (arXiv:2104.14294) eq. 3, divided by its number of terms.
    """
    # Cross-entropy is linear in its targets: one softmax a student's crop does for all of the teacher's.
    every = torch.stack(teacher).sum(0)
    terms = []
    for s, scores in enumerate(student):
        others = [targets for t, targets in enumerate(teacher) if t != s]
        targets = every if s >= len(teacher) else torch.stack(others).sum(0)
        terms.append(cross_entropy(scores, targets, temperature).sum())
    return torch.stack(terms).sum() / (len(teacher) * (len(student) - 1)) * share


def ibot(student: Tensor, teacher: Tensor, image: Tensor, num_images: int, temperature: float, share: float) -> Tensor:
    """Cross-entropy on masked patches, averaged within each image and then over images.

    Args:
        student: scores (M, K) of the masked patches; M may be 0.
        teacher: targets (M, K) of the same patches, which the teacher sees.
        image: int64 (M,), which image each patch belongs to.
        num_images: images of this rank (masked or not).

    Source: Zhou et al. 2021 (arXiv:2111.07832) eq. 3; weights by image as in DINOv2's code.
    """
    masked = torch.bincount(image, minlength=num_images).clamp(min=1)
    return (cross_entropy(student, teacher, temperature) / masked[image]).sum() * share


def koleo(own: Tensor, every: Tensor, start: int, share: float) -> Tensor:
    """Spread of the features: -log of the distance to the nearest other one of the global batch.

    Args:
        own: float (B, D) features of this rank.
        every: those of all ranks; this rank's begin at row `start`.

    Returns:
        The loss of this rank's images, with the gradient of the loss of all. Own features may be the nearest ones of
        another rank's; how its loss pulls on them is computed here again, which takes less than having it sent.

    Raises:
        ValueError: the global batch has a single image, which has no neighbour.

    Source: Sablayrolles et al. 2018 (arXiv:1806.03198) eq. 3.
    """
    if len(every) < 2:
        raise ValueError("KoLeo needs at least two images in the global batch.")
    mine = slice(start, start + len(own))
    every = torch.cat([every[:start], own, every[mine.stop :]])
    unit = F.normalize(every.float(), dim=-1, eps=1e-8)
    nearest = torch.cat([_nearest(unit, first) for first in range(0, len(unit), _ROWS_AT_ONCE)])
    distance = F.pairwise_distance(unit, unit[nearest], eps=1e-8)
    losses = -torch.log(distance + 1e-8) * share
    total = losses.sum()
    return total - total.detach() + losses[mine].detach().sum()


@torch.no_grad()
def _nearest(unit: Tensor, first: int) -> Tensor:
    """For some unit features (B, D) from row `first` on, the nearest other one: int64."""
    closeness = unit[first : first + _ROWS_AT_ONCE] @ unit.T
    closeness.diagonal(first).fill_(-2.0)
    return closeness.argmax(1)


def defects(whole: Tensor, patch: Tensor, kinds: Tensor, patches: Tensor, share: float) -> Tensor:
    """Binary cross-entropy of which defect and where, each summed over kinds and averaged over patches.

    Args:
        whole, kinds: logits and truth (B, K).
        patch, patches: logits and truth (B, N, K).
    """
    which = F.binary_cross_entropy_with_logits(whole.float(), kinds, reduction="none").sum(-1)
    where = F.binary_cross_entropy_with_logits(patch.float(), patches, reduction="none").sum(-1).mean(-1)
    return (which + where).sum() * share


def numbers(predicted: Tensor, measured: Tensor, share: float) -> Tensor:
    """Huber loss (Huber 1964) of the scaled measured numbers (B, F), averaged over those known; NaN is unknown."""
    known = torch.isfinite(measured)
    error = F.huber_loss(predicted.float(), torch.where(known, measured, predicted.detach().float()), reduction="none")
    return ((error * known).sum(-1) / known.sum(-1).clamp(min=1)).sum() * share
