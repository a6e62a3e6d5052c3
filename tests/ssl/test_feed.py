import numpy as np
import pytest

from hpcqa.ssl.feed import STEPS_AHEAD, Feed
from tests.ssl.fakes import FakeCutouts, small_config


def rows_of(step, view):
    return [
        (int(e), int(c)) for piece in step.pieces for e, c in zip(piece[view].expnum, piece[view].ccdnum, strict=True)
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("view", ["context", "focal_plane"])
def test_ranks_together_see_what_one_sees(view, accumulate):
    config = small_config(accumulate=accumulate, batch=16)
    alone = Feed(FakeCutouts(60, 8), config, rank=0, world_size=1)
    ranks = [Feed(FakeCutouts(60, 8), config, rank=rank, world_size=2) for rank in range(2)]
    for step in (0, 3):
        together = [row for feed in ranks for row in rows_of(feed.load(step), view)]
        assert sorted(together) == sorted(rows_of(alone.load(step), view))


def test_a_step_may_be_the_first():
    config = small_config()
    through = [rows_of(step, "context") for step in Feed(FakeCutouts(), config, rank=0, world_size=1).stream(0, 9)]
    later = [rows_of(step, "context") for step in Feed(FakeCutouts(), config, rank=0, world_size=1).stream(5, 9)]
    assert through[5:] == later


@pytest.mark.parametrize("start", [0, 7])
def test_what_a_rank_reads_was_asked_for_before(start):
    cutouts = FakeCutouts(40, 8)
    feed = Feed(cutouts, small_config(), rank=1, world_size=2)
    keys = list(zip(cutouts.expnum.tolist(), cutouts.ccdnum.tolist(), strict=True))
    for step in feed.stream(start, start + STEPS_AHEAD + 5):
        asked = {keys[row] for row in cutouts.asked["context"]}
        assert set(rows_of(step, "context")) <= asked
    assert "focal_plane" not in cutouts.asked


def test_partners_are_other_ccds_of_the_same_exposure():
    cutouts = FakeCutouts(40, 8)
    feed = Feed(cutouts, small_config(positives="exposure"), rank=0, world_size=1)
    view = feed.load(0).pieces[0]["context"]
    if view.partners is None:
        pytest.fail("context is a crop view")
    stored = {bytes(image): int(exp) for image, exp in zip(cutouts.arrays["context"], cutouts.expnum, strict=True)}
    assert [stored[bytes(image)] for image in np.asarray(view.partners)] == view.expnum.tolist()
    assert all(bytes(a) != bytes(b) for a, b in zip(view.images, view.partners, strict=True))
