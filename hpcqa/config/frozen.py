"""The frozen configuration: to and from plain values, run.yaml, and digests of what shapes an artifact."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hpcqa.config import Config, check_ranges, leaves
from hpcqa.config.together import check_together
from hpcqa.errors import ConfigError

RUN_MARK = "<run>"


def to_plain(config: Config) -> dict[str, Any]:
    """Nested dictionaries and lists of the configuration."""
    return dataclasses.asdict(config)


def from_plain(plain: Mapping[str, Any]) -> Config:
    """The typed configuration of nested dictionaries, every type and range checked.

    Raises:
        ConfigError: an unknown key, a wrong type or a value out of range, by its dotted name.
    """
    config = _build(Config, plain, "")
    check_ranges(config)
    check_together(config)
    assert isinstance(config, Config)
    return config


def _build(kind: type, plain: Any, prefix: str) -> Any:
    if not isinstance(plain, Mapping):
        raise ConfigError(f"{prefix.rstrip('.')}: expected a group of settings, found {plain!r}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(plain) - set(hints))
    if unknown:
        raise ConfigError(f"{prefix}{unknown[0]}: no such setting; {prefix or 'the top'} has {', '.join(hints)}.")
    values = {name: _convert(hints[name], value, prefix + name) for name, value in plain.items()}
    return kind(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), value, name + ".")
    origin = typing.get_origin(hint)
    if origin is list:
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise ConfigError(f"{name}={value!r}: expected a list, as in {name}=[a,b].")
        (inner,) = typing.get_args(hint)
        return [_convert(inner, item, name) for item in value]
    if origin is dict:
        _, inner = typing.get_args(hint)
        return {str(key): _convert(inner, item, f"{name}.{key}") for key, item in dict(value or {}).items()}
    if origin is types.UnionType:
        return value
    return _scalar(hint, value, name)


def _scalar(hint: type, value: Any, name: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r}: expected {hint.__name__}, found {type(value).__name__}.")
    return value


def to_yaml(config: Config, overrides: Sequence[str]) -> str:
    """The text of run.yaml: the configuration and the overrides that made it.

    The run folder's own path stands as a mark, so that a folder can be moved.
    """
    content = {"overrides": list(overrides), "config": to_plain(config)}
    return yaml.safe_dump(_replace_text(content, config.run, RUN_MARK), sort_keys=False, width=1000)


def _replace_text(value: Any, old: str, new: str) -> Any:
    if isinstance(value, str):
        # Whole parts of paths only: /data/run2 is not under /data/run.
        return re.sub(rf"{re.escape(old)}(?![\w.+-])", lambda _: new, value) if old else value
    if isinstance(value, Mapping):
        return {key: _replace_text(item, old, new) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace_text(item, old, new) for item in value]
    return value


def load(path: Path) -> tuple[Config, list[str]]:
    """The configuration and its overrides from run.yaml.

    Raises:
        ConfigError: missing or not a run.yaml.
    """
    try:
        content = _replace_text(yaml.safe_load(path.read_text()), RUN_MARK, str(path.parent))
        return from_plain(content["config"]), list(content["overrides"])
    except FileNotFoundError:
        raise ConfigError(f"{path}: not found; is this a run folder?") from None
    except ConfigError as error:
        raise ConfigError(
            f"{path}: {error} If another version of hpcqa wrote it, go on with that one or use another run folder."
        ) from None
    except (yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a run.yaml of hpcqa ({error}); use another run folder.") from None


def base_runs(config: Config) -> tuple[Path, ...]:
    """The run that this one is based on, the run that that one is based on, and so on.

    Raises:
        ConfigError: one of them is not a run folder, or they form a circle.
    """
    chain: list[Path] = []
    base = config.base
    while base:
        path = Path(base)
        if path in chain or base == config.run:
            raise ConfigError(f"base={base}: based on itself; name another run folder.")
        if not path.is_dir():
            raise ConfigError(f"base={base}: no such run folder.")
        chain.append(path)
        base = load(path / "run.yaml")[0].base
    return tuple(chain)


def refuse_other_settings(config: Config) -> None:
    """ConfigError if a run that goes on from its base would make other shards or embeddings than that one.

    Raises:
        ConfigError: there is no base, or a setting differs; names it.
    """
    if not config.base:
        raise ConfigError("survey.update=true: needs the earlier run; name its folder with base=FOLDER.")
    earlier = load(Path(config.base) / "run.yaml")[0]
    for stage in TAKEN_OVER:
        before, now = (settings_of(some, STAGE_SECTIONS[stage]) for some in (earlier, config))
        for key, value in now.items():
            if before.get(key) != value:
                raise ConfigError(
                    f"{key}={value}: base={config.base} has {before.get(key)}, and survey.update=true takes over what "
                    f"was made with that; leave {key} out, or survey.update to make everything anew."
                )


def settings_of(config: Config, sections: Sequence[str]) -> dict[str, Any]:
    """The output settings under some sections or single settings, by dotted name."""
    chosen = {}
    for leaf in leaves(config):
        inside = any(leaf.name == section or leaf.name.startswith(section + ".") for section in sections)
        if inside and leaf.setting.output:
            # A path in this run or in the one it is based on means the same to whoever reads it.
            own = _replace_text(leaf.value, config.run, RUN_MARK)
            chosen[leaf.name] = _replace_text(own, config.base, RUN_MARK)
    return chosen


def digest(config: Config, sections: Sequence[str]) -> str:
    """SHA-256 of the output settings under some sections."""
    return hashlib.sha256(json.dumps(settings_of(config, sections), sort_keys=True).encode()).hexdigest()


# Which output settings shape each stage's artifacts: sections or single settings by dotted name.
STAGE_SECTIONS: dict[str, tuple[str, ...]] = {
    "simulate": ("seed", "instrument", "simulate"),
    # Not the label lists: they change while a run stands, and only what is made from labels changes with them.
    "manifest": (
        *("survey.simulated", "survey.tables", "survey.images"),
        *("manifest", "instrument", "shard.exposures_per_shard"),
    ),
    "shard": ("views", "shard", "instrument"),
    "calibrate": ("calibrate", "views"),
    "pretrain": ("seed", "model", "ssl", "views"),
    "embed": ("model", "embed", "views"),
    "fit": ("seed", "fit", "evaluate.holdout"),
    "classify": ("classify",),
    "evaluate": ("seed", "evaluate"),
    "report": ("report",),
}


# Stages whose work a run with survey.update takes over.
TAKEN_OVER = ("shard", "calibrate", "pretrain", "embed")


def stage_digest(config: Config, stage: str) -> str:
    """Digest of the settings that shape a stage's output; goes into the provenance of its artifacts."""
    return digest(config, STAGE_SECTIONS[stage])
