from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.errors import EnvironmentProblem
from hpcqa.parallel.ranks import (
    Ranks,
    cores_of_rank,
    detect,
    first_host,
    rendezvous,
    tasks_per_node,
    thread_variables,
)

SRUN = {
    "SLURM_JOB_ID": "42",
    "SLURM_PROCID": "3",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_TASKS_PER_NODE": "3,2",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
MPICH = {"PMI_RANK": "2", "PMI_SIZE": "4", "MPI_LOCALRANKID": "2", "MPI_LOCALNRANKS": "4"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "0",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


def test_nothing_set_is_serial():
    assert detect({}) == Ranks(0, 1, 0, 1, "inline")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (SRUN, Ranks(3, 5, 0, 2, "slurm")),
        (TORCHRUN, Ranks(1, 2, 1, 2, "torchrun")),
        (MPICH, Ranks(2, 4, 2, 4, "mpiexec")),
        (OPENMPI, Ranks(0, 4, 0, 2, "mpiexec")),
        (SRUN | TORCHRUN, Ranks(1, 2, 1, 2, "torchrun")),  # torchrun inside a step
        (SRUN | MPICH, Ranks(2, 4, 2, 4, "mpiexec")),  # mpiexec inside an allocation
    ],
)
def test_the_launcher_started_last_counts(environ, expected):
    assert detect(environ) == expected


def test_a_batch_script_is_no_step():
    assert detect({"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "16"}).world_size == 1


def test_pmi_of_srun_leaves_the_step_in_charge():
    assert detect(SRUN | {"PMI_RANK": "3", "PMI_SIZE": "5"}).launcher == "slurm"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"RANK": "2"}, "RANK=2 but WORLD_SIZE=2"),
        ({"RANK": "x"}, "RANK='x'"),
        ({"LOCAL_RANK": ""}, "LOCAL_RANK=''"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK=4"),
    ],
)
def test_contradictions_stop(change, said):
    with pytest.raises(EnvironmentProblem, match=said):
        detect(TORCHRUN | change)


@given(st.lists(st.tuples(st.integers(1, 128), st.integers(1, 9)), min_size=1, max_size=6))
def test_tasks_per_node_reads_what_slurm_writes(parts):
    text = ",".join(f"{count}(x{times})" if times > 1 else str(count) for count, times in parts)
    assert tasks_per_node(text) == [count for count, times in parts for _ in range(times)]


@pytest.mark.parametrize("text", ["", "2(x3", "a", "2,,1", "-1"])
def test_tasks_per_node_refuses_nonsense(text):
    with pytest.raises(EnvironmentProblem):
        tasks_per_node(text)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("nid001003", "nid001003"),
        ("nid[001003-001007,002000]", "nid001003"),
        ("n[1,3]", "n1"),
        ("n[2]", "n2"),
        ("a,b", "a"),
        ("gpu-a-[7-9],x1", "gpu-a-7"),
        ("", ""),
    ],
)
def test_first_host(nodes, first):
    assert first_host(nodes) == first


def test_rendezvous_takes_a_name_that_resolves_and_the_launch_node_otherwise():
    ranks = detect(SRUN)
    assert rendezvous(SRUN, ranks, lambda host: host == "n1")["MASTER_ADDR"] == "n1"
    assert rendezvous(SRUN, ranks, lambda host: False)["MASTER_ADDR"] == "10.0.0.1"
    with pytest.raises(EnvironmentProblem, match="torchrun"):
        rendezvous({"SLURM_JOB_ID": "1"}, ranks, lambda host: True)


def test_rendezvous_port_changes_with_every_restart():
    ports = {
        rendezvous(SRUN | {"SLURM_RESTART_COUNT": str(count)}, Ranks(), lambda host: True)["MASTER_PORT"]
        for count in range(12)
    }
    assert len(ports) == 12
    assert all(15000 <= int(port) < 30000 for port in ports)


@given(st.integers(0, 500), st.integers(1, 40))
def test_shares_cover_everything_once(count, world_size):
    taken = [index for rank in range(world_size) for index in Ranks(rank, world_size).share(count)]
    assert sorted(taken) == list(range(count))


@pytest.mark.parametrize(
    ("environ", "ranks", "affinity", "cores"),
    [
        ({}, Ranks(), 8, 8),
        ({}, Ranks(1, 4, 1, 4, "local"), 8, 2),
        ({}, Ranks(1, 4, 1, 4, "local"), 2, 1),
        ({"SLURM_CPUS_PER_TASK": "16"}, Ranks(1, 4, 1, 4, "slurm"), 64, 16),
        ({"SLURM_CPUS_PER_TASK": "16"}, Ranks(1, 4, 1, 4, "slurm"), 8, 8),
        ({"SLURM_CPUS_ON_NODE": "8"}, Ranks(1, 4, 1, 4, "slurm"), 64, 2),
    ],
)
def test_cores_of_a_rank(environ, ranks, affinity, cores):
    assert cores_of_rank(environ, ranks, affinity) == cores


def test_threads_stay_within_the_cores_and_a_smaller_wish_stays():
    assert thread_variables({"OMP_NUM_THREADS": "64"}, 4)["OMP_NUM_THREADS"] == "4"
    assert thread_variables({"OMP_NUM_THREADS": "1"}, 4)["OMP_NUM_THREADS"] == "1"
    assert thread_variables({}, 4)["OMP_WAIT_POLICY"] == "PASSIVE"
