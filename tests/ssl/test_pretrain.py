"""Training as a whole on cutouts in memory: going on, skipping, stopping, exporting."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import ConfigError, DataError
from hpcqa.parallel import preemption
from hpcqa.parallel.preemption import Preempted
from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import World
from hpcqa.ssl import encode, pretrain, weights
from hpcqa.ssl.watch import Watch
from tests.ssl.fakes import FakeCutouts, small_config

WORLD = World(Ranks(), torch.device("cpu"))


def train(path, cutouts=None, parents=None, **ssl):
    config = small_config(**ssl)
    pretrain.train(config, RunFolder(path), cutouts or FakeCutouts(), WORLD, parents or {})
    return config


def lines(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_trains_exports_and_says_so(tmp_path):
    config = train(tmp_path, parents={"shards/shard-00000.h5": "abc"})
    model, card = weights.load_backbone(tmp_path / "backbone.safetensors")
    assert (card["step"], card["parents"]) == (4, {"shards/shard-00000.h5": "abc"})
    written = lines(tmp_path)
    assert [line["step"] for line in written] == [1, 2, 3, 4]
    assert {"loss", "grad_norm", "lr", "images_per_s", "data_wait_share", "rank_context"} <= set(written[-1])
    assert all(np.isfinite(value) for value in written[-1].values())
    untrained = weights.untrained(card)
    assert not torch.equal(model.blocks[0].attn.qkv.weight, untrained.blocks[0].attn.qkv.weight)
    start = pretrain.starting_network(config)
    assert all(torch.equal(a, b) for a, b in zip(untrained.parameters(), start.parameters(), strict=True))


def test_no_steps_give_the_untrained_network(tmp_path):
    train(tmp_path, steps=0)
    model, card = weights.load_backbone(tmp_path / "backbone.safetensors")
    assert card["step"] == 0
    untrained = weights.untrained(card)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untrained.parameters(), strict=True))


@pytest.mark.parametrize("extra", [{}, {"positives": "exposure", "centring": "softmax", "shared_head": False}])
def test_ten_steps_are_five_and_five_more(tmp_path, monkeypatch, extra):
    settings = {"steps": 6, "checkpoint_every": 100, "accumulate": 2, "batch": 16, **extra}
    train(tmp_path / "whole", **settings)
    asked = iter([False, False, True])
    monkeypatch.setattr(preemption, "requested", lambda: next(asked, False))
    with pytest.raises(Preempted, match="step 3"):
        train(tmp_path / "halves", **settings)
    assert not (tmp_path / "halves" / "backbone.safetensors").exists()
    train(tmp_path / "halves", **settings)
    cards = [weights.read_card(tmp_path / half / "backbone.safetensors") for half in ("whole", "halves")]
    assert cards[0]["content"] == cards[1]["content"]
    whole, halves = lines(tmp_path / "whole"), lines(tmp_path / "halves")
    assert [line["loss"] for line in whole] == [line["loss"] for line in halves]


def test_lines_of_steps_that_are_done_again_are_dropped(tmp_path, monkeypatch):
    train(tmp_path, steps=4)
    (tmp_path / "backbone.safetensors").unlink()
    (path,) = (tmp_path / "checkpoints").iterdir()
    (path / "step-00000004" / "meta.json").unlink()
    train(tmp_path, steps=4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_only_the_last_checkpoints_stay(tmp_path):
    train(tmp_path, steps=5, checkpoint_every=1, keep=2)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert sorted(found.name for found in path.iterdir()) == ["step-00000004", "step-00000005"]


def test_what_is_current_is_known(tmp_path):
    config = train(tmp_path, steps=0, parents={"a": "1"})
    folder = RunFolder(tmp_path)
    assert pretrain.is_current(config, folder, {"a": "1"})
    assert not pretrain.is_current(config, folder, {"a": "2"})
    assert not pretrain.is_current(small_config(steps=1), folder, {"a": "1"})
    (tmp_path / "backbone.safetensors").write_bytes(b"half a fi")
    assert not pretrain.is_current(config, folder, {"a": "1"})


def test_nan_pixels_are_a_counted_skip(tmp_path):
    cutouts = FakeCutouts()
    cutouts.arrays["background"][3, 0, 0] = np.nan
    train(tmp_path, cutouts, steps=6)
    skipped = [line for line in lines(tmp_path) if "why" in line]
    assert 0 < len(skipped) < 6
    assert "not finite" in skipped[0]["why"]
    assert {"view", "expnum", "ccdnum"} <= set(skipped[0]["batch"][0])
    model, _ = weights.load_backbone(tmp_path / "backbone.safetensors")
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_too_many_bad_steps_stop_the_run(tmp_path):
    cutouts = FakeCutouts()
    cutouts.arrays["detail"][:] = np.nan
    with pytest.raises(DataError, match=r"3 steps in a row.*not finite"):
        train(tmp_path, cutouts, steps=20, max_skipped=3)
    assert len(lines(tmp_path)[-1]["batch"]) == 4


def test_a_run_without_one_good_step_fails_and_stays_failed(tmp_path):
    cutouts = FakeCutouts()
    cutouts.arrays["detail"][:] = np.nan
    for _ in range(2):
        with pytest.raises(DataError, match="none of 3 steps"):
            train(tmp_path, cutouts, steps=3)
    assert not (tmp_path / "backbone.safetensors").exists()


def test_a_shard_that_is_damaged_meanwhile_ends_the_run_which_goes_on_exactly_once_it_is_whole(tmp_path):
    train(tmp_path / "sound", steps=6, checkpoint_every=1)
    cutouts = FakeCutouts()
    cutouts.damaged, cutouts.sound_reads = set(range(len(cutouts.expnum))), 17
    with pytest.raises(DataError, match=r"shard-00000.h5: context cannot be read.*goes on from step [2-5]"):
        train(tmp_path / "damaged", cutouts, steps=6, checkpoint_every=1)
    assert not (tmp_path / "damaged" / "backbone.safetensors").exists()
    train(tmp_path / "damaged", steps=6, checkpoint_every=1)
    cards = [weights.read_card(tmp_path / name / "backbone.safetensors") for name in ("sound", "damaged")]
    assert cards[0]["content"] == cards[1]["content"]


def overwrite(path):
    path.write_bytes(b"\0" * path.stat().st_size)
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        (overwrite, "was written to"),
        (lambda path: path.write_bytes(b""), "has 0 bytes and had 4"),
        (Path.unlink, "is gone"),
    ],
)
def test_nothing_is_saved_that_was_learned_from_a_file_that_changed(tmp_path, monkeypatch, damage, found):
    """Its bytes may still come without an error: from memory, or as zeros from a file that is open."""
    shard = tmp_path / "shard-00000.h5"
    shard.write_bytes(b"1234")
    watch = Watch([shard])
    asked = iter([False, False, False])

    def requested():
        if next(asked, None) is None:
            damage(shard)
        return False

    monkeypatch.setattr(preemption, "requested", requested)
    with pytest.raises(DataError, match=rf"shard-00000.h5: {found}.*goes on from step 2"):
        pretrain.train(small_config(steps=6), RunFolder(tmp_path), FakeCutouts(), WORLD, {}, watch)
    (path,) = (tmp_path / "checkpoints").iterdir()
    assert [found.name for found in path.iterdir()] == ["step-00000002"]


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path):
    train(tmp_path, steps=2)
    (path,) = (tmp_path / "checkpoints").glob("*/step-00000002/meta.json")
    meta = json.loads(path.read_text())
    meta["identity"]["dim"] = 97
    path.write_text(json.dumps(meta))
    with pytest.raises(DataError, match="another architecture"):
        train(tmp_path, steps=2)


def test_a_damaged_checkpoint_is_named(tmp_path):
    train(tmp_path, steps=2)
    (path,) = (tmp_path / "checkpoints").glob("*/step-00000002/*.distcp")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"step-00000002: damaged"):
        train(tmp_path, steps=2)


def test_what_a_kill_left_half_written_is_ignored(tmp_path):
    train(tmp_path, steps=2)
    (path,) = (tmp_path / "checkpoints").iterdir()
    aside = path / ".step-00000003.tmp"
    aside.mkdir()
    (aside / "__0_0.distcp").write_bytes(b"half")
    before = weights.read_card(tmp_path / "backbone.safetensors")["content"]
    train(tmp_path, steps=2)
    assert weights.read_card(tmp_path / "backbone.safetensors")["content"] == before


@pytest.mark.parametrize(
    ("ssl", "cutouts", "kind", "message"),
    [
        ({"accumulate": 5}, None, ConfigError, "do not go round"),
        ({"accumulate": 2}, None, ConfigError, "KoLeo needs two"),
        ({"mix": [1.0]}, None, ConfigError, "one share for each"),
        ({"defects_left_out": ["gremlin"]}, None, ConfigError, "no kind gremlin"),
        ({"init_from": "missing.safetensors"}, None, DataError, "not found"),
    ],
)
def test_bad_settings_are_named(tmp_path, ssl, cutouts, kind, message):
    with pytest.raises(kind, match=message):
        train(tmp_path, cutouts, **ssl)


@pytest.mark.parametrize("ccds", [1, 3])
def test_a_single_exposure_leaves_the_network_untrained(tmp_path, caplog, ccds):
    train(tmp_path, FakeCutouts(exposures=1, ccds=ccds), steps=3)
    assert "1 exposures with" in caplog.text
    assert weights.read_card(tmp_path / "backbone.safetensors")["step"] == 0


def test_a_batch_larger_than_the_data_takes_what_there_is(tmp_path, caplog):
    train(tmp_path, FakeCutouts(exposures=3, ccds=2), steps=1, batch=64)
    assert "taking these" in caplog.text


def test_views_tasks_and_losses_can_be_left_out(tmp_path):
    train(tmp_path / "a", views=["background"], mix=[1.0], crop_views=[], defect_views=["background"], number_weight=0)
    assert set(weights.read_card(tmp_path / "a" / "backbone.safetensors")["architecture"]["defects"]) == {"background"}
    train(tmp_path / "b", defect_weight=0, koleo_weight=0, ibot_weight=0, blur=1.0, jitter=0.1, steps=2)
    names = set(lines(tmp_path / "b")[-1])
    assert "loss_dino_context" in names
    assert not names & {"loss_ibot_context", "loss_koleo_context", "loss_defect_context"}


def test_init_from_a_backbone(tmp_path):
    train(tmp_path / "a", steps=2)
    path = tmp_path / "a" / "backbone.safetensors"
    config = small_config(init_from=str(path))
    started, (model, _) = pretrain.starting_network(config), weights.load_backbone(path)
    assert torch.equal(started.blocks[1].mlp.fc1.weight, model.blocks[1].mlp.fc1.weight)


def test_bf16_trains(tmp_path):
    train(tmp_path, steps=2, precision="bf16")
    assert np.isfinite(lines(tmp_path)[-1]["loss"])


def test_embeddings_and_answers_of_the_exported_network(tmp_path):
    train(tmp_path)
    model, _ = weights.load_backbone(tmp_path / "backbone.safetensors")
    images = encode.as_images(FakeCutouts().batch("background", np.arange(5)), torch.device("cpu"))
    vectors, answers = encode.encode_with_answers(model, images, "background")
    assert vectors.shape == (5, 3 * 96)
    assert answers.shape == (5, len(encode.defect_names(model.architecture, "background")))
    assert torch.equal(vectors, encode.encode(model, images, "background"))
    assert torch.equal(answers, encode.defect_answers(model, images, "background"))


@pytest.mark.parametrize(("num_ccds", "steps"), [(12, 30), (4200, 300), (1, 30), (64, 60)])
def test_small_surveys_are_not_looked_at_without_end(num_ccds, steps):
    config = small_config(steps=300, batch=32, max_passes=30.0)
    assert pretrain.with_few_steps(config, num_ccds).ssl.steps == steps
