"""The typed configuration: every setting with a sentence, a unit and a range. Standard library only."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hpcqa.config.fields import check_ranges, leaves, section, setting
from hpcqa.config.launch import ClusterConfig, LaunchConfig, ResourcesConfig
from hpcqa.config.pixels import CalibrateConfig, ShardConfig, ViewsConfig
from hpcqa.config.qa import ClassifyConfig, EvaluateConfig, FitConfig, ReportConfig
from hpcqa.config.ssl import EmbedConfig, ModelConfig, SslConfig
from hpcqa.config.survey import InstrumentConfig, ManifestConfig, SimulateConfig, SurveyConfig

__all__ = [
    "CalibrateConfig",
    "ClassifyConfig",
    "ClusterConfig",
    "Config",
    "EmbedConfig",
    "EvaluateConfig",
    "FitConfig",
    "InstrumentConfig",
    "LaunchConfig",
    "ManifestConfig",
    "ModelConfig",
    "ReportConfig",
    "ResourcesConfig",
    "ShardConfig",
    "SimulateConfig",
    "SslConfig",
    "SurveyConfig",
    "ViewsConfig",
    "check_ranges",
    "leaves",
]


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    run: str = setting("runs/default", "Run folder: every artifact of the run lands under it.", output=False, path=True)
    base: str = setting(
        "", "Another run folder whose artifacts are used where this run has none.", output=False, path=True
    )
    seed: int = setting(1, "The one seed; every random stream is named by it and a key.", low=0)
    instrument: InstrumentConfig = section(InstrumentConfig)
    survey: SurveyConfig = section(SurveyConfig)
    simulate: SimulateConfig = section(SimulateConfig)
    manifest: ManifestConfig = section(ManifestConfig)
    views: ViewsConfig = section(ViewsConfig)
    shard: ShardConfig = section(ShardConfig)
    calibrate: CalibrateConfig = section(CalibrateConfig)
    model: ModelConfig = section(ModelConfig)
    ssl: SslConfig = section(SslConfig)
    embed: EmbedConfig = section(EmbedConfig)
    fit: FitConfig = section(FitConfig)
    classify: ClassifyConfig = section(ClassifyConfig)
    evaluate: EvaluateConfig = section(EvaluateConfig)
    report: ReportConfig = section(ReportConfig)
    launch: LaunchConfig = section(LaunchConfig)
    cluster: ClusterConfig = section(ClusterConfig)
    stage: dict[str, ResourcesConfig] = dataclasses.field(default_factory=dict)
