"""Training goes on when shards were touched meanwhile, and ends when they hold something else."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from hpcqa.config import ModelConfig, SslConfig
from hpcqa.errors import DataError
from hpcqa.parallel import preemption
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels import calibrate, shards
from hpcqa.ssl import pretrain, trainer, weights

STEPS = 6


def prepared(survey):
    shards.run(survey.config, survey.folder, Ranks())
    calibrate.run(survey.config, survey.folder, Ranks())
    return survey


def settings(survey, handles):
    small = {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "knn_every": 0, "warmup": 0.25}
    ssl = SslConfig(steps=STEPS, batch=4, checkpoint_every=2, log_every=1, device="cpu", max_passes=99, **small)
    reading = replace(survey.config.shard, reader_cache=0.0, reader_handles=handles)
    return replace(survey.config, model=ModelConfig(arch="demo", registers=1), ssl=ssl, shard=reading)


@pytest.fixture
def trained(survey, monkeypatch):
    """Trains in a run of its own, something being done in each step."""
    prepared(survey)

    def train(name, meanwhile=lambda step, path: None, handles=128):
        folder = replace(survey.folder, path=survey.folder.path.with_name(name))
        shutil.copytree(survey.folder.path, folder.path)
        done: list[int] = []

        def requested():
            done.append(len(done) + 1)
            meanwhile(done[-1], folder.output("shards") / "shard-00001.h5")
            return False

        monkeypatch.setattr(preemption, "requested", requested)
        pretrain.run(settings(survey, handles), folder, Ranks())
        return weights.read_card(folder.output("backbone"))["content"], len(done)

    return train


def in_step(number, *works):
    """Does something in a step, and something else in each of the next."""

    def meanwhile(step, path):
        if 0 <= step - number < len(works):
            works[step - number](path)

    return meanwhile


def touch(path):
    os.utime(path)


def replace_by_copy(path):
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    copy.rename(path)


def spoil(path):
    """Other bytes in place; twice undoes it."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        there = file.read(size // 4)
        file.seek(size // 2)
        file.write(bytes(255 - byte for byte in there))


def test_a_touched_shard_costs_the_steps_since_the_last_checkpoint(trained, caplog):
    undisturbed, steps = trained("undisturbed")
    assert steps == STEPS
    # With one handle the reader meets the touched file before a checkpoint does.
    for number, (works, handles) in enumerate(
        [([touch], 128), ([replace_by_copy], 128), ([spoil, spoil], 128), ([touch], 1)]
    ):
        caplog.clear()
        found, steps = trained(f"touched-{number}", in_step(5 - len(works), *works), handles)
        assert found == undisturbed
        assert steps in (STEPS + 1, STEPS + 2)
        assert "hold what they held" in caplog.text


def test_a_shard_that_holds_something_else_ends_the_run(trained):
    with pytest.raises(DataError, match=r"shard-00001.h5: was .*goes on from step 2"):
        trained("spoilt", in_step(3, spoil))


def test_a_shard_that_is_touched_all_the_time_ends_the_run(trained):
    with pytest.raises(DataError, match=r"goes on from step 0"):
        trained("touched", lambda step, path: touch(path))


def test_what_cannot_be_read_ends_the_run_if_nothing_was_touched(trained, monkeypatch):
    def said(self):
        raise trainer.Unread("why", 1)

    monkeypatch.setattr(trainer.Trainer, "run", said)
    with pytest.raises(DataError, match="why"):
        trained("unread")


RANK = """
import os, pickle, sys
from hpcqa.parallel import preemption
from hpcqa.parallel.ranks import detect
from hpcqa.ssl import pretrain
config, folder = pickle.load(open(sys.argv[1], "rb"))
ranks, done = detect(os.environ), []
def requested():
    done.append(1)
    if len(done) == 4 and ranks.is_first:
        os.utime(folder.output("shards") / "shard-00001.h5")
    return False
preemption.requested = requested
pretrain.run(config, folder, ranks)
print(len(done))
"""


def test_two_ranks_go_back_together(survey, tmp_path):
    """The second one watches what the first one touches."""
    config = settings(prepared(survey), 128)
    (tmp_path / "what").write_bytes(pickle.dumps((config, survey.folder)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "what")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    steps = [process.communicate(timeout=500)[0].split()[-1] for process in processes]
    assert steps == [str(STEPS + 2)] * 2
    assert weights.read_card(survey.folder.output("backbone"))["step"] == STEPS
