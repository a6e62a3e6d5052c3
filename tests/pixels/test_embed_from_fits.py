"""embed.source=fits: the same embeddings without stored shards."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import numpy as np
import pytest

from hpcqa.artifacts import catalog, store
from hpcqa.artifacts.parts import stored_shards
from hpcqa.config import ModelConfig
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.parallel.ranks import Ranks
from hpcqa.pixels import calibrate, shards
from hpcqa.ssl import embed, readers, sources, weights
from hpcqa.ssl.vit import build


@pytest.fixture
def embedded(survey):
    """A survey with shards, calibration, a backbone, and embeddings by way of the shards."""
    survey.config = replace(survey.config, embed=replace(survey.config.embed, control=False))
    shards.run(survey.config, survey.folder, Ranks())
    calibrate.run(survey.config, survey.folder, Ranks())
    model = build(ModelConfig(), survey.config.views, {"background": ("step",)}, seed=2).eval()
    weights.save_backbone(survey.folder.output("backbone"), model, {"seed": 2})
    embed.run(survey.config, survey.folder, Ranks())
    return survey


def contents(survey):
    paths = sorted(survey.folder.output("embeddings").glob("*.h5"))
    return {path.name: store.read_provenance(path, catalog.EMBEDDING).content for path in paths}


def from_fits(survey, **changes):
    config = replace(survey.config, embed=replace(survey.config.embed, source="fits"))
    config = replace(config, shard=replace(config.shard, **changes))
    embed.run(config, survey.folder, Ranks())
    return config


@pytest.mark.parametrize("processes", [1, 2])
def test_embeddings_and_numbers_are_those_of_stored_shards(embedded, tmp_path, monkeypatch, processes):
    monkeypatch.setattr(readers, "worth", lambda config, shards: processes)
    expected = contents(embedded)
    assert len(expected) == 2
    for path in [*embedded.shards(), *embedded.folder.output("embeddings").iterdir()]:
        path.unlink()
    room = tmp_path / "room"
    room.mkdir()
    monkeypatch.setattr(sources.tempfile, "tempdir", str(room))
    from_fits(embedded)
    assert contents(embedded) == expected
    assert not embedded.shards()
    assert not list(room.iterdir())


def test_what_is_there_is_not_read_again(embedded, monkeypatch):
    for path in embedded.shards():
        path.unlink()
    from_fits(embedded)
    made = []
    make = sources.Opener._make
    monkeypatch.setattr(sources.Opener, "_make", lambda self, source: made.append(source.number) or make(self, source))
    from_fits(embedded)
    assert made == []
    (embedded.folder.output("embeddings") / "shard-00001.h5").unlink()
    from_fits(embedded)
    assert made == [1]


def test_a_stored_shard_is_not_read_from_the_images(embedded, monkeypatch):
    embedded.shards()[1].unlink()
    made = []
    make = sources.Opener._make
    monkeypatch.setattr(sources.Opener, "_make", lambda self, source: made.append(source.number) or make(self, source))
    from_fits(embedded)
    assert made == [1]


@pytest.mark.parametrize("processes", [1, 2])
def test_too_many_failures_are_an_error_at_the_end(embedded, monkeypatch, caplog, processes):
    monkeypatch.setattr(readers, "worth", lambda config, shards: processes)
    for path in embedded.shards():
        path.unlink()
    for path in embedded.images.values():
        path.write_bytes(b"no FITS")
    with pytest.raises(DataError, match=r"shard\.max_failed"):
        from_fits(embedded)
    assert len(contents(embedded)) == 2
    assert "CCDs from" in caplog.text  # what failed, said by whoever read it


def test_an_error_ends_the_processes_that_read_and_a_killed_one_is_named(embedded):
    for path in embedded.shards():
        path.unlink()
    fits = replace(embedded.config, embed=replace(embedded.config.embed, source="fits"))
    work = sources.of_run(fits, embedded.folder)

    def open_with_killed_readers():
        with sources.Opener(fits, embedded.folder, embedded.folder.need("calibration", "calibrate"), 2) as opener:
            opener.close(opener.open(work[0]))
            for child in multiprocessing.active_children():
                child.kill()
            opener.open(work[1])

    with pytest.raises(EnvironmentProblem, match="was killed"):
        open_with_killed_readers()
    assert not multiprocessing.active_children()


def test_processes_start_where_they_pay(survey):
    config = replace(survey.config, shard=replace(survey.config.shard, workers=16))
    assert [readers.worth(config, shards) for shards in (0, 15, 16, 31, 1000)] == [1, 1, 2, 3, 4]
    assert readers.worth(replace(config, shard=replace(config.shard, workers=1)), 1000) == 1


def test_without_shards_the_other_way_is_named(embedded):
    for path in embedded.shards():
        path.unlink()
    with pytest.raises(DataError, match=r"embed\.source=fits"):
        embed.run(embedded.config, embedded.folder, Ranks())


def test_some_shards_are_stored_for_training(survey):
    numbers = list(range(40))
    assert stored_shards(survey.config, numbers) == numbers
    fits = replace(survey.config, embed=replace(survey.config.embed, source="fits"))
    some = stored_shards(fits, numbers)
    assert len(some) == 4
    assert some[0] == 0
    assert some[-1] == 39
    assert stored_shards(fits, [7]) == [7]
    assert stored_shards(replace(fits, survey=replace(fits.survey, update=True)), numbers) == []
    shards.run(fits, survey.folder, Ranks())
    assert len(survey.shards()) == 1
    assert np.all([path.name == "shard-00000.h5" for path in survey.shards()])
