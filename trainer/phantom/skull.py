"""The cranial cavity, the skull around it and what lies outside: geometry as signed distances (mm)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .grid import Array, Grid, Point, bell, blend, ramp
from .head import Head

LOWER_LENGTH = 97.0
"""The vault's ellipsoid below the origin, mm: the side walls go down steeply."""
FORAMEN = (36.0, 0.0, 16.0)
"""Foramen magnum: y, x, radius (mm)."""


@dataclass(frozen=True)
class Skull:
    """Signed distances over a slab, mm.

    inside: depth below the inner table (positive in the cavity)
    outside: distance from the vault's inner table outwards (positive in bone and scalp)
    above_floor: height over the floor of the three fossae
    skin: depth below the skin
    floor_mm: thickness of the bone below the floor
    """

    inside: Array
    outside: Array
    above_floor: Array
    skin: Array
    floor_mm: Array


def ellipsoid(grid: Grid, centre: Point, radii: Point) -> Array:
    """Depth below an ellipsoid's surface in mm (first order, positive inside)."""
    z, y, x = ((axis - c) / r for axis, c, r in zip(grid.axes, centre, radii, strict=True))
    z, y, x = z * z, y * y, x * x
    square = x + y + z
    slope = x / np.float32(radii[2] ** 2) + y / np.float32(radii[1] ** 2) + z / np.float32(radii[0] ** 2)
    return (np.sqrt(square) - square) / np.sqrt(slope + np.float32(1e-9))


def vault(head: Head, z: Array, y: Array, x: Array) -> Array:
    """Depth below the vault's inner table, mm: an egg, boxier than an ellipsoid, wider behind."""
    b = head.half_length
    a = head.half_width * (1 + head.egg * np.clip(y / b, -1.2, 1.2)).astype(np.float32)
    c = np.where(z > 0, np.float32(head.height), np.float32(LOWER_LENGTH))
    xx, yy, zz = (x / a) ** 2, (y / b) ** 2, (z / c) ** 2
    square = 0.72 * (xx + yy + zz) + 0.28 * np.sqrt(xx * xx + yy * yy + zz * zz)
    slope = np.sqrt(xx / (a * a) + yy / np.float32(b * b) + zz / (c * c) + np.float32(1e-9))
    return (np.sqrt(square) - square) / slope


def fossae(y: Array, x: Array) -> tuple[Array, Array]:
    """Height of the floor and thickness of the bone below it, mm, both [1, H, W]."""
    side = np.abs(x)
    wing = y + 44 - 0.20 * side + 0 * x  # behind the sphenoid wing
    petrous = y - 2 - 0.36 * side  # behind the petrous ridge
    anterior = -24 + 5 * bell((side - 30) / 16, (y + 58) / 22) - 4 * bell(side / 7, (y + 62) / 18)
    middle = -50 + 0.010 * (side - 36) ** 2 + 18 * bell(side / 13)
    posterior = -76 + 0.0085 * ((y - FORAMEN[0]) ** 2 + x * x)
    behind_wing, behind_ridge = ramp(wing, 9), ramp(petrous, 12)
    floor = anterior + behind_wing * (middle - anterior)
    floor = floor + behind_ridge * (posterior - floor)
    ridge = bell(petrous / 8) * ramp(side - 8, 8) * ramp(62 - side, 20)
    clivus = bell(side / 11, (y - 2) / 8)
    floor = floor + 10 * ridge + 6 * clivus - 9 * bell(side / 6, (y + 16) / 6)  # sella
    return floor, 4 + 13 * ridge + 12 * clivus + 2 * behind_ridge


def skull(grid: Grid, head: Head, shape: Array) -> Skull:
    """The distances of a slab; `shape` makes every vault a little uneven."""
    z, y, x = grid.axes
    inside = vault(head, z, y, x) + 1.3 * shape
    floor, floor_mm = fossae(y, x)
    above = z - floor
    hole = FORAMEN[2] - np.sqrt((y - FORAMEN[0]) ** 2 + x * x)
    above_floor = np.maximum(0.85 * above, hole)
    muscle = head.muscle_mm * bell((z + 26) / 24, (y + 28) / 26)
    cover = head.bone_mm + head.scalp_mm + muscle
    skin = np.maximum(inside + cover, ellipsoid(grid, (-72, -58, 0), (70, 50, 60)))
    neck = 62 - np.sqrt((0.95 * (y - 30)) ** 2 + x * x) - 0.2 * (z + 60)
    skin = np.maximum(skin, np.minimum(neck, -30 - z))
    return Skull(np.minimum(inside, above_floor), -inside, above_floor, skin, floor_mm)


def slope_width(grid: Grid, head: Head) -> Array:
    """Width (mm) [D, 1, 1] of the vault's edges: near the vertex they slope through the slices."""
    z = grid.axes[0]
    return np.maximum(0.9 * grid.spacing[1], 1.25 * grid.spacing[0] * np.clip(z / np.float32(head.height), 0, 1))


AIR = -1000.0
FACE: tuple[tuple[str, Point, Point, float], ...] = (
    ("orbit", (-38, -80, 31), (17, 25, 18), -85),
    ("globe", (-38, -93, 32), (12, 12, 12), 14),
    ("lens", (-38, -103, 32), (4.5, 2, 4.5), 75),
    ("optic nerve", (-38, -70, 27), (2, 14, 2.2), 35),
    ("medial rectus", (-38, -78, 21), (5, 16, 2.2), 50),
    ("lateral rectus", (-38, -78, 43), (5, 16, 2.2), 50),
    ("maxilla", (-70, -80, 28), (20, 20, 17), 900),
    ("maxillary sinus", (-70, -80, 28), (18, 18, 15), AIR),
    ("zygoma", (-50, -58, 62), (5, 26, 2.5), 900),
    ("condyle", (-84, 28, 20), (10, 12, 9), 700),
    ("mandible", (-78, -18, 50), (20, 8, 5), 900),
)
"""Paired parts below the base, painted in this order: name, centre on the left, radii (mm), HU."""
MIDLINE: tuple[tuple[str, Point, Point, float], ...] = (
    ("nasal cavity", (-66, -86, 0), (22, 26, 13), AIR),
    ("septum", (-66, -86, 0), (22, 26, 1.4), 300),
    ("ethmoid", (-42, -74, 0), (12, 26, 13), AIR),
    ("sphenoid sinus", (-44, -30, 0), (9, 13, 13), AIR),
    ("pharynx", (-90, -22, 0), (18, 9, 14), AIR),
)
SINUSES = {"maxillary sinus", "ethmoid", "sphenoid sinus"}


def paint_face(hu: Array, grid: Grid, head: Head, cells: Array) -> None:
    """Orbits, sinuses, nose and jaw; `cells` [D, H, W] is a rough field for air cells."""
    right = [(name, (z, y, -x), radii, value) for name, (z, y, x), radii, value in FACE]
    for name, centre, radii, value in (*FACE, *right, *MIDLINE):
        box = grid.box_around(centre, radii, 2)
        if box is None:
            continue
        part = grid.part(box)
        alpha = ramp(ellipsoid(part, centre, radii), 1.2)
        if name in SINUSES and head.sinus_disease > 0:  # mucosal swelling and fluid
            level = centre[1] + radii[1] * (1 - 1.6 * head.sinus_disease)
            alpha_fluid = alpha * ramp(part.axes[1] - level + 0 * alpha, 2)
            blend(hu[box], value, alpha)
            blend(hu[box], 32.0, alpha_fluid)
        elif name == "ethmoid":
            blend(hu[box], value, alpha * ramp(np.abs(cells[box]) - 0.25, 0.3))
        else:
            blend(hu[box], value, alpha)


def paint_skull(hu: Array, grid: Grid, head: Head, bones: Skull, cells: Array, bundles: Array, sutures: Array) -> None:
    """Everything outside the cavity, in place: air, skin, fat, muscle, face, vault and base."""
    z, y, x = grid.axes
    hu[:] = AIR
    soft = ramp(bundles + 0.35 * cells + 1.6 * (0.5 - head.scalp_fat), 1.0)  # muscle among fat
    depth = bones.skin
    edge = slope_width(grid, head)
    blend(hu, -92 + 146 * soft * ramp(depth - 6, 6), ramp(depth, edge))
    blend(hu, 45.0, ramp(depth, edge) * ramp(2.2 - depth, edge))  # skin
    muscle = ramp(bones.outside - head.bone_mm, 1) * ramp(head.bone_mm + 14 - bones.outside, 2)
    temple = bell((z + 26) / 24, (y + 28) / 26) * min(1.0, head.muscle_mm / 8)
    blend(hu, 58.0, muscle * ramp(temple - 0.35, 0.3) * ramp(depth - 3, 2))
    if grid.origin[0] < -10:
        paint_face(hu, grid, head, cells)
    shell = np.minimum(bones.outside, head.bone_mm - bones.outside)
    shell = np.minimum(shell, bones.above_floor + bones.floor_mm)
    base = np.minimum(np.minimum(-bones.above_floor, bones.above_floor + bones.floor_mm), -bones.outside + 2)
    bone = np.maximum(shell, base)
    density = head.diploe_hu + (head.bone_hu - head.diploe_hu) * ramp(2.0 - bone, 2.6)
    if grid.origin[0] < -15:
        side = np.abs(x)
        mastoid = bell((side - 50) / 14, (y - 22) / 13, (z + 46) / 17)
        air = ramp(cells - 0.9 + 1.6 * head.pneumatisation * mastoid, 0.4) * ramp(mastoid - 0.25, 0.2)
        density = density + air * ramp(bone - 1, 1) * (-850 - density)
    density = density + sutures * (60 - density)
    blend(hu, density, ramp(bone, edge))
