"""Exact nearest neighbours: hpcqa beside scikit-learn's brute force and faiss, on one and the same data.

    python benchmarks/knn.py [--shapes 100000x64 100000x256 100000x768] [--data spread decaying] [--json OUT]

`spread` is what no method can shorten: independent Gaussian features. `decaying` has a spectrum like that of
embeddings (variances falling as 1/i^2; measured ones fall faster). Prints queries per second and recall; each figure is
the median of several rounds, in which all take their turn. `ms CPU` is the processor time of a query, which other work
on the machine changes little. The approximate index (classify.index=faiss) is listed for comparison. The first lines
say which kernels the libraries run: a variable like OPENBLAS_CORETYPE, set to work around an old processor's trouble,
slows some peers and not others; it must be unset, or fit the processor, for figures that mean something.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from hpcqa.qa import approximate, knn, products

K = 10
SHAPES = ("100000x64", "100000x256", "100000x768", "1000000x64")
Search = Callable[[np.ndarray, np.ndarray], np.ndarray]


def in_fp32(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """All features in float32, exact."""
    return knn.nearest(queries, references, K, precision="fp32", leading=False).index


def by_itself(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    """What hpcqa does by itself: leading components or bfloat16 first where they help, then float32, exact."""
    return knn.nearest(queries, references, K).index


def of_sklearn(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(references)
    return np.asarray(search.kneighbors(queries, return_distance=False))


def of_faiss(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references)
    return np.asarray(index.search(queries, K)[1])


def of_approximate(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    return approximate.Index.of(references).nearest(queries, K).index


def make_data(kind: str, rows: int, queries: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and references, float32."""
    rng = np.random.default_rng(0)
    both = rng.standard_normal((rows + queries, width), np.float32)
    if kind == "decaying":
        both *= (1.0 / (1.0 + np.arange(width))).astype("f4")
        turn = np.linalg.qr(rng.standard_normal((width, width)))[0].astype("f4")
        both = both @ turn
    return both[rows:].copy(), both[:rows].copy()


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact, strict=True)]))


def measure(peers: dict[str, Search], shape: str, kind: str, options: argparse.Namespace) -> list[dict[str, object]]:
    rows, width = (int(part) for part in shape.split("x"))
    for precision in ("fp32", "bf16"):
        knn.nearest(np.zeros((2, 2), "f4"), np.zeros((9, 2), "f4"), 2, precision=precision)  # compiled
    queries, references = make_data(kind, rows, options.queries, width)
    exact = in_fp32(queries, references)
    wall: dict[str, list[float]] = {name: [] for name in peers}
    work: dict[str, list[float]] = {name: [] for name in peers}
    recalls = {}
    for _ in range(options.rounds):
        for name, search in peers.items():
            started, worked = time.perf_counter(), time.process_time()
            found = search(queries, references)
            wall[name].append(time.perf_counter() - started)
            work[name].append(time.process_time() - worked)
            recalls[name] = recall(found, exact)
    return [
        {
            "shape": shape,
            "data": kind,
            "name": name,
            "queries_a_second": options.queries / statistics.median(wall[name]),
            "cpu_ms": 1e3 * statistics.median(work[name]) / options.queries,
            "recall": recalls[name],
        }
        for name in peers
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="references x width")
    parser.add_argument("--data", nargs="+", default=["spread", "decaying"], choices=("spread", "decaying"))
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers: dict[str, Search] = {"hpcqa fp32": in_fp32, "hpcqa": by_itself}
    if importlib.util.find_spec("sklearn"):
        peers["sklearn brute"] = of_sklearn
    if importlib.util.find_spec("faiss"):
        importlib.import_module("faiss")
        peers |= {"faiss flat": of_faiss, "faiss approximate": of_approximate}
    for library in threadpool_info():
        if library["user_api"] == "blas":
            print(f"{Path(library['filepath']).name}: {library['internal_api']} for {library['architecture']}")
    print(f"bf16 products on this processor: {'yes' if products.multiplies_bf16('cpu') else 'no'}")
    print(f"{'shape':>12} {'data':>9} {'':18} {'queries/s':>10} {'ms CPU':>8} {'recall':>8}")
    found = []
    with threadpool_limits(options.threads):
        for shape in options.shapes:
            for kind in options.data:
                found += measure(peers, shape, kind, options)
                for row in found[-len(peers) :]:
                    print(
                        f"{row['shape']:>12} {row['data']:>9} {row['name']:18} {row['queries_a_second']:10.0f} "
                        f"{row['cpu_ms']:8.2f} {row['recall']:8.4f}",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
