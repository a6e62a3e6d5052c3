import html
import json
import re
from html.parser import HTMLParser

import pytest

from hpcqa.artifacts.folder import RunFolder
from hpcqa.config import Config
from hpcqa.config.frozen import from_plain
from hpcqa.errors import DataError
from hpcqa.parallel.ranks import Ranks
from hpcqa.report import pages
from hpcqa.report.collect import collect
from tests.report import made_up

VOID = {"meta", "link", "img", "input", "br"}


class Balance(HTMLParser):
    """Every element is closed, ids are unique, local links lead somewhere; collects what is referred to."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references, self.images = [], [], [], []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in values:
            self.ids.append(values["id"])
        self.references += [values[name] for name in ("src", "href") if name in values]
        if tag == "img":
            self.images.append(values)

    def handle_startendtag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(text):
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    return balance


def test_page_is_well_formed_and_refers_only_to_its_own_folder(page_folder):
    found = parsed((page_folder / "index.html").read_text())
    assert len(found.ids) == len(set(found.ids))
    outside = [
        ref for ref in found.references if not ref.startswith(("#", "data/", "images/", "data:,", "../run.yaml"))
    ]
    assert outside == []
    for reference in found.references:
        if reference.startswith(("data/", "images/")):
            assert (page_folder / reference).is_file()
        if reference.startswith("#"):
            assert reference[1:] in found.ids


def test_every_picture_has_words_and_is_used(page_folder):
    found = parsed((page_folder / "index.html").read_text())
    assert all(image["alt"] and int(image["width"]) and int(image["height"]) for image in found.images)
    used = {image["src"].removeprefix("images/") for image in found.images}
    assert used == {path.name for path in (page_folder / "images").iterdir()}
    figures = re.findall(r'<svg class="figure"[^>]*>', (page_folder / "index.html").read_text())
    assert figures
    assert all("aria-label=" in figure for figure in figures)


def test_what_tables_say_is_escaped(page_folder):
    text = (page_folder / "index.html").read_text()
    assert "<b>7</b>" not in text
    assert html.escape("field <b>7</b>") in text
    assert "<title>hpcqa report: night &lt;one&gt;</title>" in text


def test_every_exposure_is_in_the_table_and_every_lost_row_in_the_csv(page_folder):
    script = (page_folder / "data" / "decisions.js").read_text()
    content = json.loads(script[script.index("{") : script.rindex("}") + 1])
    assert len(content["expnum"]) == 60
    assert len((page_folder / "data" / "unprocessed.csv").read_text().splitlines()) == 45


def test_an_exposure_without_pictures_says_so(page_folder):
    text = (page_folder / "index.html").read_text()
    assert text.count("No pictures: the exposure is in no shard.") == 1


def few(exposures):
    return from_plain({"report": {"exposures": exposures}})


def test_run_writes_once_and_again_only_when_something_changed(tmp_path, monkeypatch):
    folder = made_up.make_run(tmp_path / "run", 12)
    monkeypatch.setattr(pages, "_viewer", lambda *_: made_up.MadeUpViews())
    index = folder.output("report") / "index.html"
    pages.run(few(3), folder, Ranks())
    first = index.stat().st_mtime_ns
    images = {path.name for path in (index.parent / "images").iterdir()}
    pages.run(few(3), folder, Ranks())
    assert index.stat().st_mtime_ns == first
    pages.run(few(2), folder, Ranks())
    assert index.stat().st_mtime_ns != first
    assert {path.name for path in (index.parent / "images").iterdir()} < images
    made_up.add_metrics(folder)
    pages.run(few(2), folder, Ranks())
    assert 'id="training"' in index.read_text()
    assert not list(index.parent.glob(".making-*"))


def test_the_same_run_gives_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "_viewer", lambda *_: made_up.MadeUpViews())
    contents = []
    for name in ("one", "two"):
        folder = made_up.make_run(tmp_path / name / "run", 8)
        pages.run(few(2), folder, Ranks())
        report = folder.output("report")
        contents.append({path.relative_to(report): path.read_bytes() for path in report.rglob("*") if path.is_file()})
    assert contents[0] == contents[1]


def test_a_killed_rendering_is_done_again(tmp_path, monkeypatch):
    folder = made_up.make_run(tmp_path / "run", 12)
    monkeypatch.setattr(pages, "_viewer", lambda *_: None)
    pages.run(few(1), folder, Ranks())
    (folder.output("report") / "report.json").unlink()
    (folder.output("report") / "index.html").write_text("half")
    pages.run(few(1), folder, Ranks())
    assert parsed((folder.output("report") / "index.html").read_text()).ids


def test_nothing_decided_everything_cut(tmp_path):
    folder = made_up.make_run(tmp_path / "run", 5, cut=5, failed=0)
    pages.run(Config(), folder, Ranks())
    text = (folder.output("report") / "index.html").read_text()
    parsed(text)
    assert "Cut before reading" in text
    assert "No exposures are shown with pictures." in text
    assert 'id="evaluation"' not in text


def test_no_exposures_at_all(tmp_path):
    folder = made_up.make_run(tmp_path / "run", 0, cut=0, failed=0)
    pages.run(Config(), folder, Ranks())
    parsed((folder.output("report") / "index.html").read_text())


def test_without_decisions_it_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match="hpcqa classify"):
        pages.run(Config(), RunFolder(tmp_path), Ranks())


def test_only_the_first_rank_writes(tmp_path):
    pages.run(Config(), RunFolder(tmp_path), Ranks(rank=1, world_size=2))
    assert list(tmp_path.iterdir()) == []


def test_labels_and_truth_in_words(tmp_path):
    folder = made_up.make_run(tmp_path / "run", 12)
    made_up.add_labels(folder, "labels", 6)
    data = collect(folder)
    assert data.known_source == "labels"
    assert data.known[made_up.FIRST].words == "good"
    assert data.known[made_up.FIRST + 1].words == "bad: clouds"
    assert data.known[made_up.FIRST + 2].words == "2 bad CCDs: amplifier"
    assert data.known[made_up.FIRST + 2].bad
