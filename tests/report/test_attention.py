import numpy as np

from hpcqa.artifacts.catalog import ATTENTION
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.artifacts.store import write_arrays
from hpcqa.report import attention, indexed


def leave(path, views=("context", "detail"), odds=(3.0, -1.0)):
    """What training leaves of two CCDs; the first patch of the first one has all attention."""
    columns = {
        "expnum": np.array([500001, 500002]),
        "ccdnum": np.array([7, 3], np.int32),
        "suspicion": np.array(odds, np.float32),
    }
    for view, shape in (("context", (32, 16)), ("detail", (32, 32))):
        if view in views:
            weights = np.full((2, 3, shape[0] // 8, shape[1] // 8), 0.01, np.float32)
            weights[0, :, 0, 0] = 0.5
            columns[view] = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float16)
            columns[f"{view}_attention"] = weights
    write_arrays(path / "attention.h5", ATTENTION, columns, Provenance("digest"))
    return RunFolder(path)


def test_pictures_and_words(tmp_path):
    (chart,) = attention.charts(leave(tmp_path), tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert len(names) == 8
    assert all(f'src="images/{name}"' in chart.markup for name in names)
    assert chart.markup.count("alt=") == 8
    assert "500001, CCD 7, log-odds of a defect 3.0" in chart.markup
    assert chart.rows[0] == ("500001, CCD 7", "3.00", "0.57", "0.65")
    assert len(chart.header) == len(chart.rows[0])


def test_without_heads_nothing_is_said_of_defects(tmp_path):
    (chart,) = attention.charts(leave(tmp_path, odds=(np.nan, np.nan)), tmp_path)
    assert "log-odds" not in chart.markup


def test_runs_without_pictures_have_no_chart(tmp_path):
    assert attention.charts(RunFolder(tmp_path), tmp_path) == []
    assert attention.charts(leave(tmp_path, views=()), tmp_path) == []
    (tmp_path / "attention.h5").write_bytes(b"damaged")
    assert attention.charts(RunFolder(tmp_path), tmp_path) == []


def test_heat_is_bright_where_there_is_most():
    weights = np.zeros((16, 16))
    weights[3, 4] = 1
    weights[5] = 0.5
    picture = indexed.heat(weights)
    light = picture.rgba()[..., :3].astype(int).sum(-1)
    assert light[3, 4] == light.max()
    assert light[0, 0] == light.min()
    assert indexed.heat(np.zeros((4, 4))).pixels.shape == (4, 4)
