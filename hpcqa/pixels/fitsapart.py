"""astropy in processes of their own, for compressed images that hpcqa's own decoder leaves to it.

Its codecs are C code that trusts what it decodes: a damaged HCOMPRESS_1 tile ends the process, or never ends. Here that
is one image's failure. A process serves one image after the other, and is replaced if it died.

`python -m hpcqa.pixels.fitsapart` is such a process: it reads requests from its standard input and answers on its
standard output, each a line of JSON and bytes.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hpcqa.pixels.fitsother import read_with_astropy

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PATIENCE = 300.0  # s for one image; astropy takes 1 s for a large one


def read_apart(raw: bytes, is_primary: bool, shape: tuple[int, int]) -> NDArray[Any]:
    """What `read_with_astropy` gives.

    Raises:
        ValueError: astropy can't read it, or crashes on it, or does not end.
    """
    try:
        process = _idle.pop()
    except IndexError:
        process = _Process()
    try:
        problem, pixels = process.ask(raw, is_primary, shape)
    except BaseException:
        process.close()
        raise
    _idle.append(process)
    if pixels is None:
        raise ValueError(problem)
    return pixels


class _Process:
    """A process that waits for images."""

    def __init__(self) -> None:
        places = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hpcqa.pixels.fitsapart"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, places))},
            # Signals for this process's group are none for it: it ends when its standard input does.
            start_new_session=True,
        )

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, raw: bytes, is_primary: bool, shape: tuple[int, int]) -> tuple[str, NDArray[Any] | None]:
        """The pixels of an image, or why there are none.

        Raises:
            ValueError: the process died, or had to be ended.
        """
        request, answer = self._process.stdin, self._process.stdout
        assert request is not None
        assert answer is not None
        killer = threading.Timer(_PATIENCE, self._process.kill)
        killer.start()
        try:
            _say(request, {"size": len(raw), "is_primary": is_primary, "shape": shape}, raw)
            said = json.loads(answer.readline() or "null")
            if said is None:
                raise EOFError
            if said["problem"]:
                return said["problem"], None
            pixels = np.empty(shape, said["dtype"])
            if answer.readinto(pixels.data.cast("B")) != pixels.nbytes:  # type: ignore[attr-defined]
                raise EOFError
        except (EOFError, OSError):
            status = self._process.wait()
            raise ValueError(f"astropy crashed or did not end (status {status})") from None
        finally:
            killer.cancel()
        return "", pixels


# Processes with nothing to do; a child of this process has none.
_idle: list[_Process] = []
os.register_at_fork(after_in_child=_idle.clear)


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.pop().close()


def _say(stream: IO[bytes], what: dict[str, Any], data: Any) -> None:
    stream.write(json.dumps(what).encode() + b"\n")
    stream.write(data)
    stream.flush()


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests until there are no more."""
    while line := requests.readline():
        asked = json.loads(line)
        raw = requests.read(asked["size"])
        try:
            pixels = np.ascontiguousarray(read_with_astropy(raw, asked["is_primary"], tuple(asked["shape"])))
        except ValueError as problem:
            _say(answers, {"problem": str(problem)}, b"")
        else:
            _say(answers, {"problem": "", "dtype": pixels.dtype.str}, pixels.data.cast("B"))


if __name__ == "__main__":
    # What C code may print must not get among the answers.
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)
        serve(sys.stdin.buffer, answers)
