"""The backbone file: safetensors with a JSON card that says what it is, how it was made, and how to use it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hpcqa import __version__
from hpcqa.artifacts.files import atomic_path
from hpcqa.errors import DataError
from hpcqa.ssl.vit import Architecture, VisionTransformer, from_architecture

logger = logging.getLogger(__name__)

CARD = "hpcqa"
FORMAT, FORMAT_VERSION = "hpcqa-backbone", 1


def content_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_backbone(path: Path, model: VisionTransformer, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write a backbone with its card, whole or not at all; returns the card as stored.

    The architecture, code version and content digest are filled in here.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    stored = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        **card,
        "architecture": model.architecture.to_json(),
        "code_version": __version__,
        "content": content_digest(state),
    }
    text = json.dumps(stored, sort_keys=True)
    with atomic_path(path) as temporary:
        # Not save_file, which makes files that only their owner may read.
        temporary.write_bytes(save(state, metadata={CARD: text}))
    read: dict[str, Any] = json.loads(text)
    return read


def read_card(path: Path) -> dict[str, Any]:
    """The card alone; cheap.

    Raises:
        DataError: missing, damaged, or without a card of this version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(CARD)
    except FileNotFoundError:
        raise DataError(f"{path}: not found; run `hpcqa pretrain` or `hpcqa import-weights` first.") from None
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: not a readable safetensors file ({error}); make it again, or bring published weights in with "
            f"`hpcqa import-weights {path} OUT.safetensors`."
        ) from None
    try:
        card = json.loads(text or "null")
    except ValueError:
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise DataError(
            f"{path}: safetensors without a card of hpcqa; bring it in with "
            f"`hpcqa import-weights {path} OUT.safetensors`."
        )
    if card.get("version") != FORMAT_VERSION:
        raise DataError(f"{path}: card version {card.get('version')}, expected {FORMAT_VERSION}; export it again.")
    return card


def refuse_non_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """DataError if a weight is NaN or infinite: every embedding would be NaN."""
    for name, tensor in state.items():
        num = int((~torch.isfinite(tensor)).sum()) if tensor.is_floating_point() else 0
        if num:
            raise DataError(f"{path}: {num} of {tensor.numel()} values of {name} are not finite; fetch the file again.")


def load_backbone(path: Path) -> tuple[VisionTransformer, dict[str, Any]]:
    """The network in evaluation mode, and its card.

    Raises:
        DataError: missing, damaged, not finite, or tensors that do not fit the card's architecture.
    """
    card = read_card(path)
    try:
        model = from_architecture(Architecture.from_json(card["architecture"]), seed=0)
        state = load_file(path)
        refuse_non_finite(state, path)
        model.load_state_dict(state)
    except (RuntimeError, KeyError, SafetensorError) as error:
        raise DataError(f"{path}: its tensors do not fit its card ({error}); export it again.") from None
    return model.eval(), card


def untrained(card: Mapping[str, Any]) -> VisionTransformer:
    """The network of a card as it was before training: the control that training must beat."""
    return from_architecture(Architecture.from_json(card["architecture"]), seed=int(card.get("seed", 1))).eval()


def check_start(ours: Architecture, path: Path) -> Architecture:
    """The architecture of a backbone that a network of `ours` can start from; only the file's card is read.

    Raises:
        DataError: the file is no backbone, or its trunk is of another architecture.
    """
    theirs = Architecture.from_json(read_card(path)["architecture"])
    for name in ("dim", "depth", "heads", "ffn", "in_channels", "registers"):
        if getattr(theirs, name) != getattr(ours, name):
            key = f"model.{name}" if name in ("in_channels", "registers") else "model"
            raise DataError(
                f"{path}: its {name} is {getattr(theirs, name)}, model asks for {getattr(ours, name)}; set {key} to "
                "what the weights are, or take other weights."
            )
    return theirs


def initialise(model: VisionTransformer, path: Path) -> None:
    """Start a network from a backbone's weights; heads and views that the file has not stay as they are.

    Raises:
        DataError: the file is no backbone, is damaged or not finite, or its trunk is of another architecture.
    """
    ours = model.architecture
    theirs = check_start(ours, path)
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path}: damaged ({error}); fetch it again.") from None
    refuse_non_finite(state, path)
    for view in ours.stems:
        if view in theirs.stems and theirs.stems[view] != ours.stems[view]:
            state = {name: tensor for name, tensor in state.items() if not name.startswith(f"stems.{view}.")}
    own = model.state_dict()
    fitting = {name: tensor for name, tensor in state.items() if name in own and own[name].shape == tensor.shape}
    model.load_state_dict(fitting, strict=False)
    fresh = sorted({name.split(".")[1] for name in own if name.startswith("stems.") and name not in fitting})
    logger.info("%s: %d of %d tensors taken; stems that start at random: %s.", path, len(fitting), len(own),
                ", ".join(fresh) or "none")  # fmt: skip
