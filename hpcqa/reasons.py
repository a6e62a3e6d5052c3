"""The vocabulary of reasons: why an exposure or a CCD is bad. One bit each, stored as int64; bit 62 is the last.

The first fifteen are the classes of Luo et al. 2025 (arXiv:2507.12784); the rest are artefacts that reviewers of DR11
named and that had no class there. `other` is a bad exposure whose reason did not parse: bad, never good.
"""

from __future__ import annotations

REASONS: tuple[str, ...] = (
    "bad_wcs",
    "saturated",
    "clouds",
    "bad_seeing",
    "psf",
    "nonoptimal",
    "ghost",
    "nobjects",
    "bad_ccd",
    "noise",
    "fringing",
    "bright_star",
    "wonky",
    "telescope_moving",
    "out_of_focus",
    "streak",
    "pupil",
    "illumination",
    "amplifier",
    "edge_glow",
    "processing",
    "other",
)
BIT = {name: 1 << position for position, name in enumerate(REASONS)}


def from_bits(bits: int) -> list[str]:
    """The names of the bits that are set, in the vocabulary's order."""
    return [name for name in REASONS if bits & BIT[name]]
