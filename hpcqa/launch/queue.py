"""What Slurm says: the states of jobs, from squeue and, once they have left the queue, from sacct."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hpcqa.errors import EnvironmentProblem

logger = logging.getLogger(__name__)

TIMEOUT_S = 20.0
QUEUE_FORMAT = "%i|%T|%r|%M|%N"
ACCOUNT_FIELDS = "JobID,State,ExitCode,Elapsed,NodeList"

# States of https://slurm.schedmd.com/squeue.html, by what they mean for a run.
LIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "REQUEUED",
    "REQUEUE_FED",
    "RESIZING",
    "SUSPENDED",
    "STOPPED",
}
LIVE |= {"SIGNALING", "STAGE_OUT", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
GOOD = {"COMPLETED"}
# A dependent that waits for a job that failed; it would wait forever.
HELD = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class JobState:
    """One job or one task of an array."""

    job: str
    task: str
    state: str
    reason: str = ""
    elapsed: str = ""
    nodes: str = ""

    @property
    def is_live(self) -> bool:
        return self.state in LIVE

    @property
    def is_held(self) -> bool:
        return self.is_live and self.reason == HELD

    @property
    def is_good(self) -> bool:
        return self.state in GOOD


def parse_queue(text: str) -> list[JobState]:
    """The lines of squeue in QUEUE_FORMAT."""
    states = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) == len(QUEUE_FORMAT.split("|")):
            states += [JobState(job, task, *fields[1:]) for job, task in parse_id(fields[0])]
    return states


def parse_accounting(text: str) -> list[JobState]:
    """The lines of `sacct -P` with ACCOUNT_FIELDS; "CANCELLED by 0" is CANCELLED."""
    states = []
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != len(ACCOUNT_FIELDS.split(",")):
            continue
        identifier, state, code, elapsed, nodes = fields
        word = state.split(" ")[0].rstrip("+")
        reason = "" if code in ("0:0", "") else f"exit {code}"
        states += [JobState(job, task, word, reason, elapsed, nodes) for job, task in parse_id(identifier)]
    return states


def parse_id(text: str) -> list[tuple[str, str]]:
    """Job and task of an id: "12" is [("12", "")], "12_3" is [("12", "3")], "12_[0-2,5%4]" is four of them."""
    match = re.fullmatch(r"(\d{1,18})(?:\+\d+)?(?:_(\d{1,9}|\[[\d,%:-]*\.*\]))?", text)
    if match is None:
        return []
    job, tasks = match[1], match[2]
    if tasks is None:
        return [(job, "")]
    if not tasks.startswith("["):
        return [(job, tasks)]
    found = []
    for part in tasks.strip("[].").split("%")[0].split(","):
        first, _, last = part.split(":")[0].partition("-")
        if first.isdigit():
            stop = min(int(last), int(first) + 100_000) if last.isdigit() else int(first)
            found += [(job, str(number)) for number in range(int(first), stop + 1)]
    return found


def merge(queue: Iterable[JobState], accounting: Iterable[JobState]) -> dict[str, list[JobState]]:
    """States by job id; what the queue says counts before what accounting remembers."""
    known: dict[tuple[str, str], JobState] = {(state.job, state.task): state for state in accounting}
    known |= {(state.job, state.task): state for state in queue}
    jobs: dict[str, list[JobState]] = {}
    for (job, _), state in sorted(known.items(), key=lambda item: (item[0][0], item[0][1].zfill(9))):
        jobs.setdefault(job, []).append(state)
    # Accounting names an array before its tasks start by the job alone.
    return {
        job: [state for state in states if state.task or len(states) == 1] or states for job, states in jobs.items()
    }


def available() -> bool:
    """Whether this machine can submit to a Slurm."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def need_slurm() -> None:
    """EnvironmentProblem if there is no Slurm here, or it does not answer."""
    if not available():
        raise EnvironmentProblem("launch=slurm: no sbatch on PATH; log in to the cluster, or use launch=local.")
    run_slurm(["sinfo", "--version"])


def run_slurm(command: Sequence[str]) -> str:
    """Standard output of one of Slurm's commands.

    Raises:
        EnvironmentProblem: it is missing, fails or does not answer; says what it said.
    """
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except OSError as error:
        raise EnvironmentProblem(f"{command[0]}: {error.strerror}; is this a machine with Slurm?") from None
    except subprocess.TimeoutExpired:
        raise EnvironmentProblem(
            f"{command[0]}: no answer from Slurm within {TIMEOUT_S:g} s; try again later, or see `scontrol ping`."
        ) from None
    if asked.returncode != 0:
        said = " ".join(asked.stderr.split()) or f"exit code {asked.returncode}"
        raise EnvironmentProblem(f"{command[0]}: {said}")
    return asked.stdout


def states(jobs: Sequence[str]) -> dict[str, list[JobState]]:
    """What is known of some jobs by id; jobs that Slurm has forgotten are left out.

    Raises:
        EnvironmentProblem: squeue does not answer.
    """
    if not jobs:
        return {}
    wanted = set(jobs)
    user = ["--user", str(os.geteuid())]
    said = run_slurm(["squeue", "--noheader", "--array", "--states=all", f"--format={QUEUE_FORMAT}", *user])
    queue = [state for state in parse_queue(said) if state.job in wanted]
    older = sorted(wanted - {state.job for state in queue})
    return merge(queue, _accounted(older))


def _accounted(jobs: Sequence[str]) -> list[JobState]:
    """What sacct remembers; nothing where there is no accounting, which many small clusters do without."""
    if not jobs or shutil.which("sacct") is None:
        return []
    command = ["sacct", "-X", "-n", "-P", f"--format={ACCOUNT_FIELDS}", f"--jobs={','.join(jobs)}"]
    try:
        return parse_accounting(run_slurm(command))
    except EnvironmentProblem as error:
        logger.debug("no accounting: %s", error)
        return []


def cancel(jobs: Sequence[str]) -> None:
    """End jobs; those that have ended already are no error.

    Raises:
        EnvironmentProblem: Slurm does not answer.
    """
    if jobs:
        run_slurm(["scancel", "--quiet", *jobs])


@dataclass(frozen=True)
class Partition:
    """What the largest node of a partition has; None: unlimited or unknown."""

    name: str
    is_default: bool
    max_minutes: int | None
    cores: int
    memory_gb: float
    gpus: int


PARTITION_FORMAT = "%P|%l|%c|%m|%G"


def partitions() -> dict[str, Partition]:
    """The cluster's partitions by name.

    Raises:
        EnvironmentProblem: sinfo does not answer.
    """
    return parse_partitions(run_slurm(["sinfo", "--noheader", "--exact", f"--format={PARTITION_FORMAT}"]))


def parse_partitions(text: str) -> dict[str, Partition]:
    """The lines of sinfo in PARTITION_FORMAT, one for each kind of node."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        fields = line.strip().split("|")
        if len(fields) != len(PARTITION_FORMAT.split("|")):
            continue
        name, limit, cores, memory, gres = fields
        plain = name.rstrip("*")
        before = found.get(plain)
        one = Partition(
            plain,
            name.endswith("*"),
            parse_minutes(limit),
            max(_leading(cores), before.cores if before else 0),
            max(_leading(memory) / 1000, before.memory_gb if before else 0.0),
            max(parse_gpus(gres), before.gpus if before else 0),
        )
        found[plain] = one
    return found


def parse_minutes(text: str) -> int | None:
    """Minutes of Slurm's [days-]hours:minutes:seconds; None for "infinite" and the like."""
    match = re.fullmatch(r"(?:(\d{1,6})-)?(?:(\d{1,6}):)?(\d{1,6}):(\d{1,2})", text)
    if match is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes


def parse_gpus(text: str) -> int:
    """GPUs in a list of generic resources such as "gpu:a100:4(S:0-1),nvme:1"."""
    return sum(int(count) for count in re.findall(r"gpu(?::[A-Za-z][^:,()]*)?:(\d{1,4})", text))


def _leading(text: str) -> int:
    match = re.match(r"\d{1,12}", text)
    return int(match[0]) if match else 0


def summary(tasks: Sequence[JobState]) -> Mapping[str, int]:
    """How many tasks are in each state."""
    counts: dict[str, int] = {}
    for task in tasks:
        name = "HELD" if task.is_held else task.state
        counts[name] = counts.get(name, 0) + 1
    return counts
