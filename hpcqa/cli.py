"""`hpcqa STAGE [settings]`: the only place that prints results and sets exit codes."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hpcqa import __version__, observe
from hpcqa.errors import ConfigError, DataError, EnvironmentProblem, HpcqaError
from hpcqa.helptext import overview, stage_help
from hpcqa.parallel.ranks import detect, thread_variables
from hpcqa.stages import STAGES, stage

if TYPE_CHECKING:
    from hpcqa.artifacts.folder import RunFolder
    from hpcqa.config import Config

logger = logging.getLogger(__name__)

HYDRA_SWITCHES = ("--multirun", "-m", "--cfg", "-c", "--info", "-i", "--hydra-help", "--resolve", "--package", "-p")


SHORTHANDS = {"--wait": "launch.wait=true", "--dry-run": "launch.dry_run=true"}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the `hpcqa` command; exits with the code of the error's kind."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(words)
    except HpcqaError as error:
        print(f"hpcqa: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        print("hpcqa: interrupted; the same command goes on from here.", file=sys.stderr)
        code = 130
    except Exception as error:
        logger.debug("internal error", exc_info=True)
        print(
            f"hpcqa: internal error, {type(error).__name__}: {error}. Please report it with the output of the same "
            "command with --verbose.",
            file=sys.stderr,
        )
        if "--verbose" in words:
            raise
        code = 70
    sys.exit(code)


def dispatch(words: list[str]) -> int:
    """Run the command that the words name and return the exit code."""
    verbose = "--verbose" in words
    words = [word for word in words if word != "--verbose"]
    if not words or words[0] in ("--help", "-h", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    observe.start_logging(verbose=verbose)
    name, rest = words[0], words[1:]
    if name == "run" or name in {entry.name for entry in STAGES}:
        return stage_command(name, rest)
    commands: dict[str, Callable[[list[str]], int]] = {
        "status": status_command,
        "logs": logs_command,
        "cancel": cancel_command,
        "estimate": estimate_command,
        "sweep-table": sweep_table_command,
        "votes": votes_command,
        "compare": compare_command,
        "verify": verify_command,
        "show": show_command,
        "import-weights": import_weights_command,
    }
    if name not in commands:
        raise ConfigError(f"{name}: no such command; `hpcqa --help` lists them.")
    return commands[name](rest)


def stage_command(name: str, words: list[str]) -> int:
    """`hpcqa STAGE ...` and `hpcqa run ...`."""
    if "--help" in words or "-h" in words:
        print(stage_help(None if name == "run" else stage(name)))
        return 0
    refuse_ranks()
    os.environ.update(thread_variables(os.environ, len(os.sched_getaffinity(0))))
    from hpcqa import compose

    words = compose.in_quotes([SHORTHANDS.get(word, word) for word in words])
    switches = [word for word in words if word.startswith("-")]
    unknown = [word for word in switches if word not in HYDRA_SWITCHES]
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such switch; settings are key=value, see `hpcqa {name} --help`.")
    if switches:
        values = [
            words[place + 1] for place, word in enumerate(words[:-1]) if word in ("--cfg", "-c", "--package", "-p")
        ]
        overrides = [word for word in words if word not in switches and word not in values]
        return hydra_command(name, [*switches[:1], *values, *switches[1:]], compose.remembered(overrides))
    overrides = compose.remembered(words)
    return work(name, compose.compose(overrides), overrides)[0]


def hydra_command(name: str, switches: list[str], overrides: list[str]) -> int:
    """Let Hydra print or sweep; a sweep's jobs come back to `sweep_job` one by one, here or in a process elsewhere."""
    from hpcqa import compose

    compose.check_keys(overrides)
    codes: list[int] = []
    here = os.getpid()

    def job(config: Config, job_overrides: list[str]) -> float | None:
        is_elsewhere = os.getpid() != here
        if is_elsewhere:
            # A launcher plugin pickled this function: what main() prepared is not there.
            observe.start_logging()
            os.environ.update(thread_variables(os.environ, len(os.sched_getaffinity(0))))
        code, objective = sweep_job(name, config, job_overrides, must_raise=is_elsewhere)
        codes.append(code)
        return objective

    before = sys.argv
    sys.argv = [f"hpcqa {name}", *overrides, *switches]
    try:
        compose.through_hydra(job)
    finally:
        sys.argv = before
    return max(codes, default=0)


def sweep_job(name: str, config: Config, overrides: list[str], *, must_raise: bool) -> tuple[int, float | None]:
    """One combination: the exit code and the objective, which a sweeper that chooses by it must get.

    Raises:
        HpcqaError: what the run raised, where only an error can tell of it: elsewhere, or to a sweeper that chooses.
        ConfigError: a sweeper chooses, but this run has no objective.
    """
    from hpcqa import compose

    chooses = compose.sweeper() != "basic"
    try:
        code, objective = work(name, config, overrides)
    except HpcqaError as error:
        if must_raise or chooses:
            raise
        # One bad combination must not stop the sweep: it is said, counted, and sets the exit code at the end.
        print(f"hpcqa: {config.run}: {error}", file=sys.stderr)
        return error.exit_code, None
    if chooses and objective is None:
        raise ConfigError(
            f"hydra/sweeper={compose.sweeper()} chooses by the objective, and `{name}` gave none: sweep `run` or "
            "`evaluate` (average precision) or `pretrain` (knn_ap), with launch.wait=true where launch=slurm."
        )
    return code, objective


def work(name: str, config: Config, overrides: list[str]) -> tuple[int, float | None]:
    """Freeze the configuration and run a stage, or all of them; returns the exit code and the objective."""
    from hpcqa import compose
    from hpcqa.launch.lock import held
    from hpcqa.launch.pipeline import refuse_impossible, refuse_no_survey, run_all, run_one

    refuse_no_survey(config, name)
    refuse_impossible(config, name)
    refuse_other_weights(config, name)
    folder = compose.freeze(config, overrides)
    with held(folder):
        outcome = run_all(config, folder) if name == "run" else run_one(config, folder, stage(name))
    for sentence in outcome.sentences:
        print(sentence)
    for error in outcome.errors:
        print(f"hpcqa: {error}", file=sys.stderr)
    return max((error.exit_code for error in outcome.errors), default=0), outcome.objective


def refuse_other_weights(config: Config, name: str) -> None:
    """Stop before any work if the network cannot start from ssl.init_from.

    Raises:
        DataError: as `hpcqa.ssl.weights.check_start`.
    """
    if name in ("run", "pretrain") and config.ssl.init_from:
        from hpcqa.ssl.vit import architecture_of
        from hpcqa.ssl.weights import check_start

        check_start(architecture_of(config.model, config.views, only=config.ssl.views), Path(config.ssl.init_from))


def refuse_ranks() -> None:
    """Stop where a launcher has started several of us: ranks take a frozen configuration and never compose one.

    Raises:
        EnvironmentProblem: says how to start ranks.
    """
    sizes = [detect(os.environ).world_size]
    sizes += [int(os.environ[key]) for key in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE") if os.environ.get(key, "").isdigit()]
    if max(sizes) > 1:
        raise EnvironmentProblem(
            f"hpcqa was started as one of {max(sizes)} ranks; start ranks with `python -m hpcqa.launch.job RUN STAGE` "
            "under the launcher, or let hpcqa start them with launch=local or launch=slurm."
        )


def run_folder(word: str) -> tuple[Config, RunFolder]:
    """The frozen configuration and folder of an existing run."""
    from hpcqa.artifacts.folder import RunFolder
    from hpcqa.config.frozen import base_runs, load

    path = Path.cwd() / Path(word.removeprefix("run=")).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{path}: not a folder; expected a run folder.")
    config, _ = load(path / "run.yaml")
    return config, RunFolder(path, base_runs(config))


def one_word(words: list[str], what: str) -> str:
    if len(words) != 1:
        raise ConfigError(f"expected {what}, found {len(words)} words; see `hpcqa --help`.")
    return words[0]


def status_command(words: list[str]) -> int:
    """`hpcqa status RUN [--json]`."""
    as_json = "--json" in words
    config, folder = run_folder(one_word([word for word in words if word != "--json"], "a run folder"))
    from hpcqa.launch.status import status_json, status_text

    print(status_json(config, folder) if as_json else status_text(config, folder))
    return 0


def logs_command(words: list[str]) -> int:
    """`hpcqa logs RUN STAGE`."""
    if len(words) != 2 or words[1] not in {entry.name for entry in STAGES}:
        raise ConfigError("expected a run folder and a stage, as in `hpcqa logs runs/first shard`.")
    _, folder = run_folder(words[0])
    from hpcqa.launch.status import logs_text

    print(logs_text(folder, words[1]))
    return 0


def cancel_command(words: list[str]) -> int:
    """`hpcqa cancel RUN`."""
    _, folder = run_folder(one_word(words, "a run folder"))
    from hpcqa.launch.campaign import cancel

    print("\n".join(cancel(folder)))
    return 0


def estimate_command(words: list[str]) -> int:
    """`hpcqa estimate [settings] [exposures=N] [ccds=N] [labelled=N] [like=RUN] [--json]`."""
    own = {"exposures": "", "ccds": "", "labelled": "", "like": ""}
    for word in words:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
    switches = [word for word in words if word.startswith("-")]
    if set(switches) - {"--json"}:
        raise ConfigError(f"{switches[0]}: no such switch; `hpcqa estimate` has --json.")
    given = {key: positive(key, value) for key, value in own.items() if value and key != "like"}
    from hpcqa import compose
    from hpcqa.artifacts.folder import RunFolder
    from hpcqa.config.frozen import base_runs

    overrides = [word for word in words if word not in switches and word.partition("=")[0] not in own]
    config = compose.compose(compose.remembered(compose.in_quotes(overrides)))
    from hpcqa.launch import estimate

    rates = estimate.shipped_rates()
    if own["like"]:
        rates = estimate.rates_of(Path(own["like"]).expanduser().absolute(), rates)
    counts = estimate.counts_of(config, RunFolder(Path(config.run), base_runs(config)), given)
    found = estimate.estimate(config, counts, rates)
    print(estimate.as_json(found) if switches else estimate.text(found))
    return 0


def positive(key: str, value: str) -> int:
    """A number of a command line; ConfigError if it is none."""
    if not value.isdigit() or int(value) == 0:
        raise ConfigError(f"{key}={value}: expected a whole number from 1.")
    return int(value)


def sweep_table_command(words: list[str]) -> int:
    """`hpcqa sweep-table DIR [best=METRIC] [out=DIR]`."""
    values = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = sorted(set(values) - {"best", "out"})
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such setting; `hpcqa sweep-table DIR` has best=METRIC and out=DIR.")
    folder = Path(one_word([word for word in words if "=" not in word], "a folder of runs"))
    from hpcqa.launch import sweep

    table = sweep.collect(folder.expanduser(), values.get("best", ""))
    print(sweep.text(table))
    for path in sweep.write(table, Path(values.get("out", str(folder))).expanduser()):
        print(path)
    return 0


def votes_command(words: list[str]) -> int:
    """`hpcqa votes FILE...`: how far reviewers agree; each file is named after its reviewer."""
    from hpcqa.report.votes import read_votes, tally, tally_text

    if not words:
        raise ConfigError("expected the CSV files that reviewers saved, as in `hpcqa votes ann.csv ben.csv`.")
    votes = {}
    for word in words:
        path = Path(word)
        try:
            votes[path.stem] = read_votes(path.read_text(), where=word)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{word}: cannot be read ({error}).") from None
    print(tally_text(tally(votes)))
    return 0


def compare_command(words: list[str]) -> int:
    """`hpcqa compare RUN_A RUN_B [--json] [out=FILE.csv|FILE.parquet]`: what was decided otherwise, and why."""
    values = dict(word.split("=", 1) for word in words if word.startswith("out="))
    runs = [word for word in words if not word.startswith(("out=", "--"))]
    if len(runs) != 2 or set(words) - set(runs) - {"--json", f"out={values.get('out')}"}:
        raise ConfigError("expected two run folders, as in `hpcqa compare runs/dr10 runs/dr11 out=changes.csv`.")
    from hpcqa.report import compare

    found = compare.compare_runs(run_folder(runs[0]), run_folder(runs[1]))
    if "out" in values:
        compare.write(found, Path(values["out"]).absolute())
    print(json.dumps(compare.as_plain(found), indent=1) if "--json" in words else compare.as_text(found))
    return 0


def verify_command(words: list[str]) -> int:
    """`hpcqa verify RUN`: exit code 3 if a file is damaged."""
    _, folder = run_folder(one_word(words, "a run folder"))
    from hpcqa.artifacts.verify import artifacts_of, verify_run

    problems = verify_run(folder)
    for problem in problems:
        print(problem)
    print(f"{folder.path}: {sum(1 for _ in artifacts_of(folder))} files checked, {len(problems)} problems.")
    return 3 if problems else 0


def show_command(words: list[str]) -> int:
    """`hpcqa show EXPNUM [run=FOLDER] [out=FILE.png]`."""
    values = dict(word.split("=", 1) for word in words if "=" in word)
    unknown = sorted(set(values) - {"run", "out"})
    if unknown:
        raise ConfigError(f"{unknown[0]}: no such setting; `hpcqa show EXPNUM` has run=FOLDER and out=FILE.png.")
    expnum = one_word([word for word in words if "=" not in word], "an expnum")
    if not expnum.isdigit():
        raise ConfigError(f"{expnum}: expected an exposure number.")
    config, folder = run_folder(values.get("run", "runs/default"))
    out = Path(values.get("out", f"exposure-{expnum}.png")).expanduser()
    from hpcqa.survey.images import is_stream

    if is_stream(out):
        # The picture is written beside it and renamed: a device would be no more.
        raise ConfigError(f"out={out}: a device or a pipe; expected a file or a folder.")
    from hpcqa.report.show import show

    print(show(config, folder, int(expnum), out))
    return 0


def import_weights_command(words: list[str]) -> int:
    """`hpcqa import-weights FILE OUT [settings]`: the settings say for which network and views."""
    files = [word for word in words if "=" not in word]
    if len(files) != 2:
        raise ConfigError(
            f"import-weights: expected two files, `hpcqa import-weights WEIGHTS RUN/backbone.safetensors [key=value]`, "
            f"got {' and '.join(files) or 'none'}."
        )
    from hpcqa.compose import compose, in_quotes
    from hpcqa.ssl.published import import_weights

    config = compose(in_quotes([word for word in words if "=" in word]))
    card = import_weights(Path(files[0]), Path(files[1]), config.model, config.views)
    network = card["architecture"]
    views = ", ".join(network["stems"])
    print(f"{files[1]}: written, {network['depth']} blocks of width {network['dim']} for the views {views}.")
    return 0
