import csv
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpcqa.errors import DataError
from hpcqa.reasons import REASONS, from_bits
from hpcqa.report.votes import COLUMNS, WHOLE, Vote, read_votes, tally
from hpcqa.survey.labels import read_list
from hpcqa.survey.statements import CcdNamer

votes = st.builds(
    Vote,
    expnum=st.integers(1, 10**12),
    ccdnum=st.integers(-1, 62),
    verdict=st.sampled_from(["good", "bad", "unsure"]),
    reasons=st.lists(st.sampled_from(REASONS), unique=True, max_size=3).map(tuple),
    comment=st.text(st.characters(blacklist_categories=("Cs", "Cc")), max_size=20).map(str.strip),
)


def written(cast):
    """The CSV of some votes, as the page writes it."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for vote in cast:
        ccdnum = "" if vote.ccdnum == WHOLE else vote.ccdnum
        writer.writerow((vote.expnum, ccdnum, vote.verdict, "|".join(vote.reasons), "", vote.comment))
    return stream.getvalue()


@given(st.lists(votes, max_size=20, unique_by=lambda vote: (vote.expnum, vote.ccdnum)))
def test_what_is_written_is_read(cast):
    assert read_votes(written(cast), where="v.csv") == cast


def test_a_later_vote_replaces_an_earlier_one():
    text = "expnum,ccdnum,verdict,reasons,severity,comment\n7,,bad,ghost|psf,,\n7,-1,good,,,\n7,3,bad,,,\n"
    assert read_votes(text, where="v.csv") == [Vote(7, -1, "good"), Vote(7, 3, "bad")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing"),
        ("id,vote\n1,good\n", "id,vote"),
        ("expnum,ccdnum,verdict\nx,,good\n", "v.csv:2"),
        ("expnum,ccdnum,verdict\n1,,fine\n", "'fine'"),
        ("expnum,ccdnum,verdict\n1\n", "verdict ''"),
    ],
)
def test_bad_files_are_named(text, said):
    with pytest.raises(DataError, match=r"v\.csv") as caught:
        read_votes(text, where="v.csv")
    assert said in str(caught.value)


def test_agreement_abstentions_and_disputes():
    found = tally(
        {
            "ann": [Vote(1, -1, "bad", ("ghost",)), Vote(2, -1, "good"), Vote(3, -1, "bad"), Vote(4, -1, "unsure")],
            "bob": [Vote(1, -1, "bad", ("psf",), "odd"), Vote(2, -1, "good"), Vote(3, -1, "good"), Vote(4, -1, "bad")],
            "eve": [Vote(9, 5, "unsure")],
        }
    )
    ann, _, eve = found.reviewers
    assert (ann.votes, ann.bad, ann.unsure) == (4, 2, 1)
    assert (eve.votes, eve.unsure) == (1, 1)
    pair = found.pairs[0]
    assert (pair.one, pair.other, pair.both, pair.same) == ("ann", "bob", 3, 2)
    assert pair.kappa == pytest.approx((2 / 3 - 4 / 9) / (1 - 4 / 9))
    assert math.isnan(found.pairs[1].kappa)
    assert found.disputed == ((3, -1),)
    assert found.consensus == (
        Vote(1, -1, "bad", ("ghost", "psf"), "odd"),
        Vote(2, -1, "good"),
        Vote(4, -1, "bad"),
    )


def test_nobody_and_nothing():
    assert tally({}).reviewers == ()
    assert tally({"ann": []}).reviewers[0].votes == 0


def test_the_label_reader_takes_votes_and_leaves_abstentions_out(tmp_path):
    path = tmp_path / "votes-ann.csv"
    cast = [Vote(1307001, -1, "bad", ("ghost", "psf"), "a, b"), Vote(1307002, 3, "good")]
    cast += [Vote(1307003, -1, "unsure"), Vote(1307004, 5, "bad")]
    path.write_text(written(cast))
    found = read_list(path, CcdNamer("minicam"))
    said = [(row.expnum, row.ccdnum, row.bad, from_bits(row.reasons)) for row in found.statements]
    assert said == [(1307001, -1, True, ["psf", "ghost"]), (1307002, 3, False, []), (1307004, 5, True, ["other"])]
