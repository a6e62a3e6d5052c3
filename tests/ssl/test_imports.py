"""The networks and their training run on machines that have neither the cameras' nor the launcher's packages."""

import subprocess
import sys
from pathlib import Path

ALONE = """
import importlib, pkgutil, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"astropy", "hydra", "omegaconf", "submitit", "mpi4py", "matplotlib", "scipy"}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import hpcqa.ssl
for module in pkgutil.iter_modules(hpcqa.ssl.__path__):
    if module.name != "online":  # which scores as the classifier does
        importlib.import_module("hpcqa.ssl." + module.name)
"""

# A GPU is often at hand where little more than torch and transformers is.
BENCHMARK = """
import sys
absent = "astropy fitsio h5py hydra matplotlib mpi4py numba omegaconf pyarrow rich scipy submitit"
sys.modules.update(dict.fromkeys(absent.split()))
sys.path.insert(0, "benchmarks")
import pretrain, torch
torch.set_num_threads(1)
config = pretrain.configuration("demo", 2, "cpu", "fp32", recipe="whole")
cutouts = pretrain.Memory(config.views, exposures=2, ccds=2)
ours = pretrain.Ours(config, pretrain.World(pretrain.detect({}), torch.device("cpu")), cutouts)
ours.step()
ours.bare()
assert ours.state.counters.skipped == 0
"""


def run(script: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr[-2000:]


def test_training_needs_neither_cameras_nor_launchers():
    run(ALONE)


def test_a_step_can_be_timed_with_torch_and_numpy_alone():
    run(BENCHMARK)
