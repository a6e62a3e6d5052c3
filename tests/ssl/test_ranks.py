"""Real processes over gloo: one result on one, two and four ranks, whole and sharded; stopping together, SIGKILL."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hpcqa.errors import ConfigError, EnvironmentProblem
from hpcqa.parallel import torchdist
from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import World, joined
from tests.ssl import ranks

ROOT = Path(__file__).parents[2]


def start(what: str, folder: Path, size: int) -> list[subprocess.Popen]:
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(size):
        environment = os.environ | {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        command = [sys.executable, "-m", "tests.ssl.ranks", what, str(folder)]
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    return processes


ONE = World(Ranks(), torch.device("cpu"))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folders of what one rank and what two ranks made."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    processes = start("everything", two, 2)
    ranks.measure(ONE, one)
    ranks.train(ONE, one / "trained")
    ranks.train(ONE, one / "sharded", clip=0.3)
    finish(processes)
    return one, two


@pytest.fixture(scope="module")
def four(both, tmp_path_factory):
    """The folder of what four ranks made, some of it from a checkpoint of two."""
    folder = tmp_path_factory.mktemp("four")
    shutil.copytree(both[1] / "stopped", folder / "stopped")
    processes = start("four", folder, 4)
    ranks.train(ONE, both[0] / "pieces", **ranks.TWO_PIECES)
    ranks.train(ONE, both[0] / "crops-alone", defect_weight=0.0)
    finish(processes)
    return folder


def finish(processes: list[subprocess.Popen]) -> None:
    errors = [process.communicate(timeout=500)[1] for process in processes]
    assert not any(process.returncode for process in processes), errors[0][-3000:]


def assert_same_network(first: Path, second: Path) -> None:
    one, two = (load_file(path / "backbone.safetensors") for path in (first, second))
    for name in one:
        assert torch.allclose(one[name], two[name], atol=2e-4), name


def assert_same_losses(first: Path, second: Path) -> None:
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (first, second)]
    for one, two in zip(*(map(json.loads, found) for found in lines), strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-2)


def test_losses_of_uneven_ranks_are_those_of_one(both):
    one, two = (torch.load(path / f"measured-{size}.pt", weights_only=True) for size, path in enumerate(both, 1))
    for name in ("koleo", "gradient", "targets", "at_once", "centre"):
        assert torch.allclose(one[name], two[name], atol=1e-5), name
    assert two["flags"] == [True, False]


def test_one_and_two_ranks_train_the_same_network(both):
    one, two = (path / "trained" for path in both)
    assert_same_network(one, two)
    assert_same_losses(one, two)


def test_sharded_ranks_train_the_same_network(both):
    one, two = (path / "sharded" for path in both)
    assert_same_network(one, two)
    assert_same_losses(one, two)
    first = json.loads((one / "metrics.jsonl").read_text().splitlines()[0])
    assert first["grad_norm"] > 0.3  # clipping had something to do


def test_four_ranks_with_two_pieces_each_train_the_same_network(both, four):
    assert_same_network(both[0] / "pieces", four / "trained")
    assert_same_losses(both[0] / "pieces", four / "trained")


def test_views_that_an_ablation_left_without_a_task_keep_no_rank_waiting(both, four):
    assert_same_network(both[0] / "crops-alone", four / "crops-alone")


def test_sharded_ranks_go_on_from_whole_ones_of_another_number(both, four):
    assert_same_network(both[0] / "trained", four / "stopped")


def test_all_ranks_stop_when_one_is_asked_and_another_number_goes_on(both, tmp_path):
    one, two = both
    for name, more in (("stopped", {}), ("stopped-sharded", {"clip": 0.3})):
        assert [(two / name / f"preempted-{rank}").exists() for rank in range(2)] == [True, True]
        assert list((two / name).glob("checkpoints/*/step-00000001/meta.json"))
        shutil.copytree(two / name, tmp_path / name)
        ranks.train(ONE, tmp_path / name, **more)
    assert_same_network(one / "trained", tmp_path / "stopped")
    assert_same_network(one / "sharded", tmp_path / "stopped-sharded")


def test_what_one_rank_cannot_read_ends_all_with_the_same_sentence(both):
    for name, found in (
        ("unreadable", "shard-00000.h5: context cannot be read"),
        ("changed", "shard-1.h5: has 3 bytes"),
    ):
        first, second = ((both[1] / "damaged" / f"{name}-{rank}").read_text() for rank in range(2))
        assert first == second
        assert found in first


def test_a_kill_at_any_moment_leaves_a_state_to_go_on_from(tmp_path):
    for wait in (0.0, 0.15):
        (process,) = start("forever", tmp_path, 1)
        seen = len(list(tmp_path.glob("checkpoints/*/step-*/meta.json")))
        deadline = time.monotonic() + 120
        while len(list(tmp_path.glob("checkpoints/*/step-*/meta.json"))) <= seen % 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        (folder,) = (tmp_path / "checkpoints").iterdir()
        assert sorted(folder.glob("step-*"))
        assert all((step / "meta.json").exists() and (step / ".metadata").exists() for step in folder.glob("step-*"))


def test_one_process_needs_no_peers():
    world = World(Ranks(), torch.device("cpu"))
    x = torch.ones(3)
    assert world.sum(x)[0] is x
    assert world.gather([x], [[3]])() == [(x, 0)]
    assert world.any_of([True, False])() == [True, False]
    assert world.share("plan") == "plan"
    assert world.said("why") == "why"
    assert world.on_first(lambda: 3) == 3
    assert world.on_each(lambda: 3) == 3
    module = torch.nn.Linear(2, 2)
    assert world.replicate(module) is module


def test_a_launcher_without_an_address_is_named(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(EnvironmentProblem, match="MASTER_ADDR"), joined(Ranks(0, 2), torch.device("cpu")):
        pass


def test_devices(monkeypatch):
    assert torchdist.pick_device("cpu", 3).type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torchdist.pick_device("auto", 0).type == "cpu"
    with pytest.raises(ConfigError, match="no CUDA device"):
        torchdist.pick_device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torchdist.pick_device("cuda", 1) == torch.device("cuda", 1)
    with pytest.raises(EnvironmentProblem, match="one rank a device"):
        torchdist.pick_device("auto", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert torchdist.pick_device("auto", 2) == torch.device("cuda", 0)


def test_threads_are_shared_out():
    before = torch.get_num_threads()
    assert torchdist.set_threads(10**6) == 1
    torch.set_num_threads(before)
