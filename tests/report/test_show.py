import numpy as np
import pytest
from matplotlib import image

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.errors import DataError
from hpcqa.report.show import show
from hpcqa.report.viewer import Viewer
from tests.report import made_up
from tests.report.made_up import FIRST


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = made_up.make_run(tmp_path_factory.mktemp("show") / "run", 6, cut=1)
    made_up.add_shards(run)
    return run


def test_viewer_gives_the_ccds_that_have_views(folder):
    viewer = Viewer(Config(), folder)
    assert FIRST in viewer
    assert FIRST + 5 not in viewer
    seen = viewer.views(FIRST)
    assert len(seen.context) == 12
    assert {number for number, bits in seen.failed.items() if bits} == {1, 2}
    assert (seen.wrong_sum, viewer.views(FIRST + 1).wrong_sum) == ((), (5,))
    assert round(float(seen.context[7].mean())) == 7
    assert seen.focal_plane.shape == (64, 64)
    assert seen.number_names == ("sky", "fwhm")
    assert np.isnan(viewer.views(FIRST + 2).background[14][0, 0])


def test_viewer_without_shards_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="hpcqa shard"):
        Viewer(Config(), RunFolder(tmp_path))
    (tmp_path / "shards").mkdir()
    with pytest.raises(DataError, match="hpcqa shard"):
        Viewer(Config(), RunFolder(tmp_path))


def test_show_writes_a_png(folder, tmp_path):
    path = show(Config(), folder, FIRST, tmp_path)
    assert path == tmp_path / f"{FIRST}.png"
    pixels = image.imread(path)
    assert min(pixels.shape[:2]) > 800
    named = show(Config(), folder, FIRST + 1, tmp_path / "deep" / "one.png")
    assert named.is_file()
    assert [entry.name for entry in named.parent.iterdir()] == ["one.png"]


@pytest.mark.parametrize(
    ("expnum", "said"),
    [
        (77, "none of the run's tables"),
        (FIRST + 5, "was cut: images/g/one.fits.fz is not there"),
        (FIRST + 3, "no shard"),
    ],
)
def test_show_says_why_not(folder, tmp_path, expnum, said):
    with pytest.raises(DataError, match=said):
        show(Config(), folder, expnum, tmp_path)


def test_show_needs_no_decisions(folder, tmp_path):
    run = made_up.make_run(tmp_path / "run", 3, cut=0)
    made_up.add_shards(run)
    run.output("decisions").unlink()
    assert show(Config(), run, FIRST + 1, tmp_path).is_file()
