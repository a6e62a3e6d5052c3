import numpy as np
import pytest
import torch

from hpcqa.ssl import defects, draws, shapes, stamps
from hpcqa.ssl.defects import DefectTask
from tests.ssl.fakes import small_config


def keys(count, step=0):
    return draws.image_keys(1, "d", step, np.arange(count), np.arange(count))


def task(kinds=shapes.KINDS, bank=None, **more):
    torch.manual_seed(0)
    bank = torch.asinh(torch.randn(60, 32, 16) / 2) if bank is None else bank
    settings = {"softening": 2.0, "patch": 4, "share": 0.65, "strength": (1.5, 20.0), "bank": bank, **more}
    return DefectTask(kinds, **settings)


def test_the_stretch_is_that_of_asinh():
    size = torch.logspace(-8, 8, 500, dtype=torch.float64).float()
    x = torch.cat([size, -size, torch.zeros(1)])
    expected = torch.asinh(x.double())
    assert torch.allclose(defects._asinh(x).double(), expected, rtol=3e-7, atol=0)
    assert torch.isnan(defects._asinh(torch.tensor([torch.nan]))).all()


@pytest.mark.parametrize("kind", shapes.KINDS)
@pytest.mark.parametrize("size", [(32, 16), (64, 64), (13, 40)])
def test_shapes_fill_the_range_and_differ(kind, size):
    found = shapes.patterns((kind,), torch.zeros(40, dtype=torch.int64), keys(40), *size)
    assert found.shape == (40, *size)
    assert torch.isfinite(found).all()
    assert found.abs().max() <= 1 + 1e-6
    visible = found.abs().amax((1, 2)) > 0.99
    assert visible.float().mean() > 0.75
    differ = (found[visible][1:] - found[visible][:-1]).abs().amax((1, 2)) > 1e-3
    assert differ.float().mean() > 0.8  # steps through the middle come again


def test_shapes_do_not_depend_on_their_company():
    chosen = torch.arange(len(shapes.KINDS))
    together = shapes.patterns(shapes.KINDS, chosen, keys(len(chosen)), 32, 16)
    alone = shapes.patterns(shapes.KINDS, chosen[3:4], keys(len(chosen))[3:4], 32, 16)
    assert torch.allclose(together[3:4], alone, atol=1e-6)


def test_what_is_said_is_what_was_done():
    images = torch.asinh(torch.randn(300, 1, 32, 16) / 2)
    injected = task().inject(images, keys(300))
    changed = (injected.images - images).abs().amax((1, 2, 3)) > 0
    assert torch.equal(changed, injected.kinds.sum(1) == 1)
    assert 0.55 < changed.float().mean() < 0.75
    assert torch.equal(injected.patches.amax(1), injected.kinds)
    moved = torch.nn.functional.avg_pool2d((injected.images - images).abs(), 4).flatten(1)
    inside = injected.patches.amax(2) > 0
    assert moved[inside].mean() > 5 * moved[~inside].mean()


def test_pixels_without_data_stay_so():
    images = torch.randn(50, 2, 32, 16)
    images[:, :, 8:12] = 0
    assert (task().inject(images, keys(50)).images[:, :, 8:12] == 0).all()


def test_strength_follows_the_scatter_of_the_surveys_own_maps():
    level = torch.randn(200, 1, 1)
    slope = torch.linspace(-1, 1, 32)[:, None]
    patterns = torch.cat([slope.expand(1, 32, 16), slope.T[:, :16].expand(1, 32, 16)])
    quiet = task(bank=torch.asinh((0.5 * torch.randn(200, 32, 16) + 5 * level) / 2)).scatter(patterns)
    tilted = task(bank=torch.asinh((0.5 * torch.randn(200, 32, 16) + 3 * level * slope) / 2)).scatter(patterns)
    assert quiet[0] < 0.1  # the level of a map says nothing of its slope
    assert float(tilted[0]) == pytest.approx(3, rel=0.3)
    assert tilted[1] < 0.3


def test_kinds_follow_the_settings():
    kinds = defects.kinds_of(small_config(defects_left_out=["disc", "blur"], defect_views=["background", "detail"]))
    assert set(kinds) == {"background", "detail"}
    assert "disc" not in kinds["background"]
    assert kinds["detail"] == ("trail", "double", "donut", "noise")
    assert defects.kinds_of(small_config(defect_weight=0)) == {}


def star_field(count=6):
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    star = 400 * torch.exp(-((y - 7.5) ** 2 + (x - 7.5) ** 2) / (2 * 1.2**2))
    return star.repeat(2, 2).expand(count, -1, -1) + torch.randn(count, 32, 32)


def width(z):
    stamp = z[:, :16, :16].clamp(min=0)
    stamp = torch.where(stamp > 8, stamp, 0.0)
    offset = torch.arange(16.0) - 7.5
    total = stamp.sum((1, 2))
    row = (stamp * offset[:, None]).sum((1, 2)) / total
    col = (stamp * offset).sum((1, 2)) / total
    square = (stamp * (offset[:, None] ** 2 + offset**2)).sum((1, 2)) / total
    return (square - row**2 - col**2).clamp(min=0).sqrt()


@pytest.mark.parametrize("kind", ["blur", "trail", "double", "donut"])
def test_stars_change_and_keep_their_light(kind):
    z = star_field()
    chosen = torch.full((6,), stamps.KINDS.index(kind))
    changed = stamps.inject(z, chosen, keys(6), 16)
    assert (width(changed) > width(z)).all()
    assert torch.allclose(changed.sum((1, 2)), z.sum((1, 2)), rtol=0.05)


@pytest.mark.parametrize("kind", ["blur", "trail", "double", "donut"])
def test_the_grain_of_empty_sky_stays(kind):
    sky = torch.randn(20, 64, 64)
    changed = stamps.inject(sky, torch.full((20,), stamps.KINDS.index(kind)), keys(20), 32)
    assert float(changed.std()) == pytest.approx(1, abs=0.03)


def test_noise_adds_and_nothing_leaves_all_as_it_is():
    sky = torch.randn(20, 64, 64)
    chosen = torch.full((20,), stamps.KINDS.index("noise"))
    assert (stamps.inject(sky, chosen, keys(20), 32).std((1, 2)) > sky.std((1, 2))).all()
    assert torch.equal(stamps.inject(sky, torch.full((20,), -1), keys(20), 32), sky)


def test_detail_views_of_several_channels():
    found = task(stamps.KINDS, bank=torch.zeros(0), stamp=16, patch=8, softening=3.0)
    injected = found.inject(torch.asinh(star_field(40)[:, None].repeat(1, 2, 1, 1) / 3), keys(40))
    assert injected.images.shape == (40, 2, 32, 32)
    assert injected.patches.shape == (40, 16, 5)
    hit = injected.kinds.sum(1) > 0
    assert (injected.patches[hit].sum(2) == 1).all()


def test_kernels_keep_stamps_apart():
    z = torch.zeros(1, 32, 32)
    z[0, 8, 8] = 1000
    blurred = stamps.inject(z, torch.zeros(1, dtype=torch.int64), keys(1), 16)
    assert blurred[0, :16, :16].sum() == pytest.approx(1000, rel=0.1)
    assert blurred[0, 16:, 16:].abs().max() < 6
