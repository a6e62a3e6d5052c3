"""Schedules, crops and masks, the feed, the collapse watch, parameter groups."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from hpcqa.config import SslConfig
from hpcqa.errors import ConfigError
from hpcqa.ssl import draws, monitor, schedules, views
from hpcqa.ssl.defects import network_of
from hpcqa.ssl.feed import Feed, NumberScale
from hpcqa.ssl.student_teacher import Learner, Teacher, parameter_groups
from hpcqa.ssl.vit import StemShape
from tests.ssl.fakes import FakeCutouts, small_config

SSL = SslConfig(steps=100, batch=1024, warmup=0.1)


def keys(count):
    return draws.image_keys(1, "v", 0, np.arange(count), np.arange(count))


def test_schedules_start_and_end_where_they_should():
    points = [schedules.at(SSL, step) for step in range(100)]
    assert points[0].lr == pytest.approx(schedules.peak_lr(SSL) / 11)
    assert max(point.lr for point in points) == pytest.approx(schedules.peak_lr(SSL))
    assert points[99].lr == pytest.approx(schedules.peak_lr(SSL) * SSL.lr_end)
    for name, first, last in (
        ("weight_decay", 0.04, 0.2),
        ("momentum", SSL.momentum, SSL.momentum_end),
        ("teacher_temperature", 0.04, 0.07),
    ):
        assert getattr(points[0], name) == pytest.approx(first)
        assert getattr(points[99], name) == pytest.approx(last)
    assert [point.last_layer_fixed for point in points[:3]] == [True, True, False]


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_the_learning_rate_follows_the_global_batch(scaling, factor):
    assert schedules.peak_lr(dataclasses.replace(SSL, lr_scaling=scaling)) == pytest.approx(1e-3 * factor)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_runs_have_finite_schedules(steps):
    for warmup in (0.0, 1.0):
        ssl = SslConfig(steps=steps, warmup=warmup)
        assert all(math.isfinite(schedules.at(ssl, step).lr) for step in range(steps))


def test_windows_are_parts_of_their_images():
    images = torch.arange(4 * 12 * 10.0).view(4, 1, 12, 10)
    found = views.windows(images, (5, 4), keys(4))
    for image, window in zip(images[:, 0], found[:, 0], strict=True):
        top, left = divmod(int(window[0, 0] - image[0, 0]), 10)
        assert torch.equal(window, image[top : top + 5, left : left + 4])


def test_windows_reach_every_place():
    corner = views.windows(torch.arange(9.0).view(1, 1, 3, 3).expand(300, -1, -1, -1), (2, 2), keys(300))[:, 0, 0, 0]
    assert corner.unique().tolist() == [0, 1, 3, 4]


def test_a_window_larger_than_the_image_is_named():
    with pytest.raises(ConfigError, match="13x4 does not fit an image of 12x10"):
        views.windows(torch.zeros(1, 1, 12, 10), (13, 4), keys(1))


def test_turns_keep_the_pixels_and_reach_all_eight():
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(200, -1, -1, -1)
    found = views.turned(image, keys(200))
    assert len(found.flatten(1).unique(dim=0)) == 8
    assert (found.flatten(1).sort(1).values == torch.arange(9.0)).all()
    assert len(views.turned(torch.arange(6.0).view(1, 1, 2, 3).expand(99, -1, -1, -1), keys(99)).unique(dim=0)) == 4


@pytest.mark.parametrize("size", [(5, 5), (5, 4), (12, 10)])
def test_windows_turned_in_one_pass_are_windows_that_are_turned(size):
    images = torch.randn(60, 2, 12, 10)
    turns = draws.derived(keys(60), 5)
    found = views.windows(images, size, keys(60), turns)
    assert torch.equal(found, views.turned(views.windows(images, size, keys(60)), turns))
    u = draws.uniform(turns, 3) < 0.5
    for image, expected, (rows, cols, both) in zip(found, views.windows(images, size, keys(60)), u, strict=True):
        expected = expected.flip(1) if rows else expected
        expected = expected.flip(2) if cols else expected
        assert torch.equal(image, expected.transpose(1, 2) if both and size[0] == size[1] else expected)


def test_small_changes_stay_small_and_missing_pixels_missing():
    images = torch.randn(20, 1, 16, 16)
    images[:, :, :4] = 0
    found = views.touched(images, keys(20), SSL)
    assert (found[:, :, :4] == 0).all()
    assert 0.01 < (found - images)[:, :, 4:].std() < 0.1
    strong = views.touched(images, keys(20), dataclasses.replace(SSL, blur=2.0, jitter=0.5))
    assert (strong[:, :, 4:] - images[:, :, 4:]).std() > 0.2


def test_masks_cover_their_share():
    found = views.masks(keys(500), (8, 8), SSL)
    share = found.float().mean(1)
    some = share > 0
    assert some.float().mean() == pytest.approx(0.5, abs=0.08)
    assert share[some].min() >= 0.05
    assert share[some].max() <= 0.6


def test_crop_sizes_are_whole_patches():
    assert views.crop_size(StemShape(128, 64, 16), 0.75) == (96, 48)
    assert views.crop_size(StemShape(32, 16, 16), 0.1) == (16, 16)


def test_ranks_share_the_images_of_one():
    config = small_config(batch=12, positives="exposure")
    whole = Feed(FakeCutouts(), config, rank=0, world_size=1).load(3).pieces[0]
    parts = [Feed(FakeCutouts(), config, rank=rank, world_size=3).load(3).pieces[0] for rank in range(3)]
    for view, images in whole.items():
        assert all(part[view].of_ranks == [len(one[view].expnum) for one in parts] for part in parts)
        dealt = [(e, c) for part in parts for e, c in zip(part[view].expnum, part[view].ccdnum, strict=True)]
        assert sorted(dealt) == sorted(zip(images.expnum, images.ccdnum, strict=True))


def test_an_epoch_sees_every_good_ccd_once_and_no_failed_one():
    cutouts = FakeCutouts(exposures=5, ccds=4)
    cutouts.failed[[1, 7]] = 4
    feed = Feed(cutouts, small_config(views=["background"], mix=[1.0], batch=6), rank=0, world_size=1)
    parts = [feed.load(step).pieces[0]["background"] for step in range(3)]
    seen = [key for part in parts for key in zip(part.expnum, part.ccdnum, strict=True)]
    good = [(e, c) for e, c, f in zip(cutouts.expnum, cutouts.ccdnum, cutouts.failed, strict=True) if f == 0]
    assert sorted(seen) == sorted(good)


def test_partners_are_other_ccds_of_the_exposure():
    cutouts = FakeCutouts(exposures=6, ccds=3)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(cutouts.expnum))
    cutouts.expnum, cutouts.ccdnum = cutouts.expnum[order], cutouts.ccdnum[order]
    feed = Feed(cutouts, small_config(positives="exposure"), rank=0, world_size=1)
    places = np.arange(len(feed.good))
    partners = [feed._partner(places, step) for step in range(2)]
    for found in partners:
        assert (found != places).all()
        assert (cutouts.expnum[feed.good[found]] == cutouts.expnum[feed.good]).all()
    assert (partners[0] != partners[1]).all()


def test_a_ccd_alone_is_its_own_partner():
    feed = Feed(FakeCutouts(exposures=6, ccds=1), small_config(positives="exposure"), rank=0, world_size=1)
    assert (feed._partner(np.arange(6), 4) == np.arange(6)).all()


def test_numbers_are_scaled_and_the_unknown_left_out():
    numbers = np.column_stack([np.linspace(0, 1000, 101), np.full(101, 5.0), np.full(101, np.nan), np.ones(101)])
    numbers[3, 0], numbers[:95, 3] = np.inf, np.nan
    scaled = NumberScale(numbers).apply(numbers)
    assert np.isnan(scaled[3, 0])
    assert abs(np.nanmedian(scaled[:, 0])) < 0.02
    assert np.nanmax(scaled[:, 0]) < 3
    assert (scaled[:, 1] == 0).all()
    assert np.isnan(scaled[:, 2:]).all()


def test_the_stream_reads_ahead_and_in_order():
    feed = Feed(FakeCutouts(), small_config(), rank=0, world_size=1)
    assert [images.step for images in feed.stream(3, 7)] == [3, 4, 5, 6]
    assert list(feed.stream(2, 2)) == []


def test_rank_and_spread_tell_collapse():
    torch.manual_seed(0)
    assert monitor.effective_rank(torch.randn(500, 8)) == pytest.approx(8, rel=0.02)
    line = torch.randn(500, 1) * torch.ones(8)
    assert monitor.effective_rank(line) == pytest.approx(1, rel=1e-3)
    assert monitor.effective_rank(torch.full((5, 3), float("nan"))) == 0
    assert monitor.spread(torch.randn(500, 8)) == pytest.approx(1, abs=0.03)
    assert monitor.spread(torch.ones(50, 8)) == pytest.approx(0, abs=1e-6)


def test_entropies_tell_what_the_teacher_says():
    uniform, same, varied = torch.full((8, 8), 1 / 8), torch.eye(8)[:1].expand(8, -1), torch.eye(8)
    assert monitor.entropies(uniform) == pytest.approx((1, 1), abs=1e-5)
    assert monitor.entropies(same) == pytest.approx((0, 0), abs=1e-5)
    assert monitor.entropies(varied) == pytest.approx((0, 1), abs=1e-5)


def learner(**ssl):
    config = small_config(**ssl)
    return Learner(network_of(config), config.ssl, {"background": 3})


def test_parameter_groups_hold_every_parameter_once():
    student = learner()
    groups = parameter_groups(student, 0.5)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert len(grouped) == len(set(map(id, grouped)))
    assert {id(p) for p in grouped} == {id(p) for p in student.parameters() if p.requires_grad}
    scale = {id(p): group["scale"] for group in groups for p in group["params"]}
    decays = {id(p): group["decays"] for group in groups for p in group["params"]}
    backbone = student.backbone
    assert scale[id(backbone.cls_token)] == 0.5**5
    assert scale[id(backbone.blocks[3].attn.qkv.weight)] == 0.5
    assert scale[id(student.head.prototypes)] == 1
    assert decays[id(backbone.blocks[0].mlp.fc1.weight)]
    assert not decays[id(backbone.blocks[0].mlp.fc1.bias)]
    assert not decays[id(backbone.stems["context"].position)]


def test_what_no_task_uses_has_no_gradient_to_wait_for():
    student = learner(crop_views=[], defect_weight=0)
    assert student.head is None
    assert not student.backbone.mask_token.requires_grad
    assert not student.backbone.stems["detail"].position.requires_grad
    student = learner(crop_views=["context"], ibot_weight=0, defect_views=["background"])
    learning = {view for view, stem in student.backbone.stems.items() if stem.position.requires_grad}
    assert learning == {"context", "background"}


def test_the_teacher_follows():
    student = learner()
    teacher = Teacher(student)
    before = teacher.network.backbone.cls_token.clone()
    with torch.no_grad():
        student.backbone.cls_token += 1
    teacher.follow(student, 0.9)
    assert torch.allclose(teacher.network.backbone.cls_token, before + 0.1)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
