"""The same network in transformers' independent implementation, with the same random weights."""

from __future__ import annotations

import torch
from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from hpcqa.ssl import vit
from hpcqa.ssl.vit import Architecture, VisionTransformer


def empty_hugging_face(architecture: Architecture, image: int = 28, patch: int = 7) -> torch.nn.Module:
    """A model of theirs; without registers the plain one, which resamples positions in another way."""
    settings = {
        "hidden_size": architecture.dim,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.heads,
        "image_size": image,
        "patch_size": patch,
        "num_channels": architecture.in_channels,
        "layerscale_value": architecture.layer_scale,
        "use_swiglu_ffn": architecture.ffn == "swiglu",
        "mlp_ratio": 4,
        "layer_norm_eps": 1e-6,
    }
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(num_register_tokens=architecture.registers, **settings))


def plain_hugging_face(architecture: Architecture) -> torch.nn.Module:
    settings = {"hidden_size": architecture.dim, "num_hidden_layers": architecture.depth}
    return Dinov2Model(Dinov2Config(num_attention_heads=architecture.heads, image_size=28, patch_size=7, **settings))


def hugging_face(architecture: Architecture) -> tuple[VisionTransformer, torch.nn.Module]:
    """Ours and theirs with equal random weights, both in evaluation mode."""
    from hpcqa.ssl import published

    torch.manual_seed(2)
    theirs = empty_hugging_face(architecture).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.1)
    ours = vit.from_architecture(architecture, 0)
    official = published.to_official(dict(theirs.state_dict()))
    published.fill(ours, official, list(architecture.stems))
    return ours.eval(), theirs
