from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hpcqa.artifacts.catalog import SHARD
from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.schema import Provenance
from hpcqa.artifacts.store import write_arrays
from hpcqa.config import Config, EmbedConfig, ResourcesConfig, ShardConfig, SslConfig, SurveyConfig
from hpcqa.config.frozen import to_yaml
from hpcqa.errors import ConfigError, DataError
from hpcqa.launch import costs, estimate, workload
from hpcqa.launch.workload import Counts
from hpcqa.pixels.measure import NAMES
from hpcqa.ssl.vit import architecture_of
from hpcqa.stages import STAGES
from tests.launch.test_status import write_manifest

COUNTS = Counts(exposures=100, ccds=1400, labelled=40)


def test_every_stage_has_rates_of_units_that_are_counted_and_says_where_they_are_from():
    amounts = workload.work(Config(), COUNTS)
    rates = estimate.shipped_rates()
    assert {rate.stage for rate in rates} == {stage.name for stage in STAGES} == set(amounts)
    for rate in rates:
        assert rate.unit in amounts[rate.stage]
        assert rate.seconds > 0
        assert rate.where
        assert rate.command
    assert all((stage, "cpu") in {(rate.stage, rate.device) for rate in rates} for stage in amounts)


def test_twice_the_survey_costs_twice_the_reading():
    twice = Counts(200, 2800, 40)
    one, two = (estimate.estimate(Config(), counts, estimate.shipped_rates()) for counts in (COUNTS, twice))
    for first, second in zip(one.stages, two.stages, strict=True):
        if first.stage in ("shard", "embed", "manifest"):
            assert second.core_hours == pytest.approx(2 * first.core_hours)
            assert second.terabytes == pytest.approx(2 * first.terabytes)
    assert two.total.core_hours == pytest.approx(sum(row.core_hours for row in two.stages))


def test_bytes_of_a_shard_are_those_of_a_real_file(tmp_path):
    config = Config(shard=ShardConfig(exposures_per_shard=4))
    ccds, exposures = 56, 4
    dims = {"ccd": ccds, "exposure": exposures, "number": len(NAMES)}
    for letter, view in (("c", "context"), ("b", "background"), ("d", "detail")):
        dims |= dict(zip((f"{letter}y", f"{letter}x"), getattr(config.views, view), strict=True))
    arrays = {}
    for column in SHARD.columns:
        shape = tuple(dims[name] for name in column.dims)
        arrays[column.name] = np.full(shape, "r", object) if column.dtype == "str" else np.zeros(shape, column.dtype)
    arrays["expnum"] = np.repeat(np.arange(exposures), ccds // exposures)
    arrays["ccdnum"] = np.tile(np.arange(ccds // exposures, dtype=np.int32), exposures)
    path = tmp_path / "shard.h5"
    write_arrays(path, SHARD, arrays, Provenance("c", {}, "minicam"), attributes={"number_names": list(NAMES)})
    expected = workload.output(config, Counts(exposures, ccds, 0))["shard"]
    assert expected.files == 1
    assert path.stat().st_size == pytest.approx(expected.bytes, rel=0.1)


def test_the_network_s_arithmetic():
    """ViT-S/16 on 512 x 256: 27 GFLOP (performance figures of the design)."""
    config = Config()
    architecture = architecture_of(dataclasses.replace(config.model, arch="small"), config.views)
    assert workload.forward_gflop(architecture.stems["context"], 512, 256, architecture) == pytest.approx(27, rel=0.1)


def test_no_more_steps_than_passes():
    config = Config(ssl=SslConfig(steps=1000, batch=100, max_passes=2.0))
    assert workload.training_steps(config, Counts(100, 1000, 10)) == 20
    assert workload.training_steps(config, Counts(10**6, 10**7, 10)) == 1000


def test_the_control_is_half_of_the_embedding():
    config = Config()
    without = dataclasses.replace(config, embed=EmbedConfig(control=False))
    assert workload.embedding_gflop(config, COUNTS) == 2 * workload.embedding_gflop(without, COUNTS)
    files = [workload.output(one, COUNTS)["embed"].files for one in (config, without)]
    assert files[0] == 2 * files[1]


def test_gpu_hours_where_the_stage_asks_for_gpus():
    asked = ResourcesConfig(nodes=2, tasks_per_node=4, cores_per_task=16, gpus_per_node=4)
    rows = {
        row.stage: row
        for row in estimate.estimate(Config(stage={"pretrain": asked}), COUNTS, estimate.shipped_rates()).stages
    }
    train = rows["pretrain"]
    assert train.gpu_hours > 0
    assert train.hours == pytest.approx(train.gpu_hours / 8)
    assert train.node_hours == pytest.approx(train.gpu_hours / 4)
    assert train.core_hours == pytest.approx(16 * train.gpu_hours)
    assert "not measured" in train.sources[0]
    assert rows["embed"].gpu_hours == 0


def test_counts_are_given_or_the_manifest_s(folder):
    config = Config(run=str(folder.path))
    with pytest.raises(ConfigError, match="how large is the survey"):
        estimate.counts_of(config, folder, {})
    assert estimate.counts_of(config, folder, {"exposures": 10}).ccds == 140
    simulated = Config(survey=SurveyConfig(simulated=True))
    assert estimate.counts_of(simulated, folder, {}).exposures == simulated.simulate.exposures
    write_manifest(folder, 5)
    counts = estimate.counts_of(config, folder, {"labelled": 3})
    assert (counts.exposures, counts.ccds, counts.labelled) == (10, 10, 3)


def test_a_run_s_own_speed_replaces_the_shipped_one(folder):
    write_manifest(folder, 50)
    config = Config(run=str(folder.path))
    (folder.path / "run.yaml").write_text(to_yaml(config, []))
    logs = folder.output("logs")
    with pytest.raises(DataError, match=r"no STAGE-RANK\.cost\.jsonl"):
        estimate.rates_of(folder.path, estimate.shipped_rates())
    logs.mkdir()
    cost = costs.Cost("shard", 0, 2, 30.0, 20.0, 0.0, "nid1", "EPYC 7763, 128 cores")
    lines = [json.dumps(dataclasses.asdict(dataclasses.replace(cost, rank=rank))) for rank in (0, 1)]
    for rank, line in enumerate(lines):
        costs.cost_path(logs, "shard", rank).write_text(line + "\n")
    shipped = estimate.shipped_rates()
    rates = estimate.rates_of(folder.path, shipped)
    counts = estimate.counts_of(config, RunFolder(folder.path), {})
    rows = {row.stage: row for row in estimate.estimate(config, counts, rates).stages}
    assert rows["shard"].core_hours == pytest.approx(40 / 3600)
    assert "EPYC 7763" in rows["shard"].sources[0]
    assert [rate for rate in rates if rate.stage == "embed"] == [rate for rate in shipped if rate.stage == "embed"]


def test_the_table_names_its_sources():
    found = estimate.estimate(Config(), COUNTS, estimate.shipped_rates())
    said = estimate.text(found)
    assert "100 exposures, 1400 CCD images, 40 labelled exposures" in said
    assert "simulate" not in said.split("\n[1]")[0]
    for number, source in enumerate(found.sources, start=1):
        assert f"[{number}] {source}" in said
    plain = json.loads(estimate.as_json(found))
    assert plain["total"]["files"] == sum(row["files"] for row in plain["stages"])
