"""The report: one page in one folder, with its pictures and data beside it; nothing is fetched from anywhere.

Files get their final names one by one, the page last; `report.json` says what it was made from, so that a report that
is current is left alone.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from hpcqa.artifacts.folder import RunFolder
from hpcqa.artifacts.store import read_json, read_provenance, write_json
from hpcqa.config import Config
from hpcqa.config.frozen import stage_digest
from hpcqa.errors import DataError, EnvironmentProblem
from hpcqa.observe import track
from hpcqa.parallel.ranks import Ranks
from hpcqa.reasons import REASONS
from hpcqa.report import accounting, attention, charts, compare, evaluation, table
from hpcqa.report.cards import Card, Views, make_card
from hpcqa.report.choose import interesting
from hpcqa.report.collect import Collected, code_version, collect, digests
from hpcqa.report.viewer import Viewer
from hpcqa.survey.cuts import CUTS

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "templates"
LISTED = 300  # rows without a decision that the page itself lists; the CSV beside it has all
PARTS = ("images", "data")
LEFTOVER_S = 3600.0


@dataclass(frozen=True)
class Page:
    """Everything that the template shows."""

    title: str
    cameras: str
    bands: str
    nights: str
    funnel: accounting.Funnel
    evaluation: evaluation.Evaluation
    training: Sequence[charts.Chart]
    distributions: Sequence[charts.Chart]
    cards: Sequence[Card]
    unprocessed: Sequence[accounting.Unprocessed]
    num_unprocessed: int
    provenance: Mapping[str, Any]
    settings: Mapping[str, Any]
    reasons: Sequence[str]
    report_id: str
    version: str
    num_exposures: int
    config_digest: str
    changes: compare.Comparison | None = None


def run(config: Config, folder: RunFolder, ranks: Ranks) -> None:
    """Write RUN/report/, unless it is there and made from the same files.

    Raises:
        DataError: the run has no decisions yet, or one of its tables is damaged.
        EnvironmentProblem: the disk refuses.
    """
    if not ranks.is_first:
        return
    out = folder.output("report")
    parents = digests(folder) | earlier_decisions(config, folder)
    made_from = {"config_digest": stage_digest(config, "report"), "parents": parents, **_code()}
    if is_current(out, made_from):
        logger.info("report: %s is current", out / "index.html")
        return
    data = collect(folder)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=out) as making:
            write_pages(data, config, folder, _viewer(config, folder), Path(making))
            publish(Path(making), out)
    except OSError as error:
        raise EnvironmentProblem(
            f"{out}: cannot be written ({error.strerror or error}); free some space or choose another run folder."
        ) from error
    write_json(out / "report.json", made_from)
    logger.info("report: %s", out / "index.html")


def is_current(out: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether a finished report is there that was made from the same settings, files and code."""
    if not (out / "index.html").is_file():
        return False
    try:
        found: bool = read_json(out / "report.json") == made_from
    except DataError:
        return False
    return found


def earlier_decisions(config: Config, folder: RunFolder) -> dict[str, str]:
    """The decisions that an update is compared with, for the digests of what a report is made from."""
    if not config.survey.update or not folder.bases:
        return {}
    path = RunFolder(folder.bases[0], folder.bases[1:]).find("decisions")
    return {} if path is None else {"decisions of the earlier run": read_provenance(path).content}


def _code() -> dict[str, str]:
    digest = hashlib.sha256()
    for path in sorted(TEMPLATES.iterdir()):
        if path.is_file():
            digest.update(path.read_bytes())
    return {"code_version": code_version(), "templates": digest.hexdigest()}


def _viewer(config: Config, folder: RunFolder) -> Views | None:
    try:
        return Viewer(config, folder)
    except DataError as problem:
        logger.warning("report: no pictures: %s", problem)
        return None


def write_pages(data: Collected, config: Config, folder: RunFolder, views: Views | None, out: Path) -> None:
    """Render everything into an empty folder."""
    for part in PARTS:
        (out / part).mkdir()
    order = table.interest_order(data.decisions)
    decisions = {name: values[order] for name, values in data.decisions.items()}
    truth = {expnum: known.bad for expnum, known in data.known.items()} if data.known_source == "truth" else {}
    choices = interesting(data.decisions, config.report.exposures, truth)
    pictured = track(choices, "report", total=len(choices), unit="exposures")
    cards = [make_card(data, choice, views, out / "images") for choice in pictured]
    known = {expnum: said.words for expnum, said in data.known.items()}
    script = table.columns_script(decisions, known, {card.expnum for card in cards})
    (out / "data" / "decisions.js").write_text(script)
    for name, text in table.detail_scripts(decisions):
        (out / "data" / name).write_text(text)
    cut_names = {cut.bit: cut.sentence.rstrip(".") for cut in CUTS}
    unprocessed = accounting.unprocessed(data.manifest, data.ccds, cut_names)
    with (out / "data" / "unprocessed.csv").open("w") as stream:
        lost, num_lost = accounting.write_csv(unprocessed, stream, LISTED)
    page = make_page(data, config, folder, cards, lost, num_lost)
    page = replace(page, training=[*page.training, *attention.charts(folder, out / "images")])
    if page.changes is not None:
        (out / "data" / "changes.csv").write_text(compare.as_csv(page.changes))
    (out / "index.html").write_text(render(page))


def make_page(
    data: Collected,
    config: Config,
    folder: RunFolder,
    cards: Sequence[Card],
    lost: Sequence[accounting.Unprocessed],
    num_lost: int,
) -> Page:
    """What the template shows, out of what was read."""
    cut_names = {cut.bit: cut.sentence.rstrip(".") for cut in CUTS}
    return Page(
        title=folder.path.name,
        cameras=_different(data.manifest["camera"]),
        bands=_different(data.decisions["band"]),
        nights=_span(data.decisions["night"]),
        funnel=accounting.funnel(data.manifest, data.ccds, data.decisions, cut_names),
        evaluation=evaluation.evaluation(data.evaluation, data.decisions, data.unseen()),
        training=charts.training(data.metrics),
        distributions=charts.distributions(data.decisions),
        cards=cards,
        unprocessed=lost,
        num_unprocessed=num_lost,
        provenance=data.provenance,
        settings=data.settings,
        reasons=REASONS,
        report_id=_report_id(data),
        version=code_version(),
        num_exposures=len(data.decisions["expnum"]),
        config_digest=stage_digest(config, "report"),
        changes=compare.changes_since_base(config, folder),
    )


def _different(values: np.ndarray) -> str:
    return ", ".join(sorted({str(value) for value in values if str(value)}))


def _span(nights: np.ndarray) -> str:
    known = np.unique(nights[nights > 0])
    if not len(known):
        return ""
    first, last = (f"{night // 10000}-{night // 100 % 100:02d}-{night % 100:02d}" for night in (known[0], known[-1]))
    return f"{len(known)} nights, {first} to {last}" if len(known) > 1 else f"night {first}"


def _report_id(data: Collected) -> str:
    """Names the votes in a browser: the same exposures and decisions keep their votes."""
    contents = "".join(entry.content for name, entry in data.provenance.items() if name.endswith("decisions.parquet"))
    return hashlib.sha256(contents.encode()).hexdigest()[:12]


def render(page: Page) -> str:
    """The page's HTML; everything that comes from tables is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["number"] = lambda value, digits=2: f"{value:.{digits}f}" if np.isfinite(value) else "–"
    environment.filters["thousands"] = lambda value: f"{value:,}"
    environment.filters["words"] = lambda name: str(name).replace("_", " ")
    # Both are files of this package, not of the survey.
    style, script = (Markup((TEMPLATES / name).read_text()) for name in ("style.css", "app.js"))
    return environment.get_template("index.html").render(page=page, style=style, script=script)


def publish(making: Path, out: Path) -> None:
    """Move a finished rendering into place, the page last; then remove what it does not use."""
    used = {}
    for part in PARTS:
        (out / part).mkdir(exist_ok=True)
        used[part] = {path.name for path in (making / part).iterdir()}
        for name in sorted(used[part]):
            (making / part / name).replace(out / part / name)
    (making / "index.html").replace(out / "index.html")
    for part in PARTS:
        for path in (out / part).iterdir():
            if path.name not in used[part]:
                path.unlink(missing_ok=True)
    for leftover in out.glob(".making-*"):
        # Another process may be at work in a young one; an old one was left by a process that was killed.
        if leftover != making and time.time() - leftover.stat().st_mtime > LEFTOVER_S:
            shutil.rmtree(leftover, ignore_errors=True)
