import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.errors import DataError
from hpcqa.pixels import handles
from hpcqa.pixels.handles import Handles, Piece
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


@given(
    wanted=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4000), st.lists(st.integers(1, 90), min_size=1)), max_size=9
    ),
    most=st.integers(1, 7),
    threads=st.integers(1, 4),
)
def test_every_buffer_gets_its_bytes(paths, wanted, most, threads):
    files = open_files(paths, most, threads)
    pieces, expected = [], []
    for number, offset, sizes in wanted:
        sizes = [size for place, size in enumerate(sizes) if offset + sum(sizes[: place + 1]) <= 5000] or [1]
        pieces.append(Piece(number, offset, sum(sizes), [memoryview(bytearray(size)) for size in sizes]))
        expected.append(CONTENT[number][offset : offset + sum(sizes)].tobytes())
    files.read(pieces)
    assert [b"".join(piece.into) for piece in pieces] == expected
    assert files.num_open <= most
    files.close()
    assert files.num_open == 0


def test_many_threads_with_one_handle(paths, monkeypatch):
    monkeypatch.setattr(handles, "_WORTH_A_THREAD", 0)
    files = open_files(paths, most=1, threads=4)

    def read(seed):
        order = np.random.default_rng(seed).permutation(6)
        pieces = [Piece(int(number), 0, 5000, [memoryview(bytearray(5000))]) for number in order]
        files.read(pieces)
        return all(bytes(piece.into[0]) == CONTENT[piece.file].tobytes() for piece in pieces)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(60)))
    before = len(os.listdir("/proc/self/fd"))
    files.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_more_buffers_than_one_read_takes(paths):
    buffers = [memoryview(bytearray(2)) for _ in range(2000)]
    open_files(paths).read([Piece(1, 10, 4000, buffers)])
    assert b"".join(buffers) == CONTENT[1][10:4010].tobytes()


def test_an_end_that_comes_too_early_is_named(paths):
    with pytest.raises(DataError, match="shorter"):
        open_files(paths).read([Piece(2, 4990, 20, [memoryview(bytearray(20))])])
