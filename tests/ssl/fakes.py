"""Cutouts in memory that behave like the shards' reading side."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from hpcqa.config import Config, ModelConfig, SslConfig, ViewsConfig
from hpcqa.config.ssl import VIEWS as ALL_VIEWS
from hpcqa.errors import DataError

VIEWS = ViewsConfig(context=[32, 16], background=[16, 8], detail=[32, 32], stamp=16, focal_plane=[16, 16])


class FakeCutouts:
    """`exposures` exposures of `ccds` CCDs with smooth maps, an own level each, and a star in each stamp."""

    def __init__(self, exposures: int = 12, ccds: int = 4, views: ViewsConfig = VIEWS, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.exposures = np.arange(100, 100 + exposures, dtype=np.int64)
        self.expnum = np.repeat(self.exposures, ccds)
        self.ccdnum = np.tile(np.arange(1, ccds + 1, dtype=np.int32), exposures)
        self.failed = np.zeros(len(self.expnum), np.int64)
        self.number_names = ["sky", "fwhm", "never"]
        count = len(self.expnum)
        self._numbers = rng.normal(size=(count, 3)).astype(np.float32)
        self._numbers[:, 2] = np.nan
        self.arrays = {
            view: rng.normal(size=(count, *getattr(views, view))).astype(np.float16)
            for view in ("context", "background", "detail")
        }
        self.planes = rng.normal(size=(exposures, *views.focal_plane)).astype(np.float16)
        self.damaged: set[int] = set()
        self.sound_reads = 0
        self.asked: dict[str, list[int]] = {}

    def numbers(self, rows: np.ndarray) -> np.ndarray:
        return self._numbers[rows]

    def batch(self, view: str, rows: np.ndarray) -> np.ndarray:
        self.sound_reads -= 1
        if self.sound_reads < 0 and self.damaged & set(np.asarray(rows).tolist()):
            raise DataError("shards/shard-00000.h5: context cannot be read; run `hpcqa verify`.")
        return self.arrays[view][rows]

    def focal_plane(self, exposure_rows: np.ndarray) -> np.ndarray:
        return self.planes[exposure_rows]

    def will_need(self, view: str, rows: np.ndarray) -> None:
        self.asked.setdefault(view, []).extend(np.asarray(rows).tolist())


def small_config(**ssl: Any) -> Config:
    """A configuration of a network and steps that take milliseconds; with every loss, whatever the recipe has."""
    values: dict[str, Any] = {
        "steps": 4, "batch": 8, "prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "checkpoint_every": 2,
        "log_every": 1, "knn_every": 0, "warmup": 0.25, "device": "cpu", "views": list(ALL_VIEWS),
        "mix": [0.25, 1.0, 0.5, 0.5],
        "crop_views": ["context", "detail"], "ibot_weight": 1.0,
    }  # fmt: skip
    values.update(ssl)
    model = ModelConfig(arch="demo", patch=8, patch_background=4, patch_focal_plane=4, registers=2)
    return dataclasses.replace(Config(), model=model, views=VIEWS, ssl=SslConfig(**values))
