import pytest

from hpcqa.errors import DataError
from hpcqa.report.cards import make_card, split_words
from hpcqa.report.choose import Choice
from hpcqa.report.collect import collect
from tests.report import made_up


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ()),
        ("N4 0.98, S7 0.61", ("N4 0.98", "S7 0.61")),
        ("1234 (ghost, psf), 1250 (good)", ("1234 (ghost, psf)", "1250 (good)")),
        ("fwhm +8.2, sky +4; N4 alone: step +3", ("fwhm +8.2, sky +4", "N4 alone: step +3")),
    ],
)
def test_lists_in_words_are_split(text, parts):
    assert split_words(text) == parts


def test_card_says_and_shows(made_up_run, tmp_path):
    data = collect(made_up_run)
    card = make_card(data, Choice(3, "for review"), made_up.MadeUpViews(), tmp_path)
    assert card.expnum == made_up.FIRST + 3
    assert card.ccds[0] == (1, "S6")
    assert len(card.planes) == 2
    assert [stamp.ccdname for stamp in card.stamps]
    assert all((tmp_path / picture.source.removeprefix("images/")).is_file() for picture in card.planes)
    assert dict(card.header)["exposure time"] == "90 s"
    assert "Nearest labelled" in dict(card.facts)


class Damaged(made_up.MadeUpViews):
    def views(self, expnum):
        raise DataError("shards/shard-00000.h5: damaged")


def test_a_damaged_shard_costs_the_pictures_only(made_up_run, tmp_path):
    card = make_card(collect(made_up_run), Choice(3, ""), Damaged(), tmp_path)
    assert card.no_pictures == "No pictures: shards/shard-00000.h5: damaged"
    assert card.planes == ()


def test_no_viewer_no_pictures(made_up_run, tmp_path):
    card = make_card(collect(made_up_run), Choice(3, ""), None, tmp_path)
    assert "no shard" in card.no_pictures
    assert list(tmp_path.iterdir()) == []
