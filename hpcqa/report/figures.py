"""Figures of the report; the only user of matplotlib.

Plots are SVG text to be put inside a page: their colours are the page's CSS variables, so that they follow its light or
dark theme, and their text stays text. Every function is pure: arrays in, markup out.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# matplotlib cannot write CSS variables, so each stands as a colour that no figure uses otherwise.
VARIABLES = {
    "ink": "#010203",
    "muted": "#010204",
    "line": "#010205",
    "surface": "#010206",
    "c1": "#0102a1",
    "c2": "#0102a2",
    "c3": "#0102a3",
    "c4": "#0102a4",
    "c5": "#0102a5",
    "good": "#0102b1",
    "bad": "#0102b2",
    "review": "#0102b3",
    "undecided": "#0102b4",
}
COUNT_LEVELS = (0, 1, 3, *(scale * 10**power for power in range(1, 7) for scale in (1, 3)))
PIXELS_PER_POINT = 1.25
SERIES = ("c1", "c3", "c5", "c4", "bad", "c2")
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "axes.edgecolor": VARIABLES["line"],
    "axes.labelcolor": VARIABLES["muted"],
    "axes.titlecolor": VARIABLES["ink"],
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": VARIABLES["line"],
    "grid.linewidth": 0.7,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": VARIABLES["ink"],
    "xtick.color": VARIABLES["muted"],
    "ytick.color": VARIABLES["muted"],
    "xtick.labelcolor": VARIABLES["muted"],
    "ytick.labelcolor": VARIABLES["muted"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.labelcolor": VARIABLES["ink"],
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Bar:
    """One value with its interval; NaN where there is none. `note` follows the value in the figure."""

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    note: str = ""
    colour: str = "c1"


def _svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as markup for inside a page: own ids, CSS colours, a title for those who cannot see it."""
    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r"font: [^;\"]*?([\d.]+px)[^;\"]*", r"font-size: \1", text)
    for variable, colour in VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    # One scale for all figures of a page, so that their texts are of one size: points to CSS pixels, and not wider.
    width = round(float(box.group(1).split()[2]) * PIXELS_PER_POINT)
    opening = f'<svg class="figure" role="img" aria-label="{html.escape(alt, quote=True)}" viewBox="{box.group(1)}"'
    opening += f' style="max-width: {width}px"'
    opening += ' xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg">'
    return opening + text[text.index(">") + 1 :]


def _draw(name: str, alt: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> str:
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        return _svg(figure, name, alt)


def bars(name: str, alt: str, panels: Sequence[tuple[str, Sequence[Bar]]], *, width: float = 4.6) -> str:
    """Horizontal bars from zero to one with intervals, the first on top; several panels share the names of their bars.

    Args:
        name: unique on the page.
        alt: what the figure shows, in words.
        panels: label of the axis and bars of each panel, in the same order in all.
        width: inches.
    """
    names = [bar.name for bar in panels[0][1]]
    rows = np.arange(len(names))[::-1]

    def paint(figure: Figure) -> None:
        every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        for axes, (label, values) in zip(every, panels, strict=True):
            for row, bar in zip(rows, values, strict=True):
                _bar(axes, float(row), bar)
            axes.set_xlim(0, 1.3)
            axes.set_xticks(np.linspace(0, 1, 6))
            axes.grid(axis="y", visible=False)
            axes.spines[["left", "bottom"]].set_visible(False)
            axes.set_xlabel(label)
        every[0].set_yticks(rows, names, color=VARIABLES["ink"])
        every[0].set_ylim(-0.6, len(names) - 0.4)

    return _draw(name, alt, (width, 0.75 + 0.36 * max(len(names), 1)), paint)


def _bar(axes: Any, row: float, bar: Bar) -> None:
    known = np.isfinite(bar.value)
    axes.barh(row, bar.value if known else 0.0, height=0.62, color=VARIABLES[bar.colour], linewidth=0)
    reach = bar.value if known else 0.0
    if np.isfinite(bar.low) and np.isfinite(bar.high):
        axes.plot([bar.low, bar.high], [row, row], color=VARIABLES["ink"], linewidth=1.4)
        reach = max(reach, bar.high)
    words = f"{bar.value:.2f}" if known else "–"
    axes.text(reach + 0.02, row, f"{words}  {bar.note}".rstrip(), va="center", ha="left", fontsize=10)


def dots(name: str, alt: str, panels: Sequence[tuple[str, Sequence[Bar]]], *, width: float = 4.6) -> str:
    """Values with intervals about zero, such as differences; arguments as in `bars`."""
    names = [bar.name for bar in panels[0][1]]
    rows = np.arange(len(names))[::-1]

    def paint(figure: Figure) -> None:
        every = np.atleast_1d(figure.subplots(1, len(panels), sharey=True))
        for axes, (label, values) in zip(every, panels, strict=True):
            axes.axvline(0, color=VARIABLES["muted"], linewidth=1)
            for row, bar in zip(rows, values, strict=True):
                axes.plot([bar.low, bar.high], [row, row], color=VARIABLES[bar.colour], linewidth=2)
                axes.plot(bar.value, row, color=VARIABLES[bar.colour], marker="o", markersize=6)
            axes.margins(x=0.12)
            axes.grid(axis="y", visible=False)
            axes.spines["left"].set_visible(False)
            axes.set_xlabel(label)
        every[0].set_yticks(rows, names, color=VARIABLES["ink"])
        every[0].set_ylim(-0.6, len(names) - 0.4)

    return _draw(name, alt, (width, 0.75 + 0.36 * max(len(names), 1)), paint)


def curves(
    name: str,
    alt: str,
    lines: Sequence[tuple[str, np.ndarray, np.ndarray]],
    *,
    labels: tuple[str, str],
    unit_square: bool = True,
    log_x: bool = False,
    diagonal: bool = False,
    marks: bool = False,
    flat: Sequence[tuple[str, float]] = (),
    size: tuple[float, float] = (4.6, 3.5),
) -> str:
    """Lines (name, x, y) over each other, with a legend when there are several; `flat` are dashed levels by name."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=VARIABLES["muted"], linewidth=1, linestyle=(0, (4, 4)))
        for number, (title, x, y) in enumerate(lines):
            axes.plot(
                x,
                y,
                color=VARIABLES[SERIES[number % len(SERIES)]],
                label=title,
                marker="o" if marks else "",
                markersize=4.5,
            )
        for number, (title, level) in enumerate(flat):
            dash = (0, (5, 3)) if number % 2 == 0 else (0, (1.5, 2))
            axes.axhline(level, color=VARIABLES["muted"], linewidth=1.5, linestyle=dash, label=title)
        if unit_square:
            axes.set_ylim(-0.02, 1.03)
            if not log_x:
                axes.set_xlim(-0.02, 1.03)
        if log_x:
            axes.set_xscale("log")
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        if len(lines) + len(flat) > 1:
            axes.legend(fontsize=9.5, handlelength=1.6)

    return _draw(name, alt, size, paint)


def reliability(
    name: str, alt: str, predicted: np.ndarray, observed: np.ndarray, low: np.ndarray, high: np.ndarray
) -> str:
    """Observed share of bad exposures against predicted probability, with intervals, per bin."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=VARIABLES["muted"], linewidth=1, linestyle=(0, (4, 4)))
        axes.vlines(predicted, low, high, color=VARIABLES["c1"], linewidth=1.4, alpha=0.6)
        axes.plot(predicted, observed, color=VARIABLES["c1"], marker="o", markersize=5)
        axes.set_xlim(-0.02, 1.03)
        axes.set_ylim(-0.02, 1.03)
        axes.set_xlabel("predicted probability of bad")
        axes.set_ylabel("share that is bad")

    return _draw(name, alt, (4.6, 3.5), paint)


def matrix(
    name: str, alt: str, counts: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, labels: tuple[str, str]
) -> str:
    """A table of counts, shaded by the share of its row. `counts` has shape (rows, columns)."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for (row, column), count in np.ndenumerate(counts):
            shade = float(share[row, column])
            box = (column - 0.48, row - 0.47)
            patch = matplotlib.patches.Rectangle(box, 0.96, 0.94, color=VARIABLES["c1"], alpha=0.06 + 0.8 * shade, lw=0)
            axes.add_patch(patch)
            colour = VARIABLES["surface"] if shade > 0.55 else VARIABLES["ink" if count else "muted"]
            axes.text(column, row, f"{count:g}", ha="center", va="center", color=colour, fontsize=9.5)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        tilt = 40 if len(columns) > 5 or max(map(len, columns)) > 9 else 0
        axes.set_xticks(range(len(columns)), columns, rotation=tilt, ha="right" if tilt else "center")
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_xlabel(labels[1])
        axes.set_ylabel(labels[0])

    width = 1.7 + (0.5 if len(columns) > 5 else 0.7) * len(columns)
    return _draw(name, alt, (width, 1.3 + (0.34 if len(rows) > 5 else 0.55) * len(rows)), paint)


def histogram(
    name: str,
    alt: str,
    groups: Mapping[str, np.ndarray],
    *,
    label: str,
    bins: np.ndarray,
    colours: Mapping[str, str] | None = None,
) -> str:
    """Counts of several groups over each other in the same bins, on a scale that shows single ones beside thousands.

    Values outside the bins count at their ends; NaN is left out.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        highest = 1
        for number, (title, values) in enumerate(groups.items()):
            counts, _ = np.histogram(np.clip(values[np.isfinite(values)], bins[0], bins[-1]), bins)
            colour = VARIABLES[(colours or {}).get(title, SERIES[number % len(SERIES)])]
            axes.stairs(counts, bins, fill=True, color=colour, alpha=0.28, linewidth=0)
            axes.stairs(counts, bins, color=colour, linewidth=1.8, label=title)
            highest = max(highest, int(counts.max()))
        axes.set_yscale("symlog", linthresh=2)
        levels = [level for level in COUNT_LEVELS if level <= 1.3 * highest]
        axes.set_yticks(levels, [f"{level:,}" for level in levels])
        axes.set_yticks([], minor=True)
        axes.set_ylim(0, 1.4 * highest)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel(label)
        axes.set_ylabel("exposures")
        figure.legend(fontsize=9.5, handlelength=0.9, ncols=len(groups), loc="outside upper right")

    return _draw(name, alt, (4.6, 3.5), paint)


def colour_map(name: str, levels: int) -> np.ndarray:
    """RGBA colours of one of matplotlib's maps, from its low end to its high one: uint8 (levels, 4)."""
    colours: np.ndarray = matplotlib.colormaps[name](np.linspace(0, 1, levels), bytes=True)
    return colours


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet, uint8 (rows, columns, 4), and boxes (x, y, width, height, text) in its pixels."""

    title: str
    rgba: np.ndarray
    boxes: tuple[tuple[float, float, float, float, str], ...] = ()


def sheet(stream: Path | BinaryIO, title: str, lines: Sequence[str], panels: Sequence[Panel]) -> None:
    """Write a PNG with large panels in two columns, and lines of text below."""
    columns = min(2, max(1, len(panels)))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(7.4 * columns, 7.0 * rows + 0.9 + 0.24 * len(lines)), dpi=110, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=17, fontweight="bold")
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, number + 1)
        axes.imshow(panel.rgba, interpolation="nearest", origin="upper")
        axes.set_title(panel.title, loc="left", fontsize=12)
        axes.set_axis_off()
        for x, y, width, height, text in panel.boxes:
            axes.add_patch(
                matplotlib.patches.Rectangle((x - 0.5, y - 0.5), width, height, fill=False, ec="#d1495b", lw=1.4)
            )
            axes.text(x + 1, y - 2, text, color="#d1495b", fontsize=8)
    if lines:
        figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=11, family="monospace")
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})


def sweep_plot(
    stream: Path | BinaryIO,
    metric: str,
    settings: Mapping[str, Sequence[str]],
    figures: Sequence[tuple[float, float, float]],
    *,
    best: int,
) -> None:
    """Write a PNG with a panel for each setting of a sweep: the metric of every run over the setting's values.

    Args:
        settings: for each setting the value of every run, as text; numbers are put in order.
        figures: value, low and high of every run; NaN where there is no interval.
        best: which run is drawn with a star.
    """
    columns = min(3, max(1, len(settings)))
    rows = -(-len(settings) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.4 * rows), dpi=110, layout="constrained")
    values = np.array(figures, float).reshape(-1, 3)
    reach = np.nan_to_num(np.abs(values[:, 1:] - values[:, :1])).T
    for number, (name, words) in enumerate(settings.items()):
        axes = figure.add_subplot(rows, columns, number + 1)
        levels = sorted(set(words), key=_as_number_first)
        places = np.array([levels.index(word) for word in words], float)
        # Runs with the same value stand beside each other, in the order of the sweep.
        places += np.linspace(-0.15, 0.15, len(words)) if len(words) > 1 else 0.0
        axes.errorbar(places, values[:, 0], yerr=reach, fmt="o", ms=5, color="#4477aa", ecolor="#bbccdd", capsize=2)
        axes.plot(places[best], values[best, 0], "*", ms=14, color="#d1495b", label="best")
        axes.set_xticks(range(len(levels)), [level[:24] for level in levels], rotation=30 if len(levels) > 4 else 0)
        axes.set_xlabel(name)
        axes.grid(axis="y", color="#dddddd", lw=0.7)
        if number % columns == 0:
            axes.set_ylabel(metric.replace("_", " "))
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})


def _as_number_first(word: str) -> tuple[int, float, str]:
    try:
        return (0, float(word), word)
    except ValueError:
        return (1, 0.0, word)
