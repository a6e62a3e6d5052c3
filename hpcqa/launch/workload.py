"""How much work a survey is and how much it writes, by arithmetic from the configuration and a few counts. Pure.

Work is counted in units that a measured rate can be given for: images, CCDs, megapixels, floating-point operations.
Sizes follow from the schemas: the shapes of the views and of the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from hpcqa import instruments
from hpcqa.artifacts.catalog import CALIBRATION, CCD_DECISIONS, DECISIONS, EMBEDDING, MANIFEST, SHARD
from hpcqa.artifacts.schema import Schema
from hpcqa.config import Config
from hpcqa.config.ssl import VIEWS
from hpcqa.pixels.measure import NAMES
from hpcqa.ssl.views import crop_size
from hpcqa.ssl.vit import SIZES, Architecture, StemShape, architecture_of

# Bytes of a text in a table, before compression.
TEXT_BYTES = 16
# Compressed Parquet: the tables of the demonstration take 0.13 to 0.2 of their plain size.
TABLE_SHARE = 0.2
# Share of the exposures that someone has labelled, where nobody says: 3,737 of DR11's 223,749 were reviewed.
LABELLED_SHARE = 0.017
PCA = 32  # where fit.pca is left to be chosen
# What the injected-defect heads answer, of a CCD and of an exposure.
DEFECT_ANSWERS = 16
# How often fit compares the labelled CCDs with each other: to clean them, to score them, and without their own reasons.
FIT_PASSES = 3
# Full-size pictures of an exposure in the report (PNG and page), and a line of it in the page, bytes.
PICTURES_BYTES, LINE_BYTES = 170e3, 500.0
# Bands of a survey that have patterns of their own.
BANDS = 5
# Adam's two moments and the teacher beside the student, in float32.
STATE_BYTES = 16


@dataclass(frozen=True)
class Counts:
    """How large a survey is: exposures and CCD images to process, and labelled exposures."""

    exposures: int
    ccds: int
    labelled: int

    @property
    def ccds_per_exposure(self) -> float:
        return self.ccds / self.exposures if self.exposures else 0.0


@dataclass(frozen=True)
class Output:
    """What a stage leaves on disk."""

    files: int
    bytes: float


def shards_of(config: Config, counts: Counts) -> int:
    """Shard files."""
    return math.ceil(counts.exposures / config.shard.exposures_per_shard)


# Work ---------------------------------------------------------------------------------------------------------------


def work(config: Config, counts: Counts) -> dict[str, dict[str, float]]:
    """The work of each stage by unit.

    Returns:
        Stage -> unit -> amount. A "GFLOP" counts multiply-adds twice.
    """
    rows, cols = instruments.get(config.instrument.name).shape
    megapixels = counts.ccds * rows * cols / 1e6
    references = counts.labelled * counts.ccds_per_exposure
    of_a_ccd = 2e-9 * references * compared_features(config)
    return {
        "simulate": {"Mpixel": megapixels, "CCD": counts.ccds},
        "manifest": {"CCD": counts.ccds},
        "shard": {"Mpixel": megapixels, "CCD": counts.ccds},
        "calibrate": {"Mcell": 1e-6 * calibrated_ccds(config, counts) * math.prod(config.views.background)},
        "pretrain": {"image": training_images(config, counts), "GFLOP": training_gflop(config, counts)},
        "embed": {"GFLOP": embedding_gflop(config, counts), "CCD": counts.ccds},
        "fit": {"CCD": references, "GFLOP": FIT_PASSES * references * of_a_ccd},
        "classify": {"CCD": counts.ccds, "GFLOP": counts.ccds * of_a_ccd},
        "evaluate": {"bootstrap": float(config.evaluate.bootstrap)},
        "report": {"exposure shown": float(min(config.report.exposures, counts.exposures))},
    }


def compared_features(config: Config) -> int:
    """Features of a CCD that neighbours are looked up in, all channels (hpcqa/qa/blocks.py) together: its numbers and
    the unknown share of them, their contrast to the exposure's, components of each view, and answers of the heads.
    """
    views = sum(view != "focal_plane" for view in config.ssl.views)
    return 2 * (len(NAMES) + 1) + views * (config.fit.pca or PCA) + DEFECT_ANSWERS


def calibrated_ccds(config: Config, counts: Counts) -> int:
    """CCD images that the calibration looks at: so many of each CCD and band."""
    patterns = counts.ccds_per_exposure * BANDS
    return round(min(counts.ccds, patterns * config.calibrate.max_exposures))


def forward_gflop(shape: StemShape, rows: int, cols: int, architecture: Architecture) -> float:
    """One image of rows x cols pixels through the network, as in benchmarks/pretrain.py, with the linear stem."""
    dim, depth = architecture.dim, architecture.depth
    tokens = rows * cols / shape.patch**2 + 1 + architecture.registers
    stem = 2.0 * rows * cols * architecture.in_channels * dim
    return 1e-9 * (stem + depth * tokens * (24.0 * dim**2 + 4.0 * tokens * dim))


def training_steps(config: Config, counts: Counts) -> int:
    """Steps of the training: no more than look at each CCD ssl.max_passes times."""
    batch = max(1, min(config.ssl.batch, counts.ccds))
    return min(config.ssl.steps, max(1, math.ceil(config.ssl.max_passes * counts.ccds / batch)))


def training_images(config: Config, counts: Counts) -> float:
    """Images of all views that the training looks at."""
    return training_steps(config, counts) * config.ssl.batch * sum(config.ssl.mix)


def training_gflop(config: Config, counts: Counts) -> float:
    """Student forward and backward (three forwards), the teacher on the global crops, and the defect task."""
    ssl, architecture = config.ssl, _architecture(config)
    a_step = 0.0
    for view, share in zip(ssl.views, ssl.mix, strict=False):
        shape, images = architecture.stems[view], share * ssl.batch
        if view in ssl.crop_views:
            large = forward_gflop(shape, *crop_size(shape, ssl.global_crop), architecture)
            small = forward_gflop(shape, *crop_size(shape, ssl.local_crop), architecture)
            a_step += images * (3 * (2 * large + ssl.local_crops * small) + 2 * large)
        if view in ssl.defect_views:
            a_step += images * 3 * forward_gflop(shape, shape.rows, shape.cols, architecture)
    return a_step * training_steps(config, counts)


def embedding_gflop(config: Config, counts: Counts) -> float:
    """Every view that the network learns, of every CCD, once, and once more for the untrained control."""
    architecture = _architecture(config)
    once = 0.0
    for view, shape in architecture.stems.items():
        images = counts.exposures if view == "focal_plane" else counts.ccds
        once += images * forward_gflop(shape, shape.rows, shape.cols, architecture)
    return once * (2 if config.embed.control else 1)


def _architecture(config: Config) -> Architecture:
    return architecture_of(config.model, config.views, only=config.ssl.views)


# Sizes --------------------------------------------------------------------------------------------------------------


def plain_bytes(schema: Schema, dims: Mapping[str, float], without: Collection[str] = ()) -> float:
    """Bytes of the columns of an artifact before compression, but some; dims that are not given count as 0."""
    total = 0.0
    for column in (column for column in schema.columns if column.name not in without):
        size = TEXT_BYTES if column.dtype == "str" else np.dtype(column.dtype).itemsize
        total += size * math.prod(dims.get(name, 0.0) for name in column.dims)
    return total


def table_bytes(schema: Schema, rows: int) -> float:
    """Bytes of a compressed table."""
    return (
        TABLE_SHARE
        * rows
        * sum(TEXT_BYTES if column.dtype == "str" else np.dtype(column.dtype).itemsize for column in schema.columns)
    )


def output(config: Config, counts: Counts) -> dict[str, Output]:
    """Files and bytes of each stage."""
    shards, views = shards_of(config, counts), config.views
    dims: dict[str, float] = {"ccd": counts.ccds, "exposure": counts.exposures, "number": len(NAMES)}
    for letter, shape in (("c", views.context), ("b", views.background), ("d", views.detail)):
        dims |= {f"{letter}y": shape[0], f"{letter}x": shape[1]}
    dim = SIZES[config.model.arch][0]
    patterns = {"pattern": counts.ccds_per_exposure * BANDS}
    unseen = set(VIEWS) - set(config.ssl.views)
    answers = {"embedding": 3 * dim, "defect": DEFECT_ANSWERS, "exposure_defect": DEFECT_ANSWERS}
    embedding = plain_bytes(EMBEDDING, dims | answers, unseen)
    copies = 2 if config.embed.control else 1
    pictures = min(config.report.exposures, counts.exposures)
    raw = instruments.get(config.instrument.name).shape
    decisions = table_bytes(DECISIONS, counts.exposures) + table_bytes(CCD_DECISIONS, counts.ccds)
    return {
        # RICE with q = 4 and the masks beside the images: the demonstration's 507 MB of 4,200 CCDs, bytes a pixel.
        "simulate": Output(2 * counts.exposures, 0.85 * counts.ccds * raw[0] * raw[1]),
        "manifest": Output(2, table_bytes(MANIFEST, counts.ccds)),
        "shard": Output(shards, plain_bytes(SHARD, dims)),
        "calibrate": Output(1, plain_bytes(CALIBRATION, dims | patterns)),
        "pretrain": Output(*_checkpoints(config)),
        "embed": Output(copies * shards, copies * embedding),
        "fit": Output(1, 4.0 * counts.labelled * (counts.ccds_per_exposure + 1) * compared_features(config)),
        # The Parquet tables, their FITS twins, the lists and the tables' ccd_cuts.
        "classify": Output(8, 6 * decisions),
        "evaluate": Output(1, 25e3),
        "report": Output(5 * pictures + 10, PICTURES_BYTES * pictures + LINE_BYTES * counts.exposures),
    }


def _checkpoints(config: Config) -> tuple[int, float]:
    """Files and bytes of the kept checkpoints (and the best) and the exported network."""
    ssl, (dim, depth, _, _) = config.ssl, SIZES[config.model.arch]
    backbone = 12.0 * depth * dim**2
    head = (
        dim * ssl.head_hidden
        + ssl.head_hidden**2
        + ssl.head_hidden * ssl.head_bottleneck
        + ssl.head_bottleneck * ssl.prototypes
    )
    heads = head * (1 if ssl.shared_head else 2)
    kept = ssl.keep + 1
    return 3 * kept + 2, STATE_BYTES * kept * (backbone + heads) + 4 * backbone
