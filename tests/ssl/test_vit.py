import dataclasses

import numpy as np
import pytest
import torch

from hpcqa.config import ModelConfig, ViewsConfig
from hpcqa.errors import ConfigError, DataError
from hpcqa.ssl import draws, vit
from hpcqa.ssl.vit import Architecture, StemShape
from tests.ssl.reference import hugging_face

BASE = Architecture(
    dim=32, depth=3, heads=4, ffn="mlp", in_channels=3, registers=4, stems={"image": StemShape(28, 28, 7)}
)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
@pytest.mark.parametrize("size", [(28, 28), (42, 35), (14, 56)])
def test_agrees_with_an_independent_implementation(registers, ffn, size):
    architecture = dataclasses.replace(BASE, registers=registers, ffn=ffn, layer_scale=0.7)
    ours, theirs = hugging_face(architecture)
    images = torch.randn(2, 3, *size)
    masked = torch.rand(2, (size[0] // 7) * (size[1] // 7)) < 0.3
    for mask in (None, masked):
        with torch.inference_mode():
            tokens = ours(images, "image", mask)
            expected = theirs(images, bool_masked_pos=mask).last_hidden_state
        assert torch.allclose(tokens.cls, expected[:, 0], atol=1e-5)
        assert torch.allclose(tokens.patches, expected[:, 1 + registers :], atol=1e-5)


@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_cls_alone_is_the_same_as_with_the_patches(drop_path):
    model = vit.build(ModelConfig(layer_scale=1.0, drop_path=drop_path)).train()
    gradients = []
    for cls_only in (False, True):
        model.zero_grad()
        tokens = model(torch.ones(3, 1, 32, 16), "background", keys=torch.arange(3), cls_only=cls_only)
        assert tokens.patches.shape[1] == (0 if cls_only else 32)
        tokens.cls.square().sum().backward()
        gradients.append([tokens.cls.detach(), *(p.grad for p in model.blocks.parameters())])
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(*gradients, strict=True))


def test_the_seed_decides_and_nothing_else():
    model = ModelConfig()
    torch.manual_seed(11)
    first = vit.build(model, seed=3)
    before = torch.rand(1)
    second = vit.build(model, seed=3)
    after = torch.rand(1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert before != after
    other = vit.build(model, seed=4)
    assert not torch.equal(first.cls_token, other.cls_token)


def test_every_view_has_its_grid_and_every_size_its_positions():
    model = vit.build(ModelConfig(in_channels=2), ViewsConfig())
    assert model(torch.randn(1, 2, 128, 64), "context").grid == (8, 4)
    assert model(torch.randn(1, 2, 32, 16), "background").patches.shape == (1, 32, 96)
    assert model(torch.randn(2, 2, 64, 64), "focal_plane").grid == (8, 8)
    assert model(torch.randn(1, 2, 48, 80), "detail").grid == (3, 5)


@pytest.mark.parametrize("patch", [1, 2, 3, 4, 7, 14, 16])
def test_convolutional_stems_give_one_token_a_patch(patch):
    architecture = dataclasses.replace(BASE, stem="conv", stems={"image": StemShape(4 * patch, 6 * patch, patch)})
    model = vit.from_architecture(architecture, 0)
    assert model(torch.randn(1, 3, 4 * patch, 6 * patch), "image").grid == (4, 6)


def test_checkpointed_activations_give_the_same_gradients():
    gradients = []
    for recompute in (False, True):
        config = ModelConfig(activation_checkpointing=recompute)
        model = vit.build(config).train()
        model(torch.ones(1, 1, 32, 16), "background").cls.sum().backward()
        gradients.append(model.blocks[0].attn.qkv.weight.grad)
    assert torch.allclose(*gradients)


def test_stochastic_depth_keeps_the_mean_and_goes_by_the_images_keys():
    keys = draws.image_keys(1, "d", 0, np.arange(4000), np.arange(4000))
    factors = vit.depth_factors(keys, [0.0, 0.25])
    assert factors.shape == (2, 2, 4000, 1, 1)
    assert (factors[0] == 1).all()
    assert factors[1].unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float(factors[1].mean()) == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(factors[1, :, :, 0, 0].numpy())[0, 1]) < 0.06
    assert torch.equal(vit.depth_factors(keys[7:9], [0.0, 0.25]), factors[:, :, 7:9])


def test_stochastic_depth_leaves_branches_out_only_where_there_are_keys():
    model = vit.build(ModelConfig(drop_path=0.9, layer_scale=1.0)).train()
    images, keys = torch.randn(6, 1, 32, 16), torch.arange(6)
    plain, dropped = model(images, "background").cls, model(images, "background", keys=keys).cls
    assert torch.equal(model.eval()(images, "background").cls, plain)
    assert not torch.allclose(plain, dropped)
    alone = model(images[4:5], "background", keys=keys[4:5]).cls
    assert torch.allclose(alone, dropped[4:5], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "view", "message"),
    [
        ((1, 2, 32, 16), "background", "takes 1 channels"),
        ((1, 32, 16), "background", "takes 1 channels"),
        ((1, 1, 33, 16), "background", "multiples of the patch, 4"),
        ((1, 1, 0, 16), "background", "multiples of the patch"),
        ((1, 1, 32, 16), "sky", "has only background"),
    ],
)
def test_images_that_do_not_fit_are_named(shape, view, message):
    with pytest.raises(DataError, match=message):
        vit.build(ModelConfig())(torch.zeros(shape), view)


def test_views_that_are_no_multiple_of_the_patch_are_refused():
    with pytest.raises(ConfigError, match=r"views.context=\[100,64\].*model.patch=16"):
        vit.build(ModelConfig(), ViewsConfig(context=[100, 64]))


def test_the_architecture_survives_json():
    model = vit.build(ModelConfig(), defects={"background": ("disc", "ring")})
    assert Architecture.from_json(model.architecture.to_json()) == model.architecture
    with pytest.raises(DataError, match="not understood"):
        Architecture.from_json({"dim": 3})
