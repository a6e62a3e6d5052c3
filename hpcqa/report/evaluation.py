"""What evaluation.json says, as tiles and charts; whatever is absent from it is absent from the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcqa.report import figures
from hpcqa.report.charts import Chart, figure
from hpcqa.report.collect import Known
from hpcqa.report.figures import Bar

Content = Mapping[str, Any]
NAN = float("nan")

CONTROLS = {  # in the order of the figure; others follow
    "numbers+network": "numbers + trained network",
    "numbers+untrained": "numbers + untrained network",
    "numbers": "measured numbers only",
    "network": "trained network only",
    "untrained": "untrained network only",
    "published": "published style, trained",
    "published-untrained": "published style, untrained",
}
FIGURES = (
    ("average_precision", "average precision"),
    ("recall", "recall"),
    ("recall_few_ccds", "recall, one or two bad CCDs"),
    ("recall_novel", "recall, kinds without a label"),
)


@dataclass(frozen=True)
class Tile:
    """One figure in large type."""

    name: str
    value: str
    more: str = ""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation's part of the page; `present` is False where there is no evaluation.json."""

    present: bool = False
    lead: str = ""
    tiles: Sequence[Tile] = ()
    charts: Sequence[Chart] = ()


def evaluation(content: Content, decisions: Mapping[str, np.ndarray], unseen: Mapping[int, Known]) -> Evaluation:
    """The evaluation's part of the page.

    Args:
        content: of evaluation.json; may be empty.
        decisions: expnum, verdict, reasons of each exposure.
        unseen: the truth about exposures that the classifier did not learn from.
    """
    if not content:
        return Evaluation()
    if content.get("missing"):
        return Evaluation(True, f"There are no figures: {content['missing']}.")
    charts = (
        _controls(content),
        _differences(content),
        *_curves(content),
        _reliability(content),
        _reasons(content),
        _verdicts(content),
        _reason_matrix(decisions, unseen),
    )
    return Evaluation(True, _lead(content), _tiles(content), [chart for chart in charts if chart is not None])


def _lead(content: Content) -> str:
    counts = f"{content.get('exposures', 0):,} exposures ({content.get('bad', 0):,} bad)"
    nights = f" of {content['nights']:,} nights" if content.get("nights") else ""
    against = f", against {content['against']}" if content.get("against") else ""
    if content.get("nights") == 1:
        return (
            f"On {counts} of one night{against}. What varies from night to night is not known: there are no intervals."
        )
    return f"On {counts}{nights}{against}. Intervals hold 90 % of bootstrap samples over nights."


def number(value: Any) -> float:
    """A number of the JSON; NaN for null, absent or text."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else NAN


def _entry(found: Any) -> tuple[float, float, float]:
    """Value and interval of one figure."""
    entry = found if isinstance(found, Mapping) else {"value": found}
    return number(entry.get("value")), number(entry.get("low")), number(entry.get("high"))


def _interval(low: float, high: float) -> str:
    """`0.87 to 0.94`; nothing where there is none."""
    return f"{low:.2f} to {high:.2f}" if math.isfinite(low) and math.isfinite(high) else ""


def in_words(found: Any) -> str:
    """`0.91 (0.87–0.94)`; a dash where there is no value."""
    value, low, high = _entry(found)
    if not math.isfinite(value):
        return "–"
    interval = f" ({low:.2f}–{high:.2f})" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:.2f}{interval}"


def _rate(content: Content) -> str:
    return f"{100 * number(content.get('false_rate', 0.01)):g} % false alarms"


def _tiles(content: Content) -> list[Tile]:
    found = content.get("figures", {})
    tiles = []
    for key, name in (*FIGURES, ("roc_area", "area under the ROC curve")):
        value, low, high = _entry(found.get(key))
        if not math.isfinite(value):
            continue
        more = _interval(low, high)
        count = found[key].get("count") if isinstance(found[key], Mapping) else None
        more += f" · {count:,} exposures" if count else ""
        said = f"{name} at {_rate(content)}" if key.startswith("recall") else name
        tiles.append(Tile(said[0].upper() + said[1:], f"{value:.2f}", more.removeprefix(" · ")))
    return tiles + _ccd_tiles(content.get("ccds", {}))


def _ccd_tiles(found: Mapping[str, Any]) -> list[Tile]:
    value, low, high = _entry(found.get("all", {}).get("average_precision"))
    if not math.isfinite(value):
        return []
    more = f"{_interval(low, high)} · {found['all']['bad']:,} of {found['all']['ccds']:,} bad"
    local, _, _ = _entry(found.get("local", {}).get("average_precision"))
    if math.isfinite(local):
        more += f" · {local:.2f} in exposures bad in single CCDs"
    return [Tile("Average precision over CCDs", f"{value:.2f}", more.removeprefix(" · "))]


def _controls(content: Content) -> Chart | None:
    controls = [row for row in content.get("controls", ()) if isinstance(row, Mapping)]
    if not controls:
        return None
    place = {name: number for number, name in enumerate(CONTROLS)}
    controls.sort(key=lambda row: place.get(str(row.get("name")), len(place)))
    rows = [("these decisions", content.get("figures", {}), "c1")]
    rows += [(CONTROLS.get(str(row.get("name")), str(row.get("name"))), row, "c2") for row in controls]
    shown = [(key, name) for key, name in FIGURES if any(math.isfinite(_entry(row.get(key))[0]) for _, row, _ in rows)]
    panels = [
        (label, [Bar(name, *_entry(row.get(key)), colour=tone) for name, row, tone in rows]) for key, label in shown
    ]
    if not panels:
        return None
    said = "; ".join(f"{title} {in_words(row.get(shown[0][0]))}" for title, row, _ in rows)
    alt = f"Bars of {', '.join(name for _, name in shown)} for these decisions and controls. {shown[0][1]}: {said}."
    header = ("", *(name for _, name in shown))
    numbers = [(title, *(in_words(row.get(key)) for key, _ in shown)) for title, row, _ in rows]
    note = f"The same neighbours on less: training must earn its place beside them. Recalls at {_rate(content)}."
    width = 2.6 + 2.5 * len(panels)
    return Chart("Controls", note, figure(figures.bars("controls", alt, panels, width=width)), header, numbers, span=3)


def _differences(content: Content) -> Chart | None:
    """Controls compared exposure by exposure, whose intervals are narrower than those of the controls themselves."""
    found = [row for row in content.get("differences", ()) if isinstance(row, Mapping)]
    shown = [(key, name) for key, name in FIGURES if any(math.isfinite(_entry(row.get(key))[0]) for row in found)]
    if not shown:
        return None
    titles = [
        f"{CONTROLS.get(row['name'], row['name'])} less {CONTROLS.get(row['less'], row['less'])}" for row in found
    ]
    panels = [
        (name, [Bar(title, *_entry(row.get(key))) for title, row in zip(titles, found, strict=True)])
        for key, name in shown
    ]
    rows = [(title, *(signed(row.get(key)) for key, _ in shown)) for title, row in zip(titles, found, strict=True)]
    said = "; ".join(f"{row[0]} {row[1]}" for row in rows)
    alt = f"Differences of {', '.join(name for _, name in shown)}. {shown[0][1]}: {said}."
    note = "On the same exposures and the same bootstrap samples: an interval on one side of zero is a difference."
    markup = figures.dots("differences", alt, panels, width=3.6 + 2.5 * len(panels))
    return Chart("What training gives", note, figure(markup), ("", *(name for _, name in shown)), rows, span=3)


def signed(found: Any) -> str:
    """`+0.031 (+0.012 to +0.048)`; a dash where there is no value."""
    value, low, high = _entry(found)
    if not math.isfinite(value):
        return "–"
    interval = f" ({low:+.3f} to {high:+.3f})" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:+.3f}{interval}"


def _curves(content: Content) -> list[Chart]:
    found = content.get("curves", {})
    charts = []
    for key, title, x, y, labels in (
        ("precision_recall", "Precision and recall", "recall", "precision", ("recall", "precision")),
        ("roc", "ROC", "fpr", "tpr", ("share of good exposures flagged", "share of bad exposures flagged")),
    ):
        line = found.get(key, {})
        points = np.array([line.get(x, ()), line.get(y, ())], float)
        if points.shape[1] < 2:
            continue
        picked = [int(np.searchsorted(points[0], level)) for level in (0.01, 0.1, 0.5, 0.9)]
        numbers = [(f"{points[0, at]:.2f}", f"{points[1, at]:.2f}") for at in picked if at < points.shape[1]]
        alt = f"{title}: " + ", ".join(f"{labels[1]} {b} at {labels[0]} {a}" for a, b in numbers) + "."
        markup = figures.curves(key, alt, [(title, *points)], labels=labels, diagonal=key == "roc")
        note = "Ranked by p(bad)." if key != "roc" else "Dashed: chance."
        charts.append(Chart(title, note, figure(markup), labels, numbers))
    return charts


def wilson(share: np.ndarray, count: np.ndarray, z: float = 1.645) -> tuple[np.ndarray, np.ndarray]:
    """The 90 % interval of a share (Wilson 1927): low and high, within 0 and 1."""
    count = np.maximum(count, 1)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)


def _reliability(content: Content) -> Chart | None:
    rows = [row for row in content.get("reliability", ()) if isinstance(row, Mapping)]
    if not rows:
        return None
    predicted, share, count = (
        np.array([number(row.get(name)) for row in rows]) for name in ("mean_p_bad", "share_bad", "count")
    )
    low, high = wilson(share, count)
    error = number(content.get("calibration_error"))
    said = f" Mean error {error:.3f}." if math.isfinite(error) else ""
    alt = "Observed share of bad exposures against predicted probability: " + ", ".join(
        f"{b:.2f} at {a:.2f}" for a, b in zip(predicted, share, strict=True)
    )
    numbers = [
        (f"{a:.2f}", f"{b:.2f} ({c:.2f}–{d:.2f})", f"{int(n):,}")
        for a, b, c, d, n in zip(predicted, share, low, high, count, strict=True)
    ]
    markup = figures.reliability("reliability", alt + ".", predicted, share, low, high)
    note = f"On the dashed line, probabilities mean what they say.{said}"
    return Chart("Reliability", note, figure(markup), ("p(bad)", "share bad", "exposures"), numbers)


def _reasons(content: Content) -> Chart | None:
    rows = [row for row in content.get("reasons", ()) if isinstance(row, Mapping)]
    if not rows:
        return None
    rows = sorted(rows, key=lambda row: -np.nan_to_num(number(row.get("value"))))
    values = [
        Bar(
            str(row.get("reason", "")).replace("_", " "),
            *_entry(row),
            note=f"of {row.get('count', 0)}",
            colour="c1" if row.get("labelled", 1) else "c3",
        )
        for row in rows
    ]
    alt = f"Recall for each reason at {_rate(content)}: " + ", ".join(f"{bar.name} {bar.value:.2f}" for bar in values)
    numbers = [
        (
            str(row.get("reason", "")).replace("_", " "),
            in_words(row),
            f"{row.get('count', 0)}",
            f"{row.get('labelled', '–')}",
            f"{number(row.get('named')):.2f}",
        )
        for row in rows
    ]
    note = f"Share of bad exposures found at {_rate(content)}; amber: kinds that no label covers."
    header = ("reason", "recall", "exposures", "labelled", "reason named")
    markup = figures.bars("reasons", alt + ".", [("recall", values)], width=8.6)
    return Chart("Recall by reason", note, figure(markup), header, numbers, span=2)


def _verdicts(content: Content) -> Chart | None:
    found = content.get("confusion", {})
    names = [str(name) for name in found.get("verdicts", ())]
    counts = np.array([found.get("good", ()), found.get("bad", ())], float)
    if not names or counts.shape != (2, len(names)):
        return None
    alt = "; ".join(
        f"truly {row}: " + ", ".join(f"{count:g} {name}" for name, count in zip(names, line, strict=True))
        for row, line in zip(("good", "bad"), counts, strict=True)
    )
    rows = ("good", "bad")
    markup = figures.matrix("verdicts", f"Verdicts: {alt}.", counts, rows, names, labels=("truth", "verdict"))
    numbers = [(row, *(f"{count:g}" for count in line)) for row, line in zip(rows, counts, strict=True)]
    return Chart("Verdicts against truth", "Shaded by the share of each row.", figure(markup), ("", *names), numbers)


def _reason_matrix(decisions: Mapping[str, np.ndarray], unseen: Mapping[int, Known]) -> Chart | None:
    pairs = named_pairs(decisions, unseen)
    if not pairs:
        return None
    rows = sorted({true for true, _ in pairs}, key=_good_first)
    columns = sorted({said for _, said in pairs} | set(rows), key=_good_first)
    counts = np.array([[pairs[true, said] for said in columns] for true in rows], float)
    right = sum(count for (true, said), count in pairs.items() if true == said)
    alt = f"True reasons against the reasons given: {right} of {int(counts.sum())} exposures on the diagonal."
    shown = [[name.replace("_", " ") for name in names] for names in (rows, columns)]
    markup = figures.matrix("named", alt, counts, shown[0], shown[1], labels=("truth", "decision"))
    numbers = [(name, *(f"{count:g}" for count in line)) for name, line in zip(shown[0], counts, strict=True)]
    note = f"The first reason given, on exposures without a label; {right} of {int(counts.sum())} are right."
    return Chart("Reasons against truth", note, figure(markup), ("", *shown[1]), numbers, span=3)


def _good_first(name: str) -> tuple[bool, str]:
    return name != "good", name


def named_pairs(decisions: Mapping[str, np.ndarray], unseen: Mapping[int, Known]) -> Counter[tuple[str, str]]:
    """How often each true reason was called what; a good exposure is `good`, and so is one that was called good.

    An exposure with several true reasons counts under the one that was given, if it is one of them.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for expnum, verdict, reasons in zip(decisions["expnum"], decisions["verdict"], decisions["reasons"], strict=True):
        known = unseen.get(int(expnum))
        if known is None or verdict == "undecided":
            continue
        first = str(reasons).split(",")[0].strip() or "other"
        said = first if verdict in ("bad", "review") else "good"
        true = (said if said in known.reasons else known.reasons[0]) if known.bad else "good"
        pairs[true, said] += 1
    return pairs
