from collections import Counter

import numpy as np
import pytest

from hpcqa.instruments import get
from hpcqa.reasons import REASONS
from hpcqa.simulate.defects import KINDS, kinds_in_turn
from hpcqa.simulate.plan import plan_exposure, plan_survey
from tests.simulate.conftest import small_config


@pytest.fixture(scope="module")
def config():
    return small_config(exposures=900, bad_fraction=0.9, nights=12)


@pytest.fixture(scope="module")
def plans(config):
    return plan_survey(config)


def test_one_exposure_is_planned_the_same_alone(config, plans):
    index = next(place for place, plan in enumerate(plans) if len(plan.defects) == 1)
    assert plan_exposure(config, index, plans[index].defects[0].kind) == plans[index]


def test_share_of_bad_ones_and_of_kinds(plans):
    assert sum(plan.bad for plan in plans) == 810
    found = Counter(defect.kind for plan in plans for defect in plan.defects)
    assert set(found) == set(KINDS)
    assert {defect.reason for plan in plans for defect in plan.defects} == set(REASONS) - {"other"}


def test_severities_fill_the_range(plans):
    severities = [defect.severity for plan in plans for defect in plan.defects]
    assert min(severities) >= 0.15
    assert max(severities) <= 1
    assert np.histogram(severities, bins=5, range=(0.15, 1))[0].min() > 100


@pytest.mark.parametrize("reason", ["ghost", "streak", "bad_ccd", "noise", "amplifier"])
def test_a_third_or_more_touch_one_or_two_ccds(plans, reason):
    sizes = [len(d.ccds) for plan in plans for d in plan.defects if d.reason == reason]
    assert np.mean([0 < size <= 2 for size in sizes]) > 0.33


def test_numbers_and_times_grow_within_nights_of_the_camera(plans):
    assert len({plan.expnum for plan in plans}) == len(plans)
    assert np.all(np.diff([plan.mjd_obs for plan in plans]) > 0)
    assert len({plan.night for plan in plans}) == 12
    assert all(get("minicam").night(plan.mjd_obs) == int(plan.night) for plan in plans)


def test_good_exposures_vary_and_stay_good(plans):
    good = [plan.conditions for plan in plans if not plan.bad]
    assert all(0.7 <= one.fwhm <= 1.62 and one.transparency >= 0.8 and one.scampflg == 0 for one in good)
    assert any(one.wcs == "Failed" for plan in plans for one in [plan.conditions] if one.scampflg == 0)
    assert any(one.num_satellites for one in good)
    assert any(one.bright_star < 12 for one in good)
    assert np.std([one.fwhm for one in good]) > 0.08


def test_fringes_only_in_red_bands(plans):
    assert {p.band for p in plans if any(d.kind == "fringes" for d in p.defects)} <= {"z", "Y"}


def test_kinds_in_turn_follow_the_weights():
    names = kinds_in_turn(2600, np.random.default_rng(1))
    total = sum(kind.weight for kind in KINDS.values())
    for name, number in Counter(names).items():
        assert number == pytest.approx(2600 * KINDS[name].weight / total, abs=1.01)
