"""Settings of what is surveyed: camera, tables, images, labels, and the simulated survey."""

from __future__ import annotations

from dataclasses import dataclass

from hpcqa.config.fields import setting


@dataclass(frozen=True)
class InstrumentConfig:
    name: str = setting("minicam", "Camera module that simulates the survey and sizes the views.")


@dataclass(frozen=True)
class SurveyConfig:
    simulated: bool = setting(False, "Make the survey first with `hpcqa simulate`.")
    tables: list[str] = setting(
        [], "survey-ccds tables (FITS, kd-tree, Parquet, CSV, ECSV; gzipped or not), paths or patterns.", path=True
    )
    images: list[str] = setting(
        [],
        "Image directories tried in turn for a table's image_filename; empty: images/ beside the table. "
        "With no table at all these directories are scanned for exposures.",
        path=True,
    )
    labels: list[str] = setting([], "Label lists in any known format: paths, folders or glob patterns.", path=True)
    truth: str = setting("", "Truth table of a simulated survey (used by evaluate only, never by fit).", path=True)
    update: bool = setting(
        False,
        "Go on from the base run, an earlier release: take over its network, its calibration, its classifier unless "
        "labels changed, and the embeddings of every exposure that is not new or processed anew.",
        output=False,
    )


@dataclass(frozen=True)
class ManifestConfig:
    bands: list[str] = setting([], "Bands to keep; empty keeps every band that the camera knows.")
    min_exptime: float = setting(0.0, "Shorter exposures are cut.", unit="s", low=0)
    max_ebv: float = setting(0.0, "Cut CCDs with a larger E(B-V); 0 cuts none.", unit="mag", low=0)
    min_abs_glat: float = setting(0.0, "Cut CCDs nearer to the galactic plane.", unit="deg", low=0, high=90)
    ccd_cuts: int = setting(0, "Cut CCDs that have any of these ccd_cuts bits set.", low=0)
    first_mjd: float = setting(0.0, "Cut exposures before this MJD; 0 cuts none.", unit="d", low=0)
    last_mjd: float = setting(0.0, "Cut exposures after this MJD; 0 cuts none.", unit="d", low=0)
    only: str = setting("", "File with one expnum a line: cut every other exposure.", path=True)
    exclude: str = setting("", "File with one expnum a line: cut these exposures.", path=True)


@dataclass(frozen=True)
class SimulateConfig:
    exposures: int = setting(200, "Number of exposures.", low=1, high=100000)
    bad_fraction: float = setting(0.4, "Share of exposures with a defect.", low=0, high=1)
    labelled_fraction: float = setting(0.5, "Share of exposures that the label lists name.", low=0, high=1)
    nights: int = setting(12, "Number of nights that the exposures are spread over.", low=1)
    min_severity: float = setting(0.15, "Smallest severity drawn (0 invisible, 1 gross).", low=0, high=1)
    novel: list[str] = setting(
        ["pupil", "amplifier", "edge_glow"],
        "Reasons that the label lists never name, though such exposures are there: they test novelty.",
    )
    start: str = setting("2025-01-05", "Date of the first night (UTC).")
    workers: int = setting(0, "Processes; 0 takes the cores this process may use.", low=0, output=False)
