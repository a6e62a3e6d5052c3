"""What goes wrong in a classification: killed at any moment, no space, damaged files, files of different networks."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.parallel.ranks import Ranks
from hpcqa.qa import classify, fit
from tests.qa.run_folder import make_run, settings
from tests.qa.test_ranks import contents

KILLS = int(os.environ.get("HPCQA_KILLS", "20"))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = make_run(tmp_path_factory.mktemp("fitted"))
    fit.run(settings(folder.path), folder, Ranks())
    return folder


@pytest.fixture
def run(fitted: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the fitted run, to be broken."""
    shutil.copytree(fitted.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def do(folder: RunFolder) -> None:
    classify.run(settings(folder.path), folder, Ranks())


def in_child(work: Callable[[], None]) -> int:
    """Fork: a child that knows everything already does the work and ends; its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return pid


def test_killed_at_random_moments_it_ends_with_the_same_tables(run: RunFolder) -> None:
    do(run)
    expected = contents(run)
    chance = random.Random(20261122)
    started = time.monotonic()
    shutil.rmtree(run.output("exports"))
    for name in ("decisions", "ccd_decisions"):
        run.output(name).unlink()
    assert os.waitpid(in_child(lambda: do(run)), 0)[1] == 0
    whole = time.monotonic() - started
    killed = 0
    for _ in range(KILLS):
        chosen = chance.choice(["decisions", "ccd_decisions", "none"])
        if chosen != "none":
            run.output(chosen).unlink(missing_ok=True)
        pid = in_child(lambda: do(run))
        time.sleep(chance.uniform(0.0, 1.1 * whole))
        os.kill(pid, signal.SIGKILL)
        hit = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        killed += hit
        # A machine that was busy when the whole was timed is not always so: kills then come too late.
        whole *= 1.0 if hit else 0.9
        # What has its final name is whole, whenever the process died.
        for name, schema in (("decisions", catalog.DECISIONS), ("ccd_decisions", catalog.CCD_DECISIONS)):
            if run.output(name).exists():
                assert store.verify(run.output(name), schema) == []
    assert killed > KILLS // 4
    do(run)
    assert contents(run) == expected
    assert not list(run.path.rglob("*.tmp"))


@pytest.mark.parametrize("limit", [1000, 20_000, 60_000])
def test_no_space_is_one_sentence_and_leaves_nothing_half_written(run: RunFolder, limit: int, tmp_path: Path) -> None:
    """A file size limit stands for the full disk: writes fail with the same kind of error."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        try:
            do(run)
        except EnvironmentProblem as problem:
            # The message may be longer than what may be written: a name says it as well.
            (tmp_path / f"said-{'cannot be written' in str(problem)}-{str(run.path) in str(problem)}").touch()

    assert os.waitpid(in_child(work), 0)[1] == 0
    assert [path.name for path in tmp_path.glob("said-*")] == ["said-True-True"]
    assert not run.output("decisions").exists()
    assert not list(run.path.rglob("*.tmp"))
    do(run)
    assert run.output("decisions").exists()


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize("which", ["classifier.h5", "embeddings/shard-00002.h5", "manifest.parquet", "labels.parquet"])
def test_a_damaged_file_is_named(run: RunFolder, which: str) -> None:
    cut_short(run.path / which)
    with pytest.raises(DataError, match=which.replace(".", r"\.")):
        do(run)
    assert not run.output("decisions").exists()


def test_a_missing_embedding_leaves_its_exposures_undecided(run: RunFolder) -> None:
    (run.output("embeddings") / "shard-00001.h5").unlink()
    do(run)
    decisions = store.read_table(run.output("decisions"), catalog.DECISIONS)
    lost = decisions["verdict"] == "undecided"
    assert lost.sum() >= 20
    assert sum("not embedded" in why for why in decisions["why"][lost]) == 20


def test_labels_that_changed_since_fit_are_an_error_until_fit_runs_again(run: RunFolder) -> None:
    labels = store.read_table(run.output("labels"), catalog.LABELS)
    labels = {name: values.copy() for name, values in labels.items()}
    labels["bad"][0], labels["reasons"][0] = ~labels["bad"][0], 4
    store.write_table(run.output("labels"), catalog.LABELS, labels, Provenance("d"))
    with pytest.raises(DataError, match="changed since it was fitted; run `hpcqa fit"):
        do(run)
    fit.run(settings(run.path), run, Ranks())
    do(run)


def of_network(path: Path, name: str) -> None:
    """Write an embedding file again as another network's."""
    with store.open_arrays(path, catalog.EMBEDDING) as file:
        arrays = {column.name: file.read(column.name) for column in catalog.EMBEDDING.columns if column.name in file}
        attributes = dict(file.attributes)
    store.write_arrays(path, catalog.EMBEDDING, arrays, Provenance("d", {"network": name}), attributes)


def test_embeddings_of_two_networks_are_never_mixed(run: RunFolder) -> None:
    files = sorted(run.output("embeddings").glob("*.h5"))
    for path in files:
        of_network(path, "one")
    fit.run(settings(run.path), run, Ranks())
    do(run)
    of_network(files[3], "another")
    with pytest.raises(DataError, match=r"shard-00003\.h5: made by network another, but .* of one"):
        do(run)


def test_a_classifier_of_another_network_is_refused(run: RunFolder) -> None:
    for path in run.output("embeddings").glob("*.h5"):
        of_network(path, "one")
    fit.run(settings(run.path), run, Ranks())
    for path in run.output("embeddings").glob("*.h5"):
        of_network(path, "another")
    with pytest.raises(DataError, match="with one backbone"):
        do(run)


def test_nothing_is_counted_twice_when_a_file_is_there_twice(run: RunFolder) -> None:
    do(run)
    before = store.read_table(run.output("ccd_decisions"), catalog.CCD_DECISIONS)
    shutil.copy(run.output("embeddings") / "shard-00002.h5", run.output("embeddings") / "shard-00099.h5")
    do(run)
    after = store.read_table(run.output("ccd_decisions"), catalog.CCD_DECISIONS)
    assert np.array_equal(before["expnum"], after["expnum"])
    np.testing.assert_array_equal(before["p_bad"], after["p_bad"])
