"""What differs from head to head: one drawn row of parameters."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

RANGES: dict[str, tuple[float, float]] = {
    "half_width": (63, 73),
    "half_length": (79, 91),
    "height": (73, 84),
    "egg": (0.04, 0.14),
    "bone_mm": (4.5, 9.5),
    "bone_hu": (1050, 1750),
    "diploe_hu": (350, 900),
    "scalp_mm": (3.5, 8.5),
    "scalp_fat": (0.2, 0.8),
    "white_hu": (25, 29),
    "grey_hu": (35, 40),
    "csf_hu": (3, 10),
    "dura_hu": (42, 62),
    "vessel_hu": (38, 56),
    "atrophy": (0, 1),
    "ventricles": (0.65, 1.35),
    "septum_tilt": (-2, 2),
    "falx_bend": (-2.5, 2.5),
    "small_vessel": (-0.6, 1),
    "sinus_disease": (-1.2, 1),
    "pneumatisation": (0, 1),
    "calcified_falx": (-1.5, 1),
    "calcified_ganglia": (-2, 1),
    "calcified_plexus": (-0.4, 1),
    "calcified_pineal": (-0.3, 1),
    "bar": (2, 12),
    "cupping": (0, 7),
    "muscle_mm": (4, 13),
}
"""Uniform limits: mm, HU, or a degree (absent below 0)."""

CONTRAST_SHARE = 0.12
"""Share of the studies after contrast medium."""


@dataclass(frozen=True)
class Head:
    """A person's head. Lengths in mm, attenuation in HU, degrees from 0 (absent) to 1."""

    half_width: float
    half_length: float
    height: float
    egg: float
    bone_mm: float
    bone_hu: float
    diploe_hu: float
    scalp_mm: float
    scalp_fat: float
    white_hu: float
    grey_hu: float
    csf_hu: float
    dura_hu: float
    vessel_hu: float
    atrophy: float
    ventricles: float
    septum_tilt: float
    falx_bend: float
    small_vessel: float
    sinus_disease: float
    pneumatisation: float
    calcified_falx: float
    calcified_ganglia: float
    calcified_plexus: float
    calcified_pineal: float
    bar: float
    cupping: float
    muscle_mm: float
    contrast: bool
    hydrocephalus: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Head:
        """One head: every parameter uniform within RANGES, older brains with wider ventricles."""
        drawn = {name: float(rng.uniform(*limits)) for name, limits in RANGES.items()}
        drawn = {name: max(0.0, value) if RANGES[name][1] == 1 else value for name, value in drawn.items()}
        contrast = bool(rng.random() < CONTRAST_SHARE)
        if contrast:
            drawn["vessel_hu"] = float(rng.uniform(110, 260))
            drawn["dura_hu"] += 20
        drawn["ventricles"] *= 1 + 0.45 * drawn["atrophy"]
        return cls(contrast=contrast, **drawn)

    def __post_init__(self) -> None:
        missing = set(RANGES) - {field.name for field in fields(self)}
        if missing:
            raise ValueError(f"RANGES names what no head has: {sorted(missing)}")
