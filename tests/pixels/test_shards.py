import os
import re
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from conftest import write_exposure, write_manifest

from hpcqa import instruments
from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import SHARD
from hpcqa.artifacts.folder import RunFolder
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels import exposures, shardindex, shards
from hpcqa.pixels.failures import BIT
from hpcqa.pixels.measure import NAMES


def run(survey, ranks=None, **changes):
    config = replace(survey.config, shard=replace(survey.config.shard, **changes))
    shards.run(config, survey.folder, ranks or Ranks())


def contents(survey):
    return {path.name: store.read_provenance(path, SHARD).content for path in survey.shards()}


def column(survey, name):
    values = []
    for path in survey.shards():
        with store.open_arrays(path, SHARD) as shard:
            values.append(shard.read(name))
    return np.concatenate(values)


def test_every_ccd_has_its_row(survey):
    run(survey)
    assert len(survey.shards()) == 2
    assert column(survey, "expnum").tolist() == np.repeat([1000, 1001, 1002, 1003], 3).tolist()
    assert column(survey, "ccdnum").tolist() == survey.ccdnums * 4
    assert not column(survey, "failed").any()
    assert column(survey, "exposure").tolist() == [1000, 1001, 1002, 1003]
    assert column(survey, "exposure_band").tolist() == ["r"] * 4
    np.testing.assert_allclose(column(survey, "exposure_sky"), 400, atol=3)
    numbers = column(survey, "numbers")
    np.testing.assert_allclose(numbers[:, NAMES.index("sky_level")], 400, atol=4)
    np.testing.assert_allclose(numbers[:, NAMES.index("zero_point_offset")], 0.1, atol=1e-5)
    assert (numbers[:, NAMES.index("header_wcs_failed")] == 0).all()
    assert np.isfinite(column(survey, "context")).all()
    assert column(survey, "context").any(axis=(1, 2)).all()
    assert not [path for path in survey.shards() if store.verify(path, SHARD)]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_content_does_not_depend_on_workers(survey, workers, tmp_path):
    run(survey, workers=3)
    expected = contents(survey)
    offsets = {path.name: open_offsets(path) for path in survey.shards()}
    for path in survey.shards():
        path.unlink()
    run(survey, workers=workers)
    assert contents(survey) == expected
    assert {path.name: open_offsets(path) for path in survey.shards()} == offsets


def open_offsets(path):
    with store.open_arrays(path, SHARD) as shard:
        return [shard.mapping(name).offset for name in ("context", "detail", "numbers", "background")]


def test_content_does_not_depend_on_ranks(survey):
    run(survey)
    expected = contents(survey)
    for path in survey.shards():
        path.unlink()
    for rank in range(3):
        run(survey, Ranks(rank, 3))
    assert contents(survey) == expected


def test_what_is_there_is_not_made_again(survey, monkeypatch):
    run(survey)
    stamps = [path.stat().st_mtime_ns for path in survey.shards()]
    survey.shards()[0].unlink()
    seen = []
    read = exposures.read_exposure
    monkeypatch.setattr(shards, "read_exposure", lambda *arguments: seen.append(1) or read(*arguments))
    run(survey)
    assert len(seen) == 2
    assert survey.shards()[1].stat().st_mtime_ns == stamps[1]


def test_the_first_reader_finds_what_the_stage_noted(survey, monkeypatch):
    for rank in range(2):
        run(survey, Ranks(rank, 2))
    assert len(list(survey.folder.output("shards").glob("index-*"))) == 2
    expected = [shardindex.read_directory(path).content for path in survey.shards()]
    monkeypatch.setattr(shardindex, "_FEW", 1)
    monkeypatch.setattr(shardindex, "read_directory", lambda path: pytest.fail(f"{path} was looked into"))
    assert list(shardindex.open_index(survey.shards()).contents) == expected


def test_other_settings_make_other_shards(survey):
    run(survey)
    before = contents(survey)
    survey.config = replace(survey.config, views=replace(survey.config.views, asinh_softening=5.0))
    run(survey)
    assert contents(survey) != before
    run(survey, workers=1, read_timeout=3600.0)
    assert len(survey.shards()) == 2


def test_each_file_is_opened_once(survey, monkeypatch):
    opened = []
    original = exposures.open_exposure
    monkeypatch.setattr(
        exposures, "open_exposure", lambda path, **options: opened.append(path) or original(path, **options)
    )
    run(survey)
    assert sorted(opened) == sorted(survey.images.values())


def test_masks_beside_the_images_are_used(survey):
    image = survey.images[1000]
    with fits.open(image) as hdus:
        masks = [fits.PrimaryHDU()]
        for hdu in hdus[1:]:
            values = np.zeros(hdu.data.shape, np.int32)
            values[:24] = 1
            masks.append(fits.CompImageHDU(values, name=hdu.name, compression_type="RICE_1"))
    everything = np.ones(masks[3].data.shape, np.int32)
    masks[3] = fits.CompImageHDU(everything, name=masks[3].name, compression_type="RICE_1")
    fits.HDUList(masks).writeto(str(image).replace("_ooi_", "_ood_"))
    run(survey)
    numbers = column(survey, "numbers")
    share, problem = numbers[:, NAMES.index("masked_share")], numbers[:, NAMES.index("mask_problem")]
    assert share[:3].tolist() == [0.25, 0.25, 0.0]
    assert problem[:4].tolist() == [0, 0, 1, 0]
    assert not column(survey, "failed").any()


def test_masks_of_no_use_are_told(survey, caplog):
    for expnum, name in ((1000, "_ood_"), (1001, "_oow_")):
        path = Path(str(survey.images[expnum]).replace("_ooi_", name))
        path.write_bytes(b"<html>404</html>" * 1000)
    with caplog.at_level("INFO"):
        run(survey)
    said = [record.getMessage() for record in caplog.records]
    assert sum("the mask is not used" in line for line in said) == 1
    assert any(re.search("expnum 1000, 3 CCDs from .*: the mask is not used: .*_ood_.* not a FITS", s) for s in said)
    assert "shard: the masks of 3 CCDs were not used, for the reasons above" in said
    assert "shard: 9 CCDs have no mask file beside their image" in said


def test_masks_that_nobody_wants_are_not_missed(survey, caplog):
    with caplog.at_level("INFO"):
        run(survey, use_masks=False)
    assert "mask" not in caplog.text


# Faults ---------------------------------------------------------------------------------------------------------------


def remove(path):
    path.unlink()


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def empty(path):
    path.write_bytes(b"")


def not_fits(path):
    path.write_bytes(b"<html>404</html>" * 1000)


def directory(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [remove, cut_short, empty, not_fits, directory])
def test_a_bad_file_is_rows_with_a_reason(survey, damage):
    damage(survey.images[1001])
    run(survey)
    failed = column(survey, "failed")
    assert failed[3:6].all() if damage is not cut_short else failed[3:6].any()
    assert not failed[:3].any()
    assert not failed[6:].any()
    bad = failed != 0
    assert np.isnan(column(survey, "numbers")[bad]).all()
    assert not column(survey, "context")[bad].any()
    assert np.isnan(column(survey, "background")[bad]).all()
    if damage is remove:
        assert set(failed[3:6].tolist()) == {BIT["missing_file"]}


def rewrite(path, change):
    with fits.open(path) as hdus:
        images = [(hdu.name, np.array(hdu.data), hdu.header.get("CCDNUM")) for hdu in hdus[1:]]
    written = [fits.PrimaryHDU()]
    for name, image, ccdnum in change(images):
        written.append(fits.ImageHDU(image, name=name))
        written[-1].header["CCDNUM"] = ccdnum
    fits.HDUList(written).writeto(path, overwrite=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images: images[:2], "missing_hdu"),
        (lambda images: [*images[:2], (images[2][0], np.full((96, 64), np.nan, "f4"), 3)], "all_not_finite"),
        (lambda images: [*images[:2], (images[2][0], np.zeros((4, 4), "f4"), 3)], "wrong_shape"),
    ],
)
def test_a_bad_ccd_is_a_row_with_a_reason(survey, change, reason):
    rewrite(survey.images[1000], change)
    run(survey)
    assert column(survey, "failed")[:4].tolist() == [0, 0, BIT[reason], 0]


def test_a_constant_ccd_is_measured(survey):
    rewrite(survey.images[1000], lambda images: [*images[:2], (images[2][0], np.full((96, 64), 9.0, "f4"), 3)])
    run(survey)
    assert not column(survey, "failed").any()
    assert column(survey, "numbers")[2, NAMES.index("is_constant")] == 1


def test_ccds_in_another_order_are_found_by_name(survey):
    run(survey)
    expected = column(survey, "numbers")
    for path in survey.shards():
        path.unlink()
    rewrite(survey.images[1000], lambda images: images[::-1])
    run(survey)
    level = NAMES.index("sky_level")
    np.testing.assert_allclose(column(survey, "numbers")[:, level], expected[:, level], rtol=1e-5)


def test_a_file_without_a_name_is_missing(survey):
    ccds = instruments.get("minicam").ccds[:3]
    write_manifest(survey.folder.output("manifest"), survey.images | {1000: ""}, ccds)
    run(survey)
    assert set(column(survey, "failed")[:3].tolist()) == {BIT["missing_file"]}


def test_a_read_that_hangs_is_given_up(survey, monkeypatch):
    from hpcqa.pixels.fitsbytes import ByteSource

    original = ByteSource._pread_now

    def hang(self, offset, target):
        if self.path == survey.images[1002]:
            time.sleep(3)
        return original(self, offset, target)

    monkeypatch.setattr(ByteSource, "_pread_now", hang)
    started = time.monotonic()
    run(survey, read_timeout=1.0)
    assert time.monotonic() - started < 20
    failed = column(survey, "failed")
    assert set(failed[6:9].tolist()) == {BIT["timed_out"]}
    assert not failed[:6].any()


def test_a_mask_that_hangs_costs_no_image(survey, monkeypatch):
    from hpcqa.pixels.fitsbytes import ByteSource

    mask = survey.images[1000].with_name(survey.images[1000].name.replace("_ooi_", "_ood_"))
    mask.write_bytes(survey.images[1000].read_bytes())
    original = ByteSource._pread_now

    def hang(self, offset, target):
        if self.path == mask:
            time.sleep(2)
        return original(self, offset, target)

    monkeypatch.setattr(ByteSource, "_pread_now", hang)
    run(survey, read_timeout=1.0)
    assert not column(survey, "failed").any()
    assert column(survey, "numbers")[:4, NAMES.index("mask_problem")].tolist() == [1, 1, 1, 0]


def while_reading(survey, monkeypatch, change):
    """Do something to an exposure's file after its first CCD was read."""
    original = exposures.look
    done = []

    def look(*arguments):
        if not done:
            done.append(change(survey.images[1000]))
        return original(*arguments)

    monkeypatch.setattr(exposures, "look", look)
    run(survey, workers=1)


def test_a_file_that_changes_while_it_is_read_is_told(survey, monkeypatch):
    while_reading(survey, monkeypatch, lambda path: os.utime(path, ns=(5, 5)))
    failed = column(survey, "failed")
    assert failed[:3].tolist() == [0, BIT["changed_file"], BIT["changed_file"]]
    assert not failed[3:].any()


def test_a_file_that_is_cut_while_it_is_read_is_told(survey, monkeypatch):
    while_reading(survey, monkeypatch, lambda path: os.truncate(path, 5760))
    assert column(survey, "failed")[1:4].tolist() == [BIT["changed_file"], BIT["changed_file"], 0]


def test_a_file_that_vanishes_while_it_is_read_is_read_to_the_end(survey, monkeypatch):
    while_reading(survey, monkeypatch, lambda path: path.unlink())
    assert not column(survey, "failed").any()


def test_an_image_that_breaks_the_measuring_is_a_row(survey, monkeypatch):
    original = exposures.look

    def broken(pixels, *arguments):
        if pixels[0, 0] == marked:
            raise ZeroDivisionError("a mistake of ours")
        return original(pixels, *arguments)

    with fits.open(survey.images[1003]) as hdus:
        marked = hdus[2].data[0, 0]
    monkeypatch.setattr(exposures, "look", broken)
    run(survey)
    assert column(survey, "failed")[9:].tolist() == [0, BIT["not_measured"], 0]


def test_a_mistake_of_ours_shows_where_once(survey, monkeypatch, caplog):
    def broken(pixels, *_):
        raise ZeroDivisionError(f"a mistake of ours at {pixels[0, 0]}")

    monkeypatch.setattr(exposures, "look", broken)
    with pytest.raises(DataError, match="12 not_measured"):
        run(survey)
    assert caplog.text.count("Traceback") == 1
    assert caplog.text.count("cannot be measured: ZeroDivisionError: a mistake of ours at") == 1 + 4


def test_too_many_failures_end_with_an_error(survey):
    for expnum in (1000, 1001, 1002):
        survey.images[expnum].unlink()
    with pytest.raises(DataError, match=r"9 of 12 CCDs have no views: 9 missing_file .* shard.max_failed=0.5"):
        run(survey)
    assert len(survey.shards()) == 2
    run(survey, max_failed=0.8)


def test_failed_shards_are_read_again_on_request(survey):
    saved = survey.images[1000].read_bytes()
    survey.images[1000].unlink()
    run(survey)
    survey.images[1000].write_bytes(saved)
    run(survey)
    assert column(survey, "failed")[:3].all()
    run(survey, retry_failed=True)
    assert not column(survey, "failed").any()


def test_without_a_manifest(tmp_path, survey):
    with pytest.raises(DataError, match="hpcqa manifest"):
        shards.run(survey.config, RunFolder(tmp_path / "nothing"), Ranks())


def test_a_full_disk_leaves_nothing_half_written(survey):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        with pytest.raises(EnvironmentProblem, match="cannot be written"):
            run(survey)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(survey.folder.output("shards").iterdir()) == []
    run(survey)
    assert len(survey.shards()) == 2


SLOW = """
import sys, time
from pathlib import Path
from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels import shards
read = shards.read_exposure
def slow(rows, *arguments):
    result = read(rows, *arguments)
    if rows[0].expnum == 1003:
        print("waiting", flush=True)
        time.sleep(60)
    return result
shards.read_exposure = slow
shards.run(Config(), RunFolder(Path(sys.argv[1])), Ranks())
"""


def test_a_killed_run_goes_on(survey):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(survey.folder.path)], stdout=subprocess.PIPE, env={**os.environ}
    )
    assert process.stdout.readline().strip() == b"waiting"
    deadline = time.monotonic() + 20
    while not survey.shards() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in survey.shards()] == ["shard-00000.h5"]
    stamp = survey.shards()[0].stat().st_mtime_ns
    survey.config = replace(survey.config, run="runs/default")
    run(survey)
    assert len(survey.shards()) == 2
    assert survey.shards()[0].stat().st_mtime_ns == stamp
    assert list(survey.folder.output("shards").glob(".*")) == []


def test_two_runs_in_one_folder_do_no_harm(survey):
    from concurrent.futures import ThreadPoolExecutor

    code = SLOW.replace("60", "0")
    with ThreadPoolExecutor(2) as pool:
        command = [sys.executable, "-c", code, str(survey.folder.path)]
        ends = list(pool.map(lambda _: subprocess.run(command, capture_output=True, check=False), range(2)))
    assert [end.returncode for end in ends] == [0, 0]
    assert not [path for path in survey.shards() if store.verify(path, SHARD)]
    assert len(survey.shards()) == 2


def test_ccds_in_files_of_their_own(tmp_path, survey):
    ccds = instruments.get("minicam").ccds[:2]
    paths = [tmp_path / f"mc4_250106_000000_ooi_r_v1.{ccd.ccdname}.fits" for ccd in ccds]
    for path, ccd in zip(paths, ccds, strict=True):
        write_exposure(path, [ccd], 7)
    rows = [replace(make_row(ccd), image_path=str(path), image_hdu=1) for path, ccd in zip(paths, ccds, strict=True)]
    results = exposures.read_exposure(rows, {"minicam": instruments.get("minicam")}, survey.config)
    assert [result.failed for result in results] == [0, 0]


def make_row(ccd):
    return exposures.CcdRow(
        1000, ccd.ccdnum, ccd.ccdname, "minicam", "r", 60000.0, 100.0, 25.0, 25.0, "V5.5", "", "", 1
    )


def test_backgrounds_are_relative_to_the_median_sky(survey):
    shards_config = survey.config
    ccds = instruments.get("minicam").ccds[:3]
    rows = [replace(make_row(ccd), image_path=str(survey.images[1000]), image_hdu=0) for ccd in ccds]
    results = exposures.read_exposure(rows, {"minicam": instruments.get("minicam")}, shards_config)
    found = exposures.relative_backgrounds(results, (32, 16))
    levels = [result.views.level for result in results]
    assert found.sky == pytest.approx(np.median(levels), rel=1e-6)
    known = np.isfinite(found.maps)
    expected = results[0].views.background[known[0]] / found.sky - 1
    np.testing.assert_allclose(found.maps[0][known[0]].astype(float), expected, rtol=2e-3, atol=1e-6)
    assert (found.noise[known] > 0).all()
    nothing = exposures.relative_backgrounds([exposures.CcdResult(None, 1)], (32, 16))
    assert np.isnan(nothing.sky)
    assert np.isnan(nothing.maps).all()
