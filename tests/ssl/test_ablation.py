"""The ablation: every experiment/ablation_*.yaml is a reference with one thing changed, and can be trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from hpcqa.artifacts.folder import RunFolder
from hpcqa.compose import compose
from hpcqa.config import Config, leaves
from hpcqa.parallel.ranks import Ranks
from hpcqa.parallel.torchdist import World
from hpcqa.ssl import pretrain, weights
from tests.ssl.fakes import VIEWS, FakeCutouts, small_config

CONFIGS = Path(__file__).parents[2] / "conf" / "experiment"
NAMES = sorted(path.stem for path in CONFIGS.glob("ablation_*.yaml"))
# What belongs together: the views of a network, and what is done to crops.
TOGETHER = ({"views", "mix", "crop_views", "defect_views"}, {"blur", "jitter"})


def reference_of(name: str) -> str:
    if name == "ablation_recipe":
        return "ablation_crops_no_ibot"
    return "ablation_crops" if name.startswith("ablation_crops_") else "ablation"


def composed(name: str) -> Config:
    return compose([f"experiment={name}"])


@pytest.mark.parametrize("name", NAMES)
def test_one_thing_is_changed(name: str) -> None:
    before, now = ({leaf.name: leaf.value for leaf in leaves(composed(one))} for one in (reference_of(name), name))
    keys = {key.removeprefix("ssl.") for key in now if now[key] != before[key]}
    assert len(keys) == 1 or any(keys and keys <= group for group in TOGETHER)
    assert all(f"ssl.{key}" in now for key in keys)


@pytest.mark.parametrize("name", ["ablation", *NAMES])
def test_it_trains(name: str, tmp_path: Path) -> None:
    small = small_config()
    chosen = composed(name).ssl
    ssl = dataclasses.replace(chosen, steps=1, batch=8, prototypes=16, head_hidden=16, head_bottleneck=8, device="cpu")
    config = dataclasses.replace(small, views=VIEWS, ssl=ssl)
    pretrain.train(config, RunFolder(tmp_path), FakeCutouts(), World(Ranks(), torch.device("cpu")), {})
    assert weights.read_card(tmp_path / "backbone.safetensors")["step"] == 1
