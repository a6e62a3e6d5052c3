"""The compiled decoder alone, against astropy's C functions, and where it finds a place for its machine code."""

import os
import subprocess
import sys

import numpy as np
import pytest
from astropy.io.fits.hdu.compressed._compression import compress_rice_1_c
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.pixels import decoder, lanes, rice, ricelanes

FAST = settings(max_examples=80, deadline=None)


def encode(values, block, byte_pix):
    return compress_rice_1_c(values.astype(f"i{byte_pix}").tobytes(), block, byte_pix)


def decode(packed, num, block, byte_pix, before=b"", after=b""):
    data = np.frombuffer(before + packed + after + bytes(rice.PADDING), np.uint8)
    out = np.full(num, 77, np.int32)
    good = rice.decode_tile(data, len(before), len(before) + len(packed), num, block, byte_pix, out)
    return good, out


values_of_any_spread = st.integers(0, 2**32 - 1).flatmap(
    lambda seed: st.tuples(st.just(seed), st.integers(1, 200), st.integers(0, 31), st.sampled_from([0.0, 0.02, 0.5]))
)


@FAST
@given(what=values_of_any_spread, block=st.sampled_from([1, 16, 32, 64]), byte_pix=st.sampled_from([1, 2, 4]))
def test_what_was_encoded_is_decoded(what, block, byte_pix):
    seed, num, bits, spikes = what
    rng = np.random.default_rng(seed)
    top = min(bits, 8 * byte_pix - 1)
    values = rng.integers(-(2**top), 2**top, num)
    values = np.where(rng.random(num) < spikes, rng.integers(-(2**31), 2**31, num), values)
    values = values.astype(f"i{byte_pix}")
    packed = encode(values, block, byte_pix)
    good, found = decode(packed, num, block, byte_pix, before=b"\xff" * 3, after=b"\xff" * 5)
    assert good
    expected = values.view("u1") if byte_pix == 1 else values
    assert np.array_equal(found, expected.astype(np.int32))


@FAST
@given(what=values_of_any_spread, count=st.integers(0, 200))
def test_the_first_values_alone(what, count):
    seed, num, bits, _ = what
    values = np.random.default_rng(seed).integers(-(2**bits), 2**bits, num).astype(np.int32)
    good, found = decode(encode(values, 32, 4), min(count, num), 32, 4)
    assert good
    assert np.array_equal(found, values[: min(count, num)])


def test_long_runs_of_zero_bits():
    """One step among equal values makes a code of many zeros: it crosses several words."""
    values = np.zeros(64, np.int32)
    for step in (100, 3000, 70000):
        values[1::2] = 1
        values[40] = step
        good, found = decode(encode(values, 32, 4), 64, 32, 4)
        assert good
        assert np.array_equal(found, values)


@FAST
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 300), cut=st.integers(1, 40))
def test_a_tile_that_ends_too_early_is_told(seed, num, cut):
    values = np.random.default_rng(seed).integers(-500, 500, num).astype(np.int32)
    packed = encode(values, 32, 4)
    # The last byte may hold filling bits only, so that one byte less could still be whole: two are not.
    kept = packed[: max(0, len(packed) - 1 - cut)]
    assert not decode(kept, num, 32, 4, after=b"\xa5" * 9)[0]
    assert not decode(kept, num, 32, 4)[0]


@FAST
@given(noise=st.binary(min_size=0, max_size=300), num=st.integers(1, 400), byte_pix=st.sampled_from([1, 2, 4]))
def test_noise_is_decoded_or_refused(noise, num, byte_pix):
    data = np.frombuffer(noise + bytes(rice.PADDING), np.uint8)
    out = np.full(num + 8, 77, np.int32)
    rice.decode_tile(data, 0, len(noise), num, 32, byte_pix, out)
    assert (out[num:] == 77).all(), "written behind the end"


def side_by_side(packed, num, block):
    """Tiles decoded together, and one by one: whether whole, and the values."""
    starts = np.cumsum([0, *map(len, packed)])[:-1]
    ends = starts + [len(tile) for tile in packed]
    data = np.frombuffer(b"".join(packed) + bytes(rice.PADDING), np.uint8)
    together, alone = np.full((2, lanes.NUM, num), 77, np.int32)
    state = np.zeros((ricelanes.ROWS, lanes.NUM), np.uint64)
    state[ricelanes.PLACE], state[ricelanes.END] = starts, ends
    good = ricelanes.decode_tiles(data, state, num, block, together)
    each = [rice.decode_tile(data, starts[k], ends[k], num, block, 4, alone[k]) for k in range(lanes.NUM)]
    return good, all(each), together, alone


@FAST
@given(
    seed=st.integers(0, 2**32 - 1),
    num=st.integers(1, 200),
    bits=st.lists(st.integers(0, 31), min_size=lanes.NUM, max_size=lanes.NUM),
    spikes=st.sampled_from([0.0, 0.02, 0.5]),
    block=st.sampled_from([1, 5, 16, 32]),
)
def test_tiles_side_by_side_are_decoded_as_alone(seed, num, bits, spikes, block):
    """Every lane has another spread, from none (no codes) to 31 bits (plain values)."""
    rng = np.random.default_rng(seed)
    packed = []
    for most in bits:
        values = rng.integers(-(2**most), 2**most, num) if most else np.full(num, rng.integers(-9, 9))
        values = np.where(rng.random(num) < spikes, rng.integers(-(2**31), 2**31, num), values)
        packed.append(encode(values.astype(np.int32), block, 4))
    good, each, together, alone = side_by_side(packed, num, block)
    assert good
    assert each
    assert np.array_equal(together, alone)


@FAST
@given(seed=st.integers(0, 2**32 - 1), num=st.integers(1, 120), damage=st.sampled_from(["cut", "flipped", "noise"]))
def test_damage_to_tiles_side_by_side_is_told_as_alone(seed, num, damage):
    rng = np.random.default_rng(seed)
    packed = [encode(rng.integers(-500, 500, num).astype(np.int32), 32, 4) for _ in range(lanes.NUM)]
    victim = int(rng.integers(lanes.NUM))
    tile = np.frombuffer(packed[victim], np.uint8).copy()
    if damage == "cut":
        tile = tile[: rng.integers(4, len(tile) + 1)]
    elif damage == "flipped":
        tile[rng.integers(len(tile))] ^= np.uint8(1 << rng.integers(8))
    else:
        tile = rng.integers(0, 256, len(tile)).astype(np.uint8)
    packed[victim] = tile.tobytes()
    good, each, together, alone = side_by_side(packed, num, 32)
    assert good == each
    if good:
        assert np.array_equal(together, alone)


def test_zeros_without_end_take_no_time():
    """All-zero data claims runs of zeros that never end; each pixel must not search the whole tile again."""
    packed = bytes([0, 0, 0, 0, 0x08]) + bytes(2_000_000)
    good, _ = decode(packed, 200_000, 200_000, 4)
    assert not good


def test_the_random_numbers_are_the_standards():
    """FITS 4.0, appendix I: the seed after 10,000 steps is 1043618065."""
    assert decoder.RANDOMS.shape == (10000,)
    assert decoder.RANDOMS[-1] == np.float32(1043618065 / 2147483647)
    assert decoder.RANDOMS[0] == np.float32(16807 / 2147483647)


def test_importing_the_package_compiles_nothing():
    code = "import sys, hpcqa, hpcqa.pixels.fits, hpcqa.pixels.masks; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("home", ["writable", "nowhere"])
def test_without_a_place_for_machine_code(tmp_path, home):
    """A package folder that can't be written, and a home that can or can't: it works all the same."""
    (tmp_path / "example.py").write_text("def double(x):\n    return 2 * x\n")
    code = (
        "import numba.core.caching as c\n"
        "def refuse(self): raise OSError('read-only')\n"
        "c.InTreeCacheLocator.ensure_cache_path = refuse\n"
        "HOME\n"
        "from hpcqa.kernels import kernel\n"
        "from example import double\n"
        "assert kernel(double)(21) == 42\n"
    ).replace("HOME", "c.UserWideCacheLocator.ensure_cache_path = refuse" if home == "nowhere" else "")
    env = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)}
    env.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert any(tmp_path.rglob("*.nbi")) == (home == "writable")
