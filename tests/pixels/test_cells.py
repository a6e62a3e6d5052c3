import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.pixels import cells


def test_cells_are_means_with_and_without_sources():
    rng = np.random.default_rng(3)
    mean, count = rng.normal(10, 1, (20, 14)).astype(np.float32), np.ones((20, 14), np.float32)
    near = rng.random((20, 14)) < 0.3
    count[5:9] = 0
    out, number = cells.cells(mean, count, near, 10.0, 4, (6, 5))
    block = (slice(0, 4), slice(4, 8))
    assert out[0, 0, 1] == pytest.approx(mean[block].mean(), rel=1e-5)
    assert out[1, 0, 1] == pytest.approx(mean[block][~near[block]].mean(), rel=1e-5)
    assert number[0].sum() == count.sum()
    assert number[1].sum() == (count * ~near).sum()
    assert np.isnan(out[:, 5:]).all()
    assert np.isnan(out[:, :, 4:]).all()


@pytest.mark.parametrize(("factor", "shape"), [(2, (6, 5)), (3, (4, 3)), (2, (3, 4))])
def test_cells_joined_are_the_larger_cells(factor, shape):
    rng = np.random.default_rng(4)
    mean, count = rng.normal(10, 1, (20, 14)).astype(np.float32), rng.integers(0, 3, (20, 14)).astype(np.float32)
    near = rng.random((20, 14)) < 0.3
    fine = cells.cells(mean, count, near, 10.0, 2, (12, 9))
    joined = cells.joined_cells(*fine, 10.0, factor, shape)
    expected = cells.cells(mean[: 2 * factor * shape[0]], count, near, 10.0, 2 * factor, shape)
    for found, wanted in zip(joined, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


@given(rows=st.integers(1, 300), cols=st.integers(1, 300), height=st.integers(1, 64), width=st.integers(1, 64))
def test_cell_side_is_the_smallest_that_fits(rows, cols, height, width):
    side = cells.cell_side((rows, cols), (height, width))
    assert -(-rows // side) <= height
    assert -(-cols // side) <= width
    if side > 1:
        assert -(-rows // (side - 1)) > height or -(-cols // (side - 1)) > width
