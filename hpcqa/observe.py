"""What a run says: a log file per rank, the console on rank 0, metrics as JSON lines, progress."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
logger = logging.getLogger("hpcqa")

LINE_EVERY_S = 10.0
MOST_SHOWN = 20


def start_logging(*, rank: int = 0, file: Path | None = None, verbose: bool = False) -> None:
    """Send the log to a file for each rank, and rank 0's also to standard error."""
    root = logging.getLogger("hpcqa")
    root.setLevel(logging.DEBUG)
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    if rank == 0:
        console = _Console()
        console.setLevel(logging.DEBUG if verbose else logging.INFO)
        console.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(console)
    if file is not None:
        root.addHandler(_file_handler(rank, file))
    root.propagate = False


def one_of_many(kind: str) -> dict[str, str]:
    """`extra` of a message that a whole release may give a hundred thousand of: the console shows the first of a kind.

    The log file has all of them.
    """
    return {"one_of_many": kind}


class _Console(logging.StreamHandler[TextIO]):
    """Standard error, where only the first few are shown of messages that are `one_of_many`."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        kind = getattr(record, "one_of_many", "")
        self._seen[kind] += 1
        if not kind or self._seen[kind] <= MOST_SHOWN:
            super().emit(record)
        if kind and self._seen[kind] == MOST_SHOWN:
            self.stream.write(f"More of the kind '{kind}' is in the log file only.{self.terminator}")
            self.flush()


@contextlib.contextmanager
def logged_to(file: Path) -> Iterator[None]:
    """Send the log to a file as well, for as long as the block lasts."""
    handler = _file_handler(0, file)
    root = logging.getLogger("hpcqa")
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def _file_handler(rank: int, file: Path) -> logging.Handler:
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, delay=True)
    handler.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s"))
    return handler


class Tracker:
    """A progress bar on a terminal; elsewhere a line every ten seconds and one at the end.

    Use as a context manager: `with Tracker("shard", total=200, unit="exposures") as ticker: ticker.advance()`.
    """

    def __init__(self, title: str, *, total: int, unit: str, shown: bool = True) -> None:
        self.title, self.total, self.unit = title, total, unit
        self._shown, self._done, self._told = shown, 0, 0
        self._bar: Progress | None = None
        self._started = self._last = time.monotonic()

    def __enter__(self) -> Tracker:
        console = Console(stderr=True)
        if self._shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self.unit),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total)
        return self

    def advance(self, amount: int = 1) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.advance(self._task, amount)
        elif self._shown and time.monotonic() - self._last > LINE_EVERY_S:
            self._last = time.monotonic()
            self._line()

    def _line(self) -> None:
        passed = time.monotonic() - self._started
        self._told = self._done
        left = (self.total - self._done) * passed / self._done if self._done else 0.0
        ending = f", {_duration(left)} left" if left > 0 else ""
        logger.info("%s: %d of %d %s, %s%s", self.title, self._done, self.total, self.unit, self._pace(passed), ending)

    def _pace(self, passed: float) -> str:
        """Pieces a second, or how long each takes where that is longer."""
        if self._done > passed > 0:
            return f"{self._done / passed:.3g}/s"
        return f"{_duration(passed / self._done)} each" if self._done else f"none yet after {_duration(passed)}"

    def __exit__(self, kind: Any, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._shown and kind is None and self.total and (self._told < self._done or not self._done):
            self._line()


def _duration(seconds: float) -> str:
    """In the largest units that say something: 0.12 s, 45 s, 3 min 20 s, 5 h 12 min, 2 d 3 h."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def track(items: Iterable[T], title: str, *, total: int, unit: str, shown: bool = True) -> Iterator[T]:
    """Iterate with progress."""
    with Tracker(title, total=total, unit=unit, shown=shown) as ticker:
        for item in items:
            yield item
            ticker.advance()


class Metrics:
    """Appends JSON lines, flushed one by one; names carry their units, e.g. `step_s`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")

    def write(self, **values: Any) -> None:
        clean = {name: _finite(value) for name, value in values.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
