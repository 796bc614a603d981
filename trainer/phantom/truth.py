"""The head as it is before any scanner sees it: attenuation and lesion masks on a fine grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .brain import Brain, Pose, below_tent, brain, paint_calcifications, paint_dura, paint_vessels
from .grid import Array, Box, Field, Grid, Point, bell, blend, ramp
from .head import Head
from .lesions import Lesion, displacement, profile, tangent
from .skull import Skull, paint_skull, skull

LOW: Point = (-96, -116, -90)
HIGH: Point = (97, 108, 90)
"""Corners of the head, (z, y, x) mm."""
SLAB = 4
"""Slices rendered at a time."""
EDGE_MM = 3.0
"""The brain is computed this far beyond the inner table, for partial volume."""
STIFFNESS = 0.35
"""Falx and tentorium follow the brain by this share."""
SEPTUM: Point = (10, -14, 0)
"""Where midline shift is measured: the septum pellucidum at the foramen of Monro."""


@dataclass(frozen=True)
class Truth:
    """A rendered head.

    hu: float32 [D, H, W]
    mask: uint8 [D, H, W], 0 or 1 + the lesion's index (the later lesion where two meet)
    shift_mm: how far the septum pellucidum was pushed, positive to the patient's left
    pushed_mm: the greatest displacement of brain tissue
    volumes_ml: of each lesion
    """

    grid: Grid
    head: Head
    lesions: tuple[Lesion, ...]
    hu: Array
    mask: NDArray[np.uint8]
    shift_mm: float
    pushed_mm: float
    volumes_ml: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """What a lesion's painter needs to know about a slab."""

    grid: Grid
    head: Head
    pose: Pose
    brain: Brain
    folds: Array
    patches: Array


def _collection(scene: Scene, lesion: Lesion, hu: Array) -> Array:
    """Subdural and epidural: between the inner table and the brain."""
    z, y, x = scene.grid.axes
    across, depth = tangent(lesion, z, y, x)
    thick = profile(lesion, across)
    alpha = ramp(thick - scene.pose.here, 1.2) * scene.brain.cavity * ramp(lesion.sign * x - 2, 2) * ramp(90 - depth, 4)
    alpha = alpha * ramp(thick - 0.8, 1) * (1 - below_tent(scene.pose))
    value = lesion.hu + (4 if lesion.variant == "acute" else 1.5) * scene.patches
    blend(hu, value, alpha)
    return alpha


def _clot(scene: Scene, lesion: Lesion, hu: Array) -> Array:
    """Intraparenchymal blood and tumours: a lumpy body within oedema."""
    z, y, x = ((axis - c) / r for axis, c, r in zip(scene.grid.axes, lesion.centre, lesion.radii, strict=True))
    radius = np.sqrt(z * z + y * y + x * x)
    size = float(np.mean(lesion.radii))
    tumour = lesion.kind == "tumour"
    lumps = radius + 0.10 * scene.patches + 0.05 * scene.folds
    body = ramp((1 - lumps) * size, 2.0 if not tumour else 4.0) * scene.brain.cavity
    edge = 1.9 if tumour else 1.35
    rim = ramp((edge - radius - 0.15 * scene.patches) * size, 5.0) * scene.brain.tissue
    if tumour:
        rim = rim * (0.25 + 0.75 * scene.brain.white)
    blend(hu, 20.0, 0.8 * rim)
    blend(hu, lesion.hu + 2.0 * scene.folds, body)
    return body


def _subarachnoid(scene: Scene, lesion: Lesion, hu: Array) -> Array:
    z, y, x = ((axis - c) / r for axis, c, r in zip(scene.grid.axes, lesion.centre, lesion.radii, strict=True))
    near = np.clip(1.6 * bell(z, y, x), 0, 1)
    spaces = np.maximum(scene.brain.sulci, scene.brain.cisterns)
    alpha = spaces * near * scene.brain.cavity * ramp(scene.patches + 1.2, 1.5)
    blend(hu, lesion.hu, alpha)
    return alpha


def _intraventricular(scene: Scene, lesion: Lesion, hu: Array) -> Array:
    _, y, _ = scene.grid.axes
    where = scene.brain.ventricles * ramp(y - lesion.centre[1] + 2 * scene.patches, 2)
    if lesion.sign:
        where = where * ramp(lesion.sign * scene.pose.x + 1, 2)
    blend(hu, lesion.hu + 3 * scene.patches, where)
    return where


def _infarct(scene: Scene, lesion: Lesion, hu: Array) -> Array:
    z, y, x = ((axis - c) / r for axis, c, r in zip(scene.grid.axes, lesion.centre, lesion.radii, strict=True))
    radius = np.sqrt(z * z + y * y + x * x) + 0.12 * scene.patches
    alpha = ramp((1 - radius) * float(np.mean(lesion.radii)), 5.0) * ramp(lesion.sign * scene.pose.x - 1, 2)
    under = below_tent(scene.pose)
    alpha = alpha * (under if lesion.region == "cerebellum" else 1 - under) * scene.brain.cavity
    blend(hu, lesion.hu, 0.9 * alpha * (0.25 + 0.75 * scene.brain.tissue))
    return alpha * scene.brain.tissue


def _ventricles(scene: Scene, lesion: Lesion, hu: Array) -> Array:
    """Hydrocephalus changes the head, nothing is painted: its mask is the ventricles."""
    return scene.brain.ventricles * scene.brain.cavity


PAINTERS: dict[str, Callable[[Scene, Lesion, Array], Array]] = {
    "hydrocephalus": _ventricles,
    "infarct": _infarct,
    "tumour": _clot,
    "subarachnoid": _subarachnoid,
    "intraventricular": _intraventricular,
    "intraparenchymal": _clot,
    "subdural": _collection,
    "epidural": _collection,
}
"""In the order of painting: later ones cover earlier ones."""


def _gaps(grid: Grid, lesions: tuple[Lesion, ...], folds: Array) -> tuple[Array, list[tuple[int, Array]]]:
    """Share of sutures and fractures in the bone of a slab, and each fracture's own (by lesion index)."""
    z, y, x = grid.axes
    wave = 1.1 * folds
    side = np.abs(x)
    coronal = ramp(0.7 - np.abs(y + 18 - 0.30 * z + wave), 0.9) * ramp(z - 5, 10)
    lambdoid = ramp(0.7 - np.abs(y - 46 - 0.35 * (z - 40) - 0.25 * (40 - side) + wave), 0.9) * ramp(side - 8, 4)
    sagittal = ramp(0.6 - np.abs(x + wave), 0.9) * ramp(z - 40, 10) * ramp(y + 18 - 0.3 * z, 4)
    total = 0.55 * np.maximum(np.maximum(coronal, lambdoid * ramp(z + 25, 10)), sagittal)
    own = []
    for index, lesion in enumerate(lesions):
        if lesion.kind == "fracture":
            line = _fracture(grid, lesion, folds)
            own.append((index, line))
            total = np.maximum(total, line)
    return total, own


def _fracture(grid: Grid, lesion: Lesion, folds: Array) -> Array:
    """Share of a fracture's gap: a slightly bent line on the vault's surface, through its thickness."""
    z, y, x = grid.axes
    length, angle, _ = lesion.radii
    inward = np.array(lesion.inward)
    first = np.cross(inward, [0.0, 0.0, 1.0] if abs(inward[2]) < 0.8 else [1.0, 0.0, 0.0])
    first /= np.linalg.norm(first)
    second = np.cross(inward, first)
    along, across = (
        np.cos(angle) * first + np.sin(angle) * second,
        np.cos(angle) * second - np.sin(angle) * first,
    )
    dz, dy, dx = z - lesion.centre[0], y - lesion.centre[1], x - lesion.centre[2]
    t = dz * np.float32(along[0]) + dy * np.float32(along[1]) + dx * np.float32(along[2])
    s = dz * np.float32(across[0]) + dy * np.float32(across[1]) + dx * np.float32(across[2])
    depth = dz * np.float32(inward[0]) + dy * np.float32(inward[1]) + dx * np.float32(inward[2])
    gap = lesion.thickness / 2 - np.abs(s + 3 * np.sin(t / 9) + 0.5 * folds)
    return ramp(gap, 0.8) * ramp(length / 2 - np.abs(t), 4) * ramp(30 - depth, 5)


def _raise_scalp(grid: Grid, bones: Skull, lesions: tuple[Lesion, ...]) -> Skull:
    """The skull with its skin raised over scalp haematomas, which `_fill_scalp` paints."""
    skin = bones.skin
    for lesion in lesions:
        if lesion.kind == "scalp":
            across, depth = tangent(lesion, *grid.axes)
            skin = skin + profile(lesion, across) * ramp(40 - depth, 10)
    return Skull(bones.inside, bones.outside, bones.above_floor, skin, bones.floor_mm)


def _fill_scalp(hu: Array, grid: Grid, head: Head, bones: Skull, lesions: tuple[Lesion, ...]) -> None:
    for lesion in lesions:
        if lesion.kind == "scalp":
            across, depth = tangent(lesion, *grid.axes)
            thick = profile(lesion, across)
            outside = bones.outside - head.bone_mm - 0.5
            layer = np.minimum(outside, np.minimum(thick + 1 - outside, bones.skin - 2.5))
            blend(hu, lesion.hu, ramp(layer, 1.5) * ramp(thick - 1, 1) * ramp(40 - depth, 10))


def render(head: Head, lesions: tuple[Lesion, ...], grid: Grid, rng: np.random.Generator) -> Truth:
    """The head with its lesions on `grid`, slab by slab."""
    fields = {
        name: Field.draw(rng, grid, knots)
        for name, knots in {
            "shape": (50, 50, 50), "cells": (4, 4, 4), "folds": (12, 9, 9), "patches": (13, 13, 13),
            "streaks": (6, 3.5, 90),
        }.items()
    }  # fmt: skip
    hu = np.empty(grid.shape, np.float32)
    mask = np.zeros(grid.shape, np.uint8)
    shares = np.zeros(len(lesions))
    pushed = 0.0
    for rows, slab in grid.slabs(SLAB):
        on = {name: field.on(slab) for name, field in fields.items()}
        pushed = max(pushed, _render_slab(hu[rows], mask[rows], shares, slab, head, lesions, on))
    volume = float(np.prod(grid.spacing)) / 1000
    return Truth(grid, head, lesions, hu, mask, septum_shift(lesions), pushed, tuple(float(s * volume) for s in shares))


def septum_shift(lesions: tuple[Lesion, ...]) -> float:
    """Midline shift in mm, positive to the patient's left."""
    at = Grid(SEPTUM, (1, 1, 1), (1, 1, 1))
    return float(displacement(lesions, at, np.full((1, 1, 1), 65, np.float32)).x[0, 0, 0])


def _render_slab(
    hu: Array,
    mask: NDArray[np.uint8],
    shares: NDArray[np.float64],
    slab: Grid,
    head: Head,
    lesions: tuple[Lesion, ...],
    on: dict[str, Array],
) -> float:
    """Fills one slab; returns the greatest push (mm)."""
    bones = _raise_scalp(slab, skull(slab, head, on["shape"]), lesions)
    gaps, fractures = _gaps(slab, lesions, on["folds"])
    paint_skull(hu, slab, head, bones, on["cells"], on["patches"], gaps)
    _fill_scalp(hu, slab, head, bones, lesions)
    bone = (bones.outside > 0) & (bones.outside < head.bone_mm) & (bones.above_floor > 0)
    for index, line in fractures:
        inside_bone = line * bone
        shares[index] += inside_bone.sum()
        mask[inside_bone > 0.3] = index + 1
    box = _bounds(bones.inside > -EDGE_MM)
    if box is None:
        return 0.0
    inner = {name: field[box] for name, field in on.items()}
    return _render_brain(
        hu[box], mask[box], shares, slab.part(box), head, lesions, inner, np.ascontiguousarray(bones.inside[box])
    )


def _bounds(where: NDArray[np.bool_]) -> Box | None:
    """The smallest box of rows and columns around the true voxels of a slab."""
    rows, columns = np.flatnonzero(where.any(axis=(0, 2))), np.flatnonzero(where.any(axis=(0, 1)))
    if not rows.size:
        return None
    return slice(0, len(where)), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _render_brain(
    hu: Array,
    mask: NDArray[np.uint8],
    shares: NDArray[np.float64],
    grid: Grid,
    head: Head,
    lesions: tuple[Lesion, ...],
    on: dict[str, Array],
    inside: Array,
) -> float:
    """The brain with its lesions into what the skull left open."""
    z, y, x = grid.axes
    push = displacement(lesions, grid, inside)
    amount = np.sqrt(push.z**2 + push.y**2 + push.x**2)
    pose = Pose(z - push.z, y - push.y, x - push.x, inside, inside - push.surface, np.clip(amount / 7, 0, 1))
    found = brain(pose, grid, head, on["folds"], on["patches"])
    tissue = found.hu
    scene = Scene(grid, head, pose, found, on["folds"], on["patches"])
    for kind, painter in PAINTERS.items():
        for index, lesion in enumerate(lesions):
            if lesion.kind == kind:
                alpha = painter(scene, lesion, tissue)
                shares[index] += alpha.sum()
                mask[alpha > 0.4] = index + 1
    stiff = Pose(
        z - STIFFNESS * push.z, y - STIFFNESS * push.y, x - STIFFNESS * push.x, inside, pose.depth, pose.squeeze
    )
    paint_dura(tissue, grid, head, stiff)
    paint_vessels(tissue, grid, head, pose)
    paint_calcifications(tissue, grid, head, pose)
    tissue += head.cupping * np.exp(-np.maximum(inside, 0) / 6)
    tissue += head.bar * bell((z + 44) / 14, (y - 8) / 26) * (0.7 * on["streaks"] - 0.6)
    blend(hu, tissue, found.cavity)
    return float((amount * found.cavity).max())
