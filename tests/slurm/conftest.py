"""A real Slurm of three nodes on this machine, started once for all tests that need it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import ClusterConfig, Config, ResourcesConfig
from hpcqa.config.frozen import to_yaml
from hpcqa.launch import jobs, queue
from hpcqa.launch.queue import JobState
from hpcqa.stages import Stage

ROOT = Path(__file__).parent.parent.parent
# On a machine that is busy with other work every wait may last so many times longer.
PATIENCE = float(os.environ.get("HPCQA_TEST_PATIENCE", "1"))
# A node refuses a requeued job that comes back before it has cleaned up behind its last start.
CLEAN_UP_S = 4.0


def load_cluster_script():
    spec = importlib.util.spec_from_file_location("cluster", ROOT / "slurm" / "cluster.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


cluster_script = load_cluster_script()


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


def free_ports(count: int) -> int:
    """The first of some neighbouring ports that nobody listens on."""
    for port in range(18000, 30000, 50):
        with socket.socket() as probe:
            if all(probe.connect_ex(("127.0.0.1", port + offset)) for offset in range(count)):
                return port
    raise RuntimeError("no free ports")


@pytest.fixture(scope="session")
def cluster():
    """The folder of a running cluster; SLURM_CONF points to it while the tests run."""
    missing = cluster_script.missing_programs(accounting=False)
    problem = f"not installed: {', '.join(missing)}" if missing else "" if os.geteuid() == 0 else "needs root"
    wanted = os.environ.get("HPCQA_TEST_SLURM", "if there")
    if wanted == "later":
        pytest.skip("left for a run of its own: pytest -m slurm")
    if problem and wanted == "required":
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    # Short: sockets have paths of at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="hq-slurm-", dir="/tmp"))
    accounting = not cluster_script.missing_programs(accounting=True)
    for name in list(os.environ):
        if name.startswith(("SLURM", "SBATCH", "HPCQA_R", "HPCQA_W")):
            del os.environ[name]
    try:
        cluster_script.start(folder, cluster_script.Shape(accounting=accounting, port=free_ports(6)))
        os.environ["SLURM_CONF"] = str(folder / "etc" / "slurm.conf")
        yield folder
    finally:
        os.environ.pop("SLURM_CONF", None)
        cluster_script.stop(folder)
        left = cluster_script.running(folder), cluster_script.leftovers(folder)
        assert left == ({}, []), f"left running: {left}"
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def _empty_queue(request):
    """Every test starts with an empty queue and idle nodes."""
    cluster = request.getfixturevalue("cluster")
    yield
    subprocess.run(["scancel", "--user=root"], check=False, timeout=20)
    wait_for(lambda: not subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout, cluster)


WORK = '''
"""Stage functions of the Slurm tests."""
import json, os, signal, time
from pathlib import Path
from hpcqa.artifacts.store import write_json
from hpcqa.errors import DataError
from hpcqa.parallel import preemption


def piece(folder, number, **content):
    path = folder.path / "pieces" / f"{number}.json"
    if not path.exists():
        write_json(path, {"number": number, **content})


def share(config, folder, ranks):
    (folder.path / f"node-{ranks.rank}").write_text(os.environ["SLURMD_NODENAME"])
    for number in ranks.share(12):
        time.sleep(0.3)
        piece(folder, number, square=number**2)


def slow(config, folder, ranks):
    with (folder.path / "starts").open("a") as file:
        file.write(f"{ranks.rank}\\n")
    for number in ranks.share(12):
        if (folder.path / "pieces" / f"{number}.json").exists():
            continue
        time.sleep(float(os.environ.get("PIECE_S", "0.5")))
        piece(folder, number, square=number**2)


def embed(config, folder, ranks):
    from hpcqa.parallel import mpi
    for number in mpi.hand_out(list(range(12)), ranks):
        time.sleep(0.05)
        piece(folder, number, square=number**2)
    nodes = mpi.gather(os.environ["SLURMD_NODENAME"], ranks)
    if ranks.is_first:
        write_json(folder.path / "nodes.json", nodes)


def train(config, folder, ranks):
    """A loop as training has it: agree on stopping, save together, go on exactly."""
    import torch
    import torch.distributed as dist
    dist.init_process_group("gloo", init_method="env://", rank=ranks.rank, world_size=ranks.world_size)
    saved = folder.path / "state.json"
    state = json.loads(saved.read_text()) if saved.exists() else {"step": 0, "value": 1.0, "starts": 0}
    state["starts"] += 1
    while state["step"] < 30:
        grad = torch.tensor([float(ranks.rank + state["step"])], dtype=torch.float64)
        dist.all_reduce(grad)
        state["value"] = state["value"] * 1.01 + float(grad)
        state["step"] += 1
        time.sleep(0.1)
        stop = torch.tensor([int(preemption.requested())])
        dist.all_reduce(stop)
        if int(stop) or state["step"] == 30:
            if ranks.is_first:
                write_json(saved, state)
            dist.barrier()
        if int(stop) and state["step"] < 30:
            raise preemption.Preempted("Saved.")
    dist.destroy_process_group()


def refuse(config, folder, ranks):
    raise DataError("image.fits: truncated; fetch it again.")


def refuse_once(config, folder, ranks):
    if not (folder.path / "mended").exists():
        raise DataError("image.fits: truncated; fetch it again.")
    (folder.path / "passed").touch()


def kill_one(config, folder, ranks):
    if ranks.rank == 1 and not (folder.path / "mended").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    for number in ranks.share(12):
        piece(folder, number, square=number**2)


def where(config, folder, ranks):
    import hpcqa
    (folder.path / "where").write_text(hpcqa.__file__)
'''


class Bench:
    """A run folder (with a space in its path) and helpers to run stages of the tests in it."""

    def __init__(self, path: Path, cluster: Path) -> None:
        path.mkdir(parents=True)
        self.path, self.cluster = path, cluster
        self.folder = RunFolder(path)
        self.configure()

    def configure(self, cluster: ClusterConfig | None = None, **stages: ResourcesConfig) -> Config:
        self.config = Config(run=str(self.path), stage=stages, cluster=cluster or ClusterConfig())
        (self.path / "run.yaml").write_text(to_yaml(self.config, []))
        return self.config

    def states(self, job: str) -> list[JobState]:
        return queue.states([job]).get(job, [])

    def wait(self, submission: jobs.Submission, seconds: float = 60.0) -> list[str]:
        """The final states of a job's tasks."""
        wait_for(lambda: not any(state.is_live for state in self.states(submission.job)), self.cluster, seconds)
        return [state.state for state in self.states(submission.job)]

    def wait_state(self, submission: jobs.Submission, *wanted: str, seconds: float = 30.0) -> None:
        wait_for(lambda: any(state.state in wanted for state in self.states(submission.job)), self.cluster, seconds)

    def pieces(self) -> dict[int, str]:
        return {int(path.stem): path.read_text() for path in (self.path / "pieces").glob("*.json")}

    def wait_through_requeues(self, submission: jobs.Submission, seconds: float = 120.0) -> list[str]:
        """The final states of a job that is requeued; tasks that would wait two minutes are started earlier.

        Not at once: a node refuses a job that comes back before it has cleaned up behind its last start.
        """
        seen: dict[str, float] = {}

        def ended() -> bool:
            states = self.states(submission.job)
            for state in states:
                if state.state == "PENDING" and state.reason == "BeginTime":
                    if time.monotonic() - seen.setdefault(state.task, time.monotonic()) > CLEAN_UP_S:
                        self._start(state)
                else:
                    seen.pop(state.task, None)
            return not any(state.is_live for state in states)

        wait_for(ended, self.cluster, seconds)
        return [state.state for state in self.states(submission.job)]

    def _start(self, state: JobState) -> None:
        name = f"{state.job}_{state.task}" if state.task else state.job
        subprocess.run(["scontrol", "update", f"jobid={name}", "StartTime=now"], capture_output=True, check=False)


@pytest.fixture
def bench(cluster, tmp_path, monkeypatch) -> Bench:
    place = tmp_path / "modules"
    place.mkdir()
    (place / "slurmwork.py").write_text(textwrap.dedent(WORK))
    monkeypatch.setenv("PYTHONPATH", str(place))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.syspath_prepend(str(place))
    return Bench(tmp_path / "my runs" / "one", cluster)


def make_stage(function: str, ranks: str, name: str = "") -> Stage:
    names = {"tasks": "shard", "torch": "pretrain", "mpi": "embed", "one": "fit"}
    return Stage(name or names[ranks], "", f"slurmwork:{function}", ranks, (), ("shards",))


def wait_for(done: Callable[[], bool], cluster: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds * PATIENCE
    while not done():
        if time.monotonic() > deadline:
            asked = subprocess.run(["squeue"], capture_output=True, text=True, check=False)
            log = (cluster / "log" / "slurmctld.log").read_text().splitlines()[-15:]
            raise AssertionError("\n".join(["not within the time", asked.stdout, *log]))
        time.sleep(0.2)
