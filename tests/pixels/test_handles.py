import multiprocessing
import os
import resource
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.errors import DataError
from hpcqa.pixels import handles
from hpcqa.pixels.handles import Handles, Stretches
from hpcqa.pixels.shardindex import state_of

CONTENT = [np.random.default_rng(number).integers(0, 256, 5000, np.uint8) for number in range(6)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for number, content in enumerate(CONTENT):
        (folder / str(number)).write_bytes(content.tobytes())
    return [folder / str(number) for number in range(len(CONTENT))]


def open_files(paths, most=3, threads=2):
    return Handles(paths, np.array([state_of(path.stat()) for path in paths], np.int64), most, threads)


def open_ones(files):
    return np.flatnonzero(files._descriptor >= 0).tolist()


def stretches(wanted):
    """Of (file, offset, lengths of parts), sorted by file; the parts follow one another in the array."""
    lengths = np.array([length for _, _, parts in wanted for length in parts], np.int64)
    first = np.cumsum([0, *(len(parts) for _, _, parts in wanted)])
    file, offset = (np.array([one[k] for one in wanted], np.int64) for k in (0, 1))
    return Stretches(file, offset, first, np.cumsum(lengths) - lengths, lengths), np.zeros(lengths.sum(), np.uint8)


@given(
    wanted=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4000), st.lists(st.integers(1, 90), min_size=1)), max_size=9
    ),
    most=st.integers(1, 7),
    threads=st.integers(1, 4),
    threaded=st.booleans(),
)
def test_every_part_gets_its_bytes(paths, wanted, most, threads, threaded):
    wanted = [
        (number, offset, [size for place, size in enumerate(parts) if offset + sum(parts[: place + 1]) <= 5000] or [1])
        for number, offset, parts in sorted(wanted)
    ]
    asked, out = stretches(wanted)
    shuffled = np.random.default_rng(0).permutation(len(asked.length))  # parts may lie anywhere in the array
    asked.begin[shuffled] = np.cumsum(asked.length[shuffled]) - asked.length[shuffled]
    files = open_files(paths, most, threads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handles, "_WORTH_THREADS", 0 if threaded else 1 << 30)
        files.read(asked, out)
    expected = np.zeros_like(out)
    for (number, offset, parts), first in zip(wanted, asked.first, strict=False):
        for place, size in enumerate(parts):
            start = offset + sum(parts[:place])
            begin = asked.begin[first + place]
            expected[begin : begin + size] = CONTENT[number][start : start + size]
    np.testing.assert_array_equal(out, expected)
    assert files.num_open <= most
    files.close()
    assert files.num_open == 0


@pytest.mark.parametrize("most", [1, 4])
def test_many_threads_with_few_handles(paths, monkeypatch, most):
    monkeypatch.setattr(handles, "_WORTH_THREADS", 0)
    before = len(os.listdir("/proc/self/fd"))
    files = open_files(paths, most=most, threads=4)

    def read(seed):
        some = np.sort(np.random.default_rng(seed).choice(6, 4, replace=False))
        asked, out = stretches([(int(number), 0, [5000]) for number in some])
        files.will_need(asked)
        files.read(asked, out)
        return np.array_equal(out, np.concatenate([CONTENT[number] for number in some]))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(60)))
    assert len(os.listdir("/proc/self/fd")) <= before + most
    files.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_least_recently_used_are_closed_first(paths):
    files = open_files(paths, most=2)
    for number in (0, 1, 0, 2):
        files.read(*stretches([(number, 0, [1])]))
    assert open_ones(files) == [0, 2]


def test_room_for_many_is_made_at_once(paths, monkeypatch):
    monkeypatch.setattr(handles, "_SPARE", 2)
    files = open_files(paths, most=5)
    for number in (0, 1, 2, 3, 4, 5):
        files.read(*stretches([(number, 0, [1])]))
    assert open_ones(files) == [2, 3, 4, 5]


def test_more_parts_than_one_read_takes(paths):
    asked, out = stretches([(1, 10, [2] * 2000)])
    open_files(paths).read(asked, out)
    np.testing.assert_array_equal(out, CONTENT[1][10:4010])


def test_a_read_that_brings_less_goes_on(paths, monkeypatch):
    wanted = [(0, 7, [100, 200]), (1, 0, [50]), (4, 1, [3, 3])]
    asked, out = stretches(wanted)
    monkeypatch.setattr(handles, "_read", lambda *_: 0)  # as if the first read were always cut short
    open_files(paths).read(asked, out)
    expected = [CONTENT[number][offset : offset + sum(parts)] for number, offset, parts in wanted]
    np.testing.assert_array_equal(out, np.concatenate(expected))


def test_an_end_that_comes_too_early_is_named(paths):
    with pytest.raises(DataError, match=r"2: shorter"):
        open_files(paths).read(*stretches([(1, 0, [9]), (2, 4990, [4, 16])]))


def test_a_disk_that_fails_is_named(paths, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(handles.os, "preadv", fail)
    with pytest.raises(DataError, match=r"3: cannot be read \(Input/output error\)"):
        open_files(paths).read(*stretches([(3, 4990, [20])]))


@pytest.mark.parametrize("threads", [1, 4])
def test_a_file_that_is_another_one_or_gone_is_named(tmp_path, monkeypatch, threads):
    monkeypatch.setattr(handles, "_WORTH_THREADS", 0)
    paths = [tmp_path / str(number) for number in range(4)]
    for path in paths:
        path.write_bytes(b"0123456789")
    asked, out = stretches([(number, 0, [10]) for number in range(4)])
    files = open_files(paths, most=4, threads=threads)
    paths[2].write_bytes(b"another content")
    with pytest.raises(DataError, match="2: was replaced"):
        files.read(asked, out)
    files.close()
    paths[2].unlink()
    with pytest.raises(DataError, match="2: cannot be opened"):
        files.read(asked, out)


@pytest.fixture
def limits():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_what_reads_come_back_to_stays_open(paths, monkeypatch):
    monkeypatch.setattr(handles, "_USUAL", 2)
    files = open_files(paths, most=5)
    kept = []
    for number in (0, 1, 2, 3, 4, 5, 3, 4, 2, 1, 0):
        files.read(*stretches([(number, 0, [10])]))
        kept.append(files.most)
    # Reading all files once is no reason; to come back to 3, which is closed, is one.
    assert kept == [2] * 6 + [4] * 2 + [5] * 3
    assert files.num_open == 5


def test_the_limit_of_open_files_is_raised_as_far_as_needed(limits):
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, limits))
    assert handles._allowed(400) == 400
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (800, limits)
    assert handles._allowed(40) == 40
    assert handles._allowed(limits) == limits // 2


def test_readers_share_what_the_process_may_have_open(paths, monkeypatch):
    monkeypatch.setattr(handles, "_USUAL", 1)
    monkeypatch.setattr(handles, "_all", set())
    monkeypatch.setattr(handles, "_allowed", lambda wanted: min(wanted, 6))
    first, second = open_files(paths, most=6), open_files(paths, most=6)
    for files in (first, second):
        for number in (*range(6), *range(6)):
            files.read(*stretches([(number, 0, [10])]))
    assert [first.most, second.most] == [5, 1]
    assert first.num_open == 5
    first.close()
    second.close()


def test_no_room_for_another_file_is_no_missing_file(paths, limits):
    files = open_files(paths)
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits))
    with pytest.raises(DataError, match=r"0: cannot be opened .*ulimit -n"):
        files.read(*stretches([(0, 0, [10])]))


def held(paths):
    """Which of the files this process has open, through whomever."""
    names = {str(path): number for number, path in enumerate(paths)}
    links = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return sorted(names[link] for link in links if link in names)


def read_elsewhere(files, results):
    before = held(files.paths)
    asked, out = stretches([(1, 0, [50]), (2, 0, [50])])
    files.read(asked, out)
    results.put((before, out.tobytes(), held(files.paths)))


def test_a_fork_has_no_handles_of_its_parent(paths):
    files = open_files(paths)
    files.read(*stretches([(number, 0, [10]) for number in (0, 1, 3)]))
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=read_elsewhere, args=(files, results))
    child.start()
    before, content, after = results.get()
    child.join()
    assert before == []
    assert content == CONTENT[1][:50].tobytes() + CONTENT[2][:50].tobytes()
    assert after == [1, 2]
    assert held(paths) == [0, 1, 3]
    files.close()


@pytest.mark.parametrize("without", ["statx", "the compiled loop"])
def test_python_opens_what_the_compiled_loop_does_not(paths, monkeypatch, without):
    if without == "statx":
        monkeypatch.setattr(handles, "_HAS_STATX", False)
    else:
        monkeypatch.setattr(handles, "_open_files", lambda *_: 0)
    asked, out = stretches([(0, 7, [100]), (0, 200, [9]), (4, 1, [3])])
    files = open_files(paths)
    files.read(asked, out)
    np.testing.assert_array_equal(out, np.concatenate([CONTENT[0][7:107], CONTENT[0][200:209], CONTENT[4][1:4]]))
    assert open_ones(files) == [0, 4]


@pytest.mark.skipif(not handles._HAS_STATX, reason="the system has no statx")
def test_the_compiled_loop_opens_these_files_and_no_others(paths):
    files = open_files(paths)
    wanted = np.array([0, 0, 2, 3])

    def opened(states):
        return handles._open_files(wanted, files._names, files._name, states, files._descriptor)

    for column in (0, 1):
        others = files.states.copy()
        others[2, column] += 1
        assert opened(others) == 2
        assert open_ones(files) == [0]
    assert opened(files.states) == 4
    assert open_ones(files) == [0, 2, 3]
    found = [os.fstat(files._descriptor[number]) for number in (0, 2, 3)]
    assert [one.st_ino for one in found] == [paths[number].stat().st_ino for number in (0, 2, 3)]
    assert not any(os.get_inheritable(files._descriptor[number]) for number in (0, 2, 3))
    files.close()
