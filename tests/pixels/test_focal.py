import numpy as np
import pytest

from hpcqa import instruments
from hpcqa.pixels.focal import focal_plane


@pytest.mark.parametrize(
    ("name", "shape", "cells"),
    [("minicam", (64, 64), (32, 16)), ("decam", (64, 64), (64, 32)), ("decam", (128, 128), (64, 32))],
)
def test_every_cell_of_every_ccd_has_a_pixel(name, shape, cells):
    camera = instruments.get(name)
    side = -(-camera.shape[0] // cells[0])
    plane = focal_plane(camera, shape, cells, side)
    area = shape[0] * shape[1]
    assert len(plane.ccdnums) == len(camera.ccds)
    assert ((plane.pixels < area).mean(axis=1) > 0.95).all()
    ones = np.ones((len(camera.ccds), *cells))
    image = plane.assemble(ones, np.zeros(len(camera.ccds), int), plane.ccdnums, 1)[0]
    covered = image != 0
    assert set(np.unique(image)) <= {0.0, 1.0}
    expected = len(camera.ccds) * camera.shape[0] * camera.shape[1]
    assert 0.55 < covered.mean() <= 1
    assert covered.sum() < 1.6 * expected / (camera.shape[0] * camera.shape[1]) / len(camera.ccds) * area


@pytest.mark.parametrize("name", ["minicam", "decam"])
def test_ccds_lie_where_the_camera_says(name):
    camera = instruments.get(name)
    side = -(-camera.shape[0] // 32)
    plane = focal_plane(camera, (96, 96), (32, 16), side)
    centres = {}
    for ccd in camera.ccds:
        image = plane.assemble(np.ones((1, 32, 16)), np.zeros(1, int), np.array([ccd.ccdnum]), 1)[0]
        rows, cols = np.nonzero(image)
        centres[ccd.ccdnum] = rows.mean(), cols.mean()
    rows, cols = np.array([centres[ccd.ccdnum] for ccd in camera.ccds]).T
    assert np.corrcoef(cols, [ccd.x for ccd in camera.ccds])[0, 1] > 0.999
    assert np.corrcoef(rows, [ccd.y for ccd in camera.ccds])[0, 1] < -0.999


def test_rows_of_a_ccd_run_along_x():
    camera = instruments.get("minicam")
    plane = focal_plane(camera, (64, 64), (32, 16), 16)
    maps = np.broadcast_to(np.arange(32.0)[:, None] + 1, (1, 32, 16))
    image = plane.assemble(maps, np.zeros(1, int), np.array([1]), 1)[0]
    _, cols = np.nonzero(image)
    assert np.corrcoef(cols, image[image != 0])[0, 1] > 0.98


def test_unknown_cells_and_ccds_leave_zeros():
    camera = instruments.get("minicam")
    plane = focal_plane(camera, (64, 64), (32, 16), 16)
    maps = np.full((3, 32, 16), np.nan)
    maps[2] = 5.0
    images = plane.assemble(maps, np.array([0, 1, 1]), np.array([1, 2, 999]), 2)
    assert images.shape == (2, 64, 64)
    assert not images.any()
