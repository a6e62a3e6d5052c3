from types import SimpleNamespace

import numpy as np
import pytest

from hpcqa.instruments import get
from hpcqa.report.pictures import enlarge, layout, mosaic, shrink, upright


@pytest.mark.parametrize("name", ["minicam", "decam"])
def test_places_do_not_overlap_and_lie_inside(name):
    camera = get(name)
    views = {ccd.ccdnum: np.full((128, 64), ccd.ccdnum, np.float32) for ccd in camera.ccds}
    plane = mosaic(views, camera, 640)
    assert plane.pixels.shape[1] <= 700
    for ccd in camera.ccds:
        place = plane.place(ccd.ccdnum)
        area = plane.pixels[place.top : place.top + place.height, place.left : place.left + place.width]
        assert (area == ccd.ccdnum).all()
    assert plane.covered.sum() == sum(place.width * place.height for place in plane.places)
    assert not np.isfinite(plane.pixels[~plane.covered]).any()


def test_north_is_up_and_rows_run_along_x():
    camera = get("minicam")
    places = {place.ccdnum: place for place in layout(camera, (128, 64))}
    ordered = sorted(camera.ccds, key=lambda ccd: (-ccd.y, ccd.x))
    assert places[ordered[0].ccdnum].top == 0
    assert (places[1].width, places[1].height) == (128, 64)
    view = np.zeros((128, 64), np.float32)
    view[100, 10] = 1
    plane = mosaic({1: view}, camera, 5000)
    place = plane.place(1)
    assert plane.pixels[place.top + 10, place.left + 100] == 1


def test_ccds_without_a_view_stay_empty():
    camera = get("minicam")
    plane = mosaic({}, camera, 640)
    assert not np.isfinite(plane.pixels).any()
    assert plane.covered.any()
    assert plane.place(999) is None


def test_shrink_and_enlarge():
    image = np.arange(24.0).reshape(4, 6)
    assert shrink(image, 2).tolist() == [[3.5, 5.5, 7.5], [15.5, 17.5, 19.5]]
    assert shrink(image, 4).shape == (1, 1)
    assert np.array_equal(shrink(enlarge(image, 3), 3), image)


@pytest.mark.parametrize("rows", [(1, 0), (-1, 0), (0, 1), (0, -1)])
@pytest.mark.parametrize("sign", [1, -1])
def test_upright_puts_x_right_and_y_up_for_any_camera(rows, sign):
    cols = (0, sign) if rows[0] else (sign, 0)
    view = np.arange(12.0).reshape(4, 3)
    found = upright(view, SimpleNamespace(rows_along=rows, cols_along=cols))
    x = np.add.outer(rows[0] * np.arange(4), cols[0] * np.arange(3))
    y = np.add.outer(rows[1] * np.arange(4), cols[1] * np.arange(3))
    expected = [[view[(x == right) & (y == up)].item() for right in np.unique(x)] for up in np.unique(y)[::-1]]
    assert found.tolist() == expected
