from __future__ import annotations

import os
import subprocess
import sys

from hpcqa.launch.snapshot import digest, snapshot


def package(tmp_path):
    place = tmp_path / "pack"
    (place / "sub" / "__pycache__").mkdir(parents=True)
    (place / "__init__.py").write_text("x = 1\n")
    (place / "sub" / "page.html").write_text("<p>")
    (place / "sub" / "__pycache__" / "a.pyc").write_bytes(b"0")
    return place


def test_a_copy_that_later_edits_do_not_reach(tmp_path):
    place = package(tmp_path)
    first = snapshot(tmp_path / "run", place)
    (place / "__init__.py").write_text("x = 2\n")
    second = snapshot(tmp_path / "run", place)
    assert (first / "pack" / "__init__.py").read_text() == "x = 1\n"
    assert (second / "pack" / "__init__.py").read_text() == "x = 2\n"
    assert (first / "pack" / "sub" / "page.html").exists()
    assert not list(first.rglob("*.pyc"))


def test_the_same_code_is_copied_once(tmp_path):
    place = package(tmp_path)
    first = snapshot(tmp_path / "run", place)
    before = (first / "pack" / "__init__.py").stat().st_mtime_ns
    assert snapshot(tmp_path / "run", place) == first
    assert (first / "pack" / "__init__.py").stat().st_mtime_ns == before
    assert [path.name for path in (tmp_path / "run" / "code").iterdir()] == [first.name]


def test_names_count(tmp_path):
    place = package(tmp_path)
    before = digest(place)
    (place / "__init__.py").rename(place / "other.py")
    assert digest(place) != before


NUMBA = """
import sys, numba
from pack import fast
fast.double(2)
print(sum(fast.double.stats.cache_hits.values()), sum(fast.double.stats.cache_misses.values()))
"""


def test_compiled_code_goes_along(tmp_path):
    """The copy finds what was compiled beside the original: one hit, nothing compiled anew."""
    place = package(tmp_path)
    (place / "fast.py").write_text("import numba\n\n@numba.njit(cache=True)\ndef double(x):\n    return 2 * x\n")

    def run(path):
        environ = {**os.environ, "PYTHONPATH": str(path)}
        environ.pop("NUMBA_CACHE_DIR", None)
        command = [sys.executable, "-c", NUMBA]
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout.split()

    assert run(tmp_path) == ["0", "1"]
    assert run(snapshot(tmp_path / "run", place)) == ["1", "0"]
