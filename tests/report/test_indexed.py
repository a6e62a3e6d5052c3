import io

import numpy as np
import pytest
from matplotlib import image

from hpcqa.report import indexed


def test_png_reads_back_as_drawn():
    values = np.array([[0.0, 1.0, np.nan], [2.0, 3.0, 4.0]])
    covered = np.array([[True, True, True], [True, True, False]])
    picture = indexed.grey(values, covered)
    read = (image.imread(io.BytesIO(indexed.png(picture))) * 255).round().astype(np.uint8)
    assert np.array_equal(read, picture.rgba())
    assert tuple(read[0, 2]) == indexed.MISSING
    assert read[1, 2, 3] == 0
    assert read[0, 0, 0] < read[0, 1, 0] < read[1, 1, 0]


def test_diverging_is_white_at_zero_and_saturates():
    rgba = indexed.diverging(np.array([[-9.0, 0.0, 9.0]])).rgba()[0]
    assert rgba[1, :3].min() > 235
    assert rgba[0, 2] > rgba[0, 0]
    assert rgba[2, 0] > rgba[2, 2]


@pytest.mark.parametrize("fill", [np.nan, 0.0, 5.0])
def test_flat_images_are_drawn(fill):
    assert indexed.png(indexed.grey(np.full((4, 5), fill))).startswith(b"\x89PNG")
