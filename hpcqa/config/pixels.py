"""Settings of reading pixels: the views, the measured numbers, the shards and the calibration."""

from __future__ import annotations

from dataclasses import dataclass

from hpcqa.config.fields import setting


@dataclass(frozen=True)
class ViewsConfig:
    """Shapes are [rows, columns] of float16 pixels; a CCD is binned by the smallest integer that makes it fit."""

    context: list[int] = setting(
        [128, 64], "Context view: the whole CCD, binned and stretched.", unit="px", low=16, size=2
    )
    background: list[int] = setting([32, 16], "Background map: cells without sources.", unit="cells", low=4, size=2)
    detail: list[int] = setting(
        [128, 128], "Mosaic of native-resolution stamps of stars and sky.", unit="px", low=32, size=2
    )
    stamp: int = setting(32, "Side of one stamp in the detail view; divides both of its sides.", unit="px", low=8)
    focal_plane: list[int] = setting(
        [64, 64], "All CCDs' backgrounds laid out as on the sky.", unit="px", low=16, size=2
    )
    asinh_softening: float = setting(3.0, "Stretch asinh(z / softening), z in units of noise.", unit="sigma", low=0.1)
    sky_share: float = setting(0.25, "Share of the detail view's stamps that show empty sky.", low=0, high=1)
    background_floor: float = setting(
        4e-4, "Scatter of a good background map that photon noise does not explain.", unit="sky", low=0
    )
    background_softening: float = setting(
        2.0, "Stretch asinh(z / softening) of the calibrated background map.", unit="sigma", low=0.1
    )


@dataclass(frozen=True)
class ShardConfig:
    exposures_per_shard: int = setting(16, "Exposures in one shard file.", low=1, high=4096)
    workers: int = setting(0, "Reading threads of one task; 0 takes the cores it may use.", low=0, output=False)
    use_masks: bool = setting(True, "Read the data-quality file beside each image where there is one.")
    read_timeout: float = setting(
        300.0, "Give an exposure up whose reads waited this long for an answer.", unit="s", low=1, output=False
    )
    max_failed: float = setting(
        0.5, "End with an error when a larger share of the CCDs fails.", low=0, high=1, output=False
    )
    checksums: str = setting(
        "report",
        "Images and masks whose data contradict their DATASUM: measure and use them but say so, have them fail, or "
        "don't look.",
        choices=("report", "fail", "ignore"),
    )
    min_size: int = setting(16, "Smaller images are no CCD images.", unit="px", low=8)
    retry_failed: bool = setting(False, "Read shards again that hold CCDs that failed.", output=False)
    reader_cache: float = setting(
        2.0,
        "Memory that a reader of shards may fill with a view before it reads from disk.",
        unit="GB",
        low=0,
        output=False,
    )
    reader_handles: int = setting(
        16384,
        "Most shard files that a reader keeps open; half of what the process may have open is another limit.",
        low=1,
        high=1 << 20,
        output=False,
    )


@dataclass(frozen=True)
class CalibrateConfig:
    min_exposures: int = setting(8, "Fewest exposures of a (CCD, band) for a mean pattern of its own.", low=2)
    max_exposures: int = setting(
        400, "Most exposures of a (CCD, band) that are looked at, evenly spread over the survey.", low=8
    )
