from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcqa.config import ClassifyConfig
from hpcqa.qa import decisions, evidence
from hpcqa.reasons import REASONS

SETTINGS = ClassifyConfig(bad_above=0.7, review_above=0.3, novel_above=8.0)


def test_verdicts_by_probability_and_novelty() -> None:
    p_bad = np.array([0.9, 0.5, 0.1, 0.1, np.nan, 0.7, 0.3])
    novelty = np.array([0.0, 0.0, 0.0, 20.0, 3.0, 50.0, 9.0])
    verdict, why = decisions.verdicts(p_bad, novelty, SETTINGS)
    assert verdict.tolist() == ["bad", "review", "good", "review", "undecided", "bad", "review"]
    assert why[3] == "unlike any good exposure (20 times their scatter)"
    assert why[6] == "p_bad in between; unlike any good exposure (9 times their scatter)"
    assert [why[row] for row in (0, 2, 5)] == ["", "", ""]


def test_unknown_novelty_is_not_novel() -> None:
    verdict, _ = decisions.verdicts(np.array([0.1]), np.array([np.nan]), SETTINGS)
    assert verdict.tolist() == ["good"]


def test_the_most_suspicious_go_to_review_when_there_is_a_limit() -> None:
    p_bad, novelty = np.array([0.6, 0.4, 0.35, 0.1]), np.zeros(4)
    limited = ClassifyConfig(bad_above=0.7, review_above=0.3, review=1)
    verdict, why = decisions.verdicts(p_bad, novelty, limited)
    decisions.limit_review(verdict, why, p_bad, novelty, limited)
    assert verdict.tolist() == ["review", "good", "good", "good"]
    assert "beyond classify.review=1" in why[1]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 3)), max_size=12, unique=True),
    st.lists(st.tuples(st.integers(0, 6), st.integers(-1, 4)), max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_keys_are_found_like_in_a_dictionary(table: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    table = sorted(table)
    big = 10**12
    keys = np.array([big + key[0] for key in table], np.int64), np.array([key[1] for key in table], np.int32)
    asked = np.array([big + key[0] for key in wanted], np.int64), np.array([key[1] for key in wanted], np.int32)
    expected = [table.index(key) if key in table else -1 for key in wanted]
    assert decisions.find_keys(*keys, *asked).tolist() == expected


def test_failures_in_words() -> None:
    assert decisions.failure_text(0b101, ["a", "b", "c"]) == "a; c"
    assert decisions.failure_text(0b1000, ["a"]) == "failure 3"


def test_reasons_survive_packing() -> None:
    shares = np.zeros((3, len(REASONS)))
    shares[0, [6, 2]] = 0.6, 0.9
    shares[1, 6] = 0.1
    shares[2, 6] = 0.9
    codes = evidence.reason_codes(shares, np.array([0.9, 0.9, 0.1]), 0.3)
    assert evidence.reason_words(codes).tolist() == ["clouds,ghost", "", ""]
    assert evidence.reason_words(np.zeros(0, np.int64)).tolist() == []


def test_every_reason_fits_into_a_code() -> None:
    codes = evidence.reason_codes(np.eye(len(REASONS)), np.ones(len(REASONS)), 0.3)
    assert evidence.reason_words(codes).tolist() == list(REASONS)


def test_evidence_names_what_stands_out() -> None:
    names = ["fwhm", "sky", "stars"]
    rarity = np.array([2.0, 5.0, 0.0])
    assert evidence.outstanding(np.array([8.21, -4.0, np.nan]), rarity, names, 1.0) == "sky -4.0, fwhm +8.2"
    deviations = np.zeros((4, 3))
    deviations[2, 1] = 30.0
    p_bad, ccds = np.array([0.1, 0.1, 0.9, np.nan]), ["N1", "N2", "N3", "N4"]
    text = evidence.exposure_evidence(deviations, np.abs(deviations) / 4, p_bad, ccds, names)
    assert text.startswith("N3 alone: sky +") or "; N3 alone: sky +" in text
    nothing = np.zeros((2, 3))
    assert evidence.exposure_evidence(nothing, nothing, np.full(2, np.nan), ["N1", "N2"], names) == ""


def test_what_is_usual_for_a_number_is_not_named_however_large() -> None:
    deviations, rarity = np.array([50.0, 4.0]), np.array([0.2, 3.0])
    assert evidence.outstanding(deviations, rarity, ["masked_share", "noise_ratio"], 1.0) == "noise_ratio +4.0"
    assert evidence.outstanding(deviations, np.zeros(0), ["masked_share", "noise_ratio"], 1.0) == ""


def test_where_on_a_ccd_is_told_in_native_pixels() -> None:
    maps = np.full((8, 4), 0.5, np.float16)
    maps[0, 1], maps[7, 3], maps[2, 2] = -9.25, 4.0, np.nan
    down, across = np.arange(9) * 512, np.arange(5) * 512
    expected = "x 513-1024 y 1-512 -9.2; x 1537-2048 y 3585-4096 +4.0"
    assert evidence.where_on_ccd(maps, down, across) == expected
    assert evidence.where_on_ccd(np.full((8, 4), np.nan), down, across) == ""


def test_worst_ccds_in_order() -> None:
    assert evidence.worst_ccds(np.array([0.2, 0.98, 0.01, np.nan]), ["a", "b", "c", "d"]) == "b 0.98, a 0.20"


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_parts_merge_to_the_same_in_any_order(order: list[int]) -> None:
    def part(expnum: int) -> decisions.Part:
        one, text = np.array([expnum]), np.array([f"of {expnum}"], object)
        half = np.array([expnum / 10], "f4")
        return decisions.Part(one, half, half, one, text, text, text, one, one, half, half, one, text, one, one, one)

    merged = decisions.merge_parts([[part(1), part(2)][place] for place in order])
    assert merged.expnum.tolist() == [1, 2]
    assert merged.worst.tolist() == ["of 1", "of 2"]
    assert merged.ccd_p_bad.tolist() == pytest.approx([0.1, 0.2])
