"""Which exposures of a release are what an earlier run has processed already."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.artifacts.catalog import MANIFEST
from hpcqa.survey.takeover import NEEDED, compare


def manifest(exposures: dict[int, int], shard: int = 0) -> dict[str, np.ndarray]:
    """So many CCDs of each exposure."""
    expnum = np.repeat(list(exposures), list(exposures.values())).astype(np.int64)
    rows = len(expnum)
    columns = {}
    for name in NEEDED:
        dtype = MANIFEST.column(name).dtype
        columns[name] = np.full(rows, "same", object) if dtype == "str" else np.ones(rows, dtype)
    columns["expnum"] = expnum
    columns["ccdnum"] = np.concatenate([np.arange(1, number + 1) for number in exposures.values()]).astype(np.int32)
    columns["cuts"][:], columns["shard"][:] = 0, shard
    columns["image_path"] = np.array([f"/old/{number}.fits" for number in expnum], object)
    return columns


def test_new_gone_and_unchanged_exposures():
    now, before = manifest({1: 2, 3: 2}), manifest({1: 2, 2: 2}, shard=7)
    now["image_path"] = np.array([path.replace("/old", "/moved") for path in now["image_path"]], object)
    found = compare(now, before)
    assert found.shard.tolist() == [7, 7, -1, -1]
    assert (found.unchanged, found.new, found.gone, found.changed) == (1, 1, 1, {})
    assert found.in_words() == "1 exposures as before, 1 new, 0 processed anew, 1 gone"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("plver", "V2"),
        ("plprocid", "abc"),
        ("band", "z"),
        ("image_path", "/old/1_v2.fits"),
        ("zpt", np.nan),
        ("ccdzpt", 26.5),
        ("mjd_obs", 2.0),
        ("image_hdu", 4),
    ],
)
def test_one_ccd_that_differs_makes_an_exposure_another(name, value):
    now, before = manifest({1: 3, 2: 3}), manifest({1: 3, 2: 3})
    now[name][1] = value
    found = compare(now, before)
    assert found.shard.tolist() == [-1] * 3 + [0] * 3
    assert found.changed == {name: 1}


def test_unknown_numbers_are_the_same_and_an_added_or_lost_ccd_is_not():
    now, before = manifest({1: 2}), manifest({1: 2})
    now["zpt"][:], before["zpt"][:] = np.nan, np.nan
    assert compare(now, before).unchanged == 1
    for some, other in (({1: 2}, {1: 3}), ({1: 3}, {1: 2})):
        found = compare(manifest(some), manifest(other))
        assert found.changed == {"ccdnum": 1}
        assert (found.shard == -1).all()


def test_what_was_cut_before_is_new_and_what_is_cut_now_is_gone():
    now, before = manifest({1: 2, 2: 2}), manifest({1: 2, 2: 2})
    before["cuts"][:2], before["shard"][:2], now["cuts"][2:] = 4, -1, 4
    found = compare(now, before)
    assert (found.new, found.gone, found.unchanged) == (1, 1, 0)
    assert found.shard.tolist() == [-1] * 4


def test_nothing_before_or_nothing_now():
    assert compare(manifest({1: 1}), {name: values[:0] for name, values in manifest({1: 1}).items()}).new == 1
    assert compare({name: values[:0] for name, values in manifest({1: 1}).items()}, manifest({1: 1})).gone == 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.randoms())
def test_exposures_add_up_in_any_order(kinds, chance):
    """0 unchanged, 1 new, 2 gone, 3 reprocessed; rows in any order on either side."""
    now = manifest({number: 2 for number, kind in enumerate(kinds) if kind != 2} | {999: 1})
    before = manifest({number: 2 for number, kind in enumerate(kinds) if kind != 1} | {999: 1})
    anew = np.isin(now["expnum"], [number for number, kind in enumerate(kinds) if kind == 3])
    now["plver"][anew] = "V2"
    for columns in (now, before):
        order = list(range(len(columns["expnum"])))
        chance.shuffle(order)
        columns.update({name: values[order] for name, values in columns.items()})
    found = compare(now, before)
    assert (found.unchanged, found.new, found.gone) == (kinds.count(0) + 1, kinds.count(1), kinds.count(2))
    assert sum(found.changed.values()) == kinds.count(3)
    kept = np.isin(now["expnum"], [999, *(number for number, kind in enumerate(kinds) if kind == 0)])
    assert np.array_equal(found.shard >= 0, kept)
