"""The next release: only what is new or processed anew is read, and the decisions are those of reading everything."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from hpcqa.artifacts import catalog
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.parts import first_own_shard, part_files
from hpcqa.artifacts.store import read_table
from hpcqa.config.frozen import load, to_yaml
from hpcqa.parallel.ranks import Ranks
from hpcqa.stages import stage
from tests.endtoend.conftest import hpcqa

pytestmark = pytest.mark.slow

ANEW = "V9.9"


@dataclasses.dataclass(frozen=True)
class Releases:
    """Two runs, and the exposures that differ between their surveys."""

    first: Path
    second: Path
    survey: Path
    gone: list[int]
    new: list[int]
    reprocessed: list[int]
    output: str


def next_release(survey: Path, first: Path, target: Path) -> tuple[list[int], list[int], list[int]]:
    """A survey of which three exposures are gone, two are new and four processed anew, with each other's images."""
    shutil.copytree(survey, target, ignore=shutil.ignore_patterns("images"))
    (target / "images").symlink_to(survey / "images")
    table = Table.read(survey / "survey-ccds-minicam.fits.gz")
    decisions = read_table(first / "decisions.parquet", catalog.DECISIONS)
    order = decisions["expnum"][np.argsort(decisions["p_bad"])].tolist()
    gone, reprocessed = order[3:6], [order[0], order[1], order[-1], order[-2]]
    rows = {expnum: table[table["expnum"] == expnum] for expnum in order}
    # What was worst looks like what was best by now, and the reverse.
    files = [rows[expnum]["image_filename"][0] for expnum in reprocessed]
    for expnum, file in zip(reprocessed, reversed(files), strict=True):
        rows[expnum]["image_filename"] = file
        rows[expnum]["plver"] = ANEW
    added = [rows[expnum].copy() for expnum in gone[:2]]
    new = [int(max(order)) + 5, int(max(order)) + 6]
    for expnum, some in zip(new, added, strict=True):
        some["expnum"] = expnum
        some["mjd_obs"] += 30.0
    kept = [rows[expnum] for expnum in sorted(order) if expnum not in gone]
    columns = {name: np.concatenate([np.asarray(part[name]) for part in [*kept, *added]]) for name in table.colnames}
    Table(columns).write(target / "survey-ccds-minicam.fits.gz", overwrite=True)
    return gone, new, reprocessed


@pytest.fixture(scope="module")
def releases(finished, tmp_path_factory) -> Releases:
    root = tmp_path_factory.mktemp("releases")
    gone, new, reprocessed = next_release(finished.survey, finished.run, root / "survey")
    done = hpcqa(
        "run",
        f"run={root}/second",
        f"base={finished.run}",
        f"survey.tables=[{root}/survey/survey-ccds-minicam.fits.gz]",
        f"survey.images=[{root}/survey/images]",
        "survey.update=true",
    )
    assert done.returncode == 0, done.stderr
    return Releases(finished.run, root / "second", root / "survey", gone, new, reprocessed, done.stdout)


def decisions_of(run: Path) -> dict[str, np.ndarray]:
    return read_table(run / "decisions.parquet", catalog.DECISIONS)


def folder_of(releases: Releases) -> RunFolder:
    return RunFolder(releases.second, (releases.first,))


def test_only_what_is_new_or_processed_anew_is_read(releases):
    folder = folder_of(releases)
    for name in ("shards", "embeddings", "embeddings-untrained"):
        own = sorted((releases.second / name).glob("*.h5"))
        assert len(own) == 2, name  # six exposures, four in a shard
        assert [path.parent for path in part_files(folder, name)].count(releases.second / name) == 2
    manifest = read_table(releases.second / "manifest.parquet", catalog.MANIFEST, ("expnum", "shard"))
    own = manifest["shard"] >= first_own_shard(folder)
    assert sorted(set(manifest["expnum"][own].tolist())) == sorted([*releases.new, *releases.reprocessed])
    for name in ("calibration.h5", "backbone.safetensors", "classifier.h5"):
        assert not (releases.second / name).exists()


def test_the_decisions_are_those_of_reading_everything(releases, tmp_path):
    config, words = load(releases.second / "run.yaml")
    survey = dataclasses.replace(config.survey, update=False)
    config = dataclasses.replace(config, run=str(tmp_path), base="", survey=survey)
    (tmp_path / "run.yaml").write_text(to_yaml(config, words))
    for name in ("calibration.h5", "backbone.safetensors"):
        shutil.copy(releases.first / name, tmp_path)
    folder = RunFolder(tmp_path)
    for name in ("manifest", "shard", "embed"):
        stage(name).load()(config, folder, Ranks())
    shutil.copy(releases.first / "classifier.h5", tmp_path)
    stage("classify").load()(config, folder, Ranks())
    whole, update = decisions_of(tmp_path), decisions_of(releases.second)
    assert len(list((tmp_path / "shards").glob("*.h5"))) == 6
    for name in ("expnum", "verdict", "extent", "reasons", "plver", "num_ccds", "num_decided", "num_bad_ccds"):
        assert whole[name].tolist() == update[name].tolist(), name
    for name in ("p_bad", "novelty"):
        np.testing.assert_allclose(whole[name], update[name], rtol=1e-3, atol=1e-4, err_msg=name)
    ccds = [read_table(run / "ccd_decisions.parquet", catalog.CCD_DECISIONS) for run in (tmp_path, releases.second)]
    assert ccds[0]["verdict"].tolist() == ccds[1]["verdict"].tolist()


def test_the_run_and_compare_say_what_changed_and_why(releases, tmp_path):
    said = [line for line in releases.output.splitlines() if " against " in line]
    assert len(said) == 1
    assert "24 exposures became 23 (2 new, 3 gone, 4 reprocessed)" in said[0]
    assert "same network and classifier" in said[0]
    done = hpcqa("compare", str(releases.first), str(releases.second), "--json", f"out={tmp_path}/changes.csv")
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert content["summary"] == said[0]
    why = {change["expnum"]: change["why"] for change in content["changes"]}
    assert {expnum for expnum, words in why.items() if words == "new"} == set(releases.new)
    assert {expnum for expnum, words in why.items() if words == "gone"} == set(releases.gone)
    assert {expnum for expnum, words in why.items() if "PLVER" in words} == set(releases.reprocessed)
    assert set(why) == {*releases.new, *releases.gone, *releases.reprocessed}
    assert (tmp_path / "changes.csv").read_text() == (releases.second / "report" / "data" / "changes.csv").read_text()
    assert said[0] in (releases.second / "report" / "index.html").read_text()
    with (tmp_path / "changes.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(why)


def test_the_second_release_shows_each_exposure_once_and_verifies(releases, tmp_path):
    for expnum in (releases.reprocessed[0], releases.new[0]):
        done = hpcqa("show", str(expnum), f"run={releases.second}", f"out={tmp_path}/{expnum}.png")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / f"{expnum}.png").stat().st_size > 1000
    done = hpcqa("verify", str(releases.second))
    assert done.returncode == 0, done.stdout


def test_other_settings_are_refused(releases, tmp_path):
    refused = hpcqa(
        "run", f"run={tmp_path}/third", f"base={releases.first}", "survey.update=true", "shard.use_masks=false"
    )
    assert refused.returncode == 2
    assert "shard.use_masks=False" in refused.stderr
    alone = hpcqa("run", f"run={tmp_path}/fourth", "survey.tables=[t.fits]", "survey.update=true")
    assert alone.returncode == 2
    assert "base=FOLDER" in alone.stderr
