import datetime as dt
from pathlib import Path

import pytest

from hpcqa.instruments import get


@pytest.mark.parametrize("camera", ["minicam", "decam"])
@pytest.mark.parametrize("prodtype", ["image", "dqmask", "wtmap"])
def test_image_name_and_parse_file_name_are_inverse(camera, prodtype):
    instrument = get(camera)
    name = instrument.image_name(prodtype, dt.datetime(2025, 1, 6, 4, 5, 59), "z", "v1")
    parsed = instrument.parse_file_name(Path(name))
    assert (parsed.prodtype, parsed.band, parsed.version) == (prodtype, "z", "v1")
    assert parsed.date == "2025-01-06T04:05:59"
    assert (
        instrument.companion(
            Path(instrument.image_name("image", dt.datetime(2025, 1, 6, 4, 5, 59), "z", "v1")), prodtype
        ).name
        == name
    )
