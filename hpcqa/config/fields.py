"""What a setting is: a dataclass field with a sentence, a unit and a range; and how a section is checked.

Every section is a frozen dataclass whose fields are made by `setting`. Defaults live here only; files in conf/ name
what differs from them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from hpcqa.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Setting:
    """The documentation and the legal range of one field.

    `output` is False for settings that change how fast or where something runs but not what ends on disk. `path` marks
    file names, which become absolute when the configuration is composed. `size` is how many elements a list has, 0 any
    number; the two elements of a `rising` one are a range.
    """

    doc: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[Any, ...]
    output: bool
    path: bool = False
    size: int = 0
    rising: bool = False


def setting(
    default: Any,
    doc: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    output: bool = True,
    path: bool = False,
    size: int = 0,
    rising: bool = False,
) -> Any:
    """A dataclass field with documentation and a range; mutable defaults are copied for each instance.

    `low` and `high` are inclusive and hold for every element of a list.
    """
    metadata = {"setting": Setting(doc, unit, low, high, choices, output, path, size, rising)}
    if isinstance(default, (list, dict)):
        kind = type(default)
        return dataclasses.field(default_factory=lambda: kind(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type) -> Any:
    """A dataclass field that holds a section with all its defaults."""
    return dataclasses.field(default_factory=kind)


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting of a configuration tree with its dotted name and value."""

    name: str
    value: Any
    setting: Setting


def leaves(node: Any, prefix: str = "") -> Iterator[Leaf]:
    """Every setting under a section, in the order of definition; dictionaries of sections are walked too."""
    if isinstance(node, Mapping):
        for key in sorted(node):
            yield from leaves(node[key], f"{prefix}{key}.")
        return
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if "setting" in field.metadata:
            yield Leaf(prefix + field.name, value, field.metadata["setting"])
        else:
            yield from leaves(value, f"{prefix}{field.name}.")


def check_ranges(node: Any) -> None:
    """Compare every value with its setting's range and choices.

    Raises:
        ConfigError: names the key, the value found, and what is legal.
    """
    for leaf in leaves(node):
        values = leaf.value if isinstance(leaf.value, (list, tuple)) else [leaf.value]
        if leaf.setting.size not in (0, len(values)):
            raise ConfigError(f"{leaf.name}={leaf.value}: expected {leaf.setting.size} numbers, found {len(values)}.")
        for value in values:
            _check_value(leaf, value)
        if leaf.setting.rising and values[0] > values[-1]:
            raise ConfigError(f"{leaf.name}={leaf.value}: expected the smaller number first.")


def _check_value(leaf: Leaf, value: Any) -> None:
    allowed = leaf.setting
    if allowed.choices and value not in allowed.choices:
        legal = ", ".join(str(choice) for choice in allowed.choices)
        raise ConfigError(f"{leaf.name}={value}: expected one of {legal}.")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    below = allowed.low is not None and value < allowed.low
    above = allowed.high is not None and value > allowed.high
    if below or above or math.isnan(value):
        raise ConfigError(f"{leaf.name}={value}: expected {describe_range(allowed)}.")


def describe_range(allowed: Setting) -> str:
    """The legal values in words, with the unit; empty if anything goes."""
    unit = f" {allowed.unit}" if allowed.unit else ""
    if allowed.choices:
        return "one of " + ", ".join(str(choice) for choice in allowed.choices)
    if allowed.low is not None and allowed.high is not None:
        return f"{allowed.low:g} to {allowed.high:g}{unit}"
    if allowed.low is not None:
        return f"at least {allowed.low:g}{unit}"
    if allowed.high is not None:
        return f"at most {allowed.high:g}{unit}"
    return unit.strip()
