"""What a training run writes of itself: metrics as JSON lines and, where asked for, TensorBoard's events."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from hpcqa.artifacts.store import write_text
from hpcqa.errors import EnvironmentProblem
from hpcqa.observe import Metrics


def check_tensorboard(wanted: bool) -> None:
    """Make sure that TensorBoard can be written, before anything is computed; every rank may ask.

    Raises:
        EnvironmentProblem: it is wanted and not installed.
    """
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise EnvironmentProblem(
            "ssl.tensorboard=true: the package tensorboard is not installed; pip install 'hpcqa[metrics]', or set "
            "ssl.tensorboard=false."
        )


class Journal:
    """Metrics of steps; lines of steps that a restart does again are dropped first."""

    def __init__(self, path: Path, step: int, events: Path | None = None) -> None:
        """Args: `step` is where training begins; `events` the folder of TensorBoard's files, None for none."""
        self.latest: dict[str, float] = {}
        if path.exists():
            write_text(path, "".join(line for line in path.read_text().splitlines(True) if _before(line, step)))
        self._metrics = Metrics(path)
        self._board: Any = None
        if events is not None:
            from torch.utils.tensorboard import SummaryWriter  # an optional extra

            self._board = SummaryWriter(str(events), purge_step=step + 1)  # type: ignore[no-untyped-call]

    def write(self, line: dict[str, Any]) -> None:
        """Add the metrics of `line["step"]`."""
        self._metrics.write(**line)
        numbers = {name: value for name, value in line.items() if isinstance(value, (int, float))}
        self.latest |= numbers
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(_board_name(name), value, line["step"])
            self._board.flush()

    def close(self) -> None:
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def _board_name(name: str) -> str:
    """Names by group, as TensorBoard arranges them: loss_dino_context is loss/dino_context."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if rest and group in ("loss", "rank", "spread", "teacher", "prototype", "knn") else name


def _before(line: str, step: int) -> bool:
    try:
        return bool(json.loads(line)["step"] <= step)
    except (ValueError, KeyError, TypeError):
        return False
