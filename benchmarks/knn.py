"""Exact nearest neighbours: hpcqa beside scikit-learn's brute force and, where it is installed, faiss.

    python benchmarks/knn.py [--references 100000] [--queries 2048] [--widths 64 768] [--threads 2]

Prints queries per second, the median of three rounds in turn, and the recall against hpcqa, which is exact.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from hpcqa.qa import knn

K = 10
Search = Callable[[np.ndarray, np.ndarray], np.ndarray]


def of_hpcqa(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    return knn.nearest(queries, references, K).index


def of_sklearn(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=K, algorithm="brute").fit(references).kneighbors(queries, return_distance=False)


def of_faiss(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatL2(references.shape[1])
    index.add(references)
    return index.search(queries, K)[1]


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(a) & set(b)) / K for a, b in zip(found, exact, strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=2048)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 768])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    peers: dict[str, Search] = {"hpcqa": of_hpcqa, "sklearn brute": of_sklearn}
    if importlib.util.find_spec("faiss"):
        peers["faiss flat"] = of_faiss
    with threadpool_limits(options.threads):
        for width in options.widths:
            measure(peers, width, options)


def measure(peers: dict[str, Search], width: int, options: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    references = rng.normal(size=(options.references, width)).astype("f4")
    queries = rng.normal(size=(options.queries, width)).astype("f4")
    exact = of_hpcqa(queries, references)
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    recalls = {}
    for _ in range(options.rounds):
        for name, search in peers.items():
            started = time.perf_counter()
            found = search(queries, references)
            seconds[name].append(time.perf_counter() - started)
            recalls[name] = recall(found, exact)
    for name in peers:
        rate = options.queries / statistics.median(seconds[name])
        print(f"{options.references} x {width}  {name:14s} {rate:8.0f} queries/s  recall {recalls[name]:.4f}")


if __name__ == "__main__":
    main()
