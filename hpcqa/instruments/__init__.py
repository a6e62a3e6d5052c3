"""The cameras that hpcqa knows; one module each."""

from __future__ import annotations

import importlib
from functools import cache

from hpcqa.errors import ConfigError
from hpcqa.instruments.base import Instrument

KNOWN = ("decam", "minicam")


@cache
def get(name: str) -> Instrument:
    """The camera's module by its name in the configuration.

    Raises:
        ConfigError: no such camera; says which there are.
    """
    if name not in KNOWN:
        raise ConfigError(f"instrument.name={name}: no such camera; known are {', '.join(KNOWN)}.")
    instrument: Instrument = importlib.import_module(f"hpcqa.instruments.{name}").INSTRUMENT
    return instrument


def for_camera(camera: str) -> Instrument | None:
    """The instrument that survey tables call `camera` (any case), or None where there is no module yet."""
    for name in KNOWN:
        if camera.strip().lower() in get(name).cameras:
            return get(name)
    return None
