"""Pixels of one CCD: sky and light, sources, detector, defects, in the order in which nature adds them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from hpcqa.instruments.base import Ccd, CcdContext
from hpcqa.simulate import detector, scene
from hpcqa.simulate.conditions import Conditions
from hpcqa.simulate.defects import KINDS, Defect
from hpcqa.simulate.geometry import FocalPlane
from hpcqa.simulate.light import Where, galaxy, nebula, smooth
from hpcqa.simulate.optics import Stamps, make_stamps
from hpcqa.simulate.plan import ExposurePlan
from hpcqa.simulate.readout import Chip
from hpcqa.streams import stream

PIXELS_PER_GRID_STEP = 64  # nodes along a CCD's longer side, at least
# The redder the band, the brighter the same stars.
BAND_SHIFT = {"u": -1.5, "g": -0.5, "r": 0.0, "i": 0.25, "z": 0.4, "Y": 0.5}


@dataclass(frozen=True)
class Rendered:
    """One CCD as it is written: image float32 and mask int32 (rows, cols), and what the pipeline would measure."""

    image: np.ndarray
    mask: np.ndarray
    facts: dict[str, float]


class Renderer:
    """Draws the CCDs of one exposure."""

    def __init__(self, seed: int, plane: FocalPlane, plan: ExposurePlan) -> None:
        self.seed, self.plane, self.plan = seed, plane, plan
        self._stamps: dict[tuple[bool, bool, bool], Stamps] = {}
        self.step = max(4, 2 ** round(math.log2(max(plane.instrument.shape) / PIXELS_PER_GRID_STEP)))

    def stamps(self, ccd: Ccd) -> Stamps:
        """The PSF of the zone that a CCD lies in: quadrants, and an outer ring where there are many CCDs."""
        x, y = self.plane.centre(ccd)
        outside = len(self.plane.instrument.ccds) > 20 and math.hypot(x, y) > 0.55
        zone = (x > 0, y > 0, outside)
        if zone not in self._stamps:
            middle = (0.75 if outside else 0.35) / math.sqrt(2)
            place = (middle if zone[0] else -middle, middle if zone[1] else -middle)
            self._stamps[zone] = make_stamps(self.plan.conditions, place, self.plane.instrument.pixel_scale)
        return self._stamps[zone]

    def render(self, ccd: Ccd) -> Rendered:
        """The CCD's image and mask."""
        camera, conditions = self.plane.instrument, self.plan.conditions
        rng = stream(self.seed, "simulate", self.plan.expnum, "ccd", ccd.ccdnum)
        image = np.empty(camera.shape, np.float32)
        mask = np.zeros(camera.shape, np.int32)
        detector.enlarge(self._light(ccd), self.step, image, conditions.sky)
        read_noise = camera.read_noise / camera.gain
        noise = math.hypot(math.sqrt(conditions.sky / camera.gain), read_noise)
        stamps = self.stamps(ccd)
        sources = self._add_sources(image, ccd, stamps, noise, rng)
        self._add_lines(image, mask, ccd, noise)
        amplifiers = camera.amplifiers(camera.shape, ccd.ccdnum)
        gains = detector.amplifier_gains(self.seed, self.plan.expnum, ccd.ccdnum, self.plan.band, len(amplifiers))
        detector.scale_amplifiers(image, amplifiers, gains)
        detector.add_noise(image, camera.gain, camera.read_noise, rng)
        detector.add_cosmics(image, mask, conditions.exptime, rng)
        chip = Chip(ccd.ccdnum, tuple(amplifiers), conditions.sky, noise, read_noise, camera.saturation)
        self._change_readout(image, chip)
        detector.add_bad_columns(image, mask, self.seed, ccd.ccdnum)
        saturated, bleeds = detector.saturate(image, mask, camera.saturation * self._well(ccd))
        facts = _measure(image, stamps, sources, noise, rng)
        return Rendered(image, mask, {**facts, "saturated": saturated, "bleeds": bleeds})

    def context(self, ccd: Ccd, plver: str) -> CcdContext:
        return CcdContext(ccd.ccdnum, self.plan.expnum, self.plan.band, self.plan.mjd_obs, plver)

    def _well(self, ccd: Ccd) -> float:
        return float(stream(self.seed, "simulate", "well", ccd.ccdnum).uniform(0.92, 1.1))

    def _where(self, ccd: Ccd, local: bool) -> Where:
        x, y = self.plane.grid(ccd, self.step)
        finest = 2 * self.step * self.plane.pixel
        place = self.plan.conditions.bright_place
        return Where(self.plane, ccd, x, y, self.plan.band, self.seed, finest, local, place)

    def _light(self, ccd: Ccd) -> np.ndarray:
        """Sky and all other smooth light over the sky's level, on the coarse grid; flat-field residuals included."""
        conditions, expnum = self.plan.conditions, self.plan.expnum
        where = self._where(ccd, False)
        light = 1 + conditions.gradient[0] * where.x + conditions.gradient[1] * where.y
        # What the sky templates leave behind even on a good night.
        rng = stream(self.seed, "simulate", expnum, "residual")
        light = light + rng.uniform(0.0002, 0.0012) * smooth(where.x, where.y, 0.5, rng)
        for peak, field, name in ((conditions.nebula, nebula, "nebula"), (conditions.galaxy, galaxy, "galaxy")):
            if peak:
                light = light + field(where, peak, stream(self.seed, "simulate", expnum, name))
        for defect in self.plan.defects:
            light = light + self._defect_light(ccd, defect)
        flat = detector.flat_residual(self.seed, ccd.ccdnum, self.plan.band, light.shape)
        return np.asarray(light * (1 + flat), np.float32)

    def _defect_light(self, ccd: Ccd, defect: Defect) -> np.ndarray | float:
        field = KINDS[defect.kind].light
        if field is None or (defect.local and ccd.ccdnum not in defect.ccds):
            return 0.0
        own = (ccd.ccdnum,) if defect.local else ()
        rng = defect.stream(self.seed, self.plan.expnum, "light", *own)
        return field(self._where(ccd, defect.local), defect.severity, rng)

    def _add_sources(
        self, image: np.ndarray, ccd: Ccd, stamps: Stamps, noise: float, rng: np.random.Generator
    ) -> scene.Sources:
        conditions = self.plan.conditions
        shift = BAND_SHIFT.get(self.plan.band, 0.0)
        sources = scene.draw_sources(conditions, image.shape, stamps.half, rng, shift)  # type: ignore[arg-type]
        if conditions.patchy:
            x, y = self.plane.coordinates(ccd, sources.rows, sources.cols)
            clouds = smooth(x, y, 0.4, stream(self.seed, "simulate", self.plan.expnum, "patches"))
            sources.flux[:] *= 10 ** (-0.4 * np.clip(conditions.patchy * clouds, -1, 3))
        scene.add_sources(image, sources, stamps, noise)
        scene.add_halos(image, sources, stamps, noise)
        if conditions.bright_star < 90:
            self._add_bright_star(image, ccd, conditions, noise)
        return sources

    def _add_bright_star(self, image: np.ndarray, ccd: Ccd, conditions: Conditions, noise: float) -> None:
        row, col = self.plane.pixels(ccd, *conditions.bright_place)
        flux = conditions.scale * 10 ** (-0.4 * conditions.bright_star)
        scene.add_halo(image, row, col, flux, 0.05 * noise, max(image.shape) / 8)

    def _add_lines(self, image: np.ndarray, mask: np.ndarray, ccd: Ccd, noise: float) -> None:
        """Thin trails of satellites, which good exposures have too."""
        rng = stream(self.seed, "simulate", self.plan.expnum, "satellites")
        for _ in range(self.plan.conditions.num_satellites):
            angle, x, y = rng.uniform(0, math.pi), *rng.uniform(-0.5, 0.5, 2)
            width, peak, known = rng.uniform(1.3, 2.5), noise * rng.lognormal(1.5, 0.8), rng.random() < 0.8
            row, col = self.plane.pixels(ccd, x, y)
            along = self.plane.pixels(ccd, x + math.cos(angle), y + math.sin(angle))
            a, b = along[1] - col, row - along[0]
            length = math.hypot(a, b)
            a, b = a / length, b / length
            line = (a, b, -(a * row + b * col))
            if _crosses(line, image.shape):
                scene.add_line(image, mask, line, width, peak, detector.STREAK if known else 0)

    def _change_readout(self, image: np.ndarray, chip: Chip) -> None:
        for defect in self.plan.defects:
            change = KINDS[defect.kind].readout
            if change is None or (defect.ccds and chip.ccdnum not in defect.ccds):
                continue
            rng = defect.stream(self.seed, self.plan.expnum, "readout")
            own = defect.stream(self.seed, self.plan.expnum, "readout", chip.ccdnum)
            change(image, chip, defect.severity, rng, own)


def _crosses(line: tuple[float, float, float], shape: tuple[int, ...]) -> bool:
    """Whether a line touches an image, 12 px of margin included."""
    corners = [line[0] * row + line[1] * col + line[2] for row in (0, shape[0]) for col in (0, shape[1])]
    return min(corners) < 12 and max(corners) > -12


def _measure(
    image: np.ndarray, stamps: Stamps, sources: scene.Sources, noise: float, rng: np.random.Generator
) -> dict[str, float]:
    """What the pipeline would write into headers and tables, with its errors."""
    sparse = image[::7, ::5]
    sky = float(np.median(sparse))
    star = stamps.light[0, 1, 1]
    peak = float(star.max())
    rows, cols = np.indices(star.shape) - stamps.half
    weight = np.where(star > 0.1 * peak, star, 0)
    rr, cc, rc = ((weight * part).sum() / weight.sum() for part in (rows * rows, cols * cols, rows * cols))
    bright = (sources.kind == 0) & (sources.flux * peak > 10 * noise)
    inside = (sources.rows > 0) & (sources.rows < image.shape[0]) & (sources.cols > 0) & (sources.cols < image.shape[1])
    return {
        # The Gaussian with the same peak; 3 percent and 0.015 are how well the pipeline does.
        "fwhm": 0.94 / math.sqrt(peak) * float(rng.normal(1, 0.03)),
        "ellipticity": abs(math.hypot(rr - cc, 2 * rc) / (rr + cc) + float(rng.normal(0.04, 0.015))),
        "sky": sky,
        "sigma": 1.4826 * float(np.median(np.abs(sparse - sky))),
        "stars": float((bright & inside).sum()),
    }
