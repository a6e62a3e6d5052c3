import json

import numpy as np

from hpcqa.report import table
from hpcqa.report.collect import collect


def parse(script):
    return json.loads(script[script.index("{") : script.rindex("}") + 1])


def test_order_is_bad_review_good_undecided(made_up_run):
    decisions = collect(made_up_run).decisions
    order = table.interest_order(decisions)
    verdicts = list(dict.fromkeys(decisions["verdict"][order]))
    assert verdicts == ["bad", "review", "good", "undecided"]
    bad = decisions["p_bad"][order][decisions["verdict"][order] == "bad"]
    assert (np.diff(bad) <= 0).all()


def test_columns_keep_every_row(made_up_run):
    decisions = collect(made_up_run).decisions
    content = parse(table.columns_script(decisions, {500001: "good"}, {500002}))
    assert content["expnum"] == decisions["expnum"].tolist()
    verdict = content["verdict"]
    assert [verdict["names"][row] for row in verdict["rows"]] == decisions["verdict"].tolist()
    assert content["p_bad"][-1] is None  # undecided
    assert content["pictured"] == [500002]
    assert content["known"]["names"] == ["", "good"]


def test_details_come_in_chunks_in_the_same_order(monkeypatch, made_up_run):
    decisions = collect(made_up_run).decisions
    monkeypatch.setattr(table, "CHUNK_ROWS", 25)
    scripts = list(table.detail_scripts(decisions))
    assert [name for name, _ in scripts] == ["details-00000.js", "details-00001.js", "details-00002.js"]
    rows = [row for _, text in scripts for row in json.loads(text[text.index("[") : text.rindex("]") + 1])]
    assert [row[3] for row in rows] == decisions["evidence"].tolist()


def test_scripts_are_plain_ascii_whatever_tables_hold():
    decisions = {name: np.array(["</script>\u2028é"], object) for name in table.DETAILS} | {"expnum": np.array([1])}
    ((_, text),) = table.detail_scripts(decisions)
    assert text.isascii()
