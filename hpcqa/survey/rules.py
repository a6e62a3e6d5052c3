"""Free text into reasons, by the rules of reason_rules.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hpcqa.reasons import BIT

_REFERENCE = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True)
class Rule:
    """One entry of reason_rules.toml."""

    reason: str
    pattern: re.Pattern[str]
    at_least: float | None
    fallback: bool
    examples: tuple[str, ...]
    counterexamples: tuple[str, ...]

    def applies(self, text: str) -> bool:
        """Whether the rule's pattern, and number, are in `text` (as `plain` gives it)."""
        if self.at_least is None:
            return self.pattern.search(text) is not None
        return any(float(found["value"]) >= self.at_least for found in self.pattern.finditer(text))


@dataclass(frozen=True)
class Rules:
    """The whole file."""

    rules: tuple[Rule, ...]
    flags: Mapping[str, int]
    same: frozenset[str]
    ambiguous: re.Pattern[str]
    wcs_fine: re.Pattern[str]


def rules_text() -> str:
    """The text of reason_rules.toml."""
    return resources.files(__package__).joinpath("reason_rules.toml").read_text()


@cache
def load() -> Rules:
    """The rules, compiled."""
    content = tomllib.loads(rules_text())
    return Rules(
        rules=tuple(
            Rule(
                reason=entry["reason"],
                pattern=re.compile(entry["pattern"]),
                at_least=entry.get("at_least"),
                fallback=entry.get("fallback", False),
                examples=tuple(entry["examples"]),
                counterexamples=tuple(entry.get("counterexamples", ())),
            )
            for entry in content["rule"]
        ),
        flags={flag: BIT[reason] for flag, reason in content["flags"].items()},
        same=frozenset(content["same"]["words"]),
        ambiguous=re.compile(content["ambiguous"]["pattern"]),
        wcs_fine=re.compile(content["wcs_fine"]["pattern"]),
    )


def plain(text: str) -> str:
    """Text as rules see it: lower case, '_' as blank, references in brackets left out, single blanks."""
    return " ".join(_REFERENCE.sub(" ", text.lower().replace("_", " ")).split())


@cache
def parse(text: str) -> int:
    """The reason bits that a text names; 0 if it names none."""
    rules, text = load(), text.lower()
    if rules.ambiguous.search(text):
        return 0
    text = plain(text)
    bits = 0
    for rule in rules.rules:
        if not rule.fallback and rule.applies(text):
            bits |= BIT[rule.reason]
    if bits:
        return bits
    for rule in rules.rules:
        if rule.fallback and rule.applies(text):
            bits |= BIT[rule.reason]
    return bits
