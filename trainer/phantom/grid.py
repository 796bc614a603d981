"""Blocks of voxels in head coordinates, and smooth random fields over them.

Head coordinates: millimetres, x to the patient's left, y to the back, z to the top (DICOM's LPS), origin in the
middle of the brain. Arrays are [D, H, W] = (z, y, x), float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
"""Single precision throughout, as far as NumPy promises it."""
Point = tuple[float, float, float]
"""(z, y, x) in mm."""
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Grid:
    """Voxel centres at origin + index * spacing, each (z, y, x) in mm."""

    origin: Point
    spacing: Point
    shape: tuple[int, int, int]

    @classmethod
    def covering(cls, low: Point, high: Point, spacing: Point) -> Grid:
        """The grid from `low` to at least `high` (mm)."""
        z, y, x = (int(np.ceil((b - a) / s)) + 1 for a, b, s in zip(low, high, spacing, strict=True))
        return cls(low, spacing, (z, y, x))

    @property
    def axes(self) -> tuple[Array, Array, Array]:
        """z [D, 1, 1], y [1, H, 1], x [1, 1, W] in mm: they broadcast to the grid."""
        z, y, x = (
            (start + step * np.arange(count)).astype(np.float32)
            for start, step, count in zip(self.origin, self.spacing, self.shape, strict=True)
        )
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def slabs(self, depth: int) -> Iterator[tuple[slice, Grid]]:
        """The grid cut along z into pieces of `depth` slices, small enough to stay in the processor's cache."""
        z, y, x = self.origin
        for start in range(0, self.shape[0], depth):
            stop = min(start + depth, self.shape[0])
            origin = (z + start * self.spacing[0], y, x)
            yield slice(start, stop), replace(self, origin=origin, shape=(stop - start, *self.shape[1:]))

    def box(self, low: Point, high: Point, margin: float = 0.0) -> Box | None:
        """The slices of the voxels between two corners, `margin` mm wider; None when there are none."""
        cut = []
        for a, b, start, step, count in zip(low, high, self.origin, self.spacing, self.shape, strict=True):
            first = max(0, int(np.ceil((a - margin - start) / step)))
            last = min(count, int(np.floor((b + margin - start) / step)) + 1)
            if first >= last:
                return None
            cut.append(slice(first, last))
        return cut[0], cut[1], cut[2]

    def box_around(self, centre: Point, radii: Point, margin: float) -> Box | None:
        """The box of an ellipsoid, wider by `margin` mm on each side."""
        low = (centre[0] - radii[0], centre[1] - radii[1], centre[2] - radii[2])
        high = (centre[0] + radii[0], centre[1] + radii[1], centre[2] + radii[2])
        return self.box(low, high, margin)

    def part(self, box: Box) -> Grid:
        """The grid of the voxels in a box."""
        starts, sizes = [piece.start for piece in box], [piece.stop - piece.start for piece in box]
        z, y, x = (o + step * i for o, step, i in zip(self.origin, self.spacing, starts, strict=True))
        return Grid((z, y, x), self.spacing, (sizes[0], sizes[1], sizes[2]))


def ramp(distance: Array, width: Array | float) -> Array:
    """0..1 across an edge `width` mm wide, 0.5 where the signed distance (mm) is 0: partial volume."""
    return np.clip(distance * np.asarray(1 / width, np.float32) + np.float32(0.5), 0, 1)


def blend(hu: Array, value: Array | float, alpha: Array) -> None:
    """Mixes `value` (HU) into `hu` in place, by the share `alpha` (0..1) of each voxel."""
    hu += alpha * (value - hu)


def bell(*terms: Array) -> Array:
    """exp of minus the sum of squares: a smooth bump; each term is a coordinate over its width."""
    total = terms[0] * terms[0]
    for term in terms[1:]:
        total = total + term * term
    return np.exp(-total)


@dataclass(frozen=True)
class Field:
    """A smooth random field of about unit variance: cubic B-splines over normal knots."""

    knots: Array
    low: Point
    knot_mm: Point

    @classmethod
    def draw(cls, rng: np.random.Generator, grid: Grid, knot_mm: Point) -> Field:
        """Knots every `knot_mm` (z, y, x); smaller is rougher."""
        extent = [step * count for step, count in zip(grid.spacing, grid.shape, strict=True)]
        shape = [int(np.ceil(size / knot)) + 4 for size, knot in zip(extent, knot_mm, strict=True)]
        knots = rng.standard_normal(shape, dtype=np.float32) * np.float32(1.74)  # keeps the variance near 1
        return cls(knots, grid.origin, knot_mm)

    def on(self, grid: Grid) -> Array:
        """The field on a grid (or a slab of it), [D, H, W]."""
        z, y, x = (
            _spline_weights(start + step * np.arange(count), low, knot, knots)
            for start, step, count, low, knot, knots in zip(
                grid.origin, grid.spacing, grid.shape, self.low, self.knot_mm, self.knots.shape, strict=True
            )
        )
        along_z = np.tensordot(z, self.knots, axes=1)  # [D, y, x]
        return (y @ along_z) @ x.T  # [D, H, W]


def _spline_weights(at: NDArray[np.float64], low: float, knot: float, count: int) -> Array:
    """Weights [len(at), count] of the cubic B-splines centred on the knots."""
    t = np.abs((at[:, None] - low) / knot + 1 - np.arange(count)[None, :])
    near = 2 / 3 - t**2 + t**3 / 2
    far = np.clip(2 - t, 0, None) ** 3 / 6
    return np.where(t < 1, near, far).astype(np.float32)
