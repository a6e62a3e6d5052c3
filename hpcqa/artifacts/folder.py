"""The run folder: the one place that knows file names.

```
RUN/run.yaml                        the frozen configuration
RUN/survey/                         a simulated survey (images/, survey-ccds-*.fits.gz, labels/, truth.csv)
RUN/manifest.parquet labels.parquet truth.parquet
RUN/shards/shard-00000.h5           RUN/shards/index.hdf5 (where everything is in them)   RUN/calibration.h5
RUN/checkpoints/                    RUN/backbone.safetensors   RUN/metrics.jsonl
RUN/attention.h5 (pictures)         RUN/tensorboard/ (where asked for)
RUN/embeddings/shard-00000.h5       RUN/embeddings-untrained/shard-00000.h5   (the control)
RUN/classifier.h5                   RUN/decisions.parquet ccd_decisions.parquet
RUN/evaluation.json                 RUN/report/index.html      RUN/exports/
RUN/logs/STAGE-rank.log
```
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcqa.errors import DataError

NAMES = {
    "run": "run.yaml",
    "survey": "survey",
    "manifest": "manifest.parquet",
    "labels": "labels.parquet",
    "truth": "truth.parquet",
    "shards": "shards",
    "calibration": "calibration.h5",
    "checkpoints": "checkpoints",
    "backbone": "backbone.safetensors",
    "metrics": "metrics.jsonl",
    "attention": "attention.h5",
    "tensorboard": "tensorboard",
    "embeddings": "embeddings",
    "embeddings-untrained": "embeddings-untrained",
    "classifier": "classifier.h5",
    "decisions": "decisions.parquet",
    "ccd_decisions": "ccd_decisions.parquet",
    "evaluation": "evaluation.json",
    "report": "report",
    "exports": "exports",
    "logs": "logs",
}


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run. `bases` are other runs whose artifacts serve where this one has none, nearest first (sweeps)."""

    path: Path
    bases: tuple[Path, ...] = ()

    def output(self, artifact: str) -> Path:
        """Where this run writes an artifact (a name of NAMES)."""
        return self.path / NAMES[artifact]

    def find(self, artifact: str) -> Path | None:
        """The artifact in this run, or else in the nearest base run that has it, or None."""
        for root in (self.path, *self.bases):
            if (root / NAMES[artifact]).exists():
                return root / NAMES[artifact]
        return None

    def need(self, artifact: str, stage: str) -> Path:
        """The artifact's path.

        Raises:
            DataError: no run has it; says which stage writes it.
        """
        found = self.find(artifact)
        if found is None:
            raise DataError(f"{self.output(artifact)}: not found; run `hpcqa {stage} run={self.path}` first.")
        return found

    def relative(self, path: Path) -> str:
        """The path as provenance names it: relative to the run (or base run) that holds it."""
        for root in (self.path, *self.bases):
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.as_posix()


SHARD_INDEX_NAME = "index.hdf5"  # in the shards' folder; not *.h5, which are the shards


def shard_name(number: int) -> str:
    """File name of a shard and of everything made from it."""
    return f"shard-{number:05d}.h5"
