"""The brain inside the cavity: tissue, ventricles, fissures, cisterns, dura, vessels, calcifications."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .grid import Array, Box, Grid, Point, bell, blend, ramp
from .head import Head
from .skull import slope_width

HORNS: tuple[tuple[Point, float], ...] = (
    ((8, -44, 11), 3.4),
    ((14, -24, 9.5), 5.6),
    ((23, 2, 12), 6.0),
    ((19, 24, 21), 7.4),
    ((8, 28, 27), 6.6),
)
"""The left lateral ventricle from the frontal horn to the atrium: (z, y, x) mm and radius mm."""
OCCIPITAL: tuple[tuple[Point, float], ...] = (((8, 28, 26), 5.0), ((4, 52, 24), 2.4))
TEMPORAL: tuple[tuple[Point, float], ...] = (((8, 28, 26), 4.0), ((-12, 12, 33), 2.2), ((-19, -12, 29), 1.8))
FLATNESS = 0.62
"""The ventricles are narrower from side to side than from front to back."""

DEEP_GREY: tuple[tuple[Point, Point], ...] = (
    ((9, -30, 12.5), (11, 10, 6)),  # caudate head
    ((3, -16, 25), (12, 18, 6.5)),  # lentiform nucleus
    ((6, 2, 10), (10, 14, 8.5)),  # thalamus
    ((4, -12, 37), (18, 24, 2.5)),  # insula
)
CISTERNS: tuple[tuple[Point, Point], ...] = (
    ((-20, -12, 0), (7, 12, 14)),  # suprasellar
    ((-20, -20, 22), (4, 5, 20)),  # towards the sylvian fissure
    ((-20, -20, -22), (4, 5, 20)),
    ((-16, -34, 0), (8, 16, 3)),  # between the frontal lobes
    ((-4, 27, 0), (8, 4.5, 11)),  # quadrigeminal
    ((-14, 14, 18), (9, 14, 3.6)),  # ambient
    ((-14, 14, -18), (9, 14, 3.6)),
    ((-42, 4, 0), (14, 3.5, 11)),  # prepontine
    ((-72, 58, 0), (9, 10, 13)),  # magna
    ((-56, 22, 16), (9, 5, 6)),  # cerebellopontine
    ((-56, 22, -16), (9, 5, 6)),
)
VESSELS: tuple[tuple[tuple[Point, ...], float], ...] = (
    (((-30, -16, 8), (-24, -16, 9), (-22, -18, 22), (-16, -14, 36), (4, -8, 42)), 1.5),  # carotid, middle
    (((-23, -18, 9), (-18, -30, 2), (6, -52, 1.5)), 1.2),  # anterior
    (((-58, 3, 0), (-26, 2, 0), (-24, 8, 14)), 1.5),  # basilar, posterior
)
TRANSVERSE_SINUS: tuple[Point, ...] = ((-18, 74, 0), (-22, 62, 40), (-30, 36, 58), (-50, 24, 46))


@dataclass(frozen=True)
class Pose:
    """Where brain tissue came from, before lesions pushed it: coordinates (mm) and depth of a slab.

    here: depth below the inner table now; depth: the same before the push; squeeze: 0..1, how far
    the sulci are effaced.
    """

    z: Array
    y: Array
    x: Array
    here: Array
    depth: Array
    squeeze: Array


@dataclass(frozen=True)
class Brain:
    """Shares (0..1) of a slab's voxels; `hu` is the brain without lesions."""

    hu: Array
    cavity: Array
    tissue: Array
    sulci: Array
    cisterns: Array
    ventricles: Array
    white: Array


def _tube(pose: Pose, path: tuple[tuple[Point, float], ...], side: float, scale: float, flat: float) -> Array:
    """Depth (mm) below a chain of cones through `path`, mirrored by `side` (+1 left, -1 right)."""
    deepest = np.full(pose.x.shape, -99, np.float32)
    for (start, r0), (end, r1) in pairwise(path):
        az, ay, ax = start
        bz, by, bx = (e - s for e, s in zip(end, start, strict=True))
        z, y, x = pose.z - az, pose.y - ay, (side * pose.x - ax) / flat
        bx = bx / flat
        t = np.clip((z * bz + y * by + x * bx) / (bz * bz + by * by + bx * bx), 0, 1)
        distance = np.sqrt((z - t * bz) ** 2 + (y - t * by) ** 2 + (x - t * bx) ** 2)
        deepest = np.maximum(deepest, scale * (r0 + t * (r1 - r0)) - distance)
    return deepest


def _at(pose: Pose, centre: Point, radii: Point) -> Array:
    """Depth (mm, first order) below an ellipsoid in the unpushed brain."""
    z, y, x = ((p - c) / r for p, c, r in zip((pose.z, pose.y, pose.x), centre, radii, strict=True))
    radius = np.sqrt(z * z + y * y + x * x)
    return (1 - radius) * min(radii)


def _near(pose: Pose, box: Box) -> Pose:
    """The part of a slab in a box."""
    return Pose(*(value[box] for value in vars(pose).values()))


def ventricles(pose: Pose, grid: Grid, head: Head) -> Array:
    """Share of ventricle in each voxel."""
    share = np.zeros(pose.x.shape, np.float32)
    grown = head.hydrocephalus
    body = head.ventricles * (1 + 1.5 * grown)
    temporal = (0.5 + 0.5 * head.ventricles) * (1 + 2.2 * grown)
    margin = 14 + 10 * grown
    for side in (1, -1):
        low, high = sorted((side * 0.0, side * 42.0))
        box = grid.box((-24, -48, low), (28, 58, high), margin)
        if box is None:
            continue
        near = _near(pose, box)
        depth = _tube(near, HORNS, side, body, FLATNESS)
        depth = np.maximum(depth, _tube(near, OCCIPITAL, side, 0.6 * head.ventricles + 1.1 * grown, FLATNESS))
        depth = np.maximum(depth, _tube(near, TEMPORAL, side, temporal, 1.0))
        depth = np.minimum(depth, side * near.x - 0.7)  # septum pellucidum
        share[box] = np.maximum(share[box], ramp(depth, 1.3))
    third = 1.2 + 1.6 * (head.ventricles - 0.6) + 4 * grown
    rows: tuple[tuple[Point, Point], ...] = (
        ((1, -4, 0), (10, 15, max(1.2, third))),
        ((-40, 36, 0), (9, 4 + 2 * head.ventricles + 3 * grown, 6 + 3 * grown)),
    )
    for centre, radii in rows:
        box = grid.box_around(centre, radii, margin)
        if box is not None:
            share[box] = np.maximum(share[box], ramp(_at(_near(pose, box), centre, radii), 1.3))
    return share


def tent(pose: Pose) -> Array:
    """Height (mm) over the tentorium: positive is above it."""
    return pose.z - (6 - 0.42 * np.abs(pose.x) - 0.26 * (pose.y - 34))


def below_tent(pose: Pose) -> Array:
    """Share of the posterior fossa."""
    back = pose.y - 4 - 0.34 * np.abs(pose.x)
    return ramp(-tent(pose), 2) * ramp(back, 3)


def _sulci(pose: Pose, head: Head, folds: Array) -> tuple[Array, Array]:
    """Share of sulcal CSF, and distance (mm) of the nearest sulcus wall."""
    width = (0.25 + 1.25 * head.atrophy) * (1 - 0.9 * pose.squeeze) * (1 - 0.85 * min(1.0, head.hydrocephalus))
    gap = 0.5 + (0.5 + 2.2 * head.atrophy) * (1 - pose.squeeze)
    below = pose.depth - gap
    fold = np.abs(folds) * 7.0
    half = width * np.clip(1 - below / 24, 0, 1) - 3 * np.clip(below / 24 - 0.8, 0, 1)
    wall = np.minimum(below, np.where(below < 24, fold - half, 9))
    return 1 - ramp(wall, 1.4), wall


def _fissures(pose: Pose, head: Head, bend: Array) -> Array:
    """Depth (mm) inside the interhemispheric and sylvian fissures; `bend` (a field) makes them uneven."""
    room = (0.6 + 1.2 * head.atrophy) * (1 - 0.7 * pose.squeeze)
    callosum = 1 - np.sqrt(((pose.y + 4) / 46) ** 2 + ((pose.z - 6) / 25) ** 2)
    between = np.minimum(room + 0.8 - np.abs(pose.x), -40 * callosum)
    side = np.abs(pose.x)
    slope = pose.z + 2 - 0.30 * (pose.y + 20) + 2.5 * bend
    length = 1 - ((pose.y + 14) / 30) ** 2
    open_mm = (0.5 + 1.5 * room) * length
    sylvian = np.minimum(open_mm - np.abs(slope), side - 40)
    insula = np.minimum((0.3 + room) * length - np.abs(side - 40 + 2.5 * bend), 13 - np.abs(pose.z - 5))
    return np.maximum(between, np.maximum(sylvian, insula))


def _cisterns(pose: Pose, grid: Grid, head: Head) -> Array:
    """Share of the basal cisterns and of the canal below."""
    share = ramp(-84 - pose.z, 6)
    room = (0.95 + 0.4 * head.atrophy) * (1 - 0.35 * head.hydrocephalus)
    for centre, radii in CISTERNS:
        box = grid.box_around(centre, radii, 14)
        if box is not None:
            near = _near(pose, box)
            depth = _at(near, centre, (radii[0] * room, radii[1] * room, radii[2] * room))
            share[box] = np.maximum(share[box], ramp(depth * (1 - 0.6 * near.squeeze), 1.6))
    return share


def _grey(pose: Pose, grid: Grid, wall: Array, gap: Array) -> Array:
    """Share of grey matter above the tentorium: cortex along sulci and fissures, and the deep nuclei."""
    grey = np.maximum(ramp(3.0 - wall, 1.5), 0.75 * ramp(2.5 + gap, 2))
    for (z, y, x), radii in DEEP_GREY:
        for side in (1, -1):
            box = grid.box_around((z, y, side * x), radii, 10)
            if box is not None:
                depth = _at(_near(pose, box), (z, y, side * x), radii)
                grey[box] = np.maximum(grey[box], 0.85 * ramp(depth, 2.5))
    return grey


def _below(pose: Pose, folds: Array) -> Array:
    """Share of grey matter below the tentorium: cerebellar folia, brain stem."""
    stem = np.sqrt((pose.x / 1.1) ** 2 + (pose.y - 15 + 0.22 * (pose.z + 30)) ** 2)
    folia = 0.5 + 0.5 * np.cos((pose.depth + 2.5 * folds) * np.float32(2 * np.pi / 5.5))
    cerebellum = ramp(16 - pose.depth, 8) * folia
    return (0.35 + 0.5 * cerebellum) * ramp(stem - 12, 4) + 0.35 * ramp(12 - stem, 4)


def brain(pose: Pose, grid: Grid, head: Head, folds: Array, patches: Array) -> Brain:
    """Tissue of a slab. `folds` makes the gyri, `patches` (coarser) mottles the white matter."""
    sulci, wall = _sulci(pose, head, folds)
    gap = _fissures(pose, head, patches)
    under = below_tent(pose)
    grey = _grey(pose, grid, wall, gap)
    blend(grey, _below(pose, folds), under)
    white = (1 - grey) * (1 - under)
    hu = head.white_hu + (head.grey_hu - head.white_hu) * grey
    hu -= (4.0 + 7.0 * head.small_vessel) * head.small_vessel * white * ramp(patches - 0.6, 1.2)
    shallow = ramp(3.0 + 0.4 * pose.depth, 3) * ramp(22 - pose.depth, 10)
    csf = np.maximum(sulci * shallow * (1 - 0.75 * under), ramp(gap, 1.4) * (1 - under))
    csf = np.maximum(csf, ramp(0.6 - pose.depth, 1.2))
    cisterns = _cisterns(pose, grid, head)
    inner = ventricles(pose, grid, head)
    fluid = np.maximum(np.maximum(csf, cisterns), inner)
    blend(hu, head.csf_hu, fluid)
    if head.hydrocephalus > 0:  # transependymal oedema at the horns
        horns = bell((np.abs(pose.x) - 14) / 12, (pose.y + 46) / 12, (pose.z - 12) / 14)
        hu -= 5 * min(1.0, head.hydrocephalus) * (1 - fluid) * horns
    cavity = ramp(pose.here, slope_width(grid, head))
    return Brain(hu, cavity, 1 - fluid, csf, cisterns, inner, white * (1 - fluid))


def paint_dura(hu: Array, grid: Grid, head: Head, pose: Pose) -> None:
    """Falx, tentorium and venous sinuses, in place."""
    falx_x = head.falx_bend * np.sin(pose.y * np.float32(np.pi / 80))
    edge = np.sqrt(((pose.y + 2) / 60) ** 2 + ((pose.z - 2) / 36) ** 2) - 1
    above = np.minimum(30 * edge, np.maximum(tent(pose) + 2, 10 - pose.y))
    thick = 0.7 + 0.5 * head.calcified_falx
    falx = ramp(thick - np.abs(pose.x - falx_x), 1.4) * ramp(above, 2) * ramp(pose.z + 18, 6)
    value = head.dura_hu + 300 * head.calcified_falx * ramp(np.sin(pose.y * 0.21 + pose.z * 0.13) - 0.86, 0.3)
    blend(hu, value, falx)
    notch = np.sqrt((pose.x / 19) ** 2 + ((pose.y - 18) / 26) ** 2) - 1
    sheet = ramp(0.9 - np.abs(tent(pose)), 1.4) * ramp(20 * notch, 3) * ramp(pose.y - 4 - 0.34 * np.abs(pose.x), 3)
    blend(hu, head.dura_hu, sheet)
    superior = ramp(6 - pose.here - 1.2 * np.abs(pose.x - falx_x), 1.5) * ramp(tent(pose), 3) * ramp(pose.z + 5, 5)
    sinus_hu = head.vessel_hu + 8
    blend(hu, sinus_hu, superior)
    for side in (1, -1):
        low, high = sorted((side * 0.0, side * 64.0))
        box = grid.box((-56, 16, low), (-12, 84, high), 6)
        if box is not None:
            path = tuple((point, 3.4) for point in TRANSVERSE_SINUS)
            blend(hu[box], sinus_hu, ramp(_tube(_near(pose, box), path, side, 1.0, 1.0), 1.4))


def paint_vessels(hu: Array, grid: Grid, head: Head, pose: Pose) -> None:
    """Arteries of the base, in place: faint without contrast medium, bright with it."""
    for path, radius in VESSELS:
        for side in (1, -1):
            xs = [side * point[2] for point in path]
            zs, ys = [point[0] for point in path], [point[1] for point in path]
            box = grid.box((min(zs), min(ys), min(xs)), (max(zs), max(ys), max(xs)), 6)
            if box is not None:
                depth = _tube(_near(pose, box), tuple((point, radius) for point in path), side, 1.0, 1.0)
                blend(hu[box], head.vessel_hu, ramp(depth, 1.2))


CALCIFICATIONS: tuple[tuple[str, Point, Point, float], ...] = (
    ("calcified_pineal", (4, 18, 0), (3, 3, 3), 380),
    ("calcified_plexus", (8, 28, 25), (4, 5, 3), 320),
    ("calcified_plexus", (8, 28, -25), (4, 5, 3), 320),
    ("calcified_ganglia", (2, -14, 19), (5, 7, 3), 180),
    ("calcified_ganglia", (2, -14, -19), (5, 7, 3), 180),
)


def paint_calcifications(hu: Array, grid: Grid, head: Head, pose: Pose) -> None:
    """Harmless calcifications, in place: bright, but no blood."""
    for degree_of, centre, radii, value in CALCIFICATIONS:
        degree = getattr(head, degree_of)
        box = grid.box_around(centre, radii, 10)
        if degree > 0 and box is not None:
            z, y, x = (r * (0.3 + 0.7 * degree) for r in radii)
            alpha = ramp(_at(_near(pose, box), centre, (z, y, x)), 1.5)
            blend(hu[box], value * (0.4 + 0.6 * degree), alpha)
