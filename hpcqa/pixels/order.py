"""The order in which training visits the rows of a survey: long pieces from few files, yet neighbours never together.

An epoch is a permutation of the rows, made in two steps. Blocks of neighbouring rows, which lie together in a file, are
shuffled; then windows of many blocks are dealt out so that a batch takes at most one row of a block, and the next batch
rows of other blocks. A window is dealt out in lanes, each with blocks of its own, and every batch has its rows in the
order of the lanes: a rank, which takes a contiguous part of each batch, reads blocks that hardly any other rank reads.
The rows of a batch depend on the seed and the position alone, not on the number of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hpcqa.streams import stream

LANES = 64
BLOCK = 16
_LANE_BLOCKS = 4  # fewest of one lane in a window
_BLOCKS_A_ROW = 4  # blocks are shorter in a small survey, so that there are so many for each row of a batch


@dataclass(frozen=True)
class Order:
    """An endless order of `num` rows, epoch after epoch, for batches of `batch` rows.

    Attributes:
        num: rows of the survey.
        seed: the order's own.
        batch: rows of one batch, all ranks together.
        block: most neighbouring rows that are visited within one window; 1 is a plain permutation.
    """

    num: int
    seed: int
    batch: int
    block: int = BLOCK

    @property
    def block_rows(self) -> int:
        """Rows of a block in this survey."""
        return max(1, min(self.block, self.num // (_BLOCKS_A_ROW * self.batch)))

    @property
    def num_blocks(self) -> int:
        return -(-self.num // self.block_rows)

    @property
    def num_windows(self) -> int:
        """Windows of an epoch: each has twice as many blocks as a batch has rows, or more, if there are that many."""
        blocks = LANES * max(_LANE_BLOCKS, 2 * -(-self.batch // LANES))
        return max(1, self.num_blocks // blocks)

    def rows(self, position: int, count: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """A rank's part of the `count` rows at a position: int64.

        The position counts rows since the start of training; epochs follow one another without a gap. The rows are
        dealt out in contiguous pieces, so that all ranks together see the same rows whatever their number.
        """
        first, last = (position + edge for edge in dealt(count, rank, world_size))
        pieces = []
        while first < last:
            epoch, place = divmod(first, self.num)
            starts = _blocks(self, epoch)[2]
            window = int(np.searchsorted(starts, place, side="right")) - 1
            rows = _window(self, epoch, window)[place - int(starts[window]) :][: last - first]
            pieces.append(rows)
            first += len(rows)
        return np.concatenate(pieces) if pieces else np.empty(0, np.int64)


def dealt(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Where a rank's contiguous piece of `count` rows begins and ends."""
    return count * rank // world_size, count * (rank + 1) // world_size


@lru_cache(maxsize=8)
def _blocks(order: Order, epoch: int) -> tuple[np.ndarray, int, np.ndarray]:
    """An epoch's blocks in their order, by how much they are shifted along the survey, and where each window begins."""
    generator = stream(order.seed, "order", epoch)
    shift = int(generator.integers(order.num))
    blocks = generator.permutation(order.num_blocks)
    edges = np.linspace(0, order.num_blocks, order.num_windows + 1).astype(np.int64)
    starts = edges * order.block_rows
    short = int(np.flatnonzero(blocks == order.num_blocks - 1)[0])
    starts[edges > short] -= order.num_blocks * order.block_rows - order.num
    return blocks, shift, starts


@lru_cache(maxsize=16)
def _window(order: Order, epoch: int, window: int) -> np.ndarray:
    """The rows of one window in their order: int64, read-only."""
    blocks, shift, _ = _blocks(order, epoch)
    edges = np.linspace(0, order.num_blocks, order.num_windows + 1).astype(np.int64)
    blocks = blocks[edges[window] : edges[window + 1]]
    generator = stream(order.seed, "window", epoch, window)
    # Every block's rows in an order of their own; the blocks of a lane take turns, one row each.
    turn = generator.random((len(blocks), order.block_rows)).argsort(axis=1)
    lane, seat = np.arange(len(blocks)) % LANES, np.arange(len(blocks)) // LANES
    seats = np.bincount(lane, minlength=LANES)[lane]
    rows = blocks[:, None] * order.block_rows + np.arange(order.block_rows)
    place = turn * seats[:, None] + seat[:, None]
    # After b batches a lane has given floor((b * batch + lane) / LANES) rows; over all lanes that is b * batch exactly.
    batch = -((lane[:, None] - (place + 1) * LANES) // order.batch) - 1
    kept = rows.ravel() < order.num
    lanes = np.broadcast_to(lane[:, None], rows.shape).ravel()[kept]
    sequence = np.lexsort((place.ravel()[kept], lanes, batch.ravel()[kept]))
    result = (rows.ravel()[kept][sequence] + shift) % order.num
    result.flags.writeable = False
    return np.asarray(result)
