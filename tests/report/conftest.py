"""A made-up run, made once, and the page made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config.frozen import from_plain
from hpcqa.report import pages
from hpcqa.report.collect import collect
from tests.report import made_up

LOST = made_up.FIRST + 15  # has no pictures


@pytest.fixture(scope="session")
def made_up_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = made_up.make_run(tmp_path_factory.mktemp("made-up") / "night <one>")
    made_up.add_labels(folder, "truth", 45)
    made_up.add_labels(folder, "labels", 20)
    made_up.add_metrics(folder)
    made_up.add_evaluation(folder, made_up.EVALUATION)
    return folder


@pytest.fixture(scope="session")
def page_folder(made_up_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    config = from_plain({"report": {"exposures": 12}})
    pages.write_pages(collect(made_up_run), config, made_up_run, made_up.MadeUpViews((LOST,)), out)
    return out
