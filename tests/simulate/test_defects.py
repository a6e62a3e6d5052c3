"""Each defect changes what it says it changes, more so the more severe it is, and nothing else."""

import dataclasses

import numpy as np
import pytest

from hpcqa.instruments import get
from hpcqa.reasons import REASONS
from hpcqa.simulate.condition_defects import span
from hpcqa.simulate.defects import KINDS
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.simulate.plan import plan_exposure
from hpcqa.simulate.render import Renderer
from tests.simulate.conftest import small_config

PLANE = FocalPlane(get("minicam"))
CONFIG = small_config(exposures=50)
CCDS = {ccd.ccdnum: ccd for ccd in PLANE.instrument.ccds}
WITH_PIXELS = [name for name, kind in KINDS.items() if kind.light or kind.readout]
WITH_PIXELS = [name for name in WITH_PIXELS if KINDS[name].conditions is None]


def planned(kind, severity, index=11):
    return plan_exposure(CONFIG, index, kind, severity)


def image_of(plan, ccdnum):
    return Renderer(CONFIG.seed, PLANE, plan).render(CCDS[ccdnum]).image


def without(plan):
    return dataclasses.replace(plan, defects=())


@pytest.mark.parametrize("kind", WITH_PIXELS)
def test_light_and_readout_defects_grow_with_severity(kind):
    changes = []
    for severity in (0.15, 0.5, 0.85):
        plan = planned(kind, severity)
        ccdnum = (plan.defects[0].ccds or (4,))[0]
        change = image_of(plan, ccdnum) - image_of(without(plan), ccdnum)
        changes.append(np.percentile(np.abs(change), 95))
    assert changes[0] > 0
    assert np.all(np.diff(changes) > 0.3 * changes[0]), changes


@pytest.mark.parametrize("kind", [name for name in WITH_PIXELS if KINDS[name].local_share == 1])
def test_a_defect_of_one_ccd_leaves_the_others_alone(kind):
    plan = planned(kind, 0.9)
    assert plan.defects[0].local
    other = next(number for number in CCDS if number not in plan.defects[0].ccds)
    np.testing.assert_array_equal(image_of(plan, other), image_of(without(plan), other))


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.conditions])
def test_condition_defects_change_the_conditions(kind):
    mild, gross, good = planned(kind, 0.15), planned(kind, 1.0), planned("", None)
    assert mild.conditions != gross.conditions != good.conditions


def test_what_the_conditions_become():
    assert planned("seeing", 1.0).conditions.fwhm == pytest.approx(4.8)
    assert planned("seeing", 0.15).conditions.fwhm == pytest.approx(1.94, abs=0.02)
    assert planned("twilight", 1.0).conditions.sky > PLANE.instrument.saturation
    assert planned("wcs_failure", 0.5).conditions.scampflg > 0
    assert planned("canopus", 1.0).conditions.bright_star == pytest.approx(-0.7)
    ((first, last, share),) = planned("trailed", 1.0).conditions.path
    assert np.hypot(last[0] - first[0], last[1] - first[1]) == pytest.approx(20)
    assert share == 1
    assert sum(share for *_, share in planned("slew", 0.7).conditions.path) == pytest.approx(1)
    assert sum(share for *_, share in planned("double", 0.7).conditions.path) == pytest.approx(1)


def test_saturated_frames_are_flat_and_named_by_the_mask():
    drawn = Renderer(CONFIG.seed, PLANE, planned("twilight", 1.0)).render(CCDS[4])
    assert drawn.image.max() <= 1.1 * PLANE.instrument.saturation
    assert (drawn.mask == 3).mean() > 0.01


def test_one_backplane_only():
    plan = planned("backplane", 0.8)
    groups = {CCDS[number].backplane for number in plan.defects[0].ccds}
    assert len(groups) == 1
    assert 0 < len(plan.defects[0].ccds) < len(CCDS)


def test_table_of_kinds():
    assert {kind.reason for kind in KINDS.values()} == set(REASONS) - {"other"}
    assert all(kind.conditions or kind.light or kind.readout for kind in KINDS.values())
    assert span(0, 2, 8) == 2
    assert span(1, 2, 8) == pytest.approx(8)
    assert span(0.5, 2, 8) == pytest.approx(4)
