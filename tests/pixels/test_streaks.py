"""Pieces of a satellite's trail are no stars; trailed stars are."""

import numpy as np
import pytest
from pixels_images import make_image, numbers_of

from hpcqa.pixels.streaks import erase, find_streaks

SHAPE = (900, 500)


def stars(num, rng, ellipticity=0.03):
    axis = rng.uniform(0, np.pi, num) if ellipticity < 0.3 else np.full(num, 0.7)
    e1, e2 = ellipticity * np.cos(2 * axis), ellipticity * np.sin(2 * axis)
    return np.stack([rng.uniform(0, SHAPE[1], num), rng.uniform(0, SHAPE[0], num), e1, e2, np.full(num, 2.0)])


def pieces(num, angle, through, rng):
    along = rng.uniform(-300, 300, num)
    axis = angle + rng.normal(0, 0.02, num)
    x = through[0] + along * np.cos(angle) + rng.normal(0, 1, num)
    y = through[1] + along * np.sin(angle) + rng.normal(0, 1, num)
    return np.stack([x, y, 0.96 * np.cos(2 * axis), 0.96 * np.sin(2 * axis), np.full(num, 18.0)])


@pytest.mark.parametrize("angle", [-1.5, -0.6, 0.0, 0.3, 1.57])
def test_pieces_of_a_streak_are_told_from_stars(angle):
    rng = np.random.default_rng(1)
    streak, others = pieces(30, angle, (250, 450), rng), stars(40, rng)
    table = np.concatenate([streak, others], axis=1)
    (found,) = find_streaks(*table, SHAPE)
    assert found.covers(streak[0], streak[1]).mean() > 0.95
    assert found.covers(others[0], others[1]).mean() < 0.2
    assert abs(np.sin(found.angle - angle)) < 0.01


def test_two_streaks_are_both_found():
    rng = np.random.default_rng(2)
    first, second = pieces(20, 0.4, (250, 450), rng), pieces(18, -0.9, (200, 300), rng)
    found = find_streaks(*np.concatenate([first, second, stars(30, rng)], axis=1), SHAPE)
    assert len(found) == 2
    assert found[0].covers(first[0], first[1]).mean() > 0.9
    assert found[1].covers(second[0], second[1]).mean() > 0.9


@pytest.mark.parametrize("num", [0, 3, 60])
def test_trailed_stars_are_no_streak(num):
    assert find_streaks(*stars(num, np.random.default_rng(3), ellipticity=0.9), SHAPE) == ()


def test_broken_trails_of_stars_are_no_streaks():
    """The telescope moved while the shutter was open: every trail breaks into pieces on a line of its own."""
    rng = np.random.default_rng(5)
    long = [pieces(15, 0.6, (100 + 90 * k, 200 + 170 * k), rng) for k in range(3)]
    assert find_streaks(*np.concatenate(long, axis=1), SHAPE) == ()
    short = long[0].copy()
    for row in (0, 1):
        short[row] = short[row].mean() + (short[row] - short[row].mean()) / 5
    assert find_streaks(*np.concatenate([short, stars(5, rng)], axis=1), SHAPE) == ()
    assert len(find_streaks(*np.concatenate([long[0], stars(5, rng)], axis=1), SHAPE)) == 1


def test_a_streak_is_erased_from_a_detection_map_and_nothing_else():
    rng = np.random.default_rng(4)
    streaks = find_streaks(*pieces(30, 0.0, (250, 450), rng), SHAPE)
    found = np.zeros((225, 125), bool)
    found[112, :] = found[30, 40] = True
    left = erase(found, streaks, 4)
    assert left[30, 40]
    assert np.count_nonzero(left) < 10
    assert erase(found, (), 4) is found


def test_a_satellite_leaves_the_numbers_of_the_stars_as_they_are():
    clean = make_image(stars=60)
    i, j = np.mgrid[: clean.shape[0], : clean.shape[1]]
    aside = (i - 0.45 * clean.shape[0]) * np.cos(0.3) - (j - 0.5 * clean.shape[1]) * np.sin(0.3)
    crossed = clean + (400 * np.exp(-0.5 * (aside / 2.0) ** 2)).astype(np.float32)
    before, after = numbers_of(clean), numbers_of(crossed)
    for name in ("fwhm_px", "ring_width", "elongation", "stack_second", "sources", "star_share"):
        assert after[name] == pytest.approx(before[name], rel=0.06, abs=0.06), name
    assert after["trail_coherence"] < 0.15
    assert after["line_cover"] > 0.8 > before["line_cover"]
