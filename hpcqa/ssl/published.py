"""Published DINOv2 weights brought in: the official files, Hugging Face's and timm's layouts, and what makes them fit.

The official layout (github.com/facebookresearch/dinov2, files `dinov2_vit*14[_reg4]_pretrain.pth`) is the one that
vit.py's names follow; everything else is renamed to it first. Files are read without executing anything in them.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hpcqa.config import ModelConfig, ViewsConfig
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.ssl import weights
from hpcqa.ssl.vit import Architecture, Stem, VisionTransformer, from_architecture, stem_shapes

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HEAD_DIM = 64  # of every published size

# What torch.load raises of files that are no weights: bytes that are no pickle lead its reader anywhere.
UNREADABLE = (
    pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError, OSError,
    LookupError, TypeError, AttributeError, AssertionError, struct.error, MemoryError, OverflowError,
)  # fmt: skip

# What training puts around a network, one in another: teacher.backbone., module., _orig_mod. of torch.compile.
WRAPPERS = re.compile(
    r"^(?:(?:dinov2|dinov2_with_registers|model|teacher|backbone|module|_orig_mod|_fsdp_wrapped_module)\.)+"
)
# Parts that are no trunk.
HEADS = ("dino_head.", "ibot_head.", "classifier.", "pooler.", "head.", "fc_norm.")
# Hugging Face's names, of files on its hub and of transformers 5 in memory, and the official ones.
RENAMED: tuple[tuple[str, str], ...] = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^reg_token$", "register_tokens"),  # timm
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"^(blocks\.\d+)\.attention\.(?:attention\.)?(query|key|value)\.", r"\1.attn.\2."),
    (r"^(blocks\.\d+)\.attention\.q_proj\.", r"\1.attn.query."),
    (r"^(blocks\.\d+)\.attention\.k_proj\.", r"\1.attn.key."),
    (r"^(blocks\.\d+)\.attention\.v_proj\.", r"\1.attn.value."),
    (r"^(blocks\.\d+)\.attention\.(?:output\.dense|o_proj)\.", r"\1.attn.proj."),
    (r"^(blocks\.\d+)\.layer_scale(\d)\.lambda1$", r"\1.ls\2.gamma"),
    (r"^(blocks\.\d+)\.mlp\.(?:up_proj|fc1)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.(?:down_proj|fc2)\.", r"\1.mlp.fc2."),
    (r"^(blocks\.\d+)\.mlp\.weights_in\.", r"\1.mlp.w12."),
    (r"^(blocks\.\d+)\.mlp\.weights_out\.", r"\1.mlp.w3."),
    (r"^blocks\.\d+\.(\d+\.)", r"blocks.\1"),  # training files keep blocks in chunks
)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or safetensors file, or of the index of several; nothing in it is executed.

    Raises:
        DataError: missing, no weights, or a pickle of something else.
        EnvironmentProblem: it may not be read.
    """
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        if path.name.endswith(".index.json"):
            names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
            state: Any = {key: value for name in names for key, value in read_file(path.parent / name).items()}
        elif start[8:9] == b"{":  # safetensors: the length of a header, and the header
            state = load_file(path)
        else:
            with warnings.catch_warnings(), path.open("rb") as file:  # by its content: names are wrong at times
                warnings.simplefilter("ignore")  # of the pickle's protocol, before it is refused
                state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; give a .pth or .safetensors file of DINOv2 weights.") from None
    except PermissionError:
        raise EnvironmentProblem(f"{path}: permission denied; make the file readable.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; name the file of weights in it (or its .index.json).") from None
    except UNREADABLE as error:
        reason = next((words for sign, words in SIGNS if start.lstrip().lower().startswith(sign)), _reason(error))
        raise DataError(f"{path}: not a file of weights alone ({reason}); take the official .pth file.") from None
    for key in ("teacher", "model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path}: holds no table of tensors; take the official .pth file.")
    return {str(name): tensor for name, tensor in state.items()}


# How files begin that were fetched instead of weights.
SIGNS = (
    (b"version https://git-lfs", "a Git LFS pointer: `git lfs pull` fetches the file itself"),
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, SafetensorError):
        return str(error).splitlines()[0]
    if isinstance(error, EOFError):
        return "it is empty or cut short"
    # torch's own words advise to load it all the same, which would run what the file says.
    return "it is damaged, or holds other things than tensors"


def to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the official names: q, k, v joined, gates joined; of a student and a teacher the teacher's."""
    named = {}
    has_teacher = any("teacher." in name for name in state)
    for wrapped, tensor in state.items():
        name = WRAPPERS.sub("", wrapped)
        if name.startswith(HEADS) or (has_teacher and "teacher." not in wrapped):
            continue
        for pattern, replacement in RENAMED:
            name = re.sub(pattern, replacement, name)
        named[name] = tensor
    _join(named, (".attn.query.", ".attn.key.", ".attn.value."), ".attn.qkv.")
    if any(".mlp.gate_proj." in name for name in named):
        _join(named, (".mlp.gate_proj.", ".mlp.fc1."), ".mlp.w12.")
        named = {name.replace(".mlp.fc2.", ".mlp.w3."): tensor for name, tensor in named.items()}
    if _is_gated(named):
        named = {re.sub(r"\.mlp\.fc1\.", ".mlp.w12.", name): tensor for name, tensor in named.items()}
        named = {re.sub(r"\.mlp\.fc2\.", ".mlp.w3.", name): tensor for name, tensor in named.items()}
    return named


def _is_gated(named: Mapping[str, Tensor]) -> bool:
    """Whether the feed-forward is SwiGLU under the names of a plain one, as timm has it: twice as much in as out."""
    into, out = named.get("blocks.0.mlp.fc1.weight"), named.get("blocks.0.mlp.fc2.weight")
    return into is not None and out is not None and into.shape[0] == 2 * out.shape[-1]


def _join(named: dict[str, Tensor], parts: tuple[str, ...], whole: str) -> None:
    for name in [name for name in named if parts[0] in name]:
        pieces = [named.pop(name.replace(parts[0], part)) for part in parts]
        named[name.replace(parts[0], whole)] = torch.cat(pieces)


def infer(official: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """Dim, depth, heads, feed-forward, registers and channels of weights.

    Raises:
        DataError: they are no vision transformer's.
    """
    for name, rank in (
        ("cls_token", 3),
        ("patch_embed.proj.weight", 4),
        ("patch_embed.proj.bias", 1),
        ("pos_embed", 3),
    ):
        if name not in official or official[name].ndim != rank:
            found = f"{name} of shape {tuple(official[name].shape)}" if name in official else f"no {name}"
            raise DataError(f"{path}: has {found}, so it is no DINOv2 vision transformer.")
    dim = official["cls_token"].shape[-1]
    channels = official["patch_embed.proj.weight"].shape[1]
    depth = 1 + max((int(name.split(".")[1]) for name in official if name.startswith("blocks.")), default=-1)
    registers = official["register_tokens"].shape[1] if "register_tokens" in official else 0
    ffn = "swiglu" if "blocks.0.mlp.w12.weight" in official else "mlp"
    heads = max(1, dim // HEAD_DIM)
    return {
        "dim": dim, "depth": depth, "heads": heads, "ffn": ffn, "registers": registers, "in_channels": channels,
    }  # fmt: skip


def fold_rgb(
    weight: Tensor, bias: Tensor, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> tuple[Tensor, Tensor]:
    """A patch embedding of three channels (D, 3, p, p) as one that gives the same tokens for equal channels.

    Args:
        mean, std: constants that each channel was normalised with; folded in, so that the image itself goes in.
    """
    scale = torch.tensor(std or (1.0,) * weight.shape[1], dtype=torch.float64)[:, None, None]
    shift = torch.tensor(mean or (0.0,) * weight.shape[1], dtype=torch.float64)[:, None, None]
    scaled = weight.double() / scale
    moved = bias.double() - (scaled * shift).sum((1, 2, 3))
    return scaled.sum(1, keepdim=True).to(weight.dtype), moved.to(bias.dtype)


def resized_patches(weight: Tensor, patch: int) -> Tensor:
    """A patch embedding (D, C, p, p) for another patch size, by the pseudo-inverse of resizing.

    Source: FlexiViT (Beyer et al. 2022, arXiv:2212.08013) section 3.4: tokens of resized patches stay the same.
    """
    old = weight.shape[-1]
    if old == patch:
        return weight
    basis = torch.eye(old * old, dtype=torch.float64).view(-1, 1, old, old)
    resize = F.interpolate(basis, (patch, patch), mode="bicubic", align_corners=False, antialias=patch < old)
    inverse = torch.linalg.pinv(resize.flatten(1))  # (patch^2, old^2)
    flat = weight.double().flatten(2) @ inverse.T
    resized: Tensor = flat.view(*weight.shape[:2], patch, patch).to(weight.dtype)
    return resized


def fill(model: VisionTransformer, official: Mapping[str, Tensor], stems: Sequence[str]) -> None:
    """Put official weights into a network: the trunk as it is, the patch embedding and positions into every stem.

    Args:
        stems: names of the stems to fill.

    Raises:
        DataError: names missing or left over, or shapes that differ.
    """
    official = dict(official)
    position = _with_class_position(official.pop("pos_embed"))
    projection = {part: official.pop(f"patch_embed.proj.{part}") for part in ("weight", "bias")}
    dim = position.shape[-1]
    side = round((position.shape[1] - 1) ** 0.5)
    # The class position is always added to the class token: one is enough.
    official["cls_token"] = official["cls_token"] + position[:, :1]
    official.setdefault("register_tokens", torch.zeros(1, 0, dim))
    official.setdefault("mask_token", torch.zeros(1, dim))
    trunk = {name: value for name, value in model.state_dict().items() if not name.startswith(("stems.", "defects."))}
    missing, left = sorted(set(trunk) - set(official)), sorted(set(official) - set(trunk))
    wrong = [name for name in trunk if name in official and official[name].shape != trunk[name].shape]
    if missing or left or wrong:
        raise DataError(
            f"weights do not fit: missing {_some(missing)}; left over {_some(left)}; other shapes {_some(wrong)}."
        )
    model.load_state_dict(official, strict=False)
    grid = position[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
    for name in stems:
        stem = model.stems[name]
        assert isinstance(stem, Stem)
        _fill_stem(stem, projection, grid)


def _with_class_position(position: Tensor) -> Tensor:
    """Positions (1, 1 + side^2, D) of the class token and a square of patches.

    timm has put the class token's into the token itself, where there are registers.

    Raises:
        DataError: they are of no square.
    """
    num = position.shape[1]
    if round(num**0.5) ** 2 == num:
        return torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
    if round((num - 1) ** 0.5) ** 2 != num - 1:
        raise DataError(f"pos_embed has {num} positions; expected a square of patches, and one for the class token.")
    return position


def _fill_stem(stem: Stem, projection: Mapping[str, Tensor], grid: Tensor) -> None:
    resampled = grid
    if tuple(grid.shape[-2:]) != stem.shape.grid:
        resampled = F.interpolate(grid.float(), stem.shape.grid, mode="bicubic", align_corners=False, antialias=True)
    stem.load_state_dict(
        {
            "projection.weight": resized_patches(projection["weight"], stem.shape.patch),
            "projection.bias": projection["bias"],
            "position": resampled,
            "cls": torch.zeros_like(stem.cls),
        }
    )


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def import_weights(
    source: Path, output: Path, model: ModelConfig, views: ViewsConfig, *, normalised: bool = False
) -> dict[str, Any]:
    """Bring published weights in as a backbone for this run's views.

    Three channels become one unless model.in_channels says three. `normalised` folds ImageNet's constants in, for
    images between 0 and 1.

    Returns:
        The card of the file that was written.

    Raises:
        DataError: the file is no DINOv2 weights, or they do not fit.
    """
    if _is_own(source):
        network, card = weights.load_backbone(source)
        return weights.save_backbone(output, network, card)
    official = to_official(read_file(source))
    weights.refuse_non_finite(official, source)
    found = infer(official, source)
    if found["in_channels"] == 3 and model.in_channels == 1:
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if normalised else (None, None)
        names = ("patch_embed.proj.weight", "patch_embed.proj.bias")
        official |= dict(zip(names, fold_rgb(official[names[0]], official[names[1]], mean, std), strict=True))
    elif found["in_channels"] != model.in_channels:
        raise DataError(
            f"{source}: takes {found['in_channels']} channels, model.in_channels={model.in_channels}; set it to 1 or "
            f"{found['in_channels']}."
        )
    found["in_channels"] = model.in_channels
    architecture = Architecture(**found, stems=stem_shapes(model, views))
    network = from_architecture(architecture, seed=1)
    try:
        fill(network, official, list(architecture.stems))
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    card = {
        "config_digest": "", "parents": {str(source.name): weights.content_digest(read_file(source))}, "seed": 1,
        "step": 0, "images": 0, "metrics": {},
        "normalisation": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "folded": normalised},
    }  # fmt: skip
    return weights.save_backbone(output, network, card)


def _is_own(source: Path) -> bool:
    try:
        weights.read_card(source)
    except DataError:
        return False
    return True
