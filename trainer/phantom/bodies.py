"""Volumes that are no head: chest, abdomen and a plain cylinder, as studies to refuse."""

from __future__ import annotations

import numpy as np

from .grid import Array, Field, Grid, Point, blend, ramp
from .skull import ellipsoid

Part = tuple[Point, Point, float]
"""Centre and radii (z, y, x) in mm, HU."""

LOW: Point = (-150, -150, -200)
HIGH: Point = (150, 150, 200)

PARTS: dict[str, tuple[Part, ...]] = {
    "chest": (
        ((0, 0, 0), (900, 115, 175), -95),  # fat
        ((0, 0, 0), (900, 100, 155), 50),  # muscle
        ((10, -5, 80), (170, 80, 62), -850),  # left lung
        ((10, -5, -80), (170, 80, 62), -850),
        ((-20, -22, 18), (60, 48, 52), 42),  # heart
        ((0, 45, 22), (900, 12, 12), 45),  # aorta
        ((0, 72, 0), (900, 18, 20), 320),  # vertebrae
        ((0, 98, 0), (900, 14, 4), 400),
        ((60, 0, 0), (900, 9, 9), -1000),  # trachea
        ((-150, 0, -70), (70, 70, 70), 60),  # liver's dome
    ),
    "abdomen": (
        ((0, 0, 0), (900, 120, 170), -95),
        ((0, 5, 0), (900, 98, 145), 48),
        ((0, -5, 0), (900, 84, 128), -90),  # fat within
        ((40, -5, -70), (110, 72, 58), 58),  # liver
        ((50, 30, 85), (50, 40, 28), 50),  # spleen
        ((0, 45, 60), (55, 26, 28), 34),  # kidneys
        ((0, 45, -60), (55, 26, 28), 34),
        ((-40, -40, 20), (60, 30, 60), 20),  # bowel
        ((-30, -50, 30), (25, 14, 30), -1000),
        ((-60, -40, -50), (25, 16, 16), -1000),
        ((0, 40, 12), (900, 11, 11), 42),
        ((0, 68, 0), (900, 22, 26), 280),
    ),
    "cylinder": (
        ((0, 0, 0), (9000, 100, 100), 120),  # wall
        ((0, 0, 0), (9000, 96, 96), 0),  # water
    ),
}


def render(body: str, grid: Grid, rng: np.random.Generator) -> Array:
    """HU [D, H, W] of one of PARTS, with ribs in the chest."""
    hu = np.full(grid.shape, -1000, np.float32)
    size = float(rng.uniform(0.92, 1.05)) if body != "cylinder" else 1.0
    grain = Field.draw(rng, grid, (14, 14, 14)).on(grid) * (0 if body == "cylinder" else 3)
    for centre, radii, value in PARTS[body]:
        sized = (size * radii[0], size * radii[1], size * radii[2])
        blend(hu, value + (value > 0) * grain, ramp(ellipsoid(grid, centre, sized), 2.0))
    if body == "chest":
        z, y, _ = grid.axes
        wall = ellipsoid(grid, (0, 0, 0), (900, 100 * size, 152 * size))
        ring = np.sin((z + 0.35 * y) * np.float32(2 * np.pi / 26))
        blend(hu, 500.0, ramp(4 - np.abs(wall - 5), 2) * ramp(ring - 0.3, 0.3))
    return hu
