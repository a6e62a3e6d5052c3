"""Training goes on when shards were touched meanwhile, and ends when they hold something else."""

import os
import shutil
from dataclasses import replace

import pytest

from hpcqa.config import ModelConfig, SslConfig
from hpcqa.errors import DataError
from hpcqa.parallel import preemption
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels import calibrate, shards
from hpcqa.ssl import pretrain, trainer, weights

STEPS = 8


@pytest.fixture
def trained(survey, monkeypatch):
    """Trains in a run of its own, something being done in each step."""
    shards.run(survey.config, survey.folder, Ranks())
    calibrate.run(survey.config, survey.folder, Ranks())

    def train(name, meanwhile=lambda step, path: None, handles=128):
        folder = replace(survey.folder, path=survey.folder.path.with_name(name))
        shutil.copytree(survey.folder.path, folder.path)
        small = {"prototypes": 16, "head_hidden": 16, "head_bottleneck": 8, "knn_every": 0, "warmup": 0.25}
        ssl = SslConfig(steps=STEPS, batch=4, checkpoint_every=2, log_every=1, device="cpu", max_passes=99, **small)
        reading = replace(survey.config.shard, reader_cache=0.0, reader_handles=handles)
        config = replace(survey.config, model=ModelConfig(arch="demo", registers=1), ssl=ssl, shard=reading)
        done: list[int] = []

        def requested():
            done.append(len(done) + 1)
            meanwhile(done[-1], folder.output("shards") / "shard-00001.h5")
            return False

        monkeypatch.setattr(preemption, "requested", requested)
        pretrain.run(config, folder, Ranks())
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


@pytest.mark.parametrize(
    ("works", "handles"), [([touch], 128), ([replace_by_copy], 128), ([spoil, spoil], 128), ([touch], 1)]
)
def test_a_touched_shard_costs_the_steps_since_the_last_checkpoint(trained, works, handles, caplog):
    undisturbed, steps = trained("undisturbed", handles=handles)
    assert steps == STEPS
    found, steps = trained("touched", in_step(5 - len(works), *works), handles=handles)
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
