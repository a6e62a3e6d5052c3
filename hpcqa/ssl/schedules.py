"""What changes along a run, as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hpcqa.config import SslConfig

REFERENCE_BATCH = 256


@dataclass(frozen=True)
class Point:
    """The settings of one step."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temperature: float
    last_layer_fixed: bool


def cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` at progress 0 to `end` at 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def peak_lr(ssl: SslConfig) -> float:
    """The peak learning rate of the global batch: as it is, by the square root (AdamW) or by proportion."""
    ratio = ssl.batch / REFERENCE_BATCH
    return ssl.lr * {"none": 1.0, "sqrt": math.sqrt(ratio), "linear": ratio}[ssl.lr_scaling]


def at(ssl: SslConfig, step: int) -> Point:
    """The settings of a step, counted from 0."""
    last = max(ssl.steps - 1, 1)
    progress = step / last
    warm_steps = ssl.warmup * ssl.steps
    peak = peak_lr(ssl)
    if step < warm_steps:
        lr = peak * (step + 1) / (warm_steps + 1)
    else:
        lr = cosine(peak, peak * ssl.lr_end, (step - warm_steps) / max(last - warm_steps, 1))
    warm = min(1.0, step / warm_steps) if warm_steps else 1.0
    return Point(
        lr=lr,
        weight_decay=cosine(ssl.weight_decay, ssl.weight_decay_end, progress),
        momentum=cosine(ssl.momentum, ssl.momentum_end, progress),
        teacher_temperature=ssl.teacher_temperature + warm * (ssl.teacher_temperature_end - ssl.teacher_temperature),
        last_layer_fixed=step < ssl.freeze_last * ssl.steps,
    )
