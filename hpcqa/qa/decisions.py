"""From the classifier's answers and the manifest to the two tables of decisions: every row of the input has one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from hpcqa.config import ClassifyConfig
from hpcqa.qa.classifier import UNLABELLED, Answers, Classifier
from hpcqa.qa.embedded import Embedded, Where
from hpcqa.qa.evidence import (
    exposure_evidence,
    nearest_text,
    reason_codes,
    reason_words,
    where_on_ccd,
    worst_ccds,
)

WORDS = np.array(["good", "bad", "review"], dtype=object)
WHY = np.array(["", "p_bad in between"], dtype=object)
# An exposure with a smaller share of suspicious CCDs is bad in those alone.
WHOLE_SHARE = 0.5


@dataclass(frozen=True)
class Part:
    """Answers on the exposures of some files, small enough to be sent between ranks.

    Attributes:
        expnum, p_bad, novelty, reasons: of exposures; reasons packed (evidence.reason_codes).
        worst, nearest, evidence: of exposures, in words.
        ccd_expnum, ccd_ccdnum, ccd_p_bad, ccd_novelty, ccd_reasons: of CCDs with views.
        ccd_where: of suspicious CCDs, in words.
        failed_expnum, failed_ccdnum, failed: CCDs without.
    """

    expnum: np.ndarray
    p_bad: np.ndarray
    novelty: np.ndarray
    reasons: np.ndarray
    worst: np.ndarray
    nearest: np.ndarray
    evidence: np.ndarray
    ccd_expnum: np.ndarray
    ccd_ccdnum: np.ndarray
    ccd_p_bad: np.ndarray
    ccd_novelty: np.ndarray
    ccd_reasons: np.ndarray
    ccd_where: np.ndarray
    failed_expnum: np.ndarray
    failed_ccdnum: np.ndarray
    failed: np.ndarray


def make_part(
    embedded: Embedded, answers: Answers, classifier: Classifier, ccdnames: Mapping[int, str], least: float
) -> Part:
    """Answers with their evidence.

    Args:
        ccdnames: by ccdnum; a CCD without one is called by its number.
        least: the p_bad below which no reasons are given.
    """
    sizes = embedded.raw.sizes()
    names = [ccdnames.get(number, str(number)) for number in embedded.ccdnum.tolist()]
    number_names = embedded.number_names
    spans = list(zip(embedded.raw.starts.tolist(), (embedded.raw.starts + sizes).tolist(), strict=True))
    numbers, rarity = embedded.raw.ccd["numbers"], answers.rarity
    evidence = [
        exposure_evidence(numbers[a:b], rarity[a:b], answers.ccd_p_bad[a:b], names[a:b], number_names) for a, b in spans
    ]
    worst = [worst_ccds(answers.ccd_p_bad[a:b], names[a:b]) for a, b in spans]
    nearest = [nearest_text(rows, classifier.exposure) for rows in answers.nearest]
    labelled = classifier.mode != UNLABELLED
    return Part(
        expnum=embedded.expnum,
        p_bad=answers.p_bad.astype(np.float32),
        novelty=answers.novelty.astype(np.float32),
        reasons=reason_codes(answers.reason, answers.p_bad, least),
        worst=_texts(worst),
        nearest=_texts(nearest if labelled else [""] * len(nearest)),
        evidence=_texts(evidence),
        ccd_expnum=np.repeat(embedded.expnum, sizes),
        ccd_ccdnum=embedded.ccdnum,
        ccd_p_bad=answers.ccd_p_bad.astype(np.float32),
        ccd_novelty=answers.ccd_novelty.astype(np.float32),
        ccd_reasons=reason_codes(answers.ccd_reason, answers.ccd_p_bad, least),
        ccd_where=_where(embedded.where, answers.ccd_p_bad, least),
        failed_expnum=embedded.failed_expnum,
        failed_ccdnum=embedded.failed_ccdnum,
        failed=embedded.failed,
    )


def _where(where: Where | None, p_bad: np.ndarray, least: float) -> np.ndarray:
    """Where on each suspicious CCD: object (ccd,)."""
    said = np.full(len(p_bad), "", object)
    if where is None:
        return said
    for row in np.flatnonzero(np.nan_to_num(p_bad) >= least):
        cell = int(where.cell[row])
        said[row] = where_on_ccd(where.maps[row], where.down * cell, where.across * cell)
    return said


def _texts(values: Sequence[str]) -> np.ndarray:
    texts = np.empty(len(values), object)
    texts[:] = list(values)
    return texts


def merge_parts(parts: Sequence[Part]) -> Part:
    """All parts as one, sorted by key, so that the order in which they were made does not show."""
    joined = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Part)}
    orders = {
        "ccd_": np.lexsort((joined["ccd_ccdnum"], joined["ccd_expnum"])),
        "failed": np.lexsort((joined["failed_ccdnum"], joined["failed_expnum"])),
        "": np.argsort(joined["expnum"], kind="stable"),
    }
    return Part(
        **{
            name: values[next(orders[start] for start in orders if name.startswith(start))]
            for name, values in joined.items()
        }
    )


# Verdicts -----------------------------------------------------------------------------------------------------------


def verdicts(p_bad: np.ndarray, novelty: np.ndarray, settings: ClassifyConfig) -> tuple[np.ndarray, np.ndarray]:
    """Verdict and why, in words, from probability and novelty: object (row,) each; NaN p_bad is undecided."""
    known = np.nan_to_num(p_bad, nan=0.0)
    bad = known >= settings.bad_above
    unsure = ~bad & (known >= settings.review_above)
    novel = ~bad & (np.nan_to_num(novelty) >= settings.novel_above)
    # Codes into words, so that equal rows share one string: a release has ten million of them.
    verdict = WORDS[np.where(bad, 1, np.where(unsure | novel, 2, 0))]
    why = WHY[unsure.astype(np.int64)]
    for row in np.flatnonzero(novel):
        joined = "; " if why[row] else ""
        why[row] = f"{why[row]}{joined}unlike any good exposure ({novelty[row]:.0f} times their scatter)"
    verdict[np.isnan(p_bad)] = "undecided"
    why[np.isnan(p_bad)] = ""
    return verdict, why


def limit_review(
    verdict: np.ndarray, why: np.ndarray, p_bad: np.ndarray, novelty: np.ndarray, settings: ClassifyConfig
) -> None:
    """Keep the most suspicious reviews and decide the others by probability alone, in place."""
    rows = np.flatnonzero(verdict == "review")
    if not settings.review or len(rows) <= settings.review:
        return
    order = rows[np.lexsort((rows, -novelty[rows], -p_bad[rows]))]
    middle = (settings.bad_above + settings.review_above) / 2
    for row in order[settings.review :]:
        verdict[row] = "bad" if p_bad[row] >= middle else "good"
        why[row] = f"{why[row]}; beyond classify.review={settings.review}"


# Tables -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CcdTable:
    """The columns of ccd_decisions, one row for each row of the manifest and in its order."""

    columns: dict[str, np.ndarray]
    decided: np.ndarray


def ccd_table(
    manifest: Mapping[str, np.ndarray],
    part: Part,
    mode: str,
    failure_words: Sequence[str],
    settings: ClassifyConfig,
) -> CcdTable:
    """Decide every row of the manifest, or say why not."""
    rows = len(manifest["expnum"])
    usable = manifest["cuts"] == 0
    place = find_keys(part.ccd_expnum, part.ccd_ccdnum, manifest["expnum"], manifest["ccdnum"])
    place[~usable] = -1
    seen = place >= 0
    p_bad, novelty = np.full(rows, np.nan, np.float32), np.full(rows, np.nan, np.float32)
    codes = np.zeros(rows, np.int64)
    p_bad[seen], novelty[seen] = part.ccd_p_bad[place[seen]], part.ccd_novelty[place[seen]]
    codes[seen] = part.ccd_reasons[place[seen]]
    verdict, why = verdicts(p_bad, novelty, settings)
    why[seen & (mode == UNLABELLED)] = "no labelled exposures"
    why[~usable] = manifest["cut_detail"][~usable]
    _say_failures(why, np.flatnonzero(usable & ~seen), manifest, part, failure_words)
    columns = {name: manifest[name] for name in ("expnum", "ccdnum", "ccdname", "table", "table_row")}
    where = np.full(rows, "", object)
    where[seen] = part.ccd_where[place[seen]]
    columns |= {"verdict": verdict, "p_bad": p_bad, "reasons": reason_words(codes), "novelty": novelty, "why": why}
    columns["where"] = where
    return CcdTable(columns, seen)


def _say_failures(
    why: np.ndarray, rows: np.ndarray, manifest: Mapping[str, np.ndarray], part: Part, words: Sequence[str]
) -> None:
    place = find_keys(part.failed_expnum, part.failed_ccdnum, manifest["expnum"][rows], manifest["ccdnum"][rows])
    texts = {int(bits): failure_text(int(bits), words) for bits in np.unique(part.failed)}
    for row, found in zip(rows, place, strict=True):
        why[row] = texts[int(part.failed[found])] if found >= 0 else "not embedded: run `hpcqa embed` again"


def failure_text(bits: int, words: Sequence[str]) -> str:
    """What failure bits mean; bits without words are named by number."""
    set_bits = [bit for bit in range(63) if bits >> bit & 1]
    return "; ".join(words[bit] if bit < len(words) else f"failure {bit}" for bit in set_bits)


def find_keys(expnum: np.ndarray, ccdnum: np.ndarray, wanted: np.ndarray, wanted_ccd: np.ndarray) -> np.ndarray:
    """Rows of keys in a table sorted by (expnum, ccdnum), -1 where it has none: int64."""
    if not len(expnum):
        return np.full(len(wanted), -1, np.int64)
    # Exposure numbers become positions first, so that both parts of the key fit into one integer.
    unique, position = np.unique(expnum, return_inverse=True)
    low = min(int(ccdnum.min()), int(wanted_ccd.min(initial=0)))
    width = max(int(ccdnum.max()), int(wanted_ccd.max(initial=0))) - low + 1
    keys = position.astype(np.int64) * width + (ccdnum.astype(np.int64) - low)
    place = np.minimum(np.searchsorted(unique, wanted), len(unique) - 1)
    known = unique[place] == wanted
    sought = place * width + (wanted_ccd.astype(np.int64) - low)
    found = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
    return np.where(known & (keys[found] == sought), found, -1)


def exposure_table(
    manifest: Mapping[str, np.ndarray],
    part: Part,
    ccds: CcdTable,
    classifier: Classifier,
    settings: ClassifyConfig,
) -> dict[str, np.ndarray]:
    """The columns of decisions: one row for each exposure of the manifest, by increasing number."""
    order = np.lexsort((manifest["table_row"], manifest["cuts"] != 0, manifest["expnum"]))
    expnum, first = np.unique(manifest["expnum"][order], return_index=True)
    head = order[first]
    segment = np.searchsorted(expnum, manifest["expnum"])
    place = find_keys(part.expnum, np.zeros(len(part.expnum), np.int32), expnum, np.zeros(len(expnum), np.int32))
    seen = place >= 0
    p_bad, novelty = np.full(len(expnum), np.nan, np.float32), np.full(len(expnum), np.nan, np.float32)
    p_bad[seen], novelty[seen] = part.p_bad[place[seen]], part.novelty[place[seen]]
    verdict, why = verdicts(p_bad, novelty, settings)
    _heed_labels(verdict, why, expnum, classifier)
    limit_review(verdict, why, p_bad, novelty, settings)
    why[seen & (classifier.mode == UNLABELLED)] = "no labelled exposures"
    _say_why_unseen(why, ~seen, segment, ccds.columns["why"])
    codes = np.zeros(len(expnum), np.int64)
    codes[seen] = part.reasons[place[seen]]
    num_bad = np.bincount(segment[ccds.columns["verdict"] == "bad"], minlength=len(expnum))
    num_decided = np.bincount(segment[ccds.decided], minlength=len(expnum))
    suspicious = np.nan_to_num(ccds.columns["p_bad"]) >= settings.review_above
    some = np.bincount(segment[suspicious], minlength=len(expnum)) < WHOLE_SHARE * num_decided
    columns = {name: manifest[name][head] for name in ("camera", "band", "night", "plver", "plprocid")}
    columns |= {"expnum": expnum, "verdict": verdict, "p_bad": p_bad, "novelty": novelty, "why": why}
    columns |= {"reasons": reason_words(codes), "num_ccds": np.bincount(segment, minlength=len(expnum))}
    columns |= {"num_decided": num_decided, "num_bad_ccds": num_bad}
    columns["extent"] = np.where(verdict == "bad", np.where(some & (num_bad > 0), "ccds", "exposure"), "").astype(
        object
    )
    for column, name in (("worst_ccds", "worst"), ("nearest", "nearest"), ("evidence", "evidence")):
        texts = np.full(len(expnum), "", object)
        texts[seen] = getattr(part, name)[place[seen]]
        columns[column] = texts
    return columns


def _heed_labels(verdict: np.ndarray, why: np.ndarray, expnum: np.ndarray, classifier: Classifier) -> None:
    """Send exposures to review whose label says the opposite of what their own night's labels left out say."""
    if classifier.mode == UNLABELLED or not len(classifier.labelled_expnum):
        return
    place = np.minimum(np.searchsorted(classifier.labelled_expnum, expnum), len(classifier.labelled_expnum) - 1)
    labelled = classifier.labelled_expnum[place] == expnum
    is_bad = classifier.labelled_bad[place]
    for row in np.flatnonzero(labelled & (((verdict == "good") & is_bad) | ((verdict == "bad") & ~is_bad))):
        said = "labelled bad but looks good" if is_bad[row] else "labelled good but looks bad"
        verdict[row], why[row] = "review", said


def _say_why_unseen(why: np.ndarray, unseen: np.ndarray, segment: np.ndarray, ccd_why: np.ndarray) -> None:
    """Why none of an exposure's CCDs was seen: the commonest reasons of its CCDs with their counts."""
    rows = np.flatnonzero(unseen[segment])
    counts: dict[int, Counter[str]] = {}
    for row in rows:
        counts.setdefault(int(segment[row]), Counter())[str(ccd_why[row])] += 1
    for exposure, counter in counts.items():
        common = sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:3]
        why[exposure] = "no CCD was seen: " + "; ".join(f"{text} ({count})" for text, count in common)
