"""The training reader beside np.memmap and others on the same data, from 10 shards to 10,000, in one run.

    python benchmarks/shard_reader.py [--shards 10 100 10000] [--size 512 256] [--rows 32 | --total 320000]
                                      [--open-files 1024]

Samples are float16 context views of --size pixels in shards of --rows CCDs, or --total samples in all, so that the same
data lie in few files or in many: the number of files is then all that differs (fewer samples also stay in the
processor's caches, which speeds up every method). All data is written twice, so 10,000 shards want a small --size, such
as 64 64. The reader visits rows in hpcqa's own order, its cache in memory is off. np.memmap
reads the same rows in the same order: from one flat file, and from the shards themselves, one map a shard. Methods take
turns; the best of three is told, with a warm page cache, by the clock and, for the two that are compared, by the
processor's time of all threads, which another job on the machine disturbs less. "handles closed before" has to open its
files, as the first epoch of training has, and all others where --open-files, a hard limit as of `ulimit -Hn`, is too
low for handles to stay. Then each once with the page cache emptied. Besides: handles, memory of its own, time of the
first opening (with the notes that the shard stage leaves, and without; what they cost is told) and of later ones.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import psutil

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import SHARD
from hpcqa.artifacts.folder import SHARD_INDEX_NAME
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config, ShardConfig
from hpcqa.pixels.dataset import ShardSet
from hpcqa.pixels.order import Order
from hpcqa.pixels.shardindex import Notes

BATCH = 256
ROUNDS = 3
SAMPLE_READS = 2000  # of the slow peers
Batches = list[np.ndarray]


def write_shards(paths: list[Path], rows: int, size: tuple[int, int]) -> None:
    """Shards of random samples: the first as hpcqa writes it, the others its bytes with other samples and numbers."""
    small = {"by": 4, "bx": 4, "dy": 4, "dx": 4, "number": 4, "exposure": 1, "ccd": rows, "cy": size[0], "cx": size[1]}
    arrays = {}
    for column in SHARD.columns:
        shape = tuple(small[axis] for axis in column.dims)
        arrays[column.name] = np.full(shape, "r", object) if column.dtype == "str" else np.zeros(shape, column.dtype)
    arrays["ccdnum"] = np.arange(rows, dtype=np.int32)
    store.write_arrays(paths[0], SHARD, arrays, Provenance("x"), {"number_names": ["a", "b", "c", "d"]})
    with store.open_arrays(paths[0], SHARD) as shard:
        offsets = {name: shard.offset(name) for name in ("context", "expnum", "exposure")}
    raw = bytearray(paths[0].read_bytes())
    for number, path in enumerate(paths):
        samples = np.random.default_rng(number).integers(0, 1 << 14, (rows, *size), np.uint16)
        values = {
            "context": samples,
            "expnum": np.full(rows, number, np.int64),
            "exposure": np.array([number], np.int64),
        }
        for name, new in values.items():
            raw[offsets[name] : offsets[name] + new.nbytes] = new.tobytes()
        path.write_bytes(raw)


def rate(work: Callable[[np.ndarray], object], batches: Batches) -> float:
    start = time.perf_counter()
    for rows in batches:
        work(rows)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def gather(read: Callable[[int], np.ndarray], rows: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    out = np.empty((len(rows), *size), np.float16)
    for place, row in enumerate(rows.tolist()):
        out[place] = read(row)
    return out


class Data:
    """Shards, one flat file of the same samples, and files with a dataset a sample."""

    def __init__(self, folder: Path, num_shards: int, rows: int, size: tuple[int, int]) -> None:
        self.rows, self.size, self.folder = rows, size, folder
        self.paths = [folder / f"shard-{number:05d}.h5" for number in range(num_shards)]
        self.flat_path, self.single_path = folder / "flat.f16", folder / "single.hdf5"
        self.num_single = min(num_shards * rows, 2 * BATCH)
        with self.flat_path.open("wb") as flat, h5py.File(self.single_path, "w") as single:
            write_shards(self.paths, rows, size)
            for number, path in enumerate(self.paths):
                with store.open_arrays(path, SHARD) as shard:
                    views = shard.read("context")
                flat.write(views.tobytes())
                for row in range(number * rows, min((number + 1) * rows, self.num_single)):
                    single[f"idx_{row}"] = views[row - number * rows]
        self.flat = np.memmap(self.flat_path, np.float16, "r", shape=(num_shards * rows, *size))
        self.maps = [self.flat]

    def forget(self) -> None:
        """Empty the page cache of these files; what is mapped would stay in it."""
        for one in self.maps:
            one._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]
        for path in [*self.paths, self.flat_path]:
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def maps_of_shards(data: Data) -> Callable[[np.ndarray], np.ndarray]:
    """The careful user's way: a map of every shard's contiguous dataset (a handle and a mapping each)."""
    maps = []
    for path in data.paths:
        with store.open_arrays(path, SHARD) as shard:
            maps.append(shard.mapping("context"))
    data.maps += maps
    return lambda rows: gather(lambda row: maps[row // data.rows][row % data.rows], rows, data.size)


def loader_rate(ours: ShardSet, batches: Batches, workers: int) -> float:
    """torch's DataLoader over single samples, as most training scripts have it."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Samples(Dataset):  # type: ignore[type-arg]
        def __getitem__(self, row: int) -> torch.Tensor:
            return torch.from_numpy(ours.batch("context", np.array([row]))[0])

    loader = DataLoader(Samples(), batch_sampler=[rows.tolist() for rows in batches], num_workers=workers)
    start = time.perf_counter()
    count = sum(len(batch) for batch in loader)
    return count / (time.perf_counter() - start)


def open_set(data: Data) -> tuple[ShardSet, float]:
    start = time.perf_counter()
    ours = ShardSet(data.paths, None, replace(Config(), shard=ShardConfig(reader_cache=0.0)))
    return ours, time.perf_counter() - start


def ahead(ours: ShardSet, batches: Batches, steps: int = 32) -> Iterator[np.ndarray]:
    """Batches read as training does: the bytes of those to come are asked for in long pieces."""
    for number, rows in enumerate(batches):
        if number % steps == 0:
            for first in (number, number + steps) if number == 0 else (number + steps,):
                if batches[first : first + steps]:
                    ours.will_need("context", np.concatenate(batches[first : first + steps]))
        yield ours.batch("context", rows)


def compare(data: Data, num_batches: int) -> dict[str, float]:
    """Samples a second of each method, and what it costs besides."""
    result: dict[str, float] = {}
    start = time.perf_counter()
    notes = Notes(data.folder, 0)
    for path in data.paths:
        notes.add(path)
    notes.write()
    result["shard stage: notes, ms a shard"] = 1e3 * (time.perf_counter() - start) / len(data.paths)
    result["first opening, s"] = open_set(data)[1]
    (data.folder / SHARD_INDEX_NAME).unlink()
    result["first opening without notes, s"] = open_set(data)[1]
    ours, result["later openings, s"] = open_set(data)
    order = Order(len(ours), 1, BATCH)
    batches = [order.rows(k * BATCH, BATCH) for k in range(num_batches)]
    random = np.random.default_rng(1).permutation(len(ours))
    at_random = [random[k * BATCH % len(ours) :][:BATCH] for k in range(num_batches)]
    single = h5py.File(data.single_path, "r")
    few = [rows % data.num_single for rows in batches[: max(1, SAMPLE_READS // BATCH)]]
    mapped = maps_of_shards(data) if len(data.paths) <= 1000 else None

    def flat(rows: np.ndarray) -> np.ndarray:
        return gather(lambda row: data.flat[row], rows, data.size)

    def closed_before() -> float:
        ours.close()
        return rate(lambda rows: ours.batch("context", rows), batches)

    methods: dict[str, Callable[[], float]] = {
        "hpcqa": lambda: rate(lambda rows: ours.batch("context", rows), batches),
        "hpcqa, handles closed before": closed_before,
        "np.memmap of one flat file": lambda: rate(flat, batches),
        "np.memmap, fancy index": lambda: rate(lambda rows: data.flat[rows], batches),
        "hpcqa, rows at random": lambda: rate(lambda rows: ours.batch("context", rows), at_random),
        "np.memmap, rows at random": lambda: rate(flat, at_random),
        "one dataset a sample": lambda: rate(
            lambda rows: gather(lambda row: single[f"idx_{row}"][:], rows, data.size), few
        ),
        "DataLoader, 0 workers": lambda: loader_rate(ours, batches[:8], 0),
        "DataLoader, 2 workers": lambda: loader_rate(ours, batches[:8], 2),
    }
    if mapped is not None:
        methods["np.memmap of each shard"] = lambda: rate(mapped, batches)
    processor = dict.fromkeys(methods, np.inf)
    for name in [name for _ in range(ROUNDS) for name in methods]:
        before = time.process_time()
        result[name] = max(result.get(name, 0.0), methods[name]())
        processor[name] = min(processor[name], time.process_time() - before)
    single.close()
    result |= cold(data, ours, batches, flat)
    result["handles"] = ours._handles.num_open
    peer = "np.memmap of one flat file"
    result["ratio to np.memmap"] = result["hpcqa"] / result[peer]
    result["ratio to np.memmap, processor"] = processor[peer] / processor["hpcqa"]
    result["resident, GB"] = psutil.Process().memory_full_info().uss / 1e9
    ours.close()
    return result


def cold(data: Data, ours: ShardSet, batches: Batches, flat: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """The same from disk: the page cache is emptied before each."""
    methods: dict[str, Callable[[], object]] = {
        "cold: hpcqa, asking ahead": lambda: [None for _ in ahead(ours, batches)],
        "cold: hpcqa": lambda: [ours.batch("context", rows) for rows in batches],
        "cold: np.memmap of one flat file": lambda: [flat(rows) for rows in batches],
    }
    result = {}
    for name, work in methods.items():
        data.forget()
        start = time.perf_counter()
        work()
        result[name] = sum(map(len, batches)) / (time.perf_counter() - start)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rows", type=int, default=32, help="CCDs in a shard")
    parser.add_argument("--total", type=int, help="CCDs in all shards together, instead")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--size", type=int, nargs=2, default=[512, 256], help="rows and columns of a view")
    parser.add_argument("--open-files", type=int, help="most files that this process may have open")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    if options.open_files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (options.open_files, options.open_files))
    results = {}
    for num_shards in options.shards:
        size = (options.size[0], options.size[1])
        with tempfile.TemporaryDirectory() as name:
            rows = options.total // num_shards if options.total else options.rows
            data = Data(Path(name), num_shards, rows, size)
            results[num_shards] = compare(data, options.batches)
            index = (Path(name) / SHARD_INDEX_NAME).stat().st_size
        print(f"{num_shards} shards of {rows} CCDs of {size[0]} x {size[1]}, index {index / 1e6:.2f} MB:")
        for method, value in results[num_shards].items():
            print(f"  {method:34s} {value:10.4g}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
