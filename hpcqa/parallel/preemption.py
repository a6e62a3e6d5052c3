"""Asked to stop: time is nearly up, or a more urgent job wants the node.

The scheduler sends SIGUSR2 to every rank some time before the end, and the job shall be queued again; SIGTERM comes
from someone who cancels it, or who queues it again himself. A stage whose pieces are files stops at once, at the next
Python instruction: finished files stay, the piece in hand is dropped, and the next start does the rest. Training only
raises a flag: its loop asks `requested()` between steps, lets all ranks agree, saves, and raises `Preempted` itself.
"""

from __future__ import annotations

import signal
from types import FrameType

from hpcqa.errors import HpcqaError

EXIT_CODE = 75
SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


class Preempted(HpcqaError):
    """The stage stopped because it was asked to; starting it again goes on from there."""

    exit_code = EXIT_CODE


_state: dict[str, int] = {"signal": 0}


def requested() -> bool:
    """Whether this process was asked to stop; every rank may see it at another moment."""
    return _state["signal"] != 0


def wants_requeue() -> bool:
    """Whether the job shall be queued again because of what it was asked."""
    return _state["signal"] == signal.SIGUSR2


def check() -> None:
    """Stop here if asked to.

    Raises:
        Preempted: this process was asked to stop.
    """
    if requested():
        raise Preempted("Stopped as asked; start again to go on from here.")


def listen(*, at_once: bool) -> None:
    """Take the signals from now on; call in the main thread.

    Args:
        at_once: raise Preempted where the main thread is, instead of waiting to be asked.
    """

    def take(number: int, frame: FrameType | None) -> None:
        first = not requested()
        if first:
            _state["signal"] = number
        if at_once and first:
            raise Preempted(f"Stopped by {signal.Signals(number).name}; start again to go on from here.")

    _state["signal"] = 0
    for number in SIGNALS:
        signal.signal(number, take)


def ignore() -> None:
    """From now on the signals do nothing, so that cleaning up is not interrupted."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
