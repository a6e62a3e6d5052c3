from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.survey.coded import Coded, CodedBuilder, constant, distinct, pairs


@given(st.lists(st.lists(st.sampled_from(["", "a", "b", "ö", "long word"]), max_size=20), max_size=5))
def test_building_by_blocks_gives_the_words_back(blocks):
    builder = CodedBuilder()
    for block in blocks:
        words = sorted(set(block))
        builder.add(np.array([words.index(word) for word in block], np.int64), words)
    column = builder.finish()
    assert column.expand().tolist() == [word for block in blocks for word in block]
    assert len(set(column.words)) == len(column.words)


@given(st.lists(st.integers(-(2**62), 2**62), max_size=50))
def test_distinct_rebuilds_its_input_in_order_of_appearance(values):
    unique, index = distinct(np.array(values, np.int64))
    assert unique.tolist() == list(dict.fromkeys(values))
    assert [unique[place] for place in index] == values


def test_distinct_takes_nan_as_one_value():
    unique, index = distinct(np.array([np.nan, 1.0, np.nan]))
    assert len(unique) == 2
    assert index[0] == index[2]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7)), max_size=40))
def test_pairs_name_both_codes(values):
    first = np.array([value[0] for value in values], np.int32)
    second = np.array([value[1] for value in values], np.int32)
    found, index = pairs(first, second, 8)
    assert [found[place] for place in index] == values


def test_questions_are_asked_once_a_word():
    asked = []
    column = Coded(np.array([0, 1, 0, 0], np.int32), ("x", "y"))
    answer = column.ask(lambda word: asked.append(word) or word == "x", bool)
    assert asked == ["x", "y"]
    assert answer.tolist() == [True, False, True, True]


def test_empty_columns():
    assert constant("a", 0).expand().tolist() == []
    assert Coded(np.empty(0, np.int32), ()).ask(len, int).tolist() == []
    assert constant("a", 2).rename(str.upper).expand().tolist() == ["A", "A"]
