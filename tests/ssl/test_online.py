import numpy as np
import pytest
import torch

from hpcqa.artifacts.folder import RunFolder
from hpcqa.qa.blocks import NumberScale
from hpcqa.qa.embedded import ExposureTable
from hpcqa.qa.known import Known
from hpcqa.qa.learn import Recipe
from hpcqa.ssl import pretrain
from hpcqa.ssl.online import OnlineKnn, Subset
from tests.ssl.fakes import FakeCutouts, small_config


@pytest.fixture(scope="module")
def online():
    """Thirty labelled exposures, a third of them bad: their background maps have a bright half."""
    cutouts = FakeCutouts(exposures=40, ccds=3)
    bad = np.arange(40) % 3 == 0
    rows = bad[np.searchsorted(cutouts.exposures, cutouts.expnum)]
    cutouts.arrays["background"][rows, :8] += 4
    labelled = cutouts.exposures[:30]
    known = Known(labelled, np.full(30, -1, np.int32), bad[:30], np.where(bad[:30], 1, 0).astype(np.int64))
    night = (np.arange(40) // 4).astype(np.int32)
    table = ExposureTable(cutouts.exposures, np.full(40, "g", object), night)
    numbers = cutouts.numbers(np.arange(120))
    scale = NumberScale.of_numbers(numbers, np.full(120, "g"))
    device = torch.device("cpu")
    return OnlineKnn(Subset(cutouts, labelled), table, known, scale, Recipe(k=2, pca=8), "fp32", device)


def network():
    return pretrain.starting_network(small_config()).eval()


def test_a_network_that_sees_the_defect_scores_above_numbers_that_do_not(online):
    model = network()
    controls, found = online.controls(model), online.check(model)
    assert set(controls) | set(found) == {"knn_ap", "knn_ap_with_numbers", "knn_ap_untrained", "knn_ap_numbers"}
    assert found["knn_ap"] > 0.9
    assert controls["knn_ap_numbers"] < 0.8
    assert controls["knn_ap_untrained"] == found["knn_ap"]


def test_subsets_keep_rows_and_exposures_together():
    cutouts = FakeCutouts(exposures=6, ccds=3)
    cutouts.failed[4] = 1
    order = np.random.default_rng(0).permutation(18)
    for name in ("expnum", "ccdnum", "failed", "_numbers"):
        setattr(cutouts, name, getattr(cutouts, name)[order])
    subset = Subset(cutouts, np.array([101, 103]))
    assert subset.expnum.tolist() == [101] * 2 + [103] * 3
    assert subset.ccdnum.tolist() == [1, 3, 1, 2, 3]
    assert np.array_equal(subset.focal_plane(np.array([1])), cutouts.planes[[3]])
    rows = [int(np.flatnonzero((cutouts.expnum == 103) & (cutouts.ccdnum == c))[0]) for c in (1, 2, 3)]
    assert np.array_equal(subset.batch("detail", np.array([2, 3, 4])), cutouts.arrays["detail"][rows])
    assert np.array_equal(subset.numbers(np.array([2, 3, 4])), cutouts._numbers[rows], equal_nan=True)


def test_without_labels_there_is_no_check(tmp_path):
    folder = RunFolder(tmp_path)
    assert OnlineKnn.of(small_config(), folder, FakeCutouts(), torch.device("cpu")) is None


def test_the_best_checkpoint_is_kept_and_exported(tmp_path, monkeypatch):
    """A check that likes step 2 best: its checkpoint outlives the policy, and is what export=best writes."""
    scores = {1: 0.2, 2: 0.9, 3: 0.5, 4: 0.6}
    monkeypatch.setattr(
        pretrain, "knn_check", lambda *_: lambda step, teacher: {"knn_ap": scores[step], "knn_ap_untrained": 0.1}
    )
    from hpcqa.parallel.ranks import Ranks
    from hpcqa.parallel.torchdist import World
    from hpcqa.ssl import weights

    world = World(Ranks(), torch.device("cpu"))
    contents = {}
    for export in ("last", "best"):
        config = small_config(knn_every=1, checkpoint_every=1, keep=1, export=export)
        folder = tmp_path / export
        pretrain.train(config, RunFolder(folder), FakeCutouts(), world, {})
        card = weights.read_card(folder / "backbone.safetensors")
        contents[export] = (card["step"], card["content"])
        kept = sorted(path.name for path in folder.glob("checkpoints/*/step-*"))
        assert kept == ["step-00000002", "step-00000004"]
    assert contents["last"][0] == 4
    assert contents["best"][0] == 2
    assert contents["last"][1] != contents["best"][1]
