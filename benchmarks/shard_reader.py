"""The training reader beside np.memmap on the same data, from 10 shards and from many, in one run.

    python benchmarks/shard_reader.py [--shards 10 100 1000] [--rows 64] [--batches 200] [--json FILE]

Samples are 512 x 256 float16 context views in shards of `--rows` CCDs. The reader's order is hpcqa's own (block
shuffle), its cache is off. np.memmap reads the same rows of one flat file of the same size: block by block as a careful
user would (`np.memmap, same rows`), and fully at random, one sample at a time. Methods take turns; the best of three.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hpcqa.artifacts import store
from hpcqa.artifacts.catalog import SHARD
from hpcqa.artifacts.schema import Provenance
from hpcqa.config import Config, ShardConfig
from hpcqa.pixels.dataset import ShardSet, rows_at

SIZE = (512, 256)
BATCH = 256
# Data beyond this is not written: further shards are hard links, so that their number can grow without the disk's.
MOST_BYTES = 3 << 30


def write_shard(path: Path, rows: int, number: int) -> None:
    rng = np.random.default_rng(number)
    small = {"by": 4, "bx": 4, "dy": 4, "dx": 4, "number": 4, "exposure": 1, "ccd": rows, "cy": SIZE[0], "cx": SIZE[1]}
    arrays = {}
    for column in SHARD.columns:
        shape = tuple(small[axis] for axis in column.dims)
        arrays[column.name] = np.full(shape, "r", object) if column.dtype == "str" else np.zeros(shape, column.dtype)
    arrays["context"] = rng.standard_normal((rows, *SIZE), np.float32).astype(np.float16)
    arrays["expnum"] = np.full(rows, number, np.int64)
    arrays["ccdnum"] = np.arange(rows, dtype=np.int32)
    arrays["exposure"] = np.array([number], np.int64)
    store.write_arrays(path, SHARD, arrays, Provenance("x"), {"number_names": ["a", "b", "c", "d"]})


def rate(work: Callable[[np.ndarray], object], batches: list[np.ndarray]) -> float:
    start = time.perf_counter()
    for rows in batches:
        work(rows)
    return sum(map(len, batches)) / (time.perf_counter() - start)


def copies(flat: np.memmap, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), *SIZE), np.float16)
    for place, row in enumerate(rows):
        out[place] = flat[row]
    return out


def compare(folder: Path, num_shards: int, rows: int, num_batches: int) -> dict[str, float]:
    """Samples a second of each method."""
    real = min(num_shards, max(1, MOST_BYTES // (rows * SIZE[0] * SIZE[1] * 2)))
    paths = []
    for number in range(num_shards):
        paths.append(folder / f"shard-{number:05d}.h5")
        if paths[-1].exists():
            continue
        if number < real:
            write_shard(paths[-1], rows, number)
        else:
            paths[-1].hardlink_to(paths[number % real])
    flat_path = folder / "flat.f16"
    with flat_path.open("wb") as file:
        for path in paths[:real]:
            with store.open_arrays(path, SHARD) as shard:
                file.write(shard.read("context").tobytes())
    flat = np.memmap(flat_path, np.float16, "r", shape=(real * rows, *SIZE))
    start = time.perf_counter()
    ours = ShardSet(paths, None, replace(Config(), shard=ShardConfig(reader_cache=0.0)))
    opening = time.perf_counter() - start
    shuffled = [rows_at(k * BATCH, BATCH, num=len(ours), seed=1) for k in range(num_batches)]
    same = [batch % len(flat) for batch in shuffled]
    random = np.random.default_rng(1).permutation(len(flat))
    at_random = [random[k * BATCH % len(flat) :][:BATCH] for k in range(num_batches)]
    methods: dict[str, Callable[[], float]] = {
        "hpcqa": lambda: rate(lambda batch: ours.batch("context", batch), shuffled),
        "np.memmap, same rows": lambda: rate(lambda batch: copies(flat, batch), same),
        "np.memmap, fancy index": lambda: rate(lambda batch: flat[batch], same),
        "np.memmap at random": lambda: rate(lambda batch: copies(flat, batch), at_random),
        "hpcqa at random": lambda: rate(lambda batch: ours.batch("context", batch), at_random),
    }
    best = dict.fromkeys(methods, 0.0)
    for _ in range(3):
        for name, work in methods.items():
            best[name] = max(best[name], work())
    ours.close()
    flat_path.unlink()
    return best | {"opening, s": opening}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rows", type=int, default=64, help="CCDs in a shard")
    parser.add_argument("--batches", type=int, default=40)
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        for num_shards in options.shards:
            results[num_shards] = compare(Path(name), num_shards, options.rows, options.batches)
            print(f"{num_shards} shards of {options.rows} CCDs, samples a second:")
            for method, value in results[num_shards].items():
                print(f"  {method:24s} {value:10.3g}")
            print(f"  hpcqa over np.memmap on the same rows {ratio(results[num_shards]):.2f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def ratio(result: dict[str, float]) -> float:
    return result["hpcqa"] / max(result["np.memmap, same rows"], result["np.memmap, fancy index"])


if __name__ == "__main__":
    main()
