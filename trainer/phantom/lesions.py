"""Lesions: where they lie, how large and how dense they are, and how they push the brain.

`conspicuity` (0 hardly visible .. 1 obvious) sets size and contrast of a lesion when it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .grid import Array, Grid, Point
from .head import Head
from .skull import vault

Rng = np.random.Generator

REGIONS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "frontal": ((18, 65), (5, 50)),
    "temporal": ((72, 112), (-14, 6)),
    "parietal": ((85, 135), (15, 50)),
    "occipital": ((140, 165), (2, 30)),
}
"""Azimuth from the front and elevation, in degrees, of places on the vault."""

DEEP_SITES: dict[str, Point] = {
    "basal ganglia": (4, -14, 24),
    "thalamus": (6, 3, 13),
    "frontal lobe": (28, -48, 26),
    "temporal lobe": (-18, -14, 44),
    "parietal lobe": (36, 26, 36),
    "occipital lobe": (8, 58, 26),
    "cerebellum": (-46, 52, 24),
    "pons": (-36, 13, 2),
}
"""Centres on the left, (z, y, x) mm."""


@dataclass(frozen=True)
class Lesion:
    """One lesion. Lengths in mm; `centre` and `inward` (a unit vector) as (z, y, x)."""

    kind: str
    conspicuity: float
    side: str
    region: str
    centre: Point
    inward: Point = (0.0, 0.0, 0.0)
    radii: Point = (0.0, 0.0, 0.0)
    thickness: float = 0.0
    hu: float = 0.0
    push: float = 1.0
    reach: float = 130.0
    variant: str = ""

    @property
    def sign(self) -> int:
        """+1 on the patient's left, -1 on the right, 0 in the middle or on both."""
        return {"left": 1, "right": -1}.get(self.side, 0)


def between(rng: Rng, low: float, high: float, at: float, spread: float = 0.2) -> float:
    """A value from `low` (at = 0) to `high` (at = 1) with some scatter."""
    share = float(np.clip(at + rng.uniform(-spread, spread), 0, 1))
    return low + share * (high - low)


def on_vault(head: Head, azimuth: float, elevation: float, side: int) -> tuple[Point, Point]:
    """The point of the inner table in a direction (degrees), and the unit vector inwards."""
    a, e = np.deg2rad(azimuth), np.deg2rad(elevation)
    out = np.array([np.sin(e), -np.cos(e) * np.cos(a), side * np.cos(e) * np.sin(a)])
    low, high = 20.0, 120.0
    for _ in range(20):
        middle = (low + high) / 2
        z, y, x = (np.asarray(value, np.float32) for value in out * middle)
        if vault(head, z, y, x) > 0:
            low = middle
        else:
            high = middle
    centre = out * low
    inward = -out * np.array([1.0, 1.0, 1.3])
    inward /= np.linalg.norm(inward)
    return _point(centre), _point(inward)


def _point(values: np.ndarray) -> Point:
    z, y, x = (float(value) for value in values)
    return z, y, x


def _side(rng: Rng) -> str:
    return str(rng.choice(["left", "right"]))


def _vault_site(rng: Rng, head: Head, regions: tuple[str, ...]) -> tuple[str, str, Point, Point]:
    region, side = str(rng.choice(regions)), _side(rng)
    azimuth, elevation = REGIONS[region]
    centre, inward = on_vault(head, rng.uniform(*azimuth), rng.uniform(*elevation), 1 if side == "left" else -1)
    return region, side, centre, inward


def draw_subdural(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """A crescent along the convexity; acute is dense, chronic is dark, both may be mixed."""
    region, side, centre, inward = _vault_site(rng, head, ("frontal", "parietal"))
    hu = between(rng, 52, 76, c) if variant == "acute" else between(rng, 20, 7, c)
    thickness = between(rng, 5, 18, c) if variant == "acute" else between(rng, 8, 22, c)
    extent = between(rng, 45, 72, c)
    return Lesion(
        "subdural", c, side, region, centre, inward, (extent, extent, extent), thickness, hu,
        rng.uniform(0.5, 1.1), rng.uniform(110, 150), variant,
    )  # fmt: skip


def draw_epidural(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """A biconvex lens below the inner table, short and thick."""
    region, side, centre, inward = _vault_site(rng, head, ("temporal", "parietal", "frontal"))
    extent = between(rng, 22, 40, c)
    return Lesion(
        "epidural", c, side, region, centre, inward, (extent, extent, extent),
        between(rng, 9, 28, c), between(rng, 54, 76, c), rng.uniform(0.5, 1.0), rng.uniform(90, 130), variant,
    )  # fmt: skip


def _deep_site(rng: Rng, weights: dict[str, float]) -> tuple[str, str, Point]:
    names = list(weights)
    share = np.array([weights[name] for name in names])
    region = str(rng.choice(names, p=share / share.sum()))
    side = _side(rng)
    z, y, x = DEEP_SITES[region]
    scatter = rng.normal(0, 4, 3) if region not in ("pons", "thalamus") else rng.normal(0, 1.5, 3)
    sign = 1 if side == "left" else -1
    return region, side, (z + scatter[0], y + scatter[1], sign * (x + scatter[2]))


def draw_intraparenchymal(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """A clot within the brain with a dark rim of oedema."""
    region, side, centre = _deep_site(
        rng,
        {"basal ganglia": 4, "thalamus": 2, "frontal lobe": 2, "temporal lobe": 2, "parietal lobe": 2,
         "occipital lobe": 1, "cerebellum": 1.5, "pons": 0.5},
    )  # fmt: skip
    size = between(rng, 7.5, 25, c) * {"pons": 0.55, "thalamus": 0.75}.get(region, 1.0)
    radii = _point(size * rng.uniform(0.8, 1.25, 3))
    return Lesion(
        "intraparenchymal", c, side, region, centre, radii=radii,
        hu=between(rng, 50, 76, c), push=rng.uniform(0.5, 1.6), variant=variant,
    )  # fmt: skip


def draw_tumour(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """A mass that is no blood, with finger-like oedema of the white matter."""
    region, side, centre = _deep_site(
        rng, {"frontal lobe": 3, "temporal lobe": 2, "parietal lobe": 3, "occipital lobe": 1, "cerebellum": 1}
    )
    radii = _point(between(rng, 11, 25, c) * rng.uniform(0.85, 1.15, 3))
    return Lesion(
        "tumour", c, side, region, centre, radii=radii,
        hu=float(rng.choice([24, 30, 41, 46])), push=rng.uniform(1.1, 2.2), variant=variant,
    )  # fmt: skip


def draw_subarachnoid(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """Blood in the cisterns (aneurysm) or in the sulci of one convexity (trauma)."""
    hu, spread = between(rng, 50, 74, c), between(rng, 30, 56, c)
    if rng.random() < 0.6:
        z, y, x = rng.normal((-16, -14, 0), (4, 5, 8))
        return Lesion(
            "subarachnoid", c, "both", "basal cisterns", (z, y, x),
            radii=(0.8 * spread, spread, 1.3 * spread), hu=hu, variant="cisterns",
        )  # fmt: skip
    region, side, centre, inward = _vault_site(rng, head, ("frontal", "temporal", "parietal"))
    return Lesion("subarachnoid", c, side, region, centre, inward, (spread, spread, spread), hu=hu, variant="sulci")


def draw_intraventricular(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """Blood that settles in the back of the ventricles, or fills one of them."""
    filled = rng.random() < 0.15 + 0.4 * c
    side = str(rng.choice(["left", "right", "both"]))
    level = -60.0 if filled else between(rng, 36, 8, c)
    return Lesion(
        "intraventricular", c, side, "lateral ventricle", (0, level, 0), hu=between(rng, 52, 78, c),
        variant="cast" if filled else "level",
    )  # fmt: skip


def draw_infarct(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """A wedge of oedema in one arterial territory: grey and white matter become one."""
    region, side, centre = _deep_site(
        rng,
        {"basal ganglia": 2, "frontal lobe": 3, "parietal lobe": 3, "temporal lobe": 2, "occipital lobe": 2,
         "cerebellum": 1.5},
    )  # fmt: skip
    size = between(rng, 18, 44, c) * (0.6 if region in ("basal ganglia", "cerebellum") else 1.0)
    return Lesion(
        "infarct", c, side, region, centre, radii=_point(size * rng.uniform(0.8, 1.2, 3)),
        hu=between(rng, 25, 15, c), push=between(rng, 0.0, 0.35, c), variant=variant,
    )  # fmt: skip


def draw_hydrocephalus(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """Large ventricles with effaced sulci; `push` is its degree."""
    return Lesion("hydrocephalus", c, "both", "ventricles", (0, 0, 0), push=between(rng, 0.4, 1.1, c))


def draw_fracture(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """A gap in the vault, `thickness` wide and `radii[0]` long, mostly under a scalp haematoma."""
    region, side, centre, inward = _vault_site(rng, head, ("frontal", "temporal", "parietal", "occipital"))
    length = between(rng, 40, 95, c)
    return Lesion(
        "fracture", c, side, region, centre, inward, (length, float(rng.uniform(0, np.pi)), 0.0),
        between(rng, 1.8, 5.0, c), variant=variant,
    )  # fmt: skip


def draw_scalp(rng: Rng, head: Head, c: float, variant: str) -> Lesion:
    """A scalp haematoma: as dense as the blood inside, but harmless."""
    region, side, centre, inward = _vault_site(rng, head, ("frontal", "temporal", "parietal", "occipital"))
    extent = between(rng, 20, 45, c)
    return Lesion(
        "scalp", c, side, region, centre, inward, (extent, extent, extent), between(rng, 3, 14, c),
        float(rng.uniform(45, 72)),
    )  # fmt: skip


KINDS: dict[str, tuple[Callable[[Rng, Head, float, str], Lesion], str]] = {
    "subdural": (draw_subdural, "acute"),
    "subdural_chronic": (draw_subdural, "chronic"),
    "epidural": (draw_epidural, ""),
    "intraparenchymal": (draw_intraparenchymal, ""),
    "subarachnoid": (draw_subarachnoid, ""),
    "intraventricular": (draw_intraventricular, ""),
    "infarct": (draw_infarct, ""),
    "tumour": (draw_tumour, ""),
    "hydrocephalus": (draw_hydrocephalus, ""),
    "fracture": (draw_fracture, ""),
    "scalp": (draw_scalp, ""),
}
"""Every kind that can be asked for: how it is drawn, and its variant. `scalp` bears no label."""


def draw(kind: str, rng: Rng, head: Head, conspicuity: float) -> Lesion:
    """A lesion of one of KINDS.

    Raises:
        KeyError: for an unknown kind.
    """
    function, variant = KINDS[kind]
    return function(rng, head, conspicuity, variant)


def adapt(head: Head, lesions: tuple[Lesion, ...]) -> Head:
    """The head as its lesions need it: ventricles that can hold blood, hydrocephalus, open sulci."""
    for lesion in lesions:
        if lesion.kind == "hydrocephalus":
            head = replace(head, hydrocephalus=lesion.push)
        elif lesion.kind == "intraventricular":
            head = replace(head, ventricles=max(head.ventricles, 1.0))
        elif lesion.kind == "subarachnoid":
            head = replace(head, atrophy=max(head.atrophy, 0.45))
    return head


def tangent(lesion: Lesion, z: Array, y: Array, x: Array) -> tuple[Array, Array]:
    """Distance from the site along the inner table, and depth along `inward`, both mm."""
    dz, dy, dx = z - lesion.centre[0], y - lesion.centre[1], x - lesion.centre[2]
    depth = dz * lesion.inward[0] + dy * lesion.inward[1] + dx * lesion.inward[2]
    across = np.sqrt(np.maximum(dz * dz + dy * dy + dx * dx - depth * depth, 0))
    return across, depth


def profile(lesion: Lesion, across: Array) -> Array:
    """Thickness (mm) of a collection at a distance from its centre: a crescent or a lens."""
    rest = np.clip(1 - (across / lesion.radii[0]) ** 2, 0, 1)
    return lesion.thickness * (np.sqrt(rest) if lesion.kind == "subdural" else rest)


@dataclass(frozen=True)
class Push:
    """How far brain tissue was moved to where it is now (mm along z, y, x), and at its surface inwards."""

    z: Array
    y: Array
    x: Array
    surface: Array


def _push_of_collection(lesion: Lesion, grid: Grid, inside: Array) -> Push:
    """Inwards by its thickness at the surface; deeper it is spread out, and the midline gives way sideways."""
    across, depth = tangent(lesion, *grid.axes)
    thick = profile(lesion, across)
    wide = lesion.thickness * np.exp(-((across / (1.3 * lesion.radii[0])) ** 2))
    deep = np.clip(depth / 40, 0, 1)
    amount = np.clip(1 - depth / lesion.reach, 0, 1) * (thick + deep * (lesion.push * wide - thick))
    z, y, x = (amount * part for part in lesion.inward)
    return Push(z, y, x + 0.5 * deep * amount * np.sign(lesion.inward[2]), thick * np.clip(1 - depth / 60, 0, 1))


def _push_of_mass(lesion: Lesion, grid: Grid, inside: Array) -> Push:
    """Away from its centre, as an incompressible medium flows (1 / r^2), held fast at the inner table."""
    z, y, x = (axis - centre for axis, centre in zip(grid.axes, lesion.centre, strict=True))
    size = float(np.mean(lesion.radii))
    far = np.sqrt(z * z + y * y + x * x) + np.float32(1e-3)
    amount = lesion.push * size**3 / 3 / np.maximum(far, size) ** 2 * np.clip(inside / 14, 0, 1) / far
    return Push(amount * z, amount * y, amount * x, np.zeros_like(amount))


PUSHES: dict[str, Callable[[Lesion, Grid, Array], Push]] = {
    "subdural": _push_of_collection,
    "epidural": _push_of_collection,
    "intraparenchymal": _push_of_mass,
    "tumour": _push_of_mass,
    "infarct": _push_of_mass,
}
"""The kinds that push the brain, and how."""


def displacement(lesions: tuple[Lesion, ...], grid: Grid, inside: Array) -> Push:
    """The sum of what all lesions do to a slab; `inside` is the depth below the inner table (mm)."""
    total = Push(*(np.zeros(inside.shape, np.float32) for _ in range(4)))
    for lesion in lesions:
        if lesion.kind in PUSHES:
            pushed = PUSHES[lesion.kind](lesion, grid, inside)
            for name, part in vars(pushed).items():
                getattr(total, name)[:] += part
    return total
