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
        files.will_need(asked.file, asked.offset, asked.length)
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
    assert np.flatnonzero(files._descriptor >= 0).tolist() == [0, 2]


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


def test_reads_of_many_files_keep_what_they_come_back_to_open(paths, monkeypatch):
    monkeypatch.setattr(handles, "_USUAL", 3)
    files = open_files(paths, most=19)
    kept = []
    for count in (1, 2, 4, 6, 1):
        files.read(*stretches([(number, 0, [10]) for number in range(count)]))
        kept.append(files.most)
    assert kept == [4, 8, 16, 16, 16]  # 24 would be too many: reading all files once is no reason
    assert files.num_open == 6


def test_the_limit_of_open_files_is_raised_as_far_as_needed(limits):
    resource.setrlimit(resource.RLIMIT_NOFILE, (300, limits))
    assert handles._allowed(400) == 400
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (656, limits)
    assert handles._allowed(40) == 40
    assert handles._allowed(limits) == limits - handles._OTHERS
