from __future__ import annotations

import numpy as np
import pytest

from hpcqa.ssl.coarse import GRID, coarse_maps, region_edges


def stretched(z: np.ndarray, softening: float) -> np.ndarray:
    return np.arcsinh(z / softening).astype(np.float16)


def test_a_defect_shows_in_its_region_with_its_strength() -> None:
    z = np.full((2, 64, 32), 0.01)
    z[0, 8:16, 16:24] = 12.0
    z[1, 60:, :] = -5.0
    found = coarse_maps(stretched(z, 2.0), 2.0).astype(np.float64)
    assert found.shape == (2, *GRID)
    assert found[0, 1, 2] == pytest.approx(12.0, rel=0.01)
    assert np.abs(np.delete(found[0].ravel(), 6)).max() < 0.1
    assert found[1, 7].tolist() == pytest.approx([-2.5] * 4, rel=0.01)


def test_unknown_cells_do_not_count() -> None:
    z = np.full((1, 64, 32), 6.0)
    z[0, :8, :4] = 0.0  # exactly zero: unknown
    z[0, 8:16, :8] = 0.0
    found = coarse_maps(stretched(z, 2.0), 2.0)[0]
    assert found[0, 0] == pytest.approx(6.0, rel=0.01)
    assert np.isnan(found[1, 0])


@pytest.mark.parametrize("shape", [(64, 32), (61, 30), (8, 4), (5, 3), (1, 1)])
def test_views_of_any_size(shape: tuple[int, int]) -> None:
    found = coarse_maps(stretched(np.full((3, *shape), 4.0), 2.0), 2.0)
    known = np.isfinite(found)
    assert found[known] == pytest.approx(4.0, rel=0.01)
    down, across = (np.diff(region_edges(shape[axis], GRID[axis])) > 0 for axis in (0, 1))
    assert np.array_equal(known[0], down[:, None] & across[None, :])


def test_what_is_too_large_for_the_file_is_cut_off() -> None:
    found = coarse_maps(np.full((1, 8, 4), 60.0, np.float16), 2.0)
    assert np.isfinite(found).all()
