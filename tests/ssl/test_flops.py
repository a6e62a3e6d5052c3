"""The arithmetic counted by hand against torch's own counter of the operations that run."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hpcqa.config import ModelConfig
from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import World
from hpcqa.ssl import draws, flops, pretrain, vit
from hpcqa.ssl.feed import Feed
from hpcqa.ssl.trainer import Trainer, fresh_state
from tests.ssl.fakes import VIEWS, FakeCutouts, small_config


def counted(run):
    # The plain kernel, because the counter does not know the CPU's fused one.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("stem", ["linear", "conv"])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("size", [(32, 16), (16, 8)])
def test_forward(stem, ffn, size):
    architecture = vit.architecture_of(ModelConfig(stem=stem, patch=8, in_channels=2), VIEWS)
    architecture = dataclasses.replace(architecture, ffn=ffn)
    model = vit.from_architecture(architecture, 0).eval()
    images = torch.randn(3, 2, *size)
    with torch.no_grad():
        found = counted(lambda: model(images, "context"))
        spared = counted(lambda: model(images, "context", cls_only=True))
    assert 3 * flops.forward(architecture, "context", size) == pytest.approx(found, rel=1e-6)
    assert 3 * flops.forward(architecture, "context", size, cls_only=True) == pytest.approx(spared, rel=1e-6)
    assert spared < 0.9 * found


@pytest.mark.parametrize("extra", [{}, {"ibot_weight": 0.0, "crop_views": ["detail"], "shared_head": False}])
def test_a_whole_step(extra):
    config = small_config(batch=64, mask_probability=1.0, mask_share=[0.5, 0.5], log_every=100, **extra)
    world = World(Ranks(), torch.device("cpu"))
    feed = Feed(FakeCutouts(exposures=24, ccds=4), config, rank=0, world_size=1)
    state = fresh_state(pretrain.starting_network(config), config, feed, world)
    trainer = Trainer(config, feed, state, world)
    found = counted(lambda: trainer.step(feed.load(0)))
    expected = flops.of_step(state.student.backbone.architecture, config.ssl, feed.counts)
    # By hand the images' own gradients count too, and masks have the sizes that they have on average.
    assert expected == pytest.approx(found, rel=0.06)


def test_the_peak_is_measured():
    assert flops.measured_peak(torch.device("cpu"), False) > 1e8


def test_masks_cover_the_share_that_is_counted():
    config = small_config()
    from hpcqa.ssl import views

    keys = draws.image_keys(1, "m", 0, np.arange(3000), np.arange(3000))
    share = float(views.masks(keys, (12, 12), config.ssl).float().mean())
    assert share == pytest.approx(config.ssl.mask_probability * sum(config.ssl.mask_share) / 2, rel=0.05)
