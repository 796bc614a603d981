"""The scanner: from a head to the slices of a series, with pose, tilt, kernel, noise and table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .grid import Array
from .truth import Truth

Vector = NDArray[np.float64]
"""(x, y, z) in mm, as DICOM writes it."""
AIR = -1000.0


@dataclass(frozen=True)
class Kernel:
    """A reconstruction kernel: blur (mm, sigma), edge enhancement, noise factor, grain of the noise (pixels)."""

    blur_mm: float
    sharpen: float
    noise: float
    grain: float


KERNELS: dict[str, Kernel] = {
    "soft": Kernel(0.55, 0.0, 1.0, 0.8),
    "standard": Kernel(0.40, 0.15, 1.25, 0.65),
    "bone": Kernel(0.0, 0.9, 3.0, 0.0),
}


@dataclass(frozen=True)
class Make:
    """A make of scanner: limits of what its examinations are drawn from."""

    noise_hu: tuple[float, float]
    gain: float
    offset_hu: float
    blur: tuple[float, float]
    fields_mm: tuple[int, ...]
    tilted: float
    tables: tuple[str, ...]
    pitch_deg: float


MAKES: dict[str, Make] = {
    "usual": Make(
        (1.4, 3.6), 0.03, 2.5, (0.8, 1.2), (220, 230, 240, 250), 0.25, ("cradle", "cradle", "flat", "none"), 7
    ),
    "other": Make((2.2, 4.4), 0.04, 4.0, (1.2, 1.7), (212, 236, 260, 275), 0.5, ("flat", "flat", "cradle", "none"), 10),
}
"""`other` is kept for evaluation: noisier, softer, other fields, more tilt."""


@dataclass(frozen=True)
class Scanner:
    """One examination's scanner and how the patient lies in it.

    rotation: head to patient [3, 3] on (x, y, z); shift: mm; tilt_deg: gantry; noise_hu: standard deviation
    of a 5 mm soft slice; gain, offset_hu: calibration; blur: factor on the kernels' blur; field_mm:
    reconstruction diameter; table, table_gap (mm); pad_outside: pixels beyond the field are padding.
    """

    rotation: Vector
    shift: Vector
    tilt_deg: float
    noise_hu: float
    gain: float
    offset_hu: float
    blur: float
    field_mm: float
    table: str
    table_gap: float
    pad_outside: bool

    @classmethod
    def draw(cls, rng: np.random.Generator, make: Make) -> Scanner:
        """A patient who lies a little askew in a scanner of that make."""
        roll, pitch, yaw = np.deg2rad(rng.normal(0, (4, make.pitch_deg, 5)).clip(-15, 15))
        tilt = float(rng.uniform(8, 22)) if rng.random() < make.tilted else 0.0
        return cls(
            rotation=_rotation(roll, pitch, yaw),
            shift=rng.normal(0, (6, 8, 30)),
            tilt_deg=round(tilt, 1),
            noise_hu=float(rng.uniform(*make.noise_hu)),
            gain=float(rng.uniform(1 - make.gain, 1 + make.gain)),
            offset_hu=float(rng.uniform(-make.offset_hu, make.offset_hu)),
            blur=float(rng.uniform(*make.blur)),
            field_mm=float(rng.choice(make.fields_mm)),
            table=str(rng.choice(make.tables)),
            table_gap=float(rng.uniform(2, 10)),
            pad_outside=bool(rng.random() < 0.5),
        )


def _rotation(roll: float, pitch: float, yaw: float) -> Vector:
    """Rotation about y (roll), x (pitch) and z (yaw), radians."""
    cy, sy, cx, sx, cz, sz = (f(a) for a in (roll, pitch, yaw) for f in (np.cos, np.sin))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


@dataclass(frozen=True)
class Geometry:
    """Where the slices of a series lie in patient coordinates (PS3.3 C.7.6.2).

    first: centre of the first pixel of slice 0; row and column: unit vectors along increasing column and
    row index; step: from slice to slice (mm); pixel_mm; shape [slices, rows, columns]; thickness_mm.
    """

    first: Vector
    row: Vector
    column: Vector
    step: Vector
    pixel_mm: float
    shape: tuple[int, int, int]
    thickness_mm: float

    def position(self, index: int) -> Vector:
        """Image Position (Patient) of a slice."""
        return self.first + index * self.step


def axial(scanner: Scanner, *, low: float, high: float, spacing: float, thickness: float, size: int) -> Geometry:
    """Slices from `low` to `high` (mm, head's z at its middle), tilted as the gantry is."""
    t = np.deg2rad(scanner.tilt_deg)
    row, column = np.array([1.0, 0, 0]), np.array([0, np.cos(t), -np.sin(t)])
    count = max(1, round((high - low) / spacing) + 1)
    pixel = scanner.field_mm / size
    middle = scanner.shift + np.array([0, 0, low])
    first = middle - (row + column) * pixel * (size - 1) / 2
    return Geometry(first, row, column, np.array([0, 0, spacing]), pixel, (count, size, size), thickness)


def coronal(scanner: Scanner, *, low: float, high: float, spacing: float, size: int) -> Geometry:
    """A reformat from front (`low`, mm) to back, head up."""
    row, column = np.array([1.0, 0, 0]), np.array([0, 0, -1.0])
    count = round((high - low) / spacing) + 1
    pixel = scanner.field_mm / size
    middle = scanner.shift + np.array([0, low, 0])
    first = middle - (row + column) * pixel * (size - 1) / 2
    return Geometry(first, row, column, np.array([0, spacing, 0]), pixel, (count, size, size), spacing)


def to_index(truth: Truth, scanner: Scanner, geometry: Geometry) -> tuple[Vector, Vector]:
    """Matrix [3, 3] and offset [3] from (slice, row, column) to the truth's voxel index (z, y, x)."""
    inverse = scanner.rotation.T
    steps = np.stack([geometry.step, geometry.column * geometry.pixel_mm, geometry.row * geometry.pixel_mm], axis=1)
    spacing = np.array(truth.grid.spacing)[:, None]
    matrix = (inverse @ steps)[::-1] / spacing
    offset = (inverse @ (geometry.first - scanner.shift))[::-1] - np.array(truth.grid.origin)
    return matrix, offset / spacing[:, 0]


def scan(truth: Truth, scanner: Scanner, geometry: Geometry, kernel: Kernel, rng: np.random.Generator) -> Array:
    """The series as the scanner shows it, HU float32 [slices, rows, columns]."""
    matrix, offset = to_index(truth, scanner, geometry)
    through = int(np.argmax(np.abs(matrix[:, 0])))  # the truth's axis along which the slices are thick
    source = _through(truth.hu, geometry.thickness_mm / truth.grid.spacing[through], through)
    image = np.empty(geometry.shape, np.float32)
    ndimage.affine_transform(source, matrix, offset, geometry.shape, output=image, order=1, mode="constant", cval=AIR)
    np.maximum(image, _table(truth, scanner, geometry), out=image)
    if kernel.sharpen:
        for piece in image:
            piece += kernel.sharpen * (piece - ndimage.uniform_filter(piece, 3))
    if kernel.blur_mm:
        sigma = scanner.blur * kernel.blur_mm / geometry.pixel_mm
        for piece in image:
            ndimage.gaussian_filter(piece, sigma, output=piece, truncate=2.5)
    image *= scanner.gain
    image += scanner.offset_hu
    image += _noise(scanner, geometry, kernel, rng)
    return image


def _through(hu: Array, width: float, axis: int) -> Array:
    """Partial volume: the mean over a slice `width` voxels thick, less what linear interpolation blurs."""
    side = (width - 1.5) / 2
    if side <= 0:
        return hu
    whole = int(np.ceil(side))
    weights = np.ones(2 * whole + 1)
    weights[0] = weights[-1] = side - whole + 1
    smooth: Array = ndimage.correlate1d(hu, weights / weights.sum(), axis=axis, mode="nearest")
    return smooth


def _noise(scanner: Scanner, geometry: Geometry, kernel: Kernel, rng: np.random.Generator) -> Array:
    """Quantum noise: more in thin slices, grainy as the kernel is soft."""
    noise = rng.standard_normal(geometry.shape, dtype=np.float32)
    level = scanner.noise_hu * kernel.noise * min(2.2, np.sqrt(5 / geometry.thickness_mm))
    if kernel.grain:
        for piece in noise:
            ndimage.gaussian_filter(piece, kernel.grain, output=piece, truncate=2)
        level *= 2 * np.sqrt(np.pi) * kernel.grain  # the blur took this factor away
    noise *= level
    return noise


def _table(truth: Truth, scanner: Scanner, geometry: Geometry) -> Array:
    """The head rest behind the patient, HU [slices or 1, rows, columns]; it does not move with the head."""
    k = np.arange(geometry.shape[0])[:, None, None]
    r = np.arange(geometry.shape[1])[None, :, None] * geometry.pixel_mm
    c = np.arange(geometry.shape[2])[None, None, :] * geometry.pixel_mm
    if geometry.step[1] == 0:
        k = k[:1]
    x = geometry.first[0] - scanner.shift[0] + c * geometry.row[0]
    y = geometry.first[1] - scanner.shift[1] + k * geometry.step[1] + r * geometry.column[1]
    back = truth.head.half_length + truth.head.bone_mm + truth.head.scalp_mm + scanner.table_gap
    if scanner.table == "cradle":
        radius = 98.0
        around = np.sqrt(x**2 + (y - back + radius) ** 2) - radius
        shell = np.where((np.abs(around) < 1.6) & (y > -10) & (y < back - 12 + 0 * x), 140.0, AIR)
        return np.where((around > -5) & (around < 0) & (y > 10), np.maximum(shell, -920.0), shell)
    if scanner.table == "flat":
        return np.where((y > back + 2) & (y < back + 5) & (np.abs(x) < 110), 60.0, AIR)
    return np.full((1, 1, 1), AIR)


def localizer(truth: Truth, scanner: Scanner, size: int) -> tuple[Array, Geometry]:
    """A lateral projection [1, size, size] in scanner units, and where it lies."""
    grid = truth.grid
    density = np.clip(truth.hu + 1000, 0, None).sum(axis=2) * grid.spacing[2] / 100  # [D, H] along x
    pixel = 260.0 / size
    at = (np.arange(size) - (size - 1) / 2) * pixel
    rows = (-at - grid.origin[0]) / grid.spacing[0]
    columns = (at - grid.origin[1]) / grid.spacing[1]
    where = np.meshgrid(rows, columns, indexing="ij")
    image = ndimage.map_coordinates(density, where, order=1, mode="constant", cval=0.0) - 1000
    row, column = np.array([0, 1.0, 0]), np.array([0, 0, -1.0])
    first = scanner.shift - (row + column) * pixel * (size - 1) / 2
    geometry = Geometry(first, row, column, np.array([1.0, 0, 0]), pixel, (1, size, size), 260.0)
    return image[None].astype(np.float32), geometry
