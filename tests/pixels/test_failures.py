import numpy as np
import pytest

from hpcqa.pixels import failures


def test_bits_are_distinct_powers_of_two():
    bits = list(failures.BIT.values())
    assert bits == [1 << place for place in range(len(bits))]


@pytest.mark.parametrize("name", list(failures.BIT))
def test_names_and_words_come_back(name):
    bits = failures.BIT[name] | failures.BIT["missing_file"]
    assert name in failures.names_of(bits)
    assert "is not there" in failures.in_words(bits)


def test_nothing_failed():
    assert failures.names_of(0) == []
    assert failures.in_words(0) == ""


def test_count_orders_by_frequency():
    a, b = failures.BIT["timed_out"], failures.BIT["missing_hdu"]
    assert failures.count(np.array([0, a, b, b, a | b])) == {"missing_hdu": 3, "timed_out": 2}
    assert list(failures.count([b, a, b])) == ["missing_hdu", "timed_out"]
