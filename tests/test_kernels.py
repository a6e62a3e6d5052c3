import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.errors import NumbaError

from hpcqa import kernels

INNER = "from hpcqa.kernels import kernel\n\n@kernel\ndef change(x):\n    return x + {}\n"
OUTER = """
from hpcqa.pixels.inner import change
from hpcqa.kernels import kernel

@kernel
def twice(x):
    return 2 * change(x)
"""
ASK = "from hpcqa.pixels.outer import twice\nprint(twice(1), sum(twice.stats.cache_hits.values()))"


@pytest.fixture
def package(tmp_path):
    """A package with this one's name that holds two kernels, of which one calls the other."""
    pixels = tmp_path / "hpcqa" / "pixels"
    pixels.mkdir(parents=True)
    (tmp_path / "hpcqa" / "__init__.py").touch()
    (pixels / "__init__.py").touch()
    shutil.copy(Path(kernels.__file__), tmp_path / "hpcqa" / "kernels.py")
    (pixels / "inner.py").write_text(INNER.format(1))
    (pixels / "outer.py").write_text(OUTER)
    return pixels


def start(package, **environ):
    environ = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"} | environ
    command = [sys.executable, "-c", ASK]
    return subprocess.Popen(command, env=environ, cwd=package.parent.parent, stdout=subprocess.PIPE, text=True)


def ask(package, **environ):
    """What `twice` says, and whether it was found in the cache."""
    said, _ = start(package, **environ).communicate()
    return [int(word) for word in said.split()]


@pytest.mark.parametrize("chosen", [True, False])
def test_a_change_in_what_a_kernel_calls_is_seen(package, tmp_path, chosen):
    """The file of the caller stays as it was; by that file alone, numba would run the old code."""
    environ = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")} if chosen else {}
    assert ask(package, **environ) == [4, 0]
    assert ask(package, **environ) == [4, 1]
    (package / "inner.py").write_text(INNER.format(2))
    assert ask(package, **environ) == [6, 0]
    assert ask(package, **environ) == [6, 1]


def test_machine_code_of_older_sources_is_removed(package):
    ask(package)
    (old,) = (package / "__pycache__").glob("kernels-*")
    (package / "inner.py").write_text(INNER.format(2))
    ask(package)
    (new,) = (package / "__pycache__").glob("kernels-*")
    assert new != old


def test_processes_that_begin_together_agree(package):
    together = [start(package) for _ in range(3)]
    assert [process.communicate()[0].split()[0] for process in together] == ["4"] * 3
    assert ask(package) == [4, 1]


def test_code_that_cannot_be_kept_is_run(package):
    full = "\nimport os\ndef refuse(*_): raise OSError(28, 'no space left')\nos.replace = refuse\n"
    (package / "outer.py").write_text(OUTER + full)
    assert ask(package) == [4, 0]
    assert ask(package) == [4, 0]


def test_the_digest_is_of_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = kernels.sources_digest(tmp_path)
    (tmp_path / "note.txt").write_text("not a module")
    assert kernels.sources_digest(tmp_path) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert kernels.sources_digest(tmp_path) != first


def test_where_nothing_can_be_written_loops_run_and_that_is_told(monkeypatch, caplog):
    def nowhere(_):
        raise RuntimeError("no locator available")

    monkeypatch.setattr(kernels, "_cache_of", lambda package: nowhere)
    kernels._say_homeless.cache_clear()
    first, second = (kernels.kernel(lambda x, step=step: x + step) for step in (1, 2))
    assert (first(1), second(1)) == (2, 3)
    assert caplog.text.count("set NUMBA_CACHE_DIR") == 1


def _sum_of_rows(image):
    total = 0.0
    for i in range(image.shape[0]):
        row = image[i]
        for j in range(row.size):
            total += row[j]
    return total


def _sum_of_copy(image):
    return image.copy().sum()


def test_inner_loops_slice_but_make_no_arrays():
    """What makes none needs numba's runtime for nothing, so that no reference can be counted."""
    image = np.arange(12.0).reshape(3, 4)
    assert kernels.inner_kernel(_sum_of_rows)(image) == 66.0
    with pytest.raises(NumbaError, match="NRT required"):
        kernels.inner_kernel(_sum_of_copy)(image)


@pytest.mark.parametrize("compile", [kernels.kernel, kernels.fast_kernel, kernels.inner_kernel])
def test_a_division_by_zero_is_numpys(compile):
    over = compile(_over)
    assert over(1.0, 0.0) == np.inf
    assert np.isnan(over(0.0, 0.0))


def _over(one, other):
    return one / other
