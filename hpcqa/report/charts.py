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
    return Markup(text)


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
    """Losses, embedding rank, teacher entropy and the nearest-neighbour check against steps; only what was recorded."""
    charts = []
    losses = loss_terms(metrics)
    if losses:
        note = "Weighted terms of the loss, each summed over the views."
        charts.append(_over_steps("losses", "Losses", note, losses, "loss"))
    for prefix, name, title, note, label in (
        ("rank", "ranks", "Embedding rank", "Dimensions in use; a fall towards 1 is collapse.", "effective rank"),
        (
            "teacher_entropy",
            "entropies",
            "Teacher entropy",
            "Of single images, as a share of its maximum; at 1 the teacher tells nothing apart.",
            "share of log K",
        ),
    ):
        found = _recorded(metrics, prefix)
        if found:
            charts.append(_over_steps(name, title, note, found, label))
    return charts + _checks(metrics)


def _names(metrics: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, str]:
    """Metrics whose name is a prefix, or begins with it and an underscore; and what they are of, in words."""
    names = dict.fromkeys(name for line in metrics if "step" in line for name in line)
    chosen = (name for name in names if name == prefix or name.startswith(prefix + "_"))
    return {name: name.removeprefix(prefix).strip("_").replace("_", " ") or prefix for name in chosen}


def _recorded(metrics: Sequence[Mapping[str, Any]], prefix: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of the metrics of a prefix that have any."""
    found = {words: series(metrics, name) for name, words in _names(metrics, prefix).items()}
    return {words: points for words, points in found.items() if len(points[0])}


def loss_terms(metrics: Sequence[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of the whole loss and of each kind of term (`loss_KIND_VIEW`), summed over the views."""
    kinds: dict[str, list[str]] = {}
    for metric, words in _names(metrics, "loss").items():
        kinds.setdefault(words.split()[0], []).append(metric)
    found = {}
    for kind, names in kinds.items():
        sums = [
            {"step": line["step"], kind: sum(float(line[name]) for name in names if _is_number(line.get(name)))}
            for line in metrics
            if "step" in line and any(_is_number(line.get(name)) for name in names)
        ]
        if sums:
            found["sum" if kind == "loss" else kind] = series(sums, kind)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one metric; a step that was run again after a restart counts as it was last."""
    found: dict[int, float] = {}
    for line in metrics:
        if _is_number(line.get(name)) and isinstance(line.get("step"), int):
            found[line["step"]] = float(line[name])
    steps = sorted(found)
    return np.array(steps, float), np.array([found[step] for step in steps], float)


def _checks(metrics: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """The online check; its controls don't move with training and are levels."""
    found = _recorded(metrics, "knn_ap")
    flat = {words: float(points[1][-1]) for words, points in found.items() if _is_control(words)}
    moving = {words: points for words, points in found.items() if not _is_control(words)}
    moving = {("this network" if words == "knn_ap" else words): points for words, points in moving.items()}
    if not moving:
        return []
    note = "Average precision on labelled exposures; dashed: controls that training can't change."
    return [_over_steps("knn", "Nearest-neighbour check", note, moving, "average precision", flat)]


def _is_control(name: str) -> bool:
    return "untrained" in name or "numbers" in name


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
        [(key, x, y) for key, (x, y) in lines.items()],
        labels=("step", label),
        unit_square=False,
        marks=max(len(x) for x, _ in lines.values()) < 30,
        flat=list((flat or {}).items()),
    )
    rows = [(key, f"{first:.3g}", f"{end:.3g}") for key, (first, end) in last.items()]
    rows += [(key, f"{value:.3g}", f"{value:.3g}") for key, value in (flat or {}).items()]
    return Chart(title, note, figure(markup), ("", "first", "last"), rows)
