"""Settings of the network, its self-supervised training and the embedding."""

from __future__ import annotations

from dataclasses import dataclass

from hpcqa.config.fields import setting


@dataclass(frozen=True)
class ModelConfig:
    arch: str = setting("demo", "Size of the ViT.", choices=("demo", "tiny", "small", "base", "large"))
    patch: int = setting(16, "Side of a patch.", unit="px", low=2, high=32)
    in_channels: int = setting(1, "Channels of the images.", low=1, high=16)
    registers: int = setting(4, "Register tokens.", low=0, high=16)
    drop_path: float = setting(0.0, "Stochastic depth of the last block.", low=0, high=0.9)


@dataclass(frozen=True)
class SslConfig:
    steps: int = setting(300, "Optimizer steps.", low=0)
    batch: int = setting(32, "Images a step over all ranks (the global batch).", low=2)
    lr: float = setting(1e-3, "Peak learning rate for a global batch of 256.", low=0, high=1)
    weight_decay: float = setting(0.04, "AdamW weight decay.", low=0, high=1)
    warmup: float = setting(0.1, "Share of the steps that warms the learning rate up.", low=0, high=1)
    checkpoint_every: int = setting(100, "Steps between checkpoints.", low=1, output=False)
    knn_every: int = setting(100, "Steps between kNN checks on the labelled exposures; 0: only at the end.", low=0)
    init_from: str = setting("", "Weights to start from (backbone.safetensors); empty: random.")
    device: str = setting("auto", "Where to train.", choices=("auto", "cpu", "cuda"), output=False)
    precision: str = setting("auto", "Arithmetic of the forward pass.", choices=("auto", "fp32", "bf16"))


@dataclass(frozen=True)
class EmbedConfig:
    batch: int = setting(64, "Images in one forward pass.", low=1, output=False)
    device: str = setting("auto", "Where the network runs.", choices=("auto", "cpu", "cuda"), output=False)
    source: str = setting("shards", "Read shards, or FITS files directly.", choices=("shards", "fits"))
