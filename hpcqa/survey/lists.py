"""Label lists that are written line by line: the observers' bad_expid.txt, and the exclude lists of DES and DELVE.

Each parser takes the lines and gives a Reading; none fails on an odd line: it is left out and counted.
"""

from __future__ import annotations

import re
from pathlib import Path

from hpcqa.survey import rules
from hpcqa.survey.sheets import KEY_ALIASES
from hpcqa.survey.statements import NO_NUMBER, WHOLE, CcdNamer, Reading, parse_expnum, split_key

HEADERS = KEY_ALIASES | {"expnum"}
_RANGE = re.compile(r"^\d{4,18}\s*(?:[-–—:]|\.{2,3}|to|thru|through|until)\s*\d{4,18}\b")
_EXCLUDE_HEADER = re.compile(r"^#\s*date\s+expnum\b", re.IGNORECASE)
_ENTRY = re.compile(
    r"^((?:D00)?\d{4,18}(?:\.0+)?)(?:(?:-|[_–—](?=[A-Za-z]))([A-Za-z]+\d+|\d{1,3}))?(?:[\s,;:/+&#]+(.*))?$"
)
_ONE_MORE_CCD = re.compile(r"^([A-Za-z]+\d+)(?:[\s,;:/+&#]+(.*))?$")
_BEHIND = re.compile(r"^-?\s*([A-Za-z]+\d+)(?:\s|$)")
_AND = (",", ";", "/", "+", "&")  # between CCDs of one entry
_COMMENTED_ENTRY = re.compile(r"^#\s*\d{5,18}(?:-[A-Za-z]+\d+)?(?:\s|$)")
_COMMENTED_ROW = re.compile(r"^#\s*(?:\d{8}|\d{4}-\d\d-\d\d)\s+\d{5,}")
NOT_UNDERSTOOD = "not understood (expected EXPNUM[-CCD] [flag] [text])"
_FLAG = re.compile(r"^([123])(?=\s|$)\s*(.*)$")


def parse_bad_expid(lines: list[str], path: Path, namer: CcdNamer) -> Reading:
    """`EXPNUM[-CCD[,CCD...]] [flag] [text]`; a line that starts with # comments, or heads a section and tells why.

    A commented-out entry is not bad. An entry's reason is its own text's and flag's; without a text, its section's.
    A CCD behind a blank is part of the text: the whole exposure is bad, as legacypipe takes it. Where all that follows
    is numbers as long as the first, they are exposures, too.
    """
    reading = Reading(path, "bad_expid")
    section, section_used, before = "", False, 0
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line:
            # A section ends with a blank line, once it has had an entry.
            section, section_used = ("", False) if section_used else (section, False)
            continue
        if line.startswith("#"):
            if _COMMENTED_ENTRY.match(line):
                reading.skip("commented out", number)
            else:
                section, section_used = line.lstrip("#").strip(), False
            continue
        if _RANGE.match(line):
            reading.skip("a range of numbers (write them one by one)", number)
            continue
        found = _ENTRY.match(line)
        expnum = parse_expnum(found[1]) if found else None
        ccdnum = namer.number(found[2], expnum) if found and found[2] and expnum else WHOLE
        if found is None or expnum is None or ccdnum is None:
            reading.skip(NOT_UNDERSTOOD if expnum is None else "unknown CCD", number)
            continue
        behind = None if found[2] else _BEHIND.match(found[3] or "")
        if behind and namer.number(behind[1], expnum) is not None:
            reading.skip("a CCD behind a blank (taken as the whole exposure)", number)
        section_used = True
        text = (found[3] or "").strip()
        more, text = _more_ccds(line, text, expnum, namer) if found[2] else ([], text)
        others = [] if found[2] else _more_exposures(found[1], text)
        if others:
            reading.skip("several exposures on one line (all taken)", number)
            text = ""
        reasons = _reasons(text, section, before)
        before = reasons
        source = f"{path.name}: {section}" if section else path.name
        for key in ((expnum, ccdnum), *((expnum, ccd) for ccd in more), *((other, WHOLE) for other in others)):
            reading.bad(*key, reasons, source, number, text or section)
    return reading


def _more_exposures(first: str, text: str) -> list[int]:
    """The exposures of a text that is nothing but numbers as long as the first."""
    words = re.split(r"[\s,;/+&]+", text.strip(" ,;"))
    are_numbers = all(word.isascii() and word.isdigit() and len(word) == len(first) for word in words)
    return [int(word) for word in words] if are_numbers and len(first) > 4 else []


def _more_ccds(line: str, rest: str, expnum: int, namer: CcdNamer) -> tuple[list[int], str]:
    """Further CCDs behind commas and the like, and the text after them."""
    more: list[int] = []
    while line.removesuffix(rest).rstrip().endswith(_AND) and (found := _ONE_MORE_CCD.match(rest)):
        ccdnum = namer.number(found[1], expnum)
        if ccdnum is None:
            break
        more.append(ccdnum)
        rest = found[2] or ""
    return more, rest.strip()


def _reasons(text: str, section: str, before: int) -> int:
    """Bits of an entry's flag and text, or of its section where it has neither."""
    known = rules.load()
    flag = _FLAG.match(text)
    bits = known.flags.get(flag[1], 0) if flag else 0
    if flag:
        text = flag[2]
    if text.strip(" .").lower() in known.same:
        return bits | before
    bits |= rules.parse(text)
    return bits if bits or text or flag else rules.parse(section)


def parse_exclude(lines: list[str], path: Path, namer: CcdNamer) -> Reading:
    """Rows `date expnum ccd id ccdnum`, 'nan' for ccd and id allowed; headings and the file's name tell the reason.

    Where the CCD's name and its number contradict each other the number is taken. Without either, the row speaks of the
    whole exposure: nothing that is called bad is lost.
    """
    reading = Reading(path, "exclude")
    by_name, section = rules.parse(path.stem), ""
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line:
            continue
        if line.startswith("#"):
            if _COMMENTED_ROW.match(line):
                reading.skip("commented out", number)
            elif not _EXCLUDE_HEADER.match(line):
                section = line.lstrip("#").strip()
            continue
        words = line.replace(",", " ").split()
        expnum = parse_expnum(words[1]) if len(words) > 1 else None
        if expnum is None:
            reading.skip(NO_NUMBER, number)
            continue
        ccdnum = _ccd_of(words[2:], expnum, number, reading, namer)
        source = f"{path.name}: {section}" if rules.parse(section) else path.name
        reading.bad(expnum, ccdnum, rules.parse(section) or by_name, source, number, section or path.stem)
    return reading


def _ccd_of(words: list[str], expnum: int, line: int, reading: Reading, namer: CcdNamer) -> int:
    """The CCD of `ccd id ccdnum`: its name may be in either of the first two, where a number means something else."""
    names = [word for word in words[:2] if word[0].isalpha() and word.lower() != "nan"]
    named = namer.candidates(names[-1], expnum) if names else []
    numbered = namer.number(words[2], expnum) if len(words) > 2 else None
    if numbered is not None:
        if named and numbered not in named:
            reading.skip("CCD name and number disagree (number taken)", line)
        return numbered
    if not named:
        told = any(word.lower() != "nan" for word in (*names, *words[2:3]))
        reading.skip(f"{'unknown' if told else 'no'} CCD (taken as the whole exposure)", line)
        return WHOLE
    return named[0]


def parse_problems(lines: list[str], path: Path) -> Reading:
    """Rows `night  exposure  problem`, separated by blanks; the problem may have several words."""
    reading = Reading(path, "problem")
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            if _COMMENTED_ROW.match(line):
                reading.skip("commented out", number)
            continue
        words = line.split(None, 2)
        expnum = parse_expnum(words[1]) if len(words) > 1 else None
        if expnum is None:
            reading.skip(NO_NUMBER, number)
            continue
        problem = words[2] if len(words) > 2 else ""
        reading.bad(expnum, WHOLE, rules.parse(problem), path.name, number, problem)
    return reading


def parse_plain_csv(lines: list[str], path: Path, namer: CcdNamer) -> Reading:
    """Rubin's lists: `exposure[-CCD],comment`, under an ECSV header or under none."""
    reading = Reading(path, "visits")
    for number, raw in enumerate(lines, start=1):
        line = raw.strip()
        first, _, comment = line.partition(",")
        if not line or line.startswith("#") or first.strip().lower() in HEADERS:
            continue
        expnum, ccd = split_key(first)
        ccdnum = namer.number(ccd, expnum) if ccd and expnum else WHOLE
        if expnum is None or ccdnum is None:
            reading.skip(NO_NUMBER if expnum is None else "unknown CCD", number)
            continue
        text = comment.strip().strip('"').strip()
        reading.bad(expnum, ccdnum, rules.parse(text), path.name, number, text)
    return reading


def parse_failed_wcs(lines: list[str], path: Path) -> Reading:
    """Lines `path of an image,expnum`: images whose WCSCAL header says Failed, except those known to be fine."""
    reading = Reading(path, "wcs")
    for number, raw in enumerate(lines, start=1):
        image, _, last = raw.strip().rpartition(",")
        expnum = parse_expnum(last)
        if expnum is None:
            if raw.strip() and number > 1:
                reading.skip(NO_NUMBER, number)
            continue
        if rules.load().wcs_fine.search(image.lower()):
            reading.skip("reprocessing whose WCS is fine", number)
            continue
        reading.bad(expnum, WHOLE, rules.parse("wcs"), path.name, number, image)
    return reading
