"""The experiments that ship: each composes, fits the cards it names, and gives a batch file without a Slurm."""

import re

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.compose import compose
from hpcqa.launch import campaign
from hpcqa.ssl import flops, schedules, views, vit
from hpcqa.ssl.defects import kinds_of
from hpcqa.stages import stage

GIB40 = 40e9
# Experiment, nodes, tasks a node, GPUs a node, peak learning rate.
SIZES = [
    ("demo", 1, 1, 0, 6e-3 * (32 / 256) ** 0.5),
    ("single_gpu", 1, 1, 1, 7.1e-4),
    ("perlmutter_4", 4, 4, 4, 1.4e-3),
    ("perlmutter_64", 64, 4, 4, 2.0e-3),
]


def composed(name, *more):
    instrument = "minicam" if name == "demo" else "decam"
    return compose([f"experiment={name}", f"instrument={instrument}", "launch=slurm", "launch.dry_run=true", *more])


def parameters(architecture, ssl):
    trunk = (4 * architecture.dim + 8 * architecture.dim) * architecture.dim * architecture.depth
    width, bottleneck = ssl.head_hidden, ssl.head_bottleneck
    one = architecture.dim * width + width**2 + width * bottleneck + bottleneck * ssl.prototypes
    return trunk + one * (1 if ssl.shared_head else 2)


def activations(architecture, ssl, recomputed):
    """Bytes that a CCD of the batch holds until the backward pass, as the experiments' comments count them."""
    total, each = 0.0, architecture.depth * architecture.dim * (4 if recomputed else 50)
    for view, share in zip(ssl.views, ssl.mix, strict=True):
        shape, tokens, vectors = architecture.stems[view], 0, 0.0
        if view in ssl.crop_views:
            large, small = (
                rows * cols // shape.patch**2
                for rows, cols in (views.crop_size(shape, crop) for crop in (ssl.global_crop, ssl.local_crop))
            )
            tokens += 2 * large + ssl.local_crops * small + (2 + ssl.local_crops) * 5
            masked = ssl.mask_probability * sum(ssl.mask_share) if ssl.ibot_weight else 0.0
            vectors += 2 + ssl.local_crops + large * masked
        if view in architecture.defects:
            tokens += shape.grid[0] * shape.grid[1] + 5
        total += share * (tokens * each + 16 * ssl.prototypes * vectors)
    return total


@pytest.mark.parametrize(("name", "nodes", "tasks", "gpus", "lr"), SIZES)
def test_numbers_are_worked_out(name, nodes, tasks, gpus, lr):
    config = composed(name)
    ssl, asked = config.ssl, config.stage["pretrain"]
    assert (asked.nodes, asked.tasks_per_node, asked.gpus_per_node) == (nodes, tasks, gpus)
    assert schedules.peak_lr(ssl) == pytest.approx(lr, rel=0.02)
    world = nodes * tasks
    assert ssl.batch % (world * ssl.accumulate) == 0
    # Every view's images go round all ranks and pieces, two to each where KoLeo looks for neighbours.
    for view, share in zip(ssl.views, ssl.mix, strict=True):
        assert share * ssl.batch >= world * ssl.accumulate * (2 if view in ssl.crop_views and world == 1 else 1)
    architecture = vit.architecture_of(config.model, config.views, kinds_of(config))
    state = 20 * parameters(architecture, ssl) / (world if ssl.parallel == "fsdp" else 1)
    held = activations(architecture, ssl, config.model.activation_checkpointing) * ssl.batch / world / ssl.accumulate
    assert state + held < 0.6 * GIB40
    if name == "single_gpu":
        assert state + held < 0.75 * 24e9


@pytest.mark.parametrize(("name", "teraflop"), [("single_gpu", 0.313), ("perlmutter_4", 1.31), ("perlmutter_64", 4.70)])
def test_the_arithmetic_of_the_comments_is_the_codes(name, teraflop, request):
    config = composed(name)
    architecture = vit.architecture_of(config.model, config.views, kinds_of(config))
    each = zip(config.ssl.views, config.ssl.mix, strict=True)
    found = sum(share * flops.of_image(architecture, config.ssl, view) for view, share in each) / 1e12
    assert found == pytest.approx(teraflop, rel=0.01)
    text = (request.config.rootpath / "conf" / "experiment" / f"{name}.yaml").read_text()
    held = activations(architecture, config.ssl, config.model.activation_checkpointing) / 1e9
    (said,) = re.findall(r"([\d.]+) (?:GB )?(?:a CCD of the\n?#? *batch|GB a CCD)", text)[:1] or ("0",)
    assert float(said) == pytest.approx(held, rel=0.05)


@pytest.mark.parametrize(("name", "nodes", "tasks", "gpus", "lr"), SIZES)
def test_dry_runs_need_no_slurm(name, nodes, tasks, gpus, lr, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    where = ["cluster=perlmutter_gpu", "cluster.account=m1_g"] if gpus else ["cluster=generic"]
    config = composed(name, f"run={tmp_path / 'run'}", *where)
    (text,) = campaign.launch(config, RunFolder(tmp_path / "run"), [stage("pretrain")], whole_flow=False)
    assert f"--nodes={nodes}" in text
    assert f"--ntasks-per-node={tasks}" in text
    assert (f"--gpus-per-node={gpus}" in text) == (gpus > 0)
    assert not (tmp_path / "run").exists()
