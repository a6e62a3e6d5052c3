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


def test_training_needs_neither_cameras_nor_launchers():
    found = subprocess.run([sys.executable, "-c", ALONE], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
