from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.reasons import BIT, REASONS, from_bits
from hpcqa.survey import rules

RULES = rules.load().rules
EXAMPLES = [(rule.reason, text) for rule in RULES for text in rule.examples]
COUNTEREXAMPLES = [(rule.reason, text) for rule in RULES for text in rule.counterexamples]


@pytest.mark.parametrize(("reason", "text"), EXAMPLES)
def test_every_example_gives_its_reason(reason, text):
    assert reason in from_bits(rules.parse(text))


@pytest.mark.parametrize(("reason", "text"), COUNTEREXAMPLES)
def test_no_counterexample_gives_its_reason(reason, text):
    assert reason not in from_bits(rules.parse(text))


def test_every_reason_but_other_has_a_rule():
    assert {rule.reason for rule in RULES} == set(REASONS) - {"other"}


@pytest.mark.parametrize(
    ("text", "reasons"),
    [
        ("transparency; glowing edges", ["clouds", "edge_glow"]),
        ("NObjects,Wonky", ["nobjects", "wonky"]),
        ("expfactor=0.158  seeing=2.951", ["bad_seeing", "nonoptimal"]),
        ("Telescope_Moving", ["telescope_moving"]),
        ("no guide stars. Double images. Bad.", ["psf", "telescope_moving"]),
        ("1176141 ODIN", []),
        ("", []),
    ],
)
def test_several_reasons_at_a_time(text, reasons):
    assert from_bits(rules.parse(text)) == reasons


def test_a_heading_of_alternatives_tells_nothing():
    assert rules.parse("Merge bad ccd list with REASON = ['Telescope Moving', 'Noise']") == 0


def test_flags():
    assert rules.load().flags == {"1": BIT["saturated"], "2": BIT["clouds"]}


@given(st.text())
def test_any_text_parses_to_known_bits(text):
    bits = rules.parse(text)
    assert bits == sum(BIT[name] for name in from_bits(bits))
