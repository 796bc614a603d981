"""Which lesions a study has when nobody asks for any, and which series are made of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator

LABELS: tuple[str, ...] = (
    "intracranial_hemorrhage",
    "intraparenchymal_hemorrhage",
    "intraventricular_hemorrhage",
    "subarachnoid_hemorrhage",
    "subdural_hemorrhage",
    "epidural_hemorrhage",
    "mass_effect",
    "midline_shift",
    "hydrocephalus",
    "cerebral_infarction",
    "skull_fracture",
)
"""What every study is labelled with: the labels of the findings table of `hlip_core`."""

LABEL_OF_KIND: dict[str, str] = {
    "intraparenchymal": "intraparenchymal_hemorrhage",
    "intraventricular": "intraventricular_hemorrhage",
    "subarachnoid": "subarachnoid_hemorrhage",
    "subdural": "subdural_hemorrhage",
    "epidural": "epidural_hemorrhage",
    "hydrocephalus": "hydrocephalus",
    "infarct": "cerebral_infarction",
    "fracture": "skull_fracture",
}
BLEEDS = frozenset({"intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural"})

SHARE: dict[str, float] = {
    "subdural": 0.09,
    "subdural_chronic": 0.05,
    "epidural": 0.09,
    "intraparenchymal": 0.10,
    "subarachnoid": 0.11,
    "intraventricular": 0.09,
    "infarct": 0.13,
    "tumour": 0.09,
    "hydrocephalus": 0.11,
    "fracture": 0.09,
}
"""Chance of each kind as the first lesion of an abnormal study, by weight."""
NUMBER = (0.34, 0.36, 0.22, 0.08)
"""Chance of 0, 1, 2, 3 lesions."""
COMPANION: dict[str, tuple[str, ...]] = {
    "epidural": ("fracture", "fracture", "subdural", "subarachnoid"),
    "fracture": ("epidural", "subdural", "subarachnoid", "intraparenchymal"),
    "intraparenchymal": ("intraventricular", "subarachnoid", "subdural"),
    "subarachnoid": ("intraventricular", "hydrocephalus", "subdural", "intraparenchymal"),
    "intraventricular": ("hydrocephalus", "intraparenchymal", "subarachnoid"),
}
"""What comes with what, else any other kind."""
SCALP_SHARE = {True: 0.7, False: 0.22}
"""Chance of a scalp haematoma with and without a fracture."""


def draw_kinds(rng: Rng) -> tuple[str, ...]:
    """The lesions of one study, possibly none; never two of one kind."""
    count = int(rng.choice(len(NUMBER), p=NUMBER))
    names = list(SHARE)
    weights = np.array(list(SHARE.values()))
    kinds: list[str] = []
    while len(kinds) < count:
        companions = COMPANION.get(kinds[-1], ()) if kinds and rng.random() < 0.6 else ()
        kind = str(rng.choice(companions)) if companions else str(rng.choice(names, p=weights / weights.sum()))
        if kind not in kinds:
            kinds.append(kind)
    if rng.random() < SCALP_SHARE["fracture" in kinds]:
        kinds.append("scalp")
    return tuple(kinds)


@dataclass(frozen=True)
class SeriesKind:
    """A kind of series: slice spacing and thickness (mm; the preset may widen them), kernel, window, names."""

    plane: str
    spacing_mm: float
    kernel: str
    window: tuple[int, int]
    image_type: tuple[str, ...]
    descriptions: tuple[str, ...]


AXIAL = ("ORIGINAL", "PRIMARY", "AXIAL")
SERIES: dict[str, SeriesKind] = {
    "localizer": SeriesKind(
        "lateral", 0, "soft", (100, 800), ("ORIGINAL", "PRIMARY", "LOCALIZER"), ("SCOUT", "TOPOGRAM", "SURVIEW")
    ),
    "thick": SeriesKind("axial", 5.0, "standard", (40, 80), AXIAL, ("HEAD 5.0", "AXIAL BRAIN", "ROUTINE HEAD 5MM")),
    "thin": SeriesKind("axial", 1.25, "soft", (40, 80), AXIAL, ("THIN BRAIN", "HEAD THIN SOFT", "1.25MM STD")),
    "bone": SeriesKind("axial", 2.5, "bone", (500, 2500), AXIAL, ("BONE", "HEAD BONE 2.5", "SKULL BONE")),
    "coronal": SeriesKind(
        "coronal", 3.0, "soft", (40, 80), ("DERIVED", "SECONDARY", "REFORMATTED"), ("COR BRAIN", "CORONAL MPR")
    ),
}
SETS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("thick",), 0.22),
    (("localizer", "thick"), 0.14),
    (("thick", "bone"), 0.18),
    (("localizer", "thick", "bone"), 0.12),
    (("thin",), 0.07),
    (("thin", "bone"), 0.07),
    (("thick", "coronal"), 0.10),
    (("thick", "bone", "coronal"), 0.06),
    (("localizer", "thick", "thin", "bone"), 0.04),
)
"""Series of a study, and how often."""


def draw_series(rng: Rng) -> tuple[str, ...]:
    """The series of one study, 1 to 4."""
    chance = np.array([share for _, share in SETS])
    return SETS[int(rng.choice(len(SETS), p=chance / chance.sum()))][0]
