from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hpcqa.errors import ConfigError
from hpcqa.survey import images
from hpcqa.survey.coded import Coded, constant


def names(*words):
    return Coded(np.arange(len(words), dtype=np.int32), words)


def test_beside_the_table_and_in_folders(tmp_path):
    (tmp_path / "images" / "cam" / "night").mkdir(parents=True)
    (tmp_path / "images" / "cam" / "night" / "a.fits.fz").touch()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "b.fits.fz").touch()
    files = names("cam/night/a.fits.fz", "cam/night/b.fits.fz", "cam/night/c.fits.fz", "")
    table = constant(str(tmp_path / "survey-ccds.fits"), 4)
    beside = images.locate(files, table, [])
    assert beside.path.expand().tolist() == [str(tmp_path / "images/cam/night/a.fits.fz"), "", "", ""]
    assert beside.no_file.tolist() == [False, True, True, True]
    assert "cam/night/b.fits.fz" in beside.problem.expand()[1]
    folders = images.locate(files, table, [tmp_path / "images", tmp_path / "flat"])
    assert folders.path.expand()[1] == str(tmp_path / "flat/b.fits.fz")
    assert folders.no_file.tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    "name",
    ["/elsewhere/images/cam/n/a.fits.fz", "../dr9/images/cam/n/a.fits.fz", "./cam//n/a.fits.fz", "dr9/cam/n/a.fits"],
)
def test_folders_of_another_machine_are_left_out(tmp_path, name):
    (tmp_path / "images" / "cam" / "n").mkdir(parents=True)
    (tmp_path / "images" / "cam" / "n" / "a.fits.fz").touch()
    found = images.locate(names(name), constant(str(tmp_path / "t.fits"), 1), [])
    assert Path(found.path.expand()[0]).resolve() == tmp_path / "images/cam/n/a.fits.fz"


def test_no_folder_is_told_from_no_file(tmp_path):
    found = images.locate(names("a.fits"), constant(str(tmp_path / "t.fits"), 1), [])
    assert found.no_folder.tolist() == [True]
    assert found.no_file.tolist() == [False]
    assert str(tmp_path / "images") in found.problem.words[0]


def test_each_folder_is_listed_once(tmp_path, monkeypatch):
    (tmp_path / "images" / "n").mkdir(parents=True)
    listed = []
    real = os.scandir
    monkeypatch.setattr(images.os, "scandir", lambda folder: listed.append(folder) or real(folder))
    files = names(*(f"n/{number}.fits" for number in range(500)))
    images.locate(files, constant(str(tmp_path / "t.fits"), 500), [])
    assert len(listed) <= 3


def test_same_name_beside_two_tables(tmp_path):
    (tmp_path / "one" / "images").mkdir(parents=True)
    (tmp_path / "one" / "images" / "a.fits").touch()
    tables = Coded(np.array([0, 1], np.int32), (str(tmp_path / "one/t.fits"), str(tmp_path / "two/t.fits")))
    found = images.locate(constant("a.fits", 2), tables, [])
    assert [bool(path) for path in found.path.expand()] == [True, False]


def test_a_configured_folder_must_exist(tmp_path):
    assert images.check_folders([str(tmp_path)]) == [tmp_path]
    with pytest.raises(ConfigError, match=r"survey\.images: .*none is not a folder"):
        images.check_folders([str(tmp_path / "none")])


def test_packed_and_unpacked_names_and_whole_paths(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("a.fits", "b.fits.fz", "c.fits", "c.fits.fz"):
        (tmp_path / "images" / name).touch()
    (tmp_path / "d.fits").touch()
    files = names("a.fits.fz", "b.fits", "c.fits", "c.fits.fz", f"{tmp_path}/d.fits", "/elsewhere/a.fits", "/no/e.fits")
    found = images.locate(files, constant(str(tmp_path / "t.fits"), 7), []).path.expand().tolist()
    here = tmp_path / "images"
    assert found[:4] == [str(here / name) for name in ("a.fits", "b.fits.fz", "c.fits", "c.fits.fz")]
    assert found[4:] == [str(tmp_path / "d.fits"), str(here / "a.fits"), ""]
