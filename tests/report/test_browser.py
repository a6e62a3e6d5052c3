"""The page in a real browser: no errors, the table filters, votes become a label list."""

import re
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.browser

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--virtual-time-budget=4000", "--dump-dom"),
)


@pytest.fixture
def load(page_folder, tmp_path):
    """Load the page, with a hash and a script of the test's own at its end; gives the DOM's text and the console's."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")

    def loaded(fragment="", script=""):
        copy = tmp_path / "report"
        shutil.copytree(page_folder, copy, dirs_exist_ok=True)
        index = copy / "index.html"
        index.write_text(index.read_text().replace("</body>", f"<script>{script}</script></body>"))
        done = subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", f"{index.as_uri()}{fragment}"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return done.stdout, console

    return loaded


def rows_of(dom):
    return [int(number) for number in re.findall(r'<tr class="row[^>]*data-expnum="(\d+)"', dom)]


def count_of(dom):
    return int(re.search(r'id="count"[^>]*data-count="(\d+)"', dom).group(1))


def test_page_loads_without_errors_and_shows_a_page_of_rows(load):
    dom, console = load()
    assert console == []
    assert 'data-ready="yes"' in dom
    assert count_of(dom) == 60
    assert len(rows_of(dom)) == 50
    assert "sky 4.1 sigma above r band" in dom


def test_the_address_filters_and_sorts(load):
    dom, console = load("#verdict=undecided&sort=expnum&down=1")
    assert console == []
    assert rows_of(dom) == [500060, 500059, 500058]
    assert 'aria-sort="descending"' in dom


def test_words_and_reasons_filter(load):
    script = (
        "const box = document.getElementById('search'); box.value = '50000'; box.dispatchEvent(new Event('input'));"
    )
    dom, console = load("", script)
    assert console == []
    assert count_of(dom) == 9
    dom, _ = load("#reason=ghost")
    assert 0 < count_of(dom) < 20
    assert "ghost" in dom


def test_nothing_found_is_said(load):
    dom, console = load("#q=nosuchthing")
    assert console == []
    assert count_of(dom) == 0
    assert "No exposure matches." in dom


def test_details_open(load):
    dom, console = load(
        "#sort=expnum", "setTimeout(() => document.querySelector('#decisions tr.row button').click(), 300);"
    )
    assert console == []
    assert "Nearest labelled" in dom[dom.index('<table id="decisions"') : dom.index('id="previous"')]


VOTE = """
const form = document.querySelector('form.vote');
form.querySelector('[data-vote=bad]').click();
form.querySelector('[data-reason=ghost]').click();
form.querySelector('[data-reason=psf]').click();
const words = form.querySelector('input');
words.value = 'a "bright", ring';
words.dispatchEvent(new Event('input'));
const other = document.querySelectorAll('form.vote')[1];
other.querySelector('select').value = '5';
other.querySelector('select').dispatchEvent(new Event('change'));
other.querySelector('[data-vote=unsure]').click();
const said = document.createElement('pre');
said.id = 'said';
said.textContent = window.hpcqaVotesAsCsv();
document.body.append(said);
"""


def test_votes_become_a_label_list_that_reads_back(load, tmp_path):
    import html

    from hpcqa.report.votes import read_votes

    dom, console = load("", VOTE)
    assert console == []
    assert ">2 votes<" in dom
    text = html.unescape(re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL).group(1))
    bad, unsure = read_votes(text, where="votes.csv")
    assert (bad.ccdnum, bad.verdict, bad.reasons, bad.comment) == (-1, "bad", ("ghost", "psf"), 'a "bright", ring')
    assert (unsure.ccdnum, unsure.verdict) == (5, "unsure")
