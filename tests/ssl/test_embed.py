"""Embeddings of cutouts, and the stage on shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.schema import Provenance
from hpcqa.ssl import embed, weights
from hpcqa.ssl.vit import VisionTransformer, build
from tests.ssl.fakes import VIEWS, FakeCutouts, small_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    heads = {"background": ("step", "glow"), "focal_plane": ("disc",)}
    return build(small_config().model, VIEWS, heads, seed=3).eval()


def test_columns_are_those_of_the_schema(model: VisionTransformer, tmp_path: Path) -> None:
    cutouts = FakeCutouts()
    cutouts.failed[5] = 2
    arrays = embed.embed(cutouts, model, CPU, 8, "fp32")
    store.write_arrays(tmp_path / "e.h5", catalog.EMBEDDING, arrays, Provenance("d"))
    assert np.isnan(arrays["context"][5]).all()
    assert np.isfinite(np.delete(arrays["context"], 5, axis=0)).all()
    assert arrays["defects"].shape == (48, 4)
    assert arrays["exposure_defects"].shape == (12, 2)
    assert arrays["focal_plane"].shape == (12, 3 * model.architecture.dim)


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_the_batch_does_not_show(model: VisionTransformer, batch: int) -> None:
    expected = embed.embed(FakeCutouts(), model, CPU, 16, "fp32")
    found = embed.embed(FakeCutouts(), model, CPU, batch, "fp32")
    for name, values in expected.items():
        assert np.allclose(values, found[name], rtol=1e-4, atol=1e-5, equal_nan=True), name


def test_an_image_is_embedded_by_itself(model: VisionTransformer) -> None:
    """The neighbours in the batch, and which rows failed, change nothing for a row."""
    cutouts = FakeCutouts()
    expected = embed.embed(cutouts, model, CPU, 16, "fp32")["detail"]
    cutouts.failed[:20] = 1
    found = embed.embed(cutouts, model, CPU, 16, "fp32")["detail"]
    assert np.allclose(expected[20:], found[20:], rtol=1e-4, atol=1e-5)


def test_a_shard_where_everything_failed(model: VisionTransformer) -> None:
    cutouts = FakeCutouts()
    cutouts.failed[:] = 1
    arrays = embed.embed(cutouts, model, CPU, 16, "fp32")
    assert np.isnan(arrays["background"]).all()
    assert arrays["background"].shape == (48, 3 * model.architecture.dim)


def test_the_control_is_the_network_before_training(model: VisionTransformer, tmp_path: Path) -> None:
    trained = build(small_config().model, VIEWS, seed=3).eval()
    start = {name: values.clone() for name, values in trained.state_dict().items()}
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.1)
    weights.save_backbone(tmp_path / "b.safetensors", trained, {"seed": 3})
    networks = embed.load_networks(tmp_path / "b.safetensors", CPU, control=True)
    assert [network.artifact for network in networks] == ["embeddings", "embeddings-untrained"]
    assert networks[0].identity != networks[1].identity
    for name, values in networks[1].model.state_dict().items():
        assert torch.equal(values, start[name]), name
    assert len(embed.load_networks(tmp_path / "b.safetensors", CPU, control=False)) == 1


def test_embeddings_without_a_shard_are_removed(tmp_path: Path) -> None:
    for name in ("shard-00000.h5", "shard-00007.h5", "notes.txt"):
        (tmp_path / name).touch()
    embed.remove_strangers(tmp_path, {"shard-00000.h5"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "shard-00000.h5"]


def test_a_damaged_row_is_an_error_with_its_sentence(model: VisionTransformer) -> None:
    cutouts = FakeCutouts()
    cutouts.damaged = {9}
    with pytest.raises(Exception, match="cannot be read; run `hpcqa verify`"):
        embed.embed(cutouts, model, CPU, 8, "fp32")


def test_each_network_by_itself_or_all_at_once_and_every_image_read_once(model: VisionTransformer) -> None:
    other = build(small_config().model, VIEWS, seed=4).eval()
    looked_at: list[int] = []

    def look(rows: np.ndarray, images: np.ndarray) -> None:
        assert np.array_equal(images, cutouts.arrays["background"][rows])
        looked_at.extend(rows.tolist())

    cutouts = FakeCutouts()
    cutouts.failed[5] = 2
    seen = watched(cutouts)
    both = embed.embed_by_each(cutouts, [model, other], CPU, 16, "fp32", look)
    for network, found in zip((model, other), both, strict=True):
        for name, values in embed.embed(cutouts, network, CPU, 16, "fp32").items():
            assert np.array_equal(values, found[name], equal_nan=True), name
    good = [row for row in range(48) if row != 5]
    assert looked_at == good
    # The first is by both at once, the second each by itself.
    assert seen == {
        **{view: 3 * good for view in ("context", "background", "detail")},
        "focal_plane": 3 * list(range(12)),
    }


def watched(cutouts: FakeCutouts) -> dict[str, list[int]]:
    """The rows that are read of each view from now on."""
    seen: dict[str, list[int]] = {}
    batch, focal_plane = cutouts.batch, cutouts.focal_plane

    def read_batch(view: str, rows: np.ndarray) -> np.ndarray:
        seen.setdefault(view, []).extend(rows.tolist())
        return batch(view, rows)

    def read_focal_plane(rows: np.ndarray) -> np.ndarray:
        seen.setdefault("focal_plane", []).extend(rows.tolist())
        return focal_plane(rows)

    cutouts.batch, cutouts.focal_plane = read_batch, read_focal_plane  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("learnt", [("background",), ("context", "focal_plane"), ("focal_plane",)])
def test_only_views_that_a_network_has_learnt_are_embedded(learnt: tuple[str, ...]) -> None:
    network = build(small_config().model, VIEWS, {}, learnt, seed=3).eval()
    cutouts = FakeCutouts()
    seen = watched(cutouts)
    found = embed.embed(cutouts, network, CPU, 16, "fp32")
    assert set(seen) == set(learnt)
    assert {"context", "background", "detail", "focal_plane"} & set(found) == set(learnt)


def test_maps_are_looked_at_though_the_network_does_not_know_them() -> None:
    network = build(small_config().model, VIEWS, {}, ("context",), seed=3).eval()
    looked_at: list[int] = []
    (found,) = embed.embed_by_each(
        FakeCutouts(), [network], CPU, 16, "fp32", lambda rows, images: looked_at.extend(rows.tolist())
    )
    assert looked_at == list(range(48))
    assert "background" not in found
