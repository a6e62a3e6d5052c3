"""The Hydra boundary: overrides in, a checked and frozen configuration out. Ranks never come here.

What a person typed for a run folder is remembered in its run.yaml, so that the next command on that folder needs only
`run=FOLDER` and whatever is new.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import re
import typing
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hpcqa import instruments
from hpcqa.artifacts.folder import NAMES, RunFolder
from hpcqa.artifacts.store import write_text
from hpcqa.config import Config, leaves
from hpcqa.config.frozen import STAGE_SECTIONS, base_runs, from_plain, load, settings_of, to_yaml
from hpcqa.errors import ConfigError
from hpcqa.stages import STAGES

CONFIG_MODULE = "hpcqa.conf"
# What is said of one command and not of the run.
OF_ONE_COMMAND = ("launch.dry_run", "launch.wait")
GROUPS = ("instrument", "survey", "model", "launch", "cluster", "stage", "experiment")


def register_schema() -> None:
    """Give Hydra the dataclasses, so that it knows every key and type."""
    ConfigStore.instance().store(name="hpcqa_schema", node=thawed(Config))


@cache
def thawed(kind: type) -> type:
    """A writable twin of a frozen configuration section, which composition can fill.

    omegaconf (2.3) makes read-only nodes of frozen dataclasses, those created later for a dictionary's items too.
    """
    hints = typing.get_type_hints(kind)
    fields = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        twin: Any
        if dataclasses.is_dataclass(hint):
            hint = thawed(typing.cast(type, hint))
            twin = dataclasses.field(default_factory=hint)
        elif typing.get_origin(hint) is dict:
            name, inner = typing.get_args(hint)
            hint = dict[name, thawed(inner)]  # type: ignore[valid-type,misc]
            twin = dataclasses.field(default_factory=dict)
        elif field.default_factory is not dataclasses.MISSING:
            twin = dataclasses.field(default_factory=field.default_factory)
        else:
            twin = dataclasses.field(default=field.default)
        fields.append((field.name, hint, twin))
    return dataclasses.make_dataclass(kind.__name__, fields)


def compose(overrides: Sequence[str]) -> Config:
    """The checked configuration of some overrides, with absolute paths.

    Raises:
        ConfigError: an unknown key, a wrong type, or a value out of range.
    """
    check_keys(overrides)
    check_grammar(overrides)
    register_schema()
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            return to_config(hydra_compose("config", overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise _ours(error) from None


def to_config(composed: DictConfig) -> Config:
    """What Hydra composed, as the typed configuration with absolute paths."""
    container = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(container, dict)
    plain: dict[str, Any] = {str(key): value for key, value in container.items() if key not in ("hydra", "experiment")}
    config = from_plain(plain)
    refuse_unknown_names(config)
    return with_lent_survey(with_absolute_paths(config))


def refuse_unknown_names(config: Config) -> None:
    """Compare what the settings name with what there is, before a run folder remembers it.

    Raises:
        ConfigError: no such camera, band or file of weights; or no run folder is named.
    """
    if not config.run:
        raise ConfigError("run=: expected a folder, as in run=runs/first.")
    own = instruments.get(config.instrument.name)
    known = dict.fromkeys([*own.bands, *(band for name in instruments.KNOWN for band in instruments.get(name).bands)])
    for band in config.manifest.bands:
        if band not in known:
            raise ConfigError(f"manifest.bands: no camera has a band {band}; {own.name} has {', '.join(own.bands)}.")
    weights = config.ssl.init_from
    if weights and not Path(absolute(weights)).is_file():
        raise ConfigError(f"ssl.init_from={weights}: no such file; bring weights in with `hpcqa import-weights`.")


_NO_CHOICE = re.compile(r"Could not find '(\w+)/(.*)'$")
_NO_MERGE = re.compile(r"Error merging override (.*)$")
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _one_sentence(error: BaseException) -> str:
    first = str(error).splitlines()[0] if str(error) else ""
    if choice := _NO_CHOICE.search(first):
        return _no_choice(choice[1], choice[2], str(error))
    if (merge := _NO_MERGE.search(first)) and (expected := _expected(override_key(merge[1]))):
        return f"{merge[1]}: expected {expected}."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    keys = [line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")]
    text = lines[0] if lines else type(error).__name__
    return f"{keys[0]}: {text}." if keys and keys[0] not in text else f"{text.rstrip('.')}."


def _ours(error: BaseException) -> BaseException:
    """Hydra's complaint in our words; or what a person pressed, which Hydra takes for an error of the configuration."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return KeyboardInterrupt()
        cause = cause.__cause__ or cause.__context__
    return ConfigError(_one_sentence(error))


def _no_choice(group: str, found: str, said: str) -> str:
    options = [line.strip() for line in said.splitlines() if line.startswith("\t") and "=" not in line]
    near = difflib.get_close_matches(found, options, n=1)
    hint = f"did you mean {near[0]}? There" if near else "there"
    return f"{group}={found}: no such {group}; {hint} are {', '.join(options)}."


def _expected(key: str) -> str:
    """What a setting takes, in words; empty if there is no such setting."""
    for leaf in leaves(Config()):
        if leaf.name == key and isinstance(leaf.value, list):
            return f"a list, as in {key}=[{','.join(str(item) for item in leaf.value) or 'a,b'}]"
        if leaf.name == key:
            return _KINDS[type(leaf.value)]
    return ""


def override_key(override: str) -> str:
    """The key of an override such as `+ssl.lr=1e-3`, `survey=simulated` or `~stage`."""
    return override.split("=", 1)[0].lstrip("+~").split("@", 1)[0]


def check_keys(overrides: Sequence[str]) -> None:
    """Compare override keys with the settings there are.

    Raises:
        ConfigError: names the key and the nearest ones.
    """
    known = {leaf.name for leaf in leaves(Config())} | set(GROUPS)
    for override in overrides:
        key = override_key(override)
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"{override}: expected key=value; see `hpcqa STAGE --help` for the settings.")
        if key in known or key.startswith(("hydra", "stage.")):
            continue
        near = difflib.get_close_matches(key, sorted(known), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`hpcqa STAGE --help` lists them all."
        raise ConfigError(f"{key}: no such setting; {hint}")


def in_quotes(overrides: Sequence[str]) -> list[str]:
    """The overrides, with paths in quotes where Hydra's grammar needs them: it takes neither run=é nor run=a=b."""
    paths = {leaf.name for leaf in leaves(Config()) if leaf.setting.path}
    return [_quoted(item) if override_key(item) in paths and not _parses(item) else item for item in overrides]


def _quoted(override: str) -> str:
    key, _, value = override.partition("=")
    if not (value.startswith("[") and value.endswith("]")):
        return f"{key}={json.dumps(value, ensure_ascii=False)}"
    items = [item.strip().strip("'\"") for item in value[1:-1].split(",")]
    return f"{key}={json.dumps(items, ensure_ascii=False)}"


def _parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def check_grammar(overrides: Sequence[str]) -> None:
    """ConfigError for an override that Hydra's grammar does not take, by its own words."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except HydraException as error:
            advice = "put the value in quotes, as in key='\"a=b\"'"
            raise ConfigError(f"{override}: not understood ({str(error).splitlines()[0]}); {advice}.") from None


def with_absolute_paths(config: Config) -> Config:
    """The configuration with every path setting absolute, so that it means the same from any directory."""
    moved: Config = _absolute_section(config)
    return moved


def _absolute_section(section: Any) -> Any:
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _absolute_section(value)
        elif "setting" in field.metadata and field.metadata["setting"].path:
            changes[field.name] = [absolute(item) for item in value] if isinstance(value, list) else absolute(value)
    return dataclasses.replace(section, **changes)


def with_lent_survey(config: Config) -> Config:
    """The configuration with the base run's simulated survey, where this run has none of its own yet."""
    own, lent = Path(config.run) / NAMES["survey"], Path(config.base) / NAMES["survey"]
    if not config.base or own.exists() or not lent.exists():
        return config

    def there(path: str) -> str:
        return str(lent / Path(path).relative_to(own)) if Path(path).is_relative_to(own) else path

    survey = config.survey
    moved = dataclasses.replace(
        survey,
        tables=[there(path) for path in survey.tables],
        images=[there(path) for path in survey.images],
        labels=[there(path) for path in survey.labels],
        truth=there(survey.truth),
    )
    return dataclasses.replace(config, survey=moved)


def absolute(path: str) -> str:
    """An absolute path without touching links; an empty one stays empty."""
    return str(Path.cwd() / Path(path).expanduser()) if path else ""


# The run folder's memory --------------------------------------------------------------------------------------------


def remembered(overrides: Sequence[str]) -> list[str]:
    """The overrides that the run folder (and its base) already know, followed by the new ones; the last word counts."""
    values = {override_key(item): item.split("=", 1)[1].strip("'\"") for item in overrides if "=" in item}
    earlier: list[str] = []
    for key in ("base", "run"):
        folder = values.get(key, "runs/default" if key == "run" else "")
        file = Path(absolute(folder)) / "run.yaml"
        if folder and file.exists():
            left_out = () if key == "run" else ("run", "base", "survey.update")
            earlier += [item for item in load(file)[1] if override_key(item) not in left_out]
    merged = {override_key(item): item for item in [*earlier, *overrides]}
    return list(merged.values())


def freeze(config: Config, overrides: Sequence[str]) -> RunFolder:
    """Write run.yaml, or check that the folder's artifacts were made with these settings; a dry run writes nothing.

    Raises:
        ConfigError: an artifact in the folder was made with other settings; names them.
    """
    folder = RunFolder(Path(config.run), base_runs(config))
    file = folder.output("run")
    if file.exists():
        refuse_contradictions(load(file)[0], config, folder)
    if config.launch.dry_run:
        return folder
    kept = [_with_absolute_value(item, config) for item in overrides if override_key(item) not in OF_ONE_COMMAND]
    launch = dataclasses.replace(config.launch, wait=False)
    text = to_yaml(dataclasses.replace(config, launch=launch), kept)
    if not file.exists() or file.read_text() != text:
        write_text(file, text)
    return folder


def refuse_contradictions(before: Config, now: Config, folder: RunFolder) -> None:
    """ConfigError if an artifact that is there was made with other settings than these."""
    for stage in STAGES:
        if not any(folder.output(artifact).exists() for artifact in stage.writes):
            continue
        old, new = (settings_of(config, STAGE_SECTIONS[stage.name]) for config in (before, now))
        changed = [f"{key}={old.get(key)} (now {new.get(key)})" for key in new if old.get(key) != new.get(key)]
        if changed:
            raise ConfigError(
                f"{folder.path}: its {', '.join(stage.writes)} was made with {', '.join(changed)}; "
                f"choose another folder with `run=`, and `base={folder.path}` to use what this one has."
            )


def _with_absolute_value(override: str, config: Config) -> str:
    """An override as run.yaml keeps it: path settings as absolute paths."""
    key = override_key(override)
    for leaf in leaves(config):
        if leaf.name == key and leaf.setting.path:
            return f"{key}={json.dumps(leaf.value)}"
    return override


# Sweeps and Hydra's own switches ------------------------------------------------------------------------------------


def through_hydra(task: Callable[[Config, list[str]], float | None]) -> None:
    """Hand the command line to Hydra itself, for `--multirun`, `--cfg job` and its other switches.

    In a sweep every job has a run folder of its own under RUN/sweeps/, and the run it was started from as its base.
    With another launcher than Hydra's own the jobs are pickled and run elsewhere, so that nothing of them but the
    objective, or the error, comes back.

    Raises:
        HpcqaError: Hydra's complaint, or what a job raised.
    """
    register_schema()
    # Else Hydra would print a traceback and exit, where one sentence is wanted.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    def job(composed: DictConfig) -> float | None:
        config = to_config(composed)
        overrides = list(HydraConfig.get().overrides.task)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            output = HydraConfig.get().runtime.output_dir
            # A run that was never frozen has nothing to lend.
            base = config.run if (Path(config.run) / NAMES["run"]).exists() else config.base
            config = dataclasses.replace(config, base=base, run=output)
            overrides = [item for item in overrides if override_key(item) not in ("run", "base")]
            overrides += [f"run={json.dumps(output)}", f"base={json.dumps(config.base)}"]
        return task(config, overrides)

    try:
        hydra.main(config_path=f"pkg://{CONFIG_MODULE}", config_name="config", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        raise _ours(error) from None


def sweeper() -> str:
    """Name of the sweeper of the job that Hydra runs now: "basic" takes every combination and needs no objective."""
    return str(HydraConfig.get().runtime.choices.get("hydra/sweeper", "basic"))
