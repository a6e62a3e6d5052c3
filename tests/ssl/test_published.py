import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hpcqa.config import ModelConfig, ViewsConfig
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.ssl import published, vit, weights
from tests.ssl.reference import hugging_face
from tests.ssl.test_vit import BASE

VIEWS = ViewsConfig(context=[28, 28], background=[16, 8], detail=[56, 56], stamp=28, focal_plane=[16, 16])
MODEL = ModelConfig(patch=14, patch_background=4, patch_focal_plane=8)
# One head of 64 dimensions a head, as all published sizes have.
SMALL = dataclasses.replace(BASE, dim=64, heads=1, depth=2, stems={"image": vit.StemShape(56, 56, 14)})


def official(architecture=SMALL, prefix="", chunks=False):
    """A state with the official file's names."""
    torch.manual_seed(0)
    model = vit.from_architecture(architecture, 0)
    state = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("blocks.") and chunks:
            name = f"blocks.0.{name.removeprefix('blocks.')}"
        if not name.startswith("stems."):
            state[name] = torch.randn_like(tensor)
    dim = architecture.dim
    state["patch_embed.proj.weight"], state["patch_embed.proj.bias"] = torch.randn(dim, 3, 14, 14), torch.randn(dim)
    state["pos_embed"] = torch.randn(1, 17, dim)
    if not architecture.registers:
        del state["register_tokens"]
    return {prefix + name: tensor for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ["pth", "safetensors", "checkpoint", "training"])
@pytest.mark.parametrize("registers", [0, 4])
def test_files_of_every_layout_come_in(tmp_path, kind, registers):
    architecture = dataclasses.replace(SMALL, registers=registers)
    state = official(architecture, prefix="teacher.backbone." if kind == "training" else "", chunks=kind == "training")
    path = tmp_path / ("weights.safetensors" if kind == "safetensors" else "weights.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save({"teacher": state} if kind == "checkpoint" else state, path)
    card = published.import_weights(path, tmp_path / "backbone.safetensors", MODEL, VIEWS)
    model, stored = weights.load_backbone(tmp_path / "backbone.safetensors")
    assert stored == card
    assert (model.architecture.registers, model.architecture.in_channels) == (registers, 1)
    plain = {name.removeprefix("teacher.backbone.").replace("blocks.0.0", "blocks.0"): t for name, t in state.items()}
    assert torch.equal(model.blocks[0].mlp.fc1.weight, plain["blocks.0.mlp.fc1.weight"])
    assert torch.allclose(model.cls_token, plain["cls_token"] + plain["pos_embed"][:, :1])


def test_hugging_faces_hub_names_are_known():
    """Names of the files on the hub, which differ from those in memory."""
    ours, theirs = hugging_face(dataclasses.replace(BASE, layer_scale=0.5))
    hub = {}
    for name, tensor in theirs.state_dict().items():
        for new, old in (("q_proj", "attention.query"), ("k_proj", "attention.key"), ("v_proj", "attention.value")):
            name = name.replace(f"attention.{new}", f"attention.{old}")
        hub["dinov2_with_registers." + name.replace("attention.o_proj", "attention.output.dense")] = tensor
    again = vit.from_architecture(ours.architecture, 5)
    published.fill(again, published.to_official(hub), ["image"])
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))


def imported(tmp_path, state, name="weights.pth"):
    """The network that a state comes in as."""
    torch.save(state, tmp_path / name)
    published.import_weights(tmp_path / name, tmp_path / "backbone.safetensors", MODEL, VIEWS)
    return weights.load_backbone(tmp_path / "backbone.safetensors")[0].state_dict()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module.teacher.backbone.", "teacher.backbone.module."])
def test_wrappers_come_off_and_of_student_and_teacher_the_teacher_comes_in(tmp_path, prefix):
    state = official(prefix=prefix)
    if "teacher" in prefix:
        state |= {name.replace("teacher", "student"): torch.zeros_like(tensor) for name, tensor in state.items()}
        state[prefix.replace("backbone", "dino_head") + "last.weight"] = torch.ones(2)
    assert equal(imported(tmp_path, {"model": state, "iteration": 3}), imported(tmp_path, official()))


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_timms_names_are_known(tmp_path, ffn):
    """With registers the class position is in the class token; SwiGLU has the names of a plain network."""
    state = official(dataclasses.replace(SMALL, ffn=ffn, registers=4))
    state["mask_token"] = torch.zeros_like(state["mask_token"])
    theirs = {
        name.replace("mlp.w12", "mlp.fc1").replace("mlp.w3", "mlp.fc2"): tensor
        for name, tensor in state.items()
        if name not in ("mask_token", "register_tokens")
    }
    theirs["reg_token"] = state["register_tokens"]
    theirs["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    theirs["pos_embed"] = state["pos_embed"][:, 1:]
    theirs["head.weight"] = torch.ones(3, SMALL.dim)
    assert equal(imported(tmp_path, theirs), imported(tmp_path, state))


def test_files_are_told_by_content_and_several_come_in_by_their_index(tmp_path):
    state = {name: tensor.contiguous() for name, tensor in official().items()}
    expected = imported(tmp_path, state, "named.safetensors")
    parts = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
    for number, part in enumerate(parts):
        save_file(part, tmp_path / f"part{number}.bin")
    index = {"weight_map": {name: f"part{number}.bin" for number, part in enumerate(parts) for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    published.import_weights(tmp_path / "model.safetensors.index.json", tmp_path / "o.safetensors", MODEL, VIEWS)
    assert equal(weights.load_backbone(tmp_path / "o.safetensors")[0].state_dict(), expected)
    (tmp_path / "part1.bin").unlink()
    with pytest.raises(DataError, match=r"part1\.bin: not found"):
        published.read_file(tmp_path / "model.safetensors.index.json")
    with pytest.raises(DataError, match="a folder; name the file"):
        published.read_file(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 22\n", "a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
    ],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_what_was_fetched_instead_is_named(tmp_path, content, said, name):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: not a file of weights alone \({said}"):
        published.read_file(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    state = official()
    state["blocks.1.mlp.fc1.weight"][3, 3] = value
    with pytest.raises(DataError, match=r"1 of \d+ values of blocks\.1\.mlp\.fc1\.weight are not finite"):
        imported(tmp_path, state)


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("pos_embed", None, "has no pos_embed"),
        ("pos_embed", torch.ones(1, 7, 64), "pos_embed has 7 positions"),
        ("cls_token", torch.ones(64), r"has cls_token of shape \(64,\)"),
    ],
)
def test_positions_and_tokens_of_other_networks_are_named(tmp_path, name, tensor, said):
    state = {key: value for key, value in official().items() if key != name}
    with pytest.raises(DataError, match=rf"weights\.pth: {said}"):
        imported(tmp_path, state | ({} if tensor is None else {name: tensor}))


@pytest.mark.parametrize("normalised", [False, True])
def test_three_channels_fold_into_one_exactly(normalised):
    weight, bias = torch.randn(8, 3, 4, 4), torch.randn(8)
    grey = torch.rand(2, 1, 8, 8)
    colour = grey.expand(-1, 3, -1, -1)
    constants = (published.IMAGENET_MEAN, published.IMAGENET_STD) if normalised else (None, None)
    if normalised:
        mean, std = (torch.tensor(values)[None, :, None, None] for values in constants)
        colour = (colour - mean) / std
    expected = torch.nn.functional.conv2d(colour, weight, bias, stride=4)
    folded = published.fold_rgb(weight, bias, *constants)
    assert torch.allclose(torch.nn.functional.conv2d(grey, *folded, stride=4), expected, atol=1e-4)


@pytest.mark.parametrize("patch", [4, 8, 16, 20])
def test_resized_patches_see_resized_images_alike(patch):
    weight = torch.randn(5, 1, 8, 8)
    small = torch.randn(3, 1, 8, 8)
    large = torch.nn.functional.interpolate(
        small, (patch, patch), mode="bicubic", align_corners=False, antialias=patch < 8
    )
    resized = published.resized_patches(weight, patch)
    if patch >= 8:  # nothing is lost by enlarging
        expected = torch.einsum("nchw,dchw->nd", small, weight)
        assert torch.allclose(torch.einsum("nchw,dchw->nd", large, resized), expected, atol=1e-3)
    assert resized.shape == (5, 1, patch, patch)
    assert torch.isfinite(resized).all()


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_pickles_of_other_things_are_refused_and_not_run(tmp_path):
    path = tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(DataError, match="not a file of weights alone"):
        published.read_file(path)
    assert not (tmp_path / "ran").exists()


def test_no_bytes_are_a_mistake_of_ours(tmp_path, recwarn):
    path, rng = tmp_path / "x.pth", np.random.default_rng(0)
    random = [rng.integers(0, 256, 40, dtype=np.uint8).tobytes() for _ in range(300)]
    pickled = [b"\x80" + bytes([version]) + some for version, some in zip([2, 3, 4] * 100, random, strict=True)]
    torch.save({"a": torch.ones(3)}, path)
    sound = path.read_bytes()
    for content in (b"hello\n", b"", sound[:200], *random, *pickled):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a file of weights alone|no table of tensors") as found:
            published.read_file(path)
        assert "weights_only" not in str(found.value)
    assert not recwarn.list


@pytest.mark.parametrize(
    ("content", "message"),
    [({"a": 3}, "no table of tensors"), ({"a": torch.ones(2)}, "has no cls_token"), ([1], "no table of tensors")],
)
def test_what_is_no_network_is_named(tmp_path, content, message):
    path = tmp_path / "x.pth"
    torch.save(content, path)
    with pytest.raises(DataError, match=message):
        published.import_weights(path, tmp_path / "out.safetensors", MODEL, VIEWS)


def test_missing_and_left_over_names_are_said(tmp_path):
    state = official()
    state["surplus.weight"] = torch.ones(1)
    del state["blocks.1.norm1.weight"]
    path = tmp_path / "x.pth"
    torch.save(state, path)
    with pytest.raises(DataError, match=r"missing blocks.1.norm1.weight; left over surplus.weight"):
        published.import_weights(path, tmp_path / "out.safetensors", MODEL, VIEWS)


def test_other_channels_are_refused(tmp_path):
    path = tmp_path / "x.pth"
    torch.save(official(), path)
    with pytest.raises(DataError, match=r"takes 3 channels, model\.in_channels=2"):
        published.import_weights(path, tmp_path / "o", dataclasses.replace(MODEL, in_channels=2), VIEWS)


def test_missing_and_truncated_files(tmp_path):
    with pytest.raises(DataError, match="not found"):
        published.read_file(tmp_path / "none.pth")
    for name in ("half.pth", "half.safetensors"):
        (tmp_path / name).write_bytes(b"\x10\0\0\0\0\0\0\0{")
        with pytest.raises(DataError, match="not a file of weights alone"):
            published.read_file(tmp_path / name)


def test_own_backbones_pass_through(tmp_path):
    model = vit.build(MODEL, VIEWS, {"background": ("disc",)}, seed=4)
    first = weights.save_backbone(tmp_path / "a.safetensors", model, {"seed": 4})
    second = published.import_weights(tmp_path / "a.safetensors", tmp_path / "b.safetensors", MODEL, VIEWS)
    assert first["content"] == second["content"]


def test_cards_are_checked(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="without a card"):
        weights.load_backbone(path)
    save_file({"a": torch.ones(1)}, path, metadata={"hpcqa": '{"format": "hpcqa-backbone", "version": 99}'})
    with pytest.raises(DataError, match="version 99"):
        weights.load_backbone(path)
    model = vit.build(MODEL, VIEWS)
    card = weights.save_backbone(path, model, {})
    assert card["content"] == weights.content_digest(model.state_dict())
    other = vit.build(dataclasses.replace(MODEL, arch="tiny"), VIEWS)
    with pytest.raises(DataError, match="dim is 96, model asks for 192"):
        weights.initialise(other, path)
    other = vit.build(dataclasses.replace(MODEL, registers=0), VIEWS)
    with pytest.raises(DataError, match=r"registers is 4, model asks for 0; set model\.registers to"):
        weights.initialise(other, path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"x\.safetensors: "):
        weights.initialise(vit.build(MODEL, VIEWS), path)


def test_what_starts_at_random_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    weights.save_backbone(tmp_path / "x.safetensors", vit.build(MODEL, VIEWS), {})
    for stem, said in ((MODEL.stem, "none"), ("linear", "background, context, detail, focal_plane")):
        weights.initialise(vit.build(dataclasses.replace(MODEL, stem=stem), VIEWS), tmp_path / "x.safetensors")
        assert f"stems that start at random: {said}." in caplog.text


def test_a_backbone_that_is_not_finite_is_refused(tmp_path):
    model = vit.build(MODEL, VIEWS)
    with torch.no_grad():
        model.norm.bias[1] = torch.nan
    weights.save_backbone(tmp_path / "x.safetensors", model, {})
    for use in (weights.load_backbone, lambda path: weights.initialise(vit.build(MODEL, VIEWS), path)):
        with pytest.raises(DataError, match=r"x\.safetensors: 1 of \d+ values of norm\.bias are not finite"):
            use(tmp_path / "x.safetensors")


def test_the_digest_sees_every_byte():
    state = {"a": torch.zeros(3), "b": torch.ones(2)}
    changed = {"a": torch.zeros(3), "b": torch.from_numpy(np.nextafter(np.ones(2, np.float32), np.float32(2)))}
    assert weights.content_digest(state) != weights.content_digest(changed)
    assert weights.content_digest(state) == weights.content_digest(dict(reversed(state.items())))


def test_the_file_is_readable_like_any_other(tmp_path):
    path, plain = tmp_path / "x.safetensors", tmp_path / "plain"
    weights.save_backbone(path, vit.build(MODEL, VIEWS), {})
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_file_that_may_not_be_read_is_the_machines_fault(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError

    monkeypatch.setattr(type(tmp_path), "open", refused)
    with pytest.raises(EnvironmentProblem, match=r"x\.pth: permission denied"):
        published.read_file(tmp_path / "x.pth")
