from __future__ import annotations

import pytest

from hpcqa.launch import costs
from hpcqa.parallel.ranks import Ranks


def test_every_start_of_every_rank_is_a_line_however_it_ends(tmp_path):
    with costs.measured(tmp_path, "shard", Ranks(3, 4)):
        sum(number**2 for number in range(200_000))
    with pytest.raises(ValueError), costs.measured(tmp_path, "shard", Ranks(3, 4)):
        raise ValueError
    with costs.measured(tmp_path, "embed", Ranks()):
        pass
    found = costs.read(tmp_path)
    assert {stage: len(lines) for stage, lines in found.items()} == {"shard": 2, "embed": 1}
    first = found["shard"][0]
    assert (first.rank, first.world_size, first.gpu_s) == (3, 4, 0.0)
    assert 0 < first.core_s <= first.wall_s + 0.05
    assert first.processor


def test_lines_that_were_cut_short_are_left_out(tmp_path):
    with costs.measured(tmp_path, "fit", Ranks()):
        pass
    with costs.cost_path(tmp_path, "fit", 0).open("a") as file:
        file.write('{"stage": "fit", "ra')
    assert len(costs.read(tmp_path)["fit"]) == 1


def test_no_folder_to_write_to_is_no_reason_to_fail(tmp_path):
    with costs.measured(tmp_path / "missing", "fit", Ranks()):
        pass
    assert costs.read(tmp_path / "missing") == {}
