import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.pixels.order import LANES, Order

CCDS = 60


def epoch_of(order, number=0):
    return order.rows(number * order.num, order.num)


def siblings(rows, batch):
    """Mean number of rows of a batch that share an exposure with an earlier one."""
    batches = rows[: len(rows) // batch * batch].reshape(-1, batch) // CCDS
    return float(np.mean([batch - len(np.unique(one)) for one in batches]))


@given(num=st.integers(1, 3000), seed=st.integers(0, 9), batch=st.integers(1, 300), block=st.integers(1, 40))
def test_an_epoch_is_a_permutation(num, seed, batch, block):
    order = Order(num, seed, min(batch, num), block)
    for number in (0, 1):
        assert sorted(epoch_of(order, number).tolist()) == list(range(num))


def test_epochs_and_seeds_differ():
    first = epoch_of(Order(5000, 1, 64))
    assert not np.array_equal(first, epoch_of(Order(5000, 1, 64), 1))
    assert not np.array_equal(first, epoch_of(Order(5000, 2, 64)))


@given(
    num=st.integers(1, 900),
    count=st.integers(1, 64),
    position=st.integers(0, 3000),
    world=st.sampled_from([1, 2, 3, 4, 7]),
)
def test_ranks_deal_out_one_global_batch(num, count, position, world):
    order = Order(num, 3, count)
    whole = order.rows(position, count)
    parts = [order.rows(position, count, rank=rank, world_size=world) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert len(whole) == count


def test_positions_go_on_anywhere():
    order = Order(20_000, 1, 50)
    whole = order.rows(0, 50_000)
    pieces = [order.rows(start, 1250) for start in range(0, 50_000, 1250)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.parametrize("batch", [32, 64, 200, 256, 1024])
def test_a_batch_has_one_row_of_a_block_and_no_more_siblings_than_by_chance(batch):
    order = Order(CCDS * 2000, 5, batch)
    rows = epoch_of(order)
    chance = siblings(np.random.default_rng(0).permutation(order.num), batch)
    assert siblings(rows, batch) < 1.1 * chance + 0.2
    assert np.mean(np.diff(rows // CCDS) == 0) < 0.01


def test_batches_are_spread_over_the_survey_and_successive_rows_are_not_related():
    order = Order(CCDS * 2000, 5, 256)
    rows = epoch_of(order).astype(float)
    # The mean of a batch scatters as that of random rows does: var = n^2 / 12 / batch.
    means = rows[: len(rows) // 256 * 256].reshape(-1, 256).mean(1)
    assert 0.7 < means.std() / (order.num / np.sqrt(12 * 256)) < 1.15
    for lag in (1, 2, 3, 64):
        assert abs(np.corrcoef(rows[:-lag], rows[lag:])[0, 1]) < 0.03


def test_two_batches_in_turn_have_no_block_in_common():
    order = Order(CCDS * 5000, 5, 256)
    shift = next(s for s in range(16) if len(np.unique((order.rows(0, 256) - s) // 16)) == 256)
    blocks = [np.unique((order.rows(k * 256, 256) - shift) // 16) for k in range(6)]
    shared = [len(np.intersect1d(a, b)) for a, b in itertools.pairwise(blocks)]
    assert max(shared) < 64


@pytest.mark.parametrize(("world", "batch"), [(1, 256), (4, 256), (4, 1024), (16, 256), (64, 256), (3, 192)])
def test_a_rank_reads_blocks_of_its_own(world, batch):
    order = Order(CCDS * 5000, 5, batch)
    steps = order.num // order.num_windows // batch
    read = [
        np.unique(np.concatenate([order.rows(k * batch, batch, rank=rank, world_size=world) for k in range(steps)]))
        for rank in range(world)
    ]
    # Stretches of neighbouring rows: as many as blocks, if each were read by one rank only.
    pieces = sum(1 + int((np.diff(rows) > 1).sum()) for rows in read)
    assert pieces < 1.5 * order.num_blocks / order.num_windows + LANES


def test_ten_million_rows_cost_little():
    order = Order(10_000_000, 1, 1024)
    rows = order.rows(9_999_000, 2048)
    assert len(np.unique(rows)) > 2000
