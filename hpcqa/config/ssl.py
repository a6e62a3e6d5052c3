"""Settings of the network, its self-supervised training and the embedding."""

from __future__ import annotations

from dataclasses import dataclass

from hpcqa.config.fields import setting

VIEWS = ("context", "background", "detail", "focal_plane")


@dataclass(frozen=True)
class ModelConfig:
    arch: str = setting("demo", "Size of the ViT.", choices=("demo", "tiny", "small", "base", "large", "giant"))
    patch: int = setting(16, "Side of a patch of the context and detail views.", unit="px", low=2, high=32)
    patch_background: int = setting(4, "Side of a patch of the background map.", unit="cells", low=1, high=32)
    patch_focal_plane: int = setting(8, "Side of a patch of the focal-plane view.", unit="px", low=1, high=32)
    stem: str = setting(
        "conv", "Patch embedding: linear as published, or convolutions before it.", choices=("linear", "conv")
    )
    in_channels: int = setting(1, "Channels of the images.", low=1, high=16)
    registers: int = setting(4, "Register tokens.", low=0, high=16)
    drop_path: float = setting(0.0, "Stochastic depth of the last block; grows linearly from 0.", low=0, high=0.9)
    layer_scale: float = setting(0.1, "Initial LayerScale; 1e-5 for long runs.", low=0, high=1)
    activation_checkpointing: bool = setting(False, "Recompute blocks to save memory.", output=False)
    compile: bool = setting(False, "torch.compile the blocks.", output=False)


@dataclass(frozen=True)
class SslConfig:
    """Weights of losses may be 0, which leaves the task out."""

    steps: int = setting(300, "Optimizer steps; 0 exports the untrained network.", low=0)
    max_passes: float = setting(10.0, "Most often that a CCD is looked at; small surveys take fewer steps.", low=0.1)
    batch: int = setting(32, "CCDs a step over all ranks (the global batch).", low=2)
    accumulate: int = setting(1, "Pieces that a rank's share of the batch is worked through in.", low=1, high=1024)
    views: list[str] = setting(
        ["context", "background", "focal_plane"],
        "Views that the network learns and that are embedded. Star stamps (detail) were seen to hurt; the measured "
        "numbers say what they show.",
        choices=VIEWS,
    )
    mix: list[float] = setting(
        [0.25, 1.0, 0.25], "Images of each of ssl.views a step, as a share of the batch.", low=0.01, high=4
    )
    crop_views: list[str] = setting(["background"], "Views that learn by crops (DINO, iBOT, KoLeo).", choices=VIEWS)
    defect_views: list[str] = setting(list(VIEWS), "Views that learn by injected defects.", choices=VIEWS)
    # The optimizer.
    lr: float = setting(1e-3, "Peak learning rate for a global batch of 256.", low=0, high=1)
    lr_scaling: str = setting("sqrt", "How lr grows with the global batch.", choices=("none", "sqrt", "linear"))
    lr_end: float = setting(0.01, "Last learning rate as a share of the peak.", low=0, high=1)
    layer_decay: float = setting(1.0, "Learning rate of a block relative to the next.", low=0.1, high=1)
    weight_decay: float = setting(0.04, "AdamW weight decay at the start.", low=0, high=1)
    weight_decay_end: float = setting(0.2, "AdamW weight decay at the end.", low=0, high=1)
    warmup: float = setting(0.1, "Share of the steps that warms the learning rate up.", low=0, high=1)
    clip: float = setting(3.0, "Largest norm of the gradient; 0: no limit.", low=0)
    # The teacher.
    momentum: float = setting(0.98, "Momentum of the teacher at the start.", low=0, high=1)
    momentum_end: float = setting(0.998, "Momentum of the teacher at the end.", low=0, high=1)
    temperature: float = setting(0.1, "Student's temperature.", low=0.001, high=10)
    teacher_temperature: float = setting(0.04, "Teacher's temperature at the start.", low=0.001, high=10)
    teacher_temperature_end: float = setting(0.07, "Teacher's temperature after the warm-up.", low=0.001, high=10)
    centring: str = setting("sinkhorn", "How the teacher's targets are balanced.", choices=("sinkhorn", "softmax"))
    prototypes: int = setting(
        64,
        "Prototypes of the DINO and iBOT heads. Many times as many as the global crops of a step make balanced targets "
        "alike.",
        low=2,
        high=1 << 20,
    )
    head_hidden: int = setting(256, "Width of the heads.", low=1)
    head_bottleneck: int = setting(64, "Width of the heads' bottleneck.", low=1)
    shared_head: bool = setting(True, "One head for DINO and iBOT.")
    freeze_last: float = setting(0.02, "Share of the steps with the heads' last layer fixed.", low=0, high=1)
    # The losses.
    dino_weight: float = setting(1.0, "Weight of the DINO loss on crops.", low=0)
    ibot_weight: float = setting(
        0.0, "Weight of the iBOT loss on masked patches; as published 1. It was not seen to pay.", low=0
    )
    koleo_weight: float = setting(0.1, "Weight of the KoLeo spread.", low=0)
    defect_weight: float = setting(1.0, "Weight of finding injected defects.", low=0)
    number_weight: float = setting(0.5, "Weight of predicting the measured numbers.", low=0)
    # Crops and masks.
    positives: str = setting(
        "ccd", "The two global crops come from one CCD or two CCDs of an exposure.", choices=("ccd", "exposure")
    )
    global_crop: float = setting(0.75, "Side of a global crop as a share of the view.", low=0.05, high=1)
    local_crop: float = setting(0.5, "Side of a local crop as a share of the view.", low=0.05, high=1)
    local_crops: int = setting(2, "Local crops of an image.", low=0, high=32)
    mask_probability: float = setting(0.5, "Share of the global crops with masked patches.", low=0, high=1)
    mask_share: list[float] = setting(
        [0.1, 0.5], "Smallest and largest masked share of a crop.", low=0, high=1, size=2, rising=True
    )
    noise: float = setting(0.05, "Noise added to crops.", unit="sigma", low=0, high=10)
    gain: float = setting(0.01, "Change of gain of crops.", low=0, high=1)
    blur: float = setting(0.0, "Largest Gaussian blur of crops (an ablation: it hides seeing).", unit="px", low=0)
    jitter: float = setting(0.0, "Largest offset of crops (an ablation: it hides sky).", unit="asinh(sigma)", low=0)
    # Injected defects.
    defect_share: float = setting(0.65, "Share of the images with a defect.", low=0, high=1)
    defect_strength: list[float] = setting(
        [1.5, 20.0],
        "Weakest and strongest defect, log-uniform between, over the scatter of the survey's own maps.",
        low=0.01,
        high=1000,
        size=2,
        rising=True,
    )
    defects_left_out: list[str] = setting([], "Kinds of defects that are not injected (an ablation).")
    # The run.
    parallel: str = setting(
        "ddp",
        "How ranks share the work: ddp, each holds the whole network; fsdp, each holds a share of it (large sizes).",
        choices=("ddp", "fsdp"),
        output=False,
    )
    checkpoint_every: int = setting(100, "Steps between checkpoints.", low=1, output=False)
    keep: int = setting(2, "Last checkpoints kept; the best one is kept beside them.", low=1, output=False)
    export: str = setting("last", "Which network becomes the backbone.", choices=("last", "best"))
    knn_every: int = setting(100, "Steps between kNN checks on the labelled exposures; 0: only at the end.", low=0)
    tensorboard: bool = setting(
        False, "Write the metrics for TensorBoard too, into RUN/tensorboard (extra: hpcqa[metrics]).", output=False
    )
    peak_tflops: float = setting(
        0.0,
        "Peak of one device, which mfu is measured against; 0: that of a matrix product.",
        unit="TFLOP/s",
        low=0,
        output=False,
    )
    log_every: int = setting(10, "Steps between lines of metrics.", low=1, output=False)
    max_skipped: int = setting(20, "Stop after so many steps in a row with losses that are not finite.", low=1)
    init_from: str = setting("", "Weights to start from (backbone.safetensors); empty: random.", path=True)
    device: str = setting("auto", "Where to train.", choices=("auto", "cpu", "cuda"), output=False)
    precision: str = setting("auto", "Arithmetic of the forward pass.", choices=("auto", "fp32", "bf16"))


@dataclass(frozen=True)
class EmbedConfig:
    batch: int = setting(64, "Images in one forward pass.", low=1, output=False)
    device: str = setting("auto", "Where the network runs.", choices=("auto", "cpu", "cuda"), output=False)
    precision: str = setting("auto", "Arithmetic; auto: bf16 on a GPU, else fp32.", choices=("auto", "fp32", "bf16"))
    source: str = setting(
        "shards",
        "Read shards, or the images themselves, which leaves no shards behind (see embed.stored).",
        choices=("shards", "fits"),
        output=False,
    )
    stored: float = setting(
        0.1,
        "With source=fits: share of the shards that `shard` stores all the same, for calibrate and pretrain to learn "
        "from; none where survey.update takes both over.",
        low=0,
        high=1,
        output=False,
    )
    control: bool = setting(
        True, "Embed with the untrained network too, which the evaluation compares with.", output=False
    )
