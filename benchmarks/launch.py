"""How long submitting, asking and starting take: a campaign of thousands of shards, and a job's start-up by part.

    python benchmarks/launch.py [--shards 2500] [--rounds 3] [--json FILE] [--slurm]

`submit` and `status` work on a run folder with a manifest of that many shards, all but the last hundred of them there.
Without --slurm a stand-in for sbatch, squeue and sinfo answers at once, so that only hpcqa's own time counts; with it
the Slurm of this shell does (slurm/cluster.py starts one), and what was submitted is cancelled again.

The start-up of a job is measured in fresh interpreters, each part as what it adds to the one before, from a warm file
cache; the best of the rounds counts. Wall time and processor time are both shown: on a busy machine only the latter is
the program's own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import hpcqa
from hpcqa.artifacts.catalog import MANIFEST
from hpcqa.artifacts.folder import RunFolder, shard_name
from hpcqa.artifacts.schema import Provenance
from hpcqa.artifacts.store import write_table
from hpcqa.config import Config, LaunchConfig, ResourcesConfig, SurveyConfig
from hpcqa.config.frozen import to_yaml
from hpcqa.launch import campaign, jobs, queue
from hpcqa.launch.snapshot import snapshot
from hpcqa.launch.status import status_text
from hpcqa.stages import STAGES

EXPOSURES_PER_SHARD, CCDS = 64, 60
# What a job of each kind imports before its stage begins, and a part of it for each line.
PARTS: tuple[tuple[str, str], ...] = (
    ("interpreter", "pass"),
    ("numpy", "import numpy"),
    ("h5py and pyarrow", "import h5py, pyarrow"),
    ("hpcqa.launch.job (what every job begins with)", "import hpcqa.launch.job"),
    ("configuration: run.yaml read and checked", "from hpcqa.config import frozen; frozen.load(RUN)"),
    ("numba", "import numba"),
    ("torch", "import torch"),
    ("submitit and the pickled job", "import submitit, submitit.core.submission"),
)
STAGE_MODULES = ("pixels.shards", "pixels.calibrate", "ssl.pretrain", "ssl.embed", "qa.fit", "qa.classify")
FAKE = """#!/bin/sh
case "$(basename "$0")" in
  sbatch) n=$(cat "$FAKE_QUEUE"); echo $((n + 1)) > "$FAKE_QUEUE"; echo "Submitted batch job $((n + 1))";;
  sinfo) case "$*" in *version*) echo "slurm 22.05.8";; *) echo "main*|infinite|128|512000|(null)";; esac;;
esac
"""


@contextlib.contextmanager
def stand_in(folder: Path) -> Iterator[None]:
    """Slurm's commands as a shell script that answers at once."""
    place, count = folder / "bin", folder / "queue"
    place.mkdir()
    count.write_text("100\n")
    for name in ("sbatch", "squeue", "sinfo", "scancel", "sacct", "srun"):
        (place / name).write_text(FAKE)
        (place / name).chmod(0o755 | stat.S_IXUSR)
    before = os.environ["PATH"]
    os.environ.update(PATH=f"{place}{os.pathsep}{before}", FAKE_QUEUE=str(count))
    try:
        yield
    finally:
        os.environ["PATH"] = before


def make_run(path: Path, shards: int) -> tuple[Config, RunFolder]:
    """A run folder with a manifest of that many shards and all but a hundred of the shard files."""
    path.mkdir()
    config = Config(
        run=str(path),
        survey=SurveyConfig(tables=["/survey-ccds.fits.gz"]),
        launch=LaunchConfig(kind="slurm"),
        stage={"shard": ResourcesConfig(jobs=64)},
    )
    (path / "run.yaml").write_text(to_yaml(config, []))
    folder = RunFolder(path)
    rows = shards * EXPOSURES_PER_SHARD * CCDS
    columns: dict[str, np.ndarray] = {}
    for column in MANIFEST.columns:
        filled = np.full(rows, "x", object) if column.dtype == "str" else np.zeros(rows, column.dtype)
        columns[column.name] = filled
    columns["expnum"] = np.repeat(np.arange(shards * EXPOSURES_PER_SHARD), CCDS)
    columns["ccdnum"] = np.tile(np.arange(CCDS, dtype=np.int32), shards * EXPOSURES_PER_SHARD)
    columns["shard"] = (columns["expnum"] // EXPOSURES_PER_SHARD).astype(np.int32)
    write_table(folder.output("manifest"), MANIFEST, columns, Provenance("c", {}, "minicam"))
    folder.output("labels").touch()
    folder.output("shards").mkdir()
    for number in range(max(0, shards - 100)):
        (folder.output("shards") / shard_name(number)).touch()
    return config, folder


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds on the clock, and of processor in this process and the children that ended."""

    def used() -> float:
        usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    began, before = time.perf_counter(), used()
    work()
    return {"wall_s": time.perf_counter() - began, "core_s": used() - before}


def best(work: Callable[[], object], rounds: int) -> dict[str, float]:
    """The best of some rounds, wall and processor time each."""
    found = [timed(work) for _ in range(rounds)]
    return {name: min(one[name] for one in found) for name in found[0]}


def submitting(folder: Path, shards: int, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of submitting the whole flow and of asking how far it is."""
    config, run = make_run(folder / "run", shards)
    flow = [stage for stage in STAGES if stage.name not in ("simulate", "manifest")]
    times = {}
    times["snapshot of the package"] = timed(lambda: snapshot(run.path, Path(hpcqa.__file__).parent))
    times["submit the flow"] = timed(lambda: campaign.launch(config, run, flow, whole_flow=True))
    sent = jobs.recorded(run.path)
    arrays = sum(entry.parts > 1 for entry in sent)
    print(f"{shards} shards: {len(sent)} jobs were submitted, {arrays} of them arrays")
    times["status"] = best(lambda: status_text(config, run), rounds)
    command = [sys.executable, "-m", "hpcqa", "status", str(run.path)]
    times["status, the whole command"] = best(lambda: subprocess.run(command, check=True, capture_output=True), rounds)
    queue.cancel([entry.job for entry in sent])
    return times


def starting(run: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of a job's start-up: each part alone, less the interpreter; and every stage's imports together."""

    def fresh(code: str) -> dict[str, float]:
        command = [sys.executable, "-c", code.replace("RUN", f"__import__('pathlib').Path({str(run / 'run.yaml')!r})")]
        return best(lambda: subprocess.run(command, check=True), rounds)

    times = {name: fresh(code) for name, code in PARTS}
    nothing = times["interpreter"]
    parts = {
        name: {key: max(0.0, value - nothing[key]) if name != "interpreter" else value for key, value in one.items()}
        for name, one in times.items()
    }
    for module in STAGE_MODULES:
        code = f"import hpcqa.launch.job, hpcqa.{module}; from hpcqa.config import frozen; frozen.load(RUN)"
        parts[f"all of {module.split('.')[1]}"] = fresh(code)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=2500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--slurm", action="store_true", help="the Slurm of this shell instead of a stand-in")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with contextlib.nullcontext() if options.slurm else stand_in(folder):
            results = {"campaign": submitting(folder, options.shards, options.rounds)}
        results["start-up"] = starting(folder / "run", options.rounds)
    for title, times in results.items():
        print(f"\n{title:48s} {'wall s':>8s} {'CPU s':>8s}")
        for part, one in times.items():
            print(f"  {part:46s} {one['wall_s']:8.2f} {one['core_s']:8.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
