import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import CALIBRATION
from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import DataError
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels import calibrate as cal
from hpcqa.pixels import shards

FLOOR = 4e-4


def make_sample(num=12, bands=("r",), ccdnums=(1, 2), seed=0, noise=5e-4):
    """Maps of a pattern per CCD plus noise; numbers 1, 2, 3 plus scatter."""
    rng = np.random.default_rng(seed)
    patterns = {ccd: rng.normal(0, 3e-3, (8, 4)) for ccd in ccdnums}
    rows = [(ccd, band, 1000 * place + k) for place, band in enumerate(bands) for k in range(num) for ccd in ccdnums]
    maps = np.array([patterns[ccd] + rng.normal(0, noise, (8, 4)) for ccd, _, _ in rows])
    sample = cal.Sample(
        np.array([row[0] for row in rows], np.int32),
        np.array([row[1] for row in rows], dtype=object),
        np.array([row[2] for row in rows], np.int64),
        maps.astype(np.float16),
        np.full(maps.shape, noise, np.float16),
        (np.array([1.0, 2.0, 3.0]) + rng.normal(0, 0.1, (len(rows), 3))).astype(np.float32),
    )
    return sample, patterns


@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    seed=st.integers(0, 1000),
)
def test_weighted_median_splits_the_weight(values, seed):
    values = np.array(values)
    weights = np.random.default_rng(seed).uniform(0.1, 1, len(values))
    median = cal.weighted_median(values[:, None], weights[:, None])[0]
    half = weights.sum() / 2
    assert weights[values < median - 1e-9].sum() <= half + 1e-9
    assert weights[values > median + 1e-9].sum() <= half + 1e-9


@given(num=st.integers(1, 25), seed=st.integers(0, 1000))
def test_equal_weights_give_the_median(num, seed):
    values = np.random.default_rng(seed).normal(0, 1, (num, 3))
    found = cal.weighted_median(values, np.ones_like(values))
    np.testing.assert_allclose(found, np.median(values, axis=0), atol=1e-12)


def test_unknown_values_do_not_count():
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [3.0, np.nan]])
    found = cal.weighted_median(values, np.ones_like(values))
    assert found[0] == 2.0
    assert np.isnan(found[1])


def test_pattern_is_recovered_and_bad_exposures_do_not_move_it():
    sample, patterns = make_sample(num=20, ccdnums=(1,))
    maps = sample.maps.copy()
    maps[:6] += np.float16(0.05)
    found = cal.pattern_of(maps, sample.noise, FLOOR)
    assert np.abs(found - patterns[1]).std() < 3e-4
    assert abs((found - patterns[1]).mean()) < 3e-4


def test_noisy_maps_count_less():
    sample, patterns = make_sample(num=10, ccdnums=(1,))
    rng = np.random.default_rng(3)
    noisy = (patterns[1] + rng.normal(5e-3, 2e-2, (9, 8, 4))).astype(np.float16)
    maps, noise = np.concatenate([sample.maps, noisy]), np.concatenate([sample.noise, np.full_like(noisy, 2e-2)])
    assert np.abs(cal.pattern_of(maps, noise, FLOOR) - patterns[1]).mean() < 4e-4


def test_rows_are_ccds_and_bands():
    sample, patterns = make_sample(bands=("g", "r"))
    columns = cal.calibrate(sample, min_exposures=8, floor=FLOOR)
    assert list(zip(columns["ccdnum"].tolist(), columns["band"].tolist(), strict=True)) == [
        (1, "g"), (1, "r"), (2, "g"), (2, "r"),
    ]  # fmt: skip
    assert columns["num_exposures"].tolist() == [12] * 4
    assert not columns["pooled"].any()
    np.testing.assert_allclose(columns["number_median"], [[1, 2, 3]] * 4, atol=0.15)
    assert np.median(columns["number_scatter"]) == pytest.approx(0.1, abs=0.03)
    assert np.abs(columns["background"][1] - patterns[1]).mean() < 3e-4


def test_too_few_in_a_band_pools_the_bands():
    sample, patterns = make_sample(num=5, bands=("g", "r"))
    columns = cal.calibrate(sample, min_exposures=8, floor=FLOOR)
    assert columns["pooled"].all()
    assert columns["num_exposures"].tolist() == [10] * 4
    np.testing.assert_array_equal(columns["background"][0], columns["background"][1])
    assert np.abs(columns["background"][2] - patterns[2]).mean() < 5e-4


def test_far_too_few_have_no_pattern():
    sample, _ = make_sample(num=3, bands=("g", "r"))
    columns = cal.calibrate(sample, min_exposures=8, floor=FLOOR)
    assert not columns["background"].any()
    assert not columns["pooled"].any()
    assert columns["num_exposures"].tolist() == [0] * 4
    # Numbers fall back on the band's: three exposures of two CCDs.
    np.testing.assert_allclose(columns["number_median"], [[1, 2, 3]] * 4, atol=0.2)


def test_exposures_are_chosen_evenly():
    expnum, band = np.arange(1000), np.array(["g", "r"] * 500, dtype=object)
    chosen = cal.choose_exposures(expnum, band, 10)
    assert len(chosen) == 20
    assert chosen.min() <= 1
    assert chosen.max() >= 998
    assert np.diff(np.sort(chosen[chosen % 2 == 0])).std() < 2
    np.testing.assert_array_equal(cal.choose_exposures(expnum, band, 5000), expnum)


def test_order_of_rows_does_not_matter():
    sample, _ = make_sample()
    order = np.random.default_rng(1).permutation(len(sample.ccdnum))
    turned = cal.Sample(*(getattr(sample, name)[order] for name in sample.__dataclass_fields__))
    first, second = (cal.calibrate(one, min_exposures=8, floor=FLOOR) for one in (sample, turned))
    for name in first:
        if name != "band":
            np.testing.assert_allclose(first[name], second[name], atol=1e-7)


def test_the_stage_writes_once(survey):
    shards.run(survey.config, survey.folder, Ranks())
    cal.run(survey.config, survey.folder, Ranks())
    path = survey.folder.output("calibration")
    assert store.verify(path, CALIBRATION) == []
    with store.open_arrays(path, CALIBRATION) as found:
        assert found.read("ccdnum").tolist() == survey.ccdnums
        assert found.attributes["number_names"][0] == "sky_rate"
        assert found.provenance.parents.keys() == {"shards/shard-00000.h5", "shards/shard-00001.h5"}
    stamp = path.stat().st_mtime_ns
    cal.run(survey.config, survey.folder, Ranks())
    cal.run(survey.config, survey.folder, Ranks(1, 2))
    assert path.stat().st_mtime_ns == stamp


def test_without_shards(tmp_path, survey):
    with pytest.raises(DataError, match="hpcqa shard"):
        cal.run(survey.config, RunFolder(tmp_path / "nothing"), Ranks())
