"""The vision transformer: one trunk for every view, a stem (patch embedding and positions) for each view.

The trunk is DINOv2's (Oquab et al. 2023, arXiv:2304.07193; registers: Darcet et al. 2023, arXiv:2309.16588), with the
parameter names of the official code, so that published weights fit. A stem turns an image of its view into tokens:
its own patch size, its own positions, and an offset of the CLS token that says which view this is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hpcqa.config import ModelConfig, ViewsConfig
from hpcqa.config.ssl import VIEWS
from hpcqa.config.together import PATCH_OF, patched
from hpcqa.errors import DataError
from hpcqa.ssl import draws

# dim, depth, heads, feed-forward; "swiglu" is what the published giant uses.
SIZES: dict[str, tuple[int, int, int, str]] = {
    "demo": (96, 4, 3, "mlp"),
    "tiny": (192, 12, 3, "mlp"),
    "small": (384, 12, 6, "mlp"),
    "base": (768, 12, 12, "mlp"),
    "large": (1024, 24, 16, "mlp"),
    "giant": (1536, 40, 24, "swiglu"),
}
NORM_EPS = 1e-6
CONV_WIDTHS = (32, 64)  # of the convolutions before the patches


@dataclass(frozen=True)
class StemShape:
    """The size of a view's images and patches in pixels."""

    rows: int
    cols: int
    patch: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows // self.patch, self.cols // self.patch


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build the network; goes into the card of its weights."""

    dim: int
    depth: int
    heads: int
    ffn: str
    in_channels: int
    registers: int
    stems: Mapping[str, StemShape]
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    stem: str = "linear"
    defects: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # kinds that each view's head answers for

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(plain: Mapping[str, Any]) -> Architecture:
        """The architecture of a card; DataError if it is not one."""
        try:
            values = dict(plain)
            values["stems"] = {name: StemShape(**shape) for name, shape in values["stems"].items()}
            values["defects"] = {name: tuple(kinds) for name, kinds in values.get("defects", {}).items()}
            return Architecture(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"architecture of the weights' card: not understood ({error}); export it again.") from None


class Tokens(NamedTuple):
    """The network's output after its last norm: CLS (B, D), patches (B, N, D), and their grid (rows, columns)."""

    cls: Tensor
    patches: Tensor
    grid: tuple[int, int]


def _linear(patch: int, in_channels: int, dim: int) -> nn.Module:
    """The published patch embedding."""
    projection = nn.Conv2d(in_channels, dim, patch, patch)
    nn.init.trunc_normal_(projection.weight, std=min(0.02 * 16 / patch, 0.2))
    nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
    return projection


def _conv(patch: int, in_channels: int, dim: int) -> nn.Module:
    """Up to two small convolutions that halve the image, then patches: small networks learn sooner with it.

    Source: Xiao et al. 2021, "Early convolutions help transformers see better" (arXiv:2106.14881); no batch norm here.
    """
    layers: list[nn.Module] = []
    width = in_channels
    for following in CONV_WIDTHS:
        if patch % 2 == 0:
            layers += [nn.Conv2d(width, following, 3, 2, 1), nn.GELU()]
            width, patch = following, patch // 2
    return nn.Sequential(*layers, nn.Conv2d(width, dim, patch, patch))


class Stem(nn.Module):
    """Patch embedding and positions of one view."""

    def __init__(self, shape: StemShape, in_channels: int, dim: int, kind: str) -> None:
        super().__init__()
        self.shape = shape
        self.projection = (
            _linear(shape.patch, in_channels, dim) if kind == "linear" else _conv(shape.patch, in_channels, dim)
        )
        self.position = nn.Parameter(torch.empty(1, dim, *shape.grid))
        self.cls = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.trunc_normal_(self.position, std=0.02)

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (1, N, D) for a grid, resampled as DINOv2 with registers does."""
        position: Tensor = self.position
        if grid != tuple(position.shape[-2:]):
            position = F.interpolate(position.float(), grid, mode="bicubic", align_corners=False, antialias=True)
        return position.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Patch tokens without positions (B, N, D), and their grid."""
        x = self.projection(images)
        return x.flatten(2).transpose(1, 2), (int(x.shape[2]), int(x.shape[3]))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, first: int | None = None) -> Tensor:
        """Mixtures (B, N, D) of the tokens (B, N, D), or those of the first few alone."""
        if first is None:
            q, k, v = self._by_head(self.qkv(x), 3)
        else:
            dim, weight, bias = x.shape[2], self.qkv.weight, self.qkv.bias
            (q,) = self._by_head(F.linear(x[:, :first], weight[:dim], bias[:dim]), 1)
            k, v = self._by_head(F.linear(x, weight[dim:], bias[dim:]), 2)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out

    def _by_head(self, joined: Tensor, parts: int) -> Tensor:
        """(B, N, parts * D) as (parts, B, heads, N, D / heads)."""
        batch, length, width = joined.shape
        return joined.view(batch, length, parts, self.heads, width // parts // self.heads).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


def swiglu_width(dim: int) -> int:
    """Two thirds of the usual four times, to a multiple of 8."""
    return (int(4 * dim * 2 / 3) + 7) // 8 * 8


class SwiGlu(nn.Module):
    """Gated feed-forward (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = swiglu_width(dim)
        self.w12 = nn.Linear(dim, 2 * hidden)
        self.w3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(F.silu(gate) * value)
        return out


class LayerScale(nn.Module):
    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def depth_factors(keys: Tensor, drops: Sequence[float]) -> Tensor:
    """What the two branches of each block are multiplied with for stochastic depth: float32 (depth, 2, B, 1, 1).

    A branch is left out for whole images, keeping its mean (Huang et al. 2016, arXiv:1603.09382). The images' keys
    decide, so that the same branches are left out on any number of ranks.
    """
    drop = torch.tensor(drops, device=keys.device)[:, None, None]
    u = draws.uniform(keys, 2 * len(drops)).T.reshape(len(drops), 2, -1)
    return ((u >= drop).float() / (1 - drop))[..., None, None]


class Block(nn.Module):
    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim = architecture.dim
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, architecture.heads)
        self.ls1 = LayerScale(dim, architecture.layer_scale)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = SwiGlu(dim) if architecture.ffn == "swiglu" else Mlp(dim)
        self.ls2 = LayerScale(dim, architecture.layer_scale)

    def forward(self, x: Tensor, factors: Tensor | None = None, first: int | None = None) -> Tensor:
        """Tokens (B, N, D) after the block.

        Args:
            factors: (2, B, 1, 1) of the branches; None for 1.
            first: compute the first few tokens only, all of which still look at all; None for all.
        """
        branch = self.ls1(self.attn(self.norm1(x), first))
        x = x[:, :first] + (branch if factors is None else factors[0] * branch)
        branch = self.ls2(self.mlp(self.norm2(x)))
        out: Tensor = x + (branch if factors is None else factors[1] * branch)
        return out


class DefectHead(nn.Module):
    """Answers for K kinds of defects: which, for the whole image, and where, for each patch."""

    def __init__(self, dim: int, kinds: int) -> None:
        super().__init__()
        self.whole = nn.Linear(3 * dim, kinds)
        self.patch = nn.Linear(dim, kinds)

    def start_silent(self) -> None:
        """Begin at the rate of a rare defect, not at one half."""
        for layer in (self.whole, self.patch):
            nn.init.constant_(layer.bias, -3.0)
            layer.weight.data.mul_(0.1)

    def forward(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Logits (B, K) of the image and (B, N, K) of its patches."""
        pooled = torch.cat([tokens.cls, tokens.patches.mean(1), tokens.patches.amax(1)], dim=-1)
        return self.whole(pooled), self.patch(tokens.patches)


class VisionTransformer(nn.Module):
    """A ViT over several views; see the module's text."""

    def __init__(
        self, architecture: Architecture, *, activation_checkpointing: bool = False, compiled: bool = False
    ) -> None:
        super().__init__()
        self.architecture = architecture
        self.activation_checkpointing = activation_checkpointing
        dim, depth = architecture.dim, architecture.depth
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.register_tokens = nn.Parameter(torch.empty(1, architecture.registers, dim))
        # By name, so that the weights of a seed do not depend on how the architecture was written down.
        self.stems = nn.ModuleDict(
            {
                name: Stem(shape, architecture.in_channels, dim, architecture.stem)
                for name, shape in sorted(architecture.stems.items())
            }
        )
        self.drops = [architecture.drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(architecture) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.defects = nn.ModuleDict(
            {name: DefectHead(dim, len(kinds)) for name, kinds in sorted(architecture.defects.items())}
        )
        nn.init.normal_(self.cls_token, std=1e-2)
        nn.init.normal_(self.register_tokens, std=1e-2)
        for module in [*self.blocks.modules(), *self.defects.modules()]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=max(0.02, 0.5 * dim**-0.5))
                nn.init.zeros_(module.bias)
        for head in self.defects.modules():
            if isinstance(head, DefectHead):
                head.start_silent()
        if compiled:
            for block in self.blocks:
                block.compile()

    def forward(
        self,
        images: Tensor,
        view: str,
        masked: Tensor | None = None,
        keys: Tensor | None = None,
        *,
        cls_only: bool = False,
    ) -> Tokens:
        """Tokens of images.

        Args:
            images: (B, C, H, W), sides divisible by the view's patch.
            masked: bool (B, N), patches whose content is replaced by the mask token.
            keys: int64 (B,), random keys that stochastic depth goes by; None: nothing is left out.
            cls_only: leave the patches out of the answer, which spares the last block most of its work.

        Raises:
            DataError: the images' channels or size do not fit the network.
        """
        x, grid = self.enter(images, view, masked)
        factors = [None] * len(self.blocks) if keys is None or not any(self.drops) else depth_factors(keys, self.drops)
        for number, (block, own) in enumerate(zip(self.blocks, factors, strict=True), 1):
            first = 1 if cls_only and number == len(self.blocks) else None
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, own, first, use_reentrant=False)
            else:
                x = block(x, own, first)
        x = self.norm(x)
        return Tokens(x[:, 0], x[:, 1 + self.architecture.registers :], grid)

    def enter(self, images: Tensor, view: str, masked: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
        """What the first block is given, (B, 1 + registers + N, D), and the patches' grid; see `forward`."""
        self._check(images, view)
        stem = self.stems[view]
        assert isinstance(stem, Stem)
        patches, grid = stem(images)
        if masked is not None:
            patches = torch.where(masked[..., None], self.mask_token.to(patches.dtype), patches)
        patches = patches + stem.positions(grid)
        batch = len(images)
        cls = (self.cls_token + stem.cls).expand(batch, -1, -1)
        return torch.cat([cls, self.register_tokens.expand(batch, -1, -1), patches], dim=1), grid

    def _check(self, images: Tensor, view: str) -> None:
        if view not in self.stems:
            raise DataError(f"view {view}: the network has only {', '.join(self.stems)}; train it with this view.")
        channels, patch = self.architecture.in_channels, self.architecture.stems[view].patch
        if images.ndim != 4 or images.shape[1] != channels:
            raise DataError(
                f"{view} images of shape {tuple(images.shape)}: the network takes {channels} channels "
                "(images, channels, rows, columns); set model.in_channels to what the shards hold."
            )
        if images.shape[2] % patch or images.shape[3] % patch or 0 in images.shape[2:]:
            raise DataError(
                f"{view} images of {images.shape[2]}x{images.shape[3]} pixels: sides must be multiples of the "
                f"patch, {patch}; change model.patch or the view's size."
            )


def stem_shapes(model: ModelConfig, views: ViewsConfig, only: Collection[str] = VIEWS) -> dict[str, StemShape]:
    """The stems of the four views, or of some.

    Raises:
        ConfigError: a view's sides are not multiples of its patch.
    """
    return {view: StemShape(*patched(view, model, views)) for view in PATCH_OF if view in only}


def architecture_of(
    model: ModelConfig,
    views: ViewsConfig,
    defects: Mapping[str, tuple[str, ...]] | None = None,
    only: Collection[str] = VIEWS,
) -> Architecture:
    """The architecture that a configuration asks for, with stems for `only` these views."""
    dim, depth, heads, ffn = SIZES[model.arch]
    return Architecture(
        dim=dim,
        depth=depth,
        heads=heads,
        ffn=ffn,
        in_channels=model.in_channels,
        registers=model.registers,
        stems=stem_shapes(model, views, only),
        layer_scale=model.layer_scale,
        drop_path=model.drop_path,
        stem=model.stem,
        defects=dict(defects or {}),
    )


def from_architecture(architecture: Architecture, seed: int, model: ModelConfig | None = None) -> VisionTransformer:
    """A network with random weights that depend on the seed alone, whatever was drawn before."""
    model = model or ModelConfig()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VisionTransformer(
            architecture, activation_checkpointing=model.activation_checkpointing, compiled=model.compile
        )


def build(
    model: ModelConfig,
    views: ViewsConfig | None = None,
    defects: Mapping[str, tuple[str, ...]] | None = None,
    only: Collection[str] = VIEWS,
    *,
    seed: int = 1,
) -> VisionTransformer:
    """The untrained network of a configuration; the same seed gives the same weights."""
    return from_architecture(architecture_of(model, views or ViewsConfig(), defects, only), seed, model)
