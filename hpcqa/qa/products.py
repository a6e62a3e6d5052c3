"""Which references may be nearest: lower bounds of squared distances, from blocked matrix products on CPU or GPU.

Products are rounded, so a reference counts by the least that its distance may be. With q and r the centred query and
reference as float32, n features and u half the spacing of float32 numbers,

    |q - r|^2 >= |q|^2 (1 - 16 u) + [-2 q.r] + |r|^2 (1 - 2 (n + 16) u) - slope(q) |r|

where [-2 q.r] is the product as computed, in any order of summation (error at most n u of 2 |q| |r|), |r|^2 was summed
in float32, and centring moved each feature by at most u of itself. Where factors are rounded to bfloat16, as q' and r',
the product is also off by at most 2 (|q - q'| |r| + |q'| |r - r'|), both of which are measured, not guessed. All that
grows with |r| is in the slope, so that references near the centre, which are many, are judged by small errors. A sum
may begin with the other terms (tiles.py): its rounding grows by (n + 1) u |r|^2, and |r|^2 has (n + 30) u to spare.
Source for sums: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from hpcqa.kernels import fast_kernel
from hpcqa.qa import select, tiles

# A block of products, and the references that made it, stay in the second cache of a core.
QUERY_ROWS = 512
REFERENCE_ROWS = 1024
# Fewer features are multiplied and selected from in one loop, on a CPU.
TILED_WIDTH = 48
# Half the spacing of float32 numbers, relative.
UNIT = 2.0**-24
# Products smaller than the smallest normal number may be lost.
TINY = 2.0**-120
# Factors up to this size are kept, those of larger reference sets made again for every block of queries: a process may
# have half a dozen sets, a node 64 processes.
KEPT_BYTES = 1 << 27


Spread = Callable[[Callable[[Any], Any], Sequence[Any]], list[Any]]


def one_by_one(work: Callable[[Any], Any], parts: Sequence[Any]) -> list[Any]:
    """The plain way to do the same to several parts."""
    return [work(part) for part in parts]


class Rows(Protocol):
    """References: an array, or what gives its rows when asked for them."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any) -> np.ndarray: ...


@dataclass(frozen=True)
class SomeRows:
    """Some rows of an array, taken as they are asked for: of a mapped file no process holds a copy.

    Attributes:
        everything: float32 (row, feature).
        chosen: int64 (reference,), its rows.
    """

    everything: np.ndarray
    chosen: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.chosen), *self.everything.shape[1:])

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self.everything[self.chosen[rows]])


@dataclass(frozen=True)
class Candidates:
    """References that may be nearest, by growing bound.

    Attributes:
        rows: int64 (query, candidate), -1 for none.
        least: float64 (query, candidate), what their squared distances are not below; inf for none.
        limit: float64 (query,), what those of all other references are not below; inf where there are none.
    """

    rows: np.ndarray
    least: np.ndarray
    limit: np.ndarray


@dataclass(frozen=True, eq=False)
class Products:
    """References as factors of products. The references stay where they are: they may be a mapped file that the ranks
    of a node share.

    Attributes:
        centre: float32 (feature,). Centring keeps lengths, and with them rounding, as small as the spread allows.
        dtype: of the factors.
        lows: float32 (reference,), squared lengths of the centred references, rounded down.
        lengths: float32 (reference,), these lengths, rounded up.
        lost: the largest share of a reference's length that rounding its factor lost.
        kept: factors by first row, as `_arranged` gives them.
    """

    references: Rows
    device: str
    centre: np.ndarray
    dtype: torch.dtype
    lows: np.ndarray
    lengths: np.ndarray
    lost: float
    kept: dict[int, torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        references: Rows,
        centre: np.ndarray,
        device: str,
        dtype: torch.dtype,
        spread: Spread,
    ) -> Products:
        """Measure the references, and keep their factors where there is room.

        Args:
            spread: does the same to every block.
        """
        count, width = references.shape
        keep = device != "cpu" or count * width * dtype.itemsize <= KEPT_BYTES
        lows, lengths = np.empty(count, np.float32), np.empty(count, np.float32)
        kept = {}
        grown = (width + 16) * UNIT

        def measure(start: int) -> float:
            rows = block(references, start)
            made, squares, errors = _factors(rows, centre, -2.0, dtype)
            part = slice(start, start + len(rows))
            lows[part] = squares * (1 - 2 * grown)
            lengths[part] = np.sqrt(squares) * (1 + 2 * grown)
            if keep:
                kept[start] = _arranged(made, lows[part], lengths[part], device)
            return float(np.sqrt(np.max(errors / np.maximum(squares, np.finfo(np.float64).tiny))))

        lost = max(spread(measure, starts(references))) * (1 + 2 * grown)
        return cls(references, device, centre, dtype, lows, lengths, lost, kept)

    def candidates(self, queries: np.ndarray, wanted: int, ranges: np.ndarray) -> Candidates:
        """The `wanted` references of the smallest bounds, or as many as there are.

        Args:
            queries: float32 (query, feature).
            ranges: int64 (query, 2), the range of references that a query may not find.
        """
        factors, squares, errors = _factors(queries, self.centre, 1.0, self.dtype)
        length, error = np.sqrt(squares), np.sqrt(errors)
        width = queries.shape[1]
        slopes = 2 * (error + self.lost * (length + error)) + (2 * width + 64) * UNIT * length
        slopes = np.asarray(slopes * (1 + 4 * (width + 16) * UNIT), np.float32)
        search = self._in_tiles if self.is_tiled else self._on_cpu if self.device == "cpu" else self._on_device
        values, rows = search(factors, slopes, wanted, ranges)
        own = np.square(queries - self.centre, dtype=np.float64).sum(1) * (1 - 16 * UNIT) - width * TINY
        least = values.astype(np.float64) + own[:, None]
        limit = least[:, -1] if len(self.references) > wanted else np.full(len(queries), np.inf)
        return Candidates(np.where(np.isinf(values), -1, rows), least, limit)

    @property
    def is_tiled(self) -> bool:
        """Whether products and selection are one loop."""
        return _is_tiled(self.references.shape[1], self.dtype, self.device)

    def _in_tiles(
        self, factors: torch.Tensor, slopes: np.ndarray, wanted: int, ranges: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_on_cpu`."""
        values, places = _nothing(len(factors), wanted)
        queries = tiles.padded(factors.numpy())
        for start in starts(self.references):
            tiles.smallest(queries, self._part(start).numpy(), slopes, start, ranges, values, places)
        return values, places

    def _on_cpu(
        self, factors: torch.Tensor, slopes: np.ndarray, wanted: int, ranges: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Bounds, less what they share, and rows of the smallest, ascending: float32 and int64 (query, wanted)."""
        values, places = _nothing(len(slopes), wanted)
        columns, count = -(-len(slopes) // select.CHUNK) * select.CHUNK, len(self.references)
        # The second factor of a product in bfloat16 is arranged anew every time: the queries are the fewer.
        asked = torch.nn.functional.pad(factors, (0, 0, 0, columns - len(slopes))).T
        slopes = np.pad(slopes, (0, columns - len(slopes)))
        room = torch.empty(REFERENCE_ROWS, columns, dtype=self.dtype)
        found = (room if self.dtype == torch.float32 else room.view(torch.uint16)).numpy()
        for start in starts(self.references):
            stop = min(start + REFERENCE_ROWS, count)
            torch.mm(self._part(start), asked, out=room[: stop - start])
            made, lows, lengths = found[: stop - start], self.lows[start:stop], self.lengths[start:stop]
            select.smallest(made, lows, lengths, slopes, start, ranges, values, places)
        return values, places

    def _on_device(
        self, factors: torch.Tensor, slopes: np.ndarray, wanted: int, ranges: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        factors, slope = factors.to(self.device), torch.from_numpy(slopes).to(self.device)[:, None]
        values = torch.empty((len(factors), 0), device=self.device)
        places = torch.empty((len(factors), 0), dtype=torch.int64, device=self.device)
        with _sums_in_float32(self.device):
            for start in starts(self.references):
                rows = self._part(start)
                part = slice(start, start + len(rows))
                low, length = (torch.from_numpy(each[part]).to(self.device) for each in (self.lows, self.lengths))
                products = torch.mm(factors, rows.T).float()
                if self.dtype == torch.bfloat16:
                    products -= float(select.BF16_ROUNDING) * products.abs()
                bounds = products.add_(low - slope * length)
                _blank(bounds, ranges, start)
                some, where = bounds.topk(min(wanted, len(rows)), dim=1, largest=False, sorted=False)
                values, places = torch.cat([values, some], 1), torch.cat([places, where + start], 1)
                if values.shape[1] > wanted:
                    values, keep = values.topk(wanted, dim=1, largest=False, sorted=False)
                    places = places.gather(1, keep)
        values, order = values.sort(dim=1)
        return values.cpu().numpy(), places.gather(1, order).cpu().numpy()

    def _part(self, start: int) -> torch.Tensor:
        """The factors of references from a row on, as `_arranged` gives them."""
        if start in self.kept:
            return self.kept[start]
        made = _factors(block(self.references, start), self.centre, -2.0, self.dtype)[0]
        part = slice(start, start + len(made))
        return _arranged(made, self.lows[part], self.lengths[part], self.device)


def _is_tiled(width: int, dtype: torch.dtype, device: str) -> bool:
    return device == "cpu" and dtype == torch.float32 and width < TILED_WIDTH


def _arranged(factors: torch.Tensor, lows: np.ndarray, lengths: np.ndarray, device: str) -> torch.Tensor:
    """Factors of references where and how they are searched: as they are, or as tiles."""
    if _is_tiled(factors.shape[1], factors.dtype, device):
        return torch.from_numpy(tiles.tiled(factors.numpy(), lows, lengths))
    return factors.to(device)


def _nothing(queries: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists of the smallest bounds and their rows before there are any: float32 and int64 (query, wanted)."""
    return np.full((queries, wanted), np.inf, np.float32), np.full((queries, wanted), -1, np.int64)


def multiplies_bf16(device: str) -> bool:
    """Whether a device multiplies bfloat16 faster than float32."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    # torch names no public question for it: oneDNN's own answer is whether the processor has AVX-512 BF16 or AMX.
    question = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(question is not None and question() and "AVX512" in torch.backends.cpu.get_cpu_capability())


def starts(references: Rows) -> range:
    """First rows of the blocks."""
    return range(0, len(references), REFERENCE_ROWS)


def block(references: Rows, start: int) -> np.ndarray:
    """References from a row on: float32 (row, feature)."""
    return np.ascontiguousarray(references[start : start + REFERENCE_ROWS], np.float32)


@contextmanager
def _sums_in_float32(device: str) -> Iterator[None]:
    """A GPU may add parts of long bfloat16 products in bfloat16, which the bounds leave no room for."""
    if not device.startswith("cuda"):
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_bf16_reduced_precision_reduction
    matmul.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_bf16_reduced_precision_reduction = before


def _blank(bounds: torch.Tensor, ranges: np.ndarray, start: int) -> None:
    """Set the excluded reference rows of every query to inf; equal ranges of consecutive queries go together."""
    width = bounds.shape[1]
    changes = np.flatnonzero(np.any(ranges[1:] != ranges[:-1], axis=1)) + 1
    for first, last in zip(np.r_[0, changes], np.r_[changes, len(ranges)], strict=True):
        low, high = np.clip(ranges[first] - start, 0, width)
        if high > low:
            bounds[first:last, low:high] = torch.inf


# Factors ------------------------------------------------------------------------------------------------------------


def _factors(
    rows: np.ndarray, centre: np.ndarray, times: float, dtype: torch.dtype
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Centred rows, times a power of two, as factors of a product.

    Returns:
        The factors; squared lengths of the centred rows and of what rounding took from them, both float64 (row,) from
        sums in float32.
    """
    squares, errors = np.zeros(len(rows), np.float32), np.zeros(len(rows), np.float32)
    if dtype == torch.float32:
        made = np.empty(rows.shape, np.float32)
        _centred(rows, centre, np.float32(times), made, squares)
        return torch.from_numpy(made), squares.astype(np.float64), errors.astype(np.float64)
    bits = np.empty(rows.shape, np.uint16)
    _centred_bf16(rows, centre, np.float32(times), bits, squares, errors)
    return torch.from_numpy(bits).view(torch.bfloat16), squares.astype(np.float64), errors.astype(np.float64)


@fast_kernel
def _centred(rows: np.ndarray, centre: np.ndarray, times: np.float32, made: np.ndarray, squares: np.ndarray) -> None:
    for row in range(rows.shape[0]):
        total = np.float32(0.0)
        for feature in range(rows.shape[1]):
            value = rows[row, feature] - centre[feature]
            total += value * value
            made[row, feature] = times * value
        squares[row] = total


@fast_kernel
def _centred_bf16(
    rows: np.ndarray,
    centre: np.ndarray,
    times: np.float32,
    bits: np.ndarray,
    squares: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Round to the nearest bfloat16, ties to even: the upper half of a float32's bits."""
    for row in range(rows.shape[0]):
        total, lost = np.float32(0.0), np.float32(0.0)
        for feature in range(rows.shape[1]):
            value = rows[row, feature] - centre[feature]
            total += value * value
            whole = np.float32(value).view(np.uint32)
            upper = np.uint32(whole + np.uint32(0x7FFF) + ((whole >> np.uint32(16)) & np.uint32(1)))
            upper = np.uint32(upper & np.uint32(0xFFFF0000))
            rounded = upper.view(np.float32)
            left = value - rounded
            lost += left * left
            bits[row, feature] = np.uint16(np.float32(times * rounded).view(np.uint32) >> np.uint32(16))
        squares[row], errors[row] = total, lost
