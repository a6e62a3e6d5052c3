"""A run on a disk that fills up again and again, with a little more room each time, ends as on any other disk."""

from __future__ import annotations

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.verify import leftovers, verify_run
from tests.endtoend.conftest import contents, hpcqa, settings
from tests.small_disk import BALLAST, leave_free, small_disk

pytestmark = pytest.mark.slow

# What is free, in KiB, and where the run stops: there is room for tables only, for some shards, for all of them but
# not for a checkpoint.
STOPS = ((0, "run"), (6000, "shards/shard-"), (20_000, "checkpoints/"))


def test_each_stop_is_one_sentence_and_the_next_start_goes_on(finished, tmp_path):
    words = settings(finished.survey)
    with small_disk(tmp_path / "disk", 100) as disk:
        run = disk / "run"
        for kilobytes, where in STOPS:
            leave_free(disk, kilobytes)
            done = hpcqa("run", f"run={run}", *words)
            assert done.returncode == 4, done.stderr
            last = done.stderr.splitlines()[-1]
            assert f"{disk}/{where}" in last.replace("/run/", "/") or where == "run"
            assert "space" in last
            assert "Traceback" not in done.stderr
            assert leftovers(RunFolder(run)) == []
            assert verify_run(RunFolder(run)) == []
        (disk / BALLAST).unlink()
        done = hpcqa("run", f"run={run}", *words)
        assert done.returncode == 0, done.stderr
        assert contents(run) == contents(finished.run)
        assert verify_run(RunFolder(run)) == []
