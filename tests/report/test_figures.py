import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
from matplotlib import image

from hpcqa.report import figures, indexed
from hpcqa.report.figures import Bar

EVIL = "<script>alert('x')</script> & \"y\""


def all_figures(name="one", alt="what it shows"):
    x = np.linspace(0, 1, 11)
    yield figures.bars(name, alt, [("AP", [Bar("a", 0.5, 0.4, 0.6), Bar("b", float("nan"))])])
    yield figures.dots(name, alt, [("AP", [Bar("a", -0.1, -0.2, 0.1), Bar("b", float("nan"))])])
    yield figures.curves(name, alt, [("a", x, x**2), ("b", x, x)], labels=("x", "y"), diagonal=True)
    yield figures.curves(name, alt, [("a", 1 + x, x)], labels=("x", "y"), log_x=True, marks=True, flat=[("c", 0.5)])
    yield figures.reliability(name, alt, x, x, x - 0.1, x + 0.1)
    yield figures.matrix(name, alt, np.array([[3, 1], [0, 0]]), ["r", "s"], ["t", "u"], labels=("x", "y"))
    yield figures.histogram(name, alt, {"good": x, "bad": np.array([np.nan, 99.0])}, label="x", bins=x)


def test_figures_are_well_formed_named_and_follow_the_theme():
    for text in all_figures():
        root = ElementTree.fromstring(text)
        assert root.tag.endswith("svg")
        assert root.attrib["aria-label"] == "what it shows"
        assert "var(--ink)" in text or "var(--muted)" in text
        assert not set(re.findall(r"#[0-9a-f]{6}\b", text)) & set(figures.VARIABLES.values())
        assert "<metadata" not in text
        assert all(found.startswith("one-") for found in re.findall(r' id="([^"]*)"', text))


def test_figures_are_the_same_each_time():
    assert list(all_figures()) == list(all_figures())


def test_texts_are_escaped():
    text = figures.bars("n", EVIL, [(EVIL, [Bar(EVIL, 0.3)])])
    assert "<script>" not in text
    assert ElementTree.fromstring(text).attrib["aria-label"] == EVIL


def test_sheet_is_a_png(tmp_path):
    panel = figures.Panel("one", indexed.grey(np.eye(8)).rgba(), ((1, 2, 3, 4, "N1"),))
    figures.sheet(tmp_path / "a.png", "title", ["a line"], [panel, panel, panel])
    assert image.imread(tmp_path / "a.png").ndim == 3


def test_a_home_that_cannot_be_written_is_not_worth_a_word():
    elsewhere = {"HOME": "/proc/none", "XDG_CONFIG_HOME": "", "XDG_CACHE_HOME": "", "MPLCONFIGDIR": ""}
    words = [sys.executable, "-c", "import hpcqa.report.figures"]
    done = subprocess.run(words, env={**os.environ, **elsewhere}, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
