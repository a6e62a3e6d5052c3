import dataclasses
from pathlib import Path

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config, InstrumentConfig, SimulateConfig
from hpcqa.parallel.ranks import detect
from hpcqa.simulate.survey import run


def small_config(**simulate):
    settings = {"exposures": 6, "bad_fraction": 0.67, "nights": 2, "workers": 1, **simulate}
    return Config(seed=3, instrument=InstrumentConfig(name="minicam"), simulate=SimulateConfig(**settings))


def run_survey(config: Config, path: Path) -> Path:
    run(config, RunFolder(path), detect({}))
    return path / "survey"


def contents(survey: Path) -> dict[str, bytes]:
    return {path.relative_to(survey).as_posix(): path.read_bytes() for path in survey.rglob("*") if path.is_file()}


@pytest.fixture(scope="session")
def config():
    return small_config()


@pytest.fixture(scope="session")
def survey(config, tmp_path_factory):
    """A finished survey of six exposures; tests must not change it."""
    return run_survey(config, tmp_path_factory.mktemp("simulated"))


@pytest.fixture
def other_seed(config):
    return dataclasses.replace(config, seed=4)
