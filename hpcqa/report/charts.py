"""The charts that hold for every run: training curves and how the decisions are distributed.

What a chart shows is also there as numbers, for those who cannot see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from hpcqa.report import figures
from hpcqa.report.accounting import VERDICTS

NOVELTY_BINS = np.linspace(-2, 20, 45)
P_BINS = np.linspace(0, 1, 41)


@dataclass(frozen=True)
class Chart:
    """One figure with its title, a sentence, and its numbers as a table."""

    title: str
    note: str
    markup: Markup
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    span: int = 1  # columns of the page's grid


def figure(text: str) -> Markup:
    """Markup of report.figures, whose texts are escaped there."""
    return Markup(text)  # noqa: S704 - made by matplotlib, which escapes text


def distributions(decisions: Mapping[str, np.ndarray]) -> list[Chart]:
    """Histograms of p_bad and novelty by verdict; none where nothing was decided."""
    verdict = decisions["verdict"]
    shown = [name for name in VERDICTS if name != "undecided" and np.any(verdict == name)]
    if not shown:
        return []
    charts = []
    for column, bins, title, label, note in (
        ("p_bad", P_BINS, "Probability of being bad", "p(bad)", "Calibrated; each verdict in its colour."),
        (
            "novelty",
            NOVELTY_BINS,
            "Novelty",
            "distance to good exposures, in their scatter",
            "High values are unlike anything labelled good.",
        ),
    ):
        groups = {name: decisions[column][verdict == name] for name in shown}
        if not any(np.isfinite(values).any() for values in groups.values()):
            continue
        means = ", ".join(f"{name} median {np.nanmedian(values):.2f}" for name, values in groups.items() if len(values))
        markup = figures.histogram(
            column.replace("_", ""),
            f"Histogram of {label} by verdict: {means}.",
            groups,
            label=label,
            bins=bins,
            colours={name: name for name in shown},
        )
        charts.append(Chart(title, note, figure(markup)))
    return charts


def training(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Losses, embedding rank and the nearest-neighbour check against steps; only what was recorded."""
    charts = []
    losses = {name: series(metrics, name) for name in _names(metrics, "loss")}
    if losses:
        charts.append(_over_steps("losses", "Losses", "Self-supervised losses of the student; their sum on top.", losses, "loss"))
    ranks = {name: series(metrics, name) for name in _names(metrics, "rank")}
    if ranks:
        note = "Effective number of dimensions in use; a fall towards 1 is collapse."
        charts.append(_over_steps("ranks", "Embedding rank", note, ranks, "rank"))
    return charts + _checks(metrics)


def _names(metrics: Sequence[Mapping[str, Any]], word: str) -> list[str]:
    names = dict.fromkeys(name for line in metrics if "step" in line for name in line)
    return [name for name in names if word in name.split("_") or name == word]


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric; a step that was run again after a restart counts as it was last."""
    found: dict[int, float] = {}
    for line in metrics:
        if isinstance(line.get(name), (int, float)) and isinstance(line.get("step"), int):
            found[line["step"]] = float(line[name])
    steps = sorted(found)
    return np.array(steps, float), np.array([found[step] for step in steps], float)


def _checks(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    names = [name for name in _names(metrics, "knn") if name != "knn_s"]
    flat = {name: value for name in names if (value := _constant(metrics, name)) is not None and _is_control(name)}
    moving = {name: series(metrics, name) for name in names if name not in flat}
    if not moving:
        return []
    note = "Average precision on the labelled exposures; dashed: controls that no training can change."
    return [_over_steps("knn", "Nearest-neighbour check", note, moving, "average precision", flat)]


def _is_control(name: str) -> bool:
    return any(word in name for word in ("untrained", "numbers"))


def _constant(metrics: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = series(metrics, name)[1]
    return float(values[-1]) if len(values) and np.ptp(values) < 1e-6 else None


def _over_steps(
    name: str,
    title: str,
    note: str,
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    label: str,
    flat: Mapping[str, float] | None = None,
) -> Chart:
    last = {key: (y[0], y[-1]) for key, (_, y) in lines.items()}
    words = "; ".join(f"{key} from {first:.3g} to {end:.3g}" for key, (first, end) in last.items())
    words += "".join(f"; {key} {value:.3g} throughout" for key, value in (flat or {}).items())
    markup = figures.curves(
        name,
        f"{title} against training steps: {words}.",
        [(key.replace("_", " "), x, y) for key, (x, y) in lines.items()],
        labels=("step", label),
        unit_square=False,
        marks=max(len(x) for x, _ in lines.values()) < 30,
        flat=[(key.replace("_", " "), value) for key, value in (flat or {}).items()],
    )
    rows = [(key.replace("_", " "), f"{first:.3g}", f"{end:.3g}") for key, (first, end) in last.items()]
    rows += [(key.replace("_", " "), f"{value:.3g}", f"{value:.3g}") for key, value in (flat or {}).items()]
    return Chart(title, note, figure(markup), ("", "first", "last"), rows)

