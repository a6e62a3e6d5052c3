"""The injected-defect task: put a known defect into a real image, and ask which and where.

Maps (background, context, focal plane) get one of the shapes of shapes.py, its strength set by how much the survey's
own maps scatter in that very shape: a step of 3 is three times the steps that good exposures have anyway. Detail views
get the defects of stamps.py. Pixels without data (exactly zero) stay so, or the defect would show where nothing is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from hpcqa.config import Config
from hpcqa.errors import ConfigError
from hpcqa.ssl import draws, shapes, stamps
from hpcqa.ssl.vit import VisionTransformer, build

BANK = 192  # maps that the scatter is measured on
VISIBLE = 0.35  # a patch is part of a defect where the shape reaches this share of its peak


def kinds_of(config: Config) -> dict[str, tuple[str, ...]]:
    """The kinds of defects that each view's head answers for.

    Raises:
        ConfigError: ssl.defects_left_out names a kind that does not exist.
    """
    known = {*shapes.KINDS, *stamps.KINDS}
    unknown = [kind for kind in config.ssl.defects_left_out if kind not in known]
    if unknown:
        raise ConfigError(f"ssl.defects_left_out: no kind {unknown[0]}; there are {', '.join(sorted(known))}.")
    if config.ssl.defect_weight == 0:
        return {}
    every = {view: stamps.KINDS if view == "detail" else shapes.KINDS for view in config.ssl.views}
    return {
        view: tuple(kind for kind in kinds if kind not in config.ssl.defects_left_out)
        for view, kinds in every.items()
        if view in config.ssl.defect_views
    }


def network_of(config: Config, seed: int | None = None) -> VisionTransformer:
    """The untrained network of a run: stems for ssl.views, heads for the defects they learn.

    Raises:
        ConfigError: see `kinds_of`; a view's sides are not multiples of its patch.
    """
    chosen = config.seed if seed is None else seed
    return build(config.model, config.views, kinds_of(config), config.ssl.views, seed=chosen)


def softening_of(view: str, config: Config) -> float:
    """The scale of a view's asinh stretch in units of noise."""
    of_maps = view in ("background", "focal_plane")
    return config.views.background_softening if of_maps else config.views.asinh_softening


def _asinh(x: Tensor) -> Tensor:
    """torch.asinh, which on a processor takes three times as long (2026-11: 11 against 3 ns a pixel, AMD EPYC)."""
    size = x.abs()
    square = size.square()
    root = (square + 1).sqrt_().add_(1)
    return square.div_(root).add_(size).log1p_().copysign_(x)


@dataclass
class Injected:
    """Images with defects and what is to be said of them.

    images: float32 (B, C, H, W); kinds: float32 (B, K), 1 for the kind put in; patches: float32 (B, N, K), 1 where.
    """

    images: Tensor
    kinds: Tensor
    patches: Tensor


class DefectTask:
    """Draws and injects defects of one view.

    Args:
        kinds: what may be drawn.
        bank: stretched maps of the survey, float32 (M, H, W), that the scatter is measured on; unused for detail.
        stamp: side of the stamps of a detail view; 0 for maps.
    """

    def __init__(
        self,
        kinds: tuple[str, ...],
        *,
        softening: float,
        patch: int,
        share: float,
        strength: tuple[float, float],
        bank: Tensor,
        stamp: int = 0,
    ) -> None:
        self.kinds, self.softening, self.patch = kinds, softening, patch
        self.share, self.strength, self.stamp = share, strength, stamp
        self._bank = (softening * torch.sinh(bank)).flatten(1) if not stamp else bank[:0]

    def to(self, device: torch.device) -> DefectTask:
        self._bank = self._bank.to(device)
        return self

    def inject(self, images: Tensor, keys: Tensor) -> Injected:
        """Put defects into a share of the images (B, C, H, W); every channel gets the same."""
        u = draws.uniform(keys, 3)
        hit = u[:, 0] < self.share
        chosen = (u[:, 1] * len(self.kinds)).long()
        chosen = torch.where(hit, chosen, -1)
        z = self.softening * torch.sinh(images)
        rows, cols = images.shape[2:]
        if self.stamp:
            changed, where = self._stamps(z, chosen, keys), hit[:, None, None].expand(-1, rows, cols).float()
        else:
            pattern = shapes.patterns(self.kinds, chosen, draws.derived(keys, 1), rows, cols)
            strength = draws.log_between(u[:, 2], *self.strength) * self.scatter(pattern)
            sign = torch.where(draws.uniform(draws.derived(keys, 2), 1)[:, 0] < 0.35, -1.0, 1.0)
            changed = z + (strength * sign)[:, None, None, None] * pattern[:, None]
            where = (pattern.abs() > VISIBLE).float()
        same = (images == 0) | ~hit[:, None, None, None]
        changed = torch.where(same, images, _asinh(changed / self.softening))
        located = F.max_pool2d(where[:, None], self.patch).flatten(1)
        kinds = F.one_hot(chosen.clamp(min=0), len(self.kinds)).float() * hit[:, None]
        # A shape that fell outside the map leaves nothing to find.
        kinds = kinds * (located.amax(1) > 0)[:, None]
        return Injected(changed, kinds, located[..., None] * kinds[:, None])

    def _stamps(self, z: Tensor, chosen: Tensor, keys: Tensor) -> Tensor:
        names = torch.tensor([stamps.KINDS.index(kind) for kind in self.kinds], device=z.device)
        number = torch.where(chosen >= 0, names[chosen.clamp(min=0)], -1)
        batch, channels, rows, cols = z.shape
        flat = stamps.inject(
            z.reshape(-1, rows, cols), number.repeat_interleave(channels), keys.repeat_interleave(channels), self.stamp
        )
        return flat.view(batch, channels, rows, cols)

    def scatter(self, patterns: Tensor) -> Tensor:
        """How much the survey's maps scatter in each shape, (B,) in units of noise: 1.4826 MAD of their projections.

        The shape's mean is left out, because the level of a whole map says nothing of a place.
        """
        flat = patterns.flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        norm = flat.square().sum(1).clamp(min=1e-6)
        amounts = self._bank @ flat.T / norm
        centre = amounts.median(0).values
        return (1.4826 * (amounts - centre).abs().median(0).values).clamp(min=0.02)
