from __future__ import annotations

import numpy as np
import pytest

from hpcqa import instruments
from hpcqa.config import ManifestConfig
from hpcqa.errors import ConfigError, DataError
from hpcqa.survey.coded import Coded, constant
from hpcqa.survey.cuts import Ledger, names_of
from hpcqa.survey.selection import apply, cut_dead, galactic_latitude, read_expnums


def cut(config, rows=3, *, expnum=None, band=None, **numbers):
    defaults = {"exptime": 90.0, "ebv": np.nan, "ra": 0.0, "dec": 0.0, "ccd_cuts": 0, "mjd_obs": 58000.0}
    columns = {name: np.array(numbers.get(name, [value] * rows)) for name, value in defaults.items()}
    ledger = Ledger(rows)
    apply(
        ledger,
        config,
        expnum=np.arange(1, rows + 1) if expnum is None else np.array(expnum),
        band=band or constant("r", rows),
        numbers=columns,
    )
    return [",".join(names_of(int(bits))) for bits in ledger.bits], ledger.detail.expand().tolist()


def test_defaults_cut_nothing():
    assert cut(ManifestConfig(), exptime=[0.0, np.nan, 5.0])[0] == ["", "", ""]


def test_bands():
    band = Coded(np.array([0, 1, 0]), ("g", "Y"))
    assert cut(ManifestConfig(bands=["g", "r"]), band=band) == (["", "band", ""], ["", "band Y", ""])


def test_exposure_time():
    got = cut(ManifestConfig(min_exptime=30.0), exptime=[29.9, 30.0, np.nan])
    assert got == (["exptime", "", ""], ["exptime 29.9 s", "", ""])


def test_reddening_cuts_only_what_is_known(caplog):
    assert cut(ManifestConfig(max_ebv=0.04), ebv=[0.03, 0.05, np.nan])[0] == ["", "ebv", ""]
    assert cut(ManifestConfig(max_ebv=0.04))[0] == ["", "", ""]
    assert "no table has a column ebv" in caplog.text


def test_galactic_latitude_cut():
    got = cut(ManifestConfig(min_abs_glat=10.0), ra=[266.4, 192.86, 12.86], dec=[-28.9, 27.13, -27.13])
    assert got[0] == ["glat", "", ""]


def test_galactic_latitude_is_astropys():
    from astropy import units
    from astropy.coordinates import SkyCoord

    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 200), np.degrees(np.arcsin(rng.uniform(-1, 1, 200)))
    expected = SkyCoord(ra * units.deg, dec * units.deg).galactic.b.deg
    np.testing.assert_allclose(galactic_latitude(ra, dec), expected, atol=1e-3)


def test_ccd_cuts_bits():
    got = cut(ManifestConfig(ccd_cuts=0x300), ccd_cuts=[0x200, 0x400, 0x301])
    assert got == (["ccd_cuts", "", "ccd_cuts"], ["ccd_cuts 0x200", "", "ccd_cuts 0x300"])


def test_dates():
    config = ManifestConfig(first_mjd=58000.0, last_mjd=58001.0)
    assert cut(config, mjd_obs=[57999.9, 58000.5, 58001.1])[0] == ["date", "", "date"]


def test_lists_of_exposures(tmp_path):
    (tmp_path / "only.txt").write_text("# wanted\n1\n3  # good\n\n151119075127\n")
    (tmp_path / "not.txt").write_text("3\n")
    config = ManifestConfig(only=str(tmp_path / "only.txt"), exclude=str(tmp_path / "not.txt"))
    assert cut(config)[0] == ["", "not_listed", "excluded"]
    assert read_expnums(tmp_path / "only.txt", "k").tolist() == [1, 3, 151119075127]


def test_bad_lists_of_exposures(tmp_path):
    with pytest.raises(ConfigError, match=r"manifest\.only=.*not found"):
        read_expnums(tmp_path / "none.txt", "manifest.only")
    (tmp_path / "bad.txt").write_text("12\nexpnum 13\n")
    with pytest.raises(DataError, match=r"bad.txt:2: found 'expnum'"):
        read_expnums(tmp_path / "bad.txt", "manifest.only")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError):
        read_expnums(tmp_path / "binary.txt", "manifest.only")


@pytest.mark.parametrize("name", instruments.KNOWN)
def test_dead_ccds_are_those_that_the_camera_names_row_by_row(name):
    from hpcqa.instruments.base import CcdContext

    instrument = instruments.get(name)
    rng = np.random.default_rng(1)
    rows = 3000
    expnum = rng.integers(140000, 800000, rows)
    mjd = 56000.0 + (expnum - 140000) / 250.0
    ccdnum = rng.choice([ccd.ccdnum for ccd in instrument.ccds], rows).astype(np.int32)
    ledger = Ledger(rows)
    columns = {"expnum": expnum, "ccdnum": ccdnum, "band": constant("r", rows), "mjd_obs": mjd}
    cut_dead(ledger, instrument, np.ones(rows, bool), plver=constant("V4.8", rows), **columns)
    detail = ledger.detail.expand()
    for row in range(rows):
        context = CcdContext(int(ccdnum[row]), int(expnum[row]), "r", float(mjd[row]), "V4.8")
        assert detail[row] == instrument.is_dead(context)
        assert (ledger.bits[row] != 0) == bool(detail[row])


def test_a_camera_is_asked_no_more_than_it_needs():
    asked = []

    class Camera:
        def is_dead(self, context):
            asked.append(context.ccdnum)
            return "gone" if context.ccdnum == 1 and context.expnum > 5 else ""

    ledger = Ledger(1000)
    ccdnum = np.arange(1000) % 10
    cut_dead(
        ledger,
        Camera(),
        np.ones(1000, bool),
        expnum=np.arange(1000),
        ccdnum=ccdnum,
        band=constant("g", 1000),
        mjd_obs=np.zeros(1000),
        plver=constant("", 1000),
    )
    assert asked.count(2) <= 2
    assert (ledger.bits != 0).tolist() == ((ccdnum == 1) & (np.arange(1000) > 5)).tolist()
