"""What each rank of a stage cost: a line in RUN/logs/STAGE-RANK.cost.jsonl for every time that it ran.

`hpcqa estimate like=RUN` takes a run's own speed from these lines. Processor time counts, not the time on the clock, so
that waiting for a disk or for neighbours on the node is not taken for work; of a GPU, the time that it was held counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from hpcqa.parallel.ranks import Ranks


@dataclass(frozen=True)
class Cost:
    """One rank of one start of a stage; times in seconds. `gpu_s` is 0 where no GPU was used."""

    stage: str
    rank: int
    world_size: int
    wall_s: float
    core_s: float
    gpu_s: float
    host: str
    processor: str
    gpu: str = ""
    ended: float = 0.0


@contextlib.contextmanager
def measured(logs: Path, stage: str, ranks: Ranks) -> Iterator[None]:
    """Write down what the block costs, however it ends; a disk that is full is no reason to fail."""
    began, used = time.monotonic(), processor_time()
    try:
        yield
    finally:
        wall, name = time.monotonic() - began, gpu_in_use()
        cost = Cost(
            stage,
            ranks.rank,
            ranks.world_size,
            round(wall, 3),
            round(processor_time() - used, 3),
            round(wall, 3) if name else 0.0,
            platform.node(),
            processor_name(),
            name,
            round(time.time(), 3),
        )
        with contextlib.suppress(OSError), cost_path(logs, stage, ranks.rank).open("a") as file:
            file.write(json.dumps(asdict(cost)) + "\n")


def cost_path(logs: Path, stage: str, rank: int) -> Path:
    return logs / f"{stage}-{rank}.cost.jsonl"


def processor_time() -> float:
    """Seconds of processor that this process and its children that have ended used."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def gpu_in_use() -> str:
    """Name of the GPU that this process has worked on; empty if none. Imports nothing by itself."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return ""
    return str(torch.cuda.get_device_name())


@cache
def processor_name() -> str:
    """The processor's name as the kernel gives it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return platform.machine()


def read(logs: Path) -> dict[str, list[Cost]]:
    """The costs of a run by stage, oldest first; lines that a full disk cut short are left out."""
    found: dict[str, list[Cost]] = {}
    for path in sorted(logs.glob("*.cost.jsonl")):
        for line in path.read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError):
                cost = Cost(**json.loads(line))
                found.setdefault(cost.stage, []).append(cost)
    return {stage: sorted(costs, key=lambda cost: cost.ended) for stage, costs in found.items()}
