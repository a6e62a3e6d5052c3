import dataclasses

import numpy as np
import pytest
import torch

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import DataError
from hpcqa.ssl import attention, pretrain, weights
from tests.ssl.fakes import FakeCutouts, small_config
from tests.ssl.reference import hugging_face
from tests.ssl.test_pretrain import train
from tests.ssl.test_vit import BASE


@pytest.mark.parametrize("registers", [0, 3])
def test_agrees_with_an_independent_implementation(registers):
    ours, theirs = hugging_face(dataclasses.replace(BASE, registers=registers, layer_scale=0.5))
    theirs.set_attn_implementation("eager")
    images = torch.randn(2, 3, 28, 42)
    with torch.no_grad():
        expected = theirs(images, output_attentions=True).attentions[-1][:, :, 0, 1 + registers :]
    found = attention.attention(ours, images, "image", "fp32")
    assert found.shape == (2, 4, 4, 6)
    assert torch.allclose(found.flatten(2), expected, atol=1e-5)


def test_training_leaves_a_picture_of_the_suspicious_and_the_ordinary(tmp_path):
    train(tmp_path)
    card = weights.read_card(tmp_path / "backbone.safetensors")
    with store.open_arrays(tmp_path / "attention.h5", catalog.ATTENTION) as file:
        assert dict(file.provenance.parents) == {"backbone.safetensors": card["content"]}
        assert file.read("context").shape == (6, 32, 16)
        seen = file.read("context_attention")
        assert seen.shape == (6, 3, 4, 2)
        assert (seen.sum((2, 3)) < 1).all()
        assert file.read("detail_attention").shape == (6, 3, 4, 4)
        odds, keys = file.read("suspicion"), list(zip(file.read("expnum"), file.read("ccdnum"), strict=True))
    assert len(set(keys)) == 6
    assert odds[:3].min() >= odds[3:].max()
    cutouts = FakeCutouts()
    row = int(np.flatnonzero((cutouts.expnum == keys[1][0]) & (cutouts.ccdnum == keys[1][1]))[0])
    with store.open_arrays(tmp_path / "attention.h5", catalog.ATTENTION) as file:
        assert np.array_equal(file.read("background")[1], cutouts.arrays["background"][row])


def test_the_choice_takes_the_worst_and_the_middle():
    odds = np.array([0.0, 5, 1, 2, 9, 3, 4], np.float32)
    assert attention.choose(odds, 4).tolist() == [4, 1, 3, 5]
    assert len(set(attention.choose(np.full(9, np.nan, np.float32), 6))) == 6
    assert attention.choose(np.array([1.0, 2.0]), 2).tolist() == [1, 0]


def test_few_ccds_and_a_single_view(tmp_path):
    config = small_config(views=["background"], mix=[1.0], crop_views=[], number_weight=0, defect_weight=0)
    model = pretrain.starting_network(config).eval()
    columns = attention.look(model, FakeCutouts(exposures=2, ccds=2), config)
    assert "context" not in columns
    assert len(columns["expnum"]) == 4
    assert np.isnan(columns["suspicion"]).all()


def test_shards_that_cannot_be_read_cost_only_the_picture(tmp_path, caplog):
    def damaged(view, rows):
        raise DataError("shards/shard-00000.h5: damaged.")

    cutouts, config = FakeCutouts(), small_config()
    cutouts.batch = damaged
    (tmp_path / "attention.h5").write_bytes(b"of an earlier network")
    attention.write(config, RunFolder(tmp_path), pretrain.starting_network(config).eval(), "c", cutouts)
    assert "no picture of attention" in caplog.text
    assert not (tmp_path / "attention.h5").exists()
