from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.survey.coded import Coded
from hpcqa.survey.cuts import BIT, CUTS, Ledger, funnel, funnel_text, names_of


def test_every_cut_has_a_bit_of_its_own_and_a_sentence():
    assert len({cut.bit for cut in CUTS}) == len(CUTS)
    for cut in CUTS:
        assert cut.sentence.endswith(".")
        assert names_of(cut.bit) == [cut.name]


def test_details_of_several_cuts_are_joined():
    ledger = Ledger(4)
    ledger.add("band", np.array([True, True, False, False]), Coded(np.array([0, 1, 0, 0]), ("band z", "band Y")))
    ledger.add("exptime", np.array([False, True, True, False]), "exptime 3 s")
    ledger.add("ebv", np.zeros(4, bool), "never")
    assert ledger.detail.expand().tolist() == ["band z", "band Y; exptime 3 s", "exptime 3 s", ""]
    assert ledger.bits.tolist() == [BIT["band"], BIT["band"] | BIT["exptime"], BIT["exptime"], 0]
    assert ledger.open_rows.tolist() == [False, False, False, True]


@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), max_size=8))
def test_bits_and_details_agree_whatever_is_cut(rounds):
    ledger = Ledger(6)
    expected = [""] * 6
    for place, where in enumerate(rounds):
        ledger.add(CUTS[place].name, np.array(where), f"d{place}")
        for row, hit in enumerate(where):
            if hit:
                expected[row] = "; ".join(text for text in (expected[row], f"d{place}") if text)
    assert ledger.detail.expand().tolist() == expected
    assert [bool(text) for text in expected] == (ledger.bits != 0).tolist()


def test_funnel_counts_what_is_left_after_each_cut():
    bits = np.array([0, BIT["band"], BIT["band"] | BIT["no_file"], BIT["ebv"], 0])
    lines = [(cut.name, has, left) for cut, has, left in funnel(bits)]
    assert lines == [("no_file", 1, 4), ("band", 2, 3), ("ebv", 1, 2)]
    text = funnel_text(bits, exposures=[1, 1, 1, 2, 3])
    assert text[0].startswith("5 CCD rows, 3 exposures")
    assert text[-1].startswith("2 CCD rows, 2 exposures")
