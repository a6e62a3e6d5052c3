#!/usr/bin/env python3
"""A real Slurm of several nodes on this one machine, for tests and for trying things out. Needs root, not systemd.

    apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
    slurm/cluster.py start DIR [--nodes 3] [--cpus 4] [--gpus 2] [--accounting]
    eval "$(slurm/cluster.py env DIR)"       # SLURM_CONF, so that sbatch, squeue and sinfo find it
    slurm/cluster.py status DIR
    slurm/cluster.py stop DIR

Everything lives under DIR: keys, sockets, logs, spool, state. It listens on the loopback only. GPUs are fake devices
(they read as /dev/null) that Slurm counts and assigns. Accounting (sacct) needs Debian's slurmdbd and mariadb-server
too. Written for Slurm 22.05 (Debian 12) and later; standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

# Slurm's own default ports are left alone, so that a test cluster can stand beside a real one.
FIRST_PORT = 16817
WAIT_S = 30.0


@dataclass(frozen=True)
class Shape:
    """What the cluster looks like; memory in MB of each node, ports from `port` on."""

    nodes: int = 3
    cpus: int = 4
    memory: int = 4000
    gpus: int = 2
    accounting: bool = False
    port: int = FIRST_PORT
    # MPICH names its shared memory by job and step: clusters on one machine must not use the same ids.
    first_job: int = dataclasses.field(default_factory=lambda: int(time.time() / 4) % 60_000_000 + 1)

    @property
    def database_port(self) -> int:
        return self.port + 1

    @property
    def mariadb_port(self) -> int:
        return self.port + 2

    @property
    def node_ports(self) -> str:
        return str(self.port + 3) if self.nodes == 1 else f"[{self.port + 3}-{self.port + 2 + self.nodes}]"

    @property
    def node_names(self) -> str:
        return "n1" if self.nodes == 1 else f"n[1-{self.nodes}]"


def slurm_conf(folder: Path, shape: Shape, host: str) -> str:
    """The text of slurm.conf; names of nodes are n1, n2, ... and all are this host."""
    gres = f" Gres=gpu:{shape.gpus}" if shape.gpus else ""
    lines = [
        "ClusterName=local",
        f"SlurmctldHost={host}(127.0.0.1)",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/run/munge.sock",
        "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny",
        f"SlurmctldPort={shape.port}",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdPidFile={folder}/run/slurmd.%n.pid",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        f"SlurmdSpoolDir={folder}/spool/%n",
        # Shared by nodes, this would make the PMI sockets of a job's nodes collide.
        f"TmpFS={folder}/tmp/%n",
        f"StateSaveLocation={folder}/state",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "ReturnToService=2",
        "SlurmdTimeout=5",
        "KillWait=3",
        "MinJobAge=600",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "SlurmdParameters=config_overrides",
        "JobCompType=jobcomp/filetxt",
        f"JobCompLoc={folder}/log/jobcomp.txt",
        "SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1",
        "MaxArraySize=1001",
        f"FirstJobId={shape.first_job}",
        *(["GresTypes=gpu"] if shape.gpus else []),
        *_accounting_lines(folder, shape),
        f"NodeName={shape.node_names} NodeHostname={host} NodeAddr=127.0.0.1 Port={shape.node_ports} "
        f"CPUs={shape.cpus} Boards=1 SocketsPerBoard=1 CoresPerSocket={shape.cpus} ThreadsPerCore=1 "
        f"RealMemory={shape.memory}{gres} State=UNKNOWN",
        f"PartitionName=main Nodes={shape.node_names} Default=YES MaxTime=60 DefMemPerCPU=500 State=UP",
    ]
    return "\n".join(lines) + "\n"


def _accounting_lines(folder: Path, shape: Shape) -> list[str]:
    if not shape.accounting:
        return ["AccountingStorageType=accounting_storage/none", "JobAcctGatherType=jobacct_gather/none"]
    return [
        "AccountingStorageType=accounting_storage/slurmdbd",
        "AccountingStorageHost=127.0.0.1",
        f"AccountingStoragePort={shape.database_port}",
        f"AccountingStoragePass={folder}/run/munge.sock",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=1",
    ]


def slurmdbd_conf(folder: Path, shape: Shape) -> str:
    """The text of slurmdbd.conf."""
    return "\n".join(
        [
            "AuthType=auth/munge",
            f"AuthInfo=socket={folder}/run/munge.sock",
            "DbdHost=localhost",
            "DbdAddr=127.0.0.1",
            f"DbdPort={shape.database_port}",
            "SlurmUser=root",
            f"LogFile={folder}/log/slurmdbd.log",
            f"PidFile={folder}/run/slurmdbd.pid",
            "StorageType=accounting_storage/mysql",
            "StorageHost=127.0.0.1",
            f"StoragePort={shape.mariadb_port}",
            "StorageUser=slurm",
            "StoragePass=slurm",
            "StorageLoc=slurm_acct_db",
            "CommitDelay=0",
            "",
        ]
    )


def missing_programs(*, accounting: bool) -> list[str]:
    """Programs that are not installed."""
    wanted = ["munged", "slurmctld", "slurmd", "sinfo", "sbatch"]
    if accounting:
        wanted += ["slurmdbd", "mariadbd", "mariadb-install-db", "mariadb"]
    return [name for name in wanted if find(name) is None]


def find(name: str) -> str | None:
    """A program on PATH or where Debian keeps daemons."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def start(folder: Path, shape: Shape) -> None:
    """Start everything and wait until every node is idle; stops what it started if that fails."""
    missing = missing_programs(accounting=shape.accounting)
    if missing:
        raise SystemExit(f"not installed: {', '.join(missing)}; apt-get install the packages named in {__file__}.")
    if running(folder):
        raise SystemExit(f"{folder}: a cluster runs there already; stop it first.")
    make_folders(folder, shape.nodes)
    write_configuration(folder, shape, socket.gethostname().split(".")[0])
    try:
        start_munge(folder)
        if shape.accounting:
            start_database(folder, shape)
        start_daemon(folder, "slurmctld", [])
        for number in range(1, shape.nodes + 1):
            start_node(folder, number)
        wait_for_nodes(folder, shape.nodes)
    except BaseException:
        stop(folder)
        raise


def start_node(folder: Path, number: int) -> None:
    """Start one node's slurmd."""
    start_daemon(folder, f"slurmd.n{number}", ["-N", f"n{number}"])


def make_folders(folder: Path, nodes: int) -> None:
    for name in ("run", "log", "state", "etc", "spool", "tmp", "dev"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(1, nodes + 1):
        for name in ("spool", "tmp", "dev"):
            (folder / name / f"n{number}").mkdir(exist_ok=True)
    # munged refuses a socket whose path others may write to; a umask of 002 or 000 would make one.
    for name in ("", "run", "log", "etc"):
        (folder / name).chmod(0o755)


def write_configuration(folder: Path, shape: Shape, host: str) -> None:
    (folder / "etc" / "slurm.conf").write_text(slurm_conf(folder, shape, host))
    (folder / "etc" / "cgroup.conf").write_text("CgroupAutomount=no\n")
    if shape.gpus:
        (folder / "etc" / "gres.conf").write_text(fake_gpus(folder, shape.nodes, shape.gpus))
    if shape.accounting:
        file = folder / "etc" / "slurmdbd.conf"
        file.touch(mode=0o600)
        file.chmod(0o600)
        file.write_text(slurmdbd_conf(folder, shape))


def fake_gpus(folder: Path, nodes: int, gpus: int) -> str:
    """Make the device files (as /dev/null is made) and return the text of gres.conf."""
    lines = []
    for node in range(1, nodes + 1):
        devices = folder / "dev" / f"n{node}"
        for number in range(gpus):
            device = devices / f"nvidia{number}"
            if not device.exists():
                os.mknod(device, 0o600 | 0o020000, os.makedev(1, 3))
        files = f"nvidia[0-{gpus - 1}]" if gpus > 1 else "nvidia0"
        lines.append(f"NodeName=n{node} Name=gpu File={devices}/{files}")
    return "\n".join(lines) + "\n"


def start_munge(folder: Path) -> None:
    key = folder / "etc" / "munge.key"
    if not key.exists():
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
    command = [
        find("munged") or "munged",
        "--force",
        f"--key-file={key}",
        f"--socket={folder}/run/munge.sock",
        f"--pid-file={folder}/run/munged.pid",
        f"--log-file={folder}/log/munged.log",
        f"--seed-file={folder}/run/munged.seed",
    ]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: (folder / "run" / "munge.sock").exists(), "munged did not open its socket", folder)


def start_daemon(folder: Path, name: str, arguments: list[str]) -> None:
    """Start slurmctld, slurmd.NODE or slurmdbd in the background; its pid file is run/NAME.pid."""
    program = find(name.split(".")[0]) or name
    with (folder / "log" / f"{name}.start").open("wb") as log:
        subprocess.run(
            [program, *arguments],
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
            start_new_session=True,
        )


def start_database(folder: Path, shape: Shape) -> None:
    """MariaDB with a database for slurmdbd, then slurmdbd, which must listen before slurmctld starts."""
    data = folder / "mariadb"
    if not data.exists():
        command = [find("mariadb-install-db") or "", "--no-defaults", f"--datadir={data}", "--user=root"]
        subprocess.run([*command, "--skip-test-db"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = [
        find("mariadbd") or "",
        "--no-defaults",
        f"--datadir={data}",
        "--user=root",
        f"--socket={folder}/run/mariadb.sock",
        f"--pid-file={folder}/run/mariadbd.pid",
        f"--log-error={folder}/log/mariadbd.log",
        f"--port={shape.mariadb_port}",
        "--bind-address=127.0.0.1",
        "--innodb-buffer-pool-size=32M",
    ]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.Popen(server, start_new_session=True, **quiet)
    client = [find("mariadb") or "", "--no-defaults", f"--socket={folder}/run/mariadb.sock", "--user=root", "-e"]
    wait_until(lambda: succeeds([*client, "select 1"]), "mariadbd does not answer", folder)
    # mariadbd listens by address, so the account is for an address too.
    for place in ("localhost", "127.0.0.1"):
        for sentence in (
            f"create user if not exists 'slurm'@'{place}' identified by 'slurm'",
            f"grant all on slurm_acct_db.* to 'slurm'@'{place}'",
        ):
            subprocess.run([*client, sentence], check=True, **quiet)
    start_daemon(folder, "slurmdbd", [])
    wait_until(lambda: listens(shape.database_port), "slurmdbd does not listen", folder)
    # A controller of a cluster that the database does not know would keep its records to itself.
    command = [find("sacctmgr") or "sacctmgr", "--immediate", "add", "cluster", "local"]
    subprocess.run(command, env=environment(folder), check=False, **quiet)


def wait_for_nodes(folder: Path, nodes: int) -> None:
    """Wait for idle nodes; a controller that has died would block sinfo for minutes."""

    def ready() -> bool:
        if "slurmctld" not in running(folder):
            return False
        states = node_states(folder)
        return len(states) == nodes and all(state.startswith("idle") for state in states.values())

    wait_until(ready, "the nodes did not become idle", folder)


def node_states(folder: Path) -> dict[str, str]:
    """State of every node by name; empty if the controller does not answer."""
    try:
        asked = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--format=%N %T"],
            env=environment(folder),
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}
    return dict(line.split() for line in asked.stdout.splitlines() if len(line.split()) == 2)


def wait_until(ready: object, complaint: str, folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        if ready():  # type: ignore[operator]
            return
        time.sleep(0.1)
    raise SystemExit(f"{complaint} within {WAIT_S:g} s; see {folder}/log.")


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def environment(folder: Path) -> dict[str, str]:
    """The environment of Slurm's commands on this cluster."""
    cleaned = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SALLOC"))}
    return cleaned | {"SLURM_CONF": str(folder / "etc" / "slurm.conf")}


def running(folder: Path) -> dict[str, int]:
    """The daemons that live, by the names of their pid files."""
    found = {}
    for file in sorted((folder / "run").glob("*.pid")):
        with contextlib.suppress(ValueError, OSError):
            pid = int(file.read_text())
            if str(folder) in Path(f"/proc/{pid}/cmdline").read_text() or _uses(pid, folder):
                found[file.stem] = pid
    return found


def _uses(pid: int, folder: Path) -> bool:
    """Whether a process is one of this cluster's: a number in a stale pid file may be anybody's by now."""
    if f"SLURM_CONF={folder}/etc/slurm.conf".encode() in _environ(pid):
        return True
    # Daemons of steps write their title over their environment; they keep the node's log open.
    return _name(pid).startswith("slurm") and any(link.startswith(f"{folder}/") for link in _links(pid))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _links(pid: int) -> list[str]:
    """Paths of the files that a process has open."""
    found = []
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return found


def stop(folder: Path) -> None:
    """End every job and daemon: nodes first, munge and the database last; whatever ignores SIGTERM is killed."""
    if "slurmctld" in running(folder):
        with contextlib.suppress(subprocess.TimeoutExpired, OSError):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            subprocess.run(["scancel", "--user=root"], env=environment(folder), timeout=5, check=False, **quiet)
    alive = running(folder)
    order = [name for name in alive if name.startswith("slurmd.")]
    order += [name for name in ("slurmctld", "slurmdbd", "mariadbd", "munged") if name in alive]
    for name in order:
        end(alive[name])
    for pid in leftovers(folder):
        end(pid)
    remove_shared_memory(Path("/dev/shm"))


def remove_shared_memory(place: Path) -> None:
    """Remove what killed MPI ranks left there, unless a process still uses it."""
    in_use = "".join(_maps(entry) for entry in Path("/proc").glob("[0-9]*"))
    for path in place.glob("mpich_shm_*"):
        if str(path) not in in_use:
            path.unlink(missing_ok=True)


def _maps(process: Path) -> str:
    try:
        return (process / "maps").read_text()
    except OSError:
        return ""


def kill_node(folder: Path, number: int) -> None:
    """Let a node die as if its power failed: its daemon, the daemons of its steps, then what these had started."""
    log = f"{folder}/log/slurmd.n{number}.log"
    alive = leftovers(folder)
    pids = [pid for name, pid in running(folder).items() if name == f"slurmd.n{number}"]
    pids += [pid for pid in alive if _name(pid).startswith("slurmstepd") and log in _links(pid)]
    pids += [pid for pid in alive if f"SLURMD_NODENAME=n{number}".encode() in _environ(pid)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def leftovers(folder: Path) -> list[int]:
    """Daemons of steps (slurmstepd) and what jobs left behind; a shell with SLURM_CONF is not part of the cluster."""
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    mine = [pid for pid in pids if pid != os.getpid() and lives(pid) and _uses(pid, folder)]
    return [pid for pid in mine if _name(pid).startswith("slurm") or b"SLURM_JOB_ID=" in _environ(pid)]


def end(pid: int) -> None:
    for sign, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sign)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not lives(pid):
                return
            time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def status(folder: Path) -> int:
    """Print what runs; 0 if the controller answers and a node is up."""
    daemons = running(folder)
    say("daemons: " + (", ".join(f"{name} {pid}" for name, pid in daemons.items()) or "none"))
    states = node_states(folder) if "slurmctld" in daemons else {}
    say("nodes: " + (", ".join(f"{name} {state}" for name, state in sorted(states.items())) or "none"))
    return 0 if states else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("start", "stop", "status", "env"))
    parser.add_argument("folder", type=Path, help="where everything of this cluster lives")
    parser.add_argument("--nodes", type=int, default=Shape.nodes)
    parser.add_argument("--cpus", type=int, default=Shape.cpus, help="cores that each node claims to have")
    parser.add_argument("--memory", type=int, default=Shape.memory, help="MB that each node claims to have")
    parser.add_argument("--gpus", type=int, default=Shape.gpus, help="fake GPUs of each node")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd, so that sacct works")
    parser.add_argument("--port", type=int, default=FIRST_PORT, help="first of the ports that it listens on")
    values = vars(parser.parse_args())
    command, folder = values.pop("command"), values.pop("folder").absolute()
    if command == "start":
        start(folder, Shape(**values))
    if command in ("start", "env"):
        say(f"export SLURM_CONF={folder}/etc/slurm.conf")
    if command == "stop":
        stop(folder)
    return status(folder) if command == "status" else 0


if __name__ == "__main__":
    sys.exit(main())
