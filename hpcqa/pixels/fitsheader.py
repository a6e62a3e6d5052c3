"""A FITS header as a read-only mapping: parsed lazily, first card wins, tolerant of what pipelines really write.

Keywords are in upper case, as the standard wants them, however they are written.
Only what hpcqa reads is understood: values of all standard types, CONTINUE strings and HIERARCH names. Comments and
history are left out. A card that can't be understood has the value None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

CARD = 80
BLOCK = 2880
_COMMENTARY = frozenset({"COMMENT", "HISTORY", "", "CONTINUE", "END"})
_STRING = re.compile(r"\s*'((?:[^']|'')*)'")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[EDed][+-]?\d+)?$")
# A string longer than this is an attack or a mistake; CONTINUE chains end here.
_MAX_STRING_CARDS = 1000


class Header(Mapping[str, Any]):
    """The cards of one header, from its bytes (whole cards, with or without END)."""

    def __init__(self, cards: bytes) -> None:
        text = cards.decode("latin-1")
        self._cards = [text[i : i + CARD] for i in range(0, len(text), CARD)]
        self._places: dict[str, int] = {}
        for place, card in enumerate(self._cards):
            keyword = card[:8].rstrip().upper()
            if keyword == "HIERARCH" and "=" in card:
                keyword = card[8 : card.index("=")].strip().upper()
            if keyword not in _COMMENTARY:
                self._places.setdefault(keyword, place)
        self._values: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._values:
            self._values[key] = self._value(self._places[key])
        return self._values[key]

    def get(self, key: str, default: Any = None) -> Any:
        # Mapping's own raises and catches a KeyError for each keyword that is absent.
        return self[key] if key in self._places else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def integer(self, key: str, default: int) -> int:
        """A whole number, or the default where the key is absent or holds anything else."""
        value = self.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else default

    def text(self, key: str) -> str:
        """A string without its trailing blanks, or '' where the key is absent or holds anything else."""
        value = self.get(key)
        return value if isinstance(value, str) else ""

    def _value(self, place: int) -> Any:
        card = self._cards[place]
        start = card.find("=") + 1
        if start == 0 or (start != 9 and not card.startswith("HIERARCH")):
            return None
        field = card[start:]
        found = _STRING.match(field)
        return self._string(found[1], place) if found else _plain_value(field.split("/", 1)[0].strip())

    def _string(self, first: str, place: int) -> str:
        parts = [first.rstrip()]
        following = self._cards[place + 1 : place + _MAX_STRING_CARDS]
        for card in following:
            if not parts[-1].endswith("&") or not card.startswith("CONTINUE"):
                break
            found = _STRING.match(card[8:])
            if not found:
                break
            parts[-1] = parts[-1][:-1]
            parts.append(found[1].rstrip())
        return "".join(parts).replace("''", "'")


def _plain_value(text: str) -> Any:
    if text in ("T", "F"):
        return text == "T"
    if not _NUMBER.match(text):
        return None
    try:
        return int(text)
    except ValueError:
        value = float(text.upper().replace("D", "E"))
        return value if math.isfinite(value) else None


def end_of_header(block: bytes, searched: int = 0) -> int:
    """Where the END card begins in the bytes of a header, or -1. `searched` bytes are known not to hold it."""
    place = max(0, searched - searched % CARD)
    while True:
        place = block.find(b"END", place)
        if place < 0 or (place % CARD == 0 and block[place + 3 : place + CARD].strip() == b""):
            return place
        place += 1
