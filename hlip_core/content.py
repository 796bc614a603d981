"""Does a CT volume show a head? Asked only where no header names the body part; simple means, named here.

Each axial plane is looked at along 72 rays from the middle of the body. It shows a skull when

- extent: the body's cross-section is 60 to 450 cm2 (a trunk has more, a limb or a finger less);
- bone: four of five rays meet bone (above 200 HU) within 45 mm of the skin, as they do under a scalp, and as
  no ray set does around a thigh, an arm or a cylinder of water; the rest leaves room for a craniectomy;
- content: inside that shell, two thirds of the area is soft tissue (-100 to 150 HU), where a chest has
  lungs, a knee has bone, and a plastic skull has air.

The volume is a head when such planes are at least a tenth of those that hold a body, and at least 20 mm (or
half of a thinner stack): so a head and neck down to the arch still counts. An MR has no unit and is not judged.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["axial", "looks_like_a_head", "skull_planes"]

BODY = -250  # HU
BONE = 200
SOFT = (-100, 150)
AREA = (6_000.0, 45_000.0)  # mm2
SCALP = 45.0  # mm
LOOK = 2.0  # mm: no finer sampling is needed, in any direction
RAYS, STEP = 72, 1.5  # rays a plane; mm between samples
RING_SHARE, SOFT_SHARE = 0.8, 2 / 3
PLANE_SHARE, EXTENT = 0.1, 20.0  # of the planes; mm

# how to turn an ordered volume so that its planes are axial
TO_AXIAL: dict[str, tuple[int, int, int]] = {"axial": (0, 1, 2), "coronal": (1, 0, 2), "sagittal": (1, 2, 0)}


def looks_like_a_head(voxels: np.ndarray, spacing: tuple[float, float, float], orientation: str) -> bool:
    """Whether HU voxels [D, H, W] with `spacing` mm, ordered as `orientation` says, show a head."""
    planes, (depth, *in_plane) = axial(voxels, spacing, orientation)
    step, down, across = (max(1, int(LOOK / size)) for size in (depth, *in_plane))
    with_body, skulls = skull_planes(planes[::step, ::down, ::across], (in_plane[0] * down, in_plane[1] * across))
    extent = min(EXTENT, 0.5 * depth * len(planes))
    return skulls >= PLANE_SHARE * with_body and skulls * step * depth >= extent and skulls > 0


def axial(
    voxels: np.ndarray, spacing: tuple[float, float, float], orientation: str
) -> tuple[np.ndarray, tuple[float, float, float]]:
    """A view of the volume whose first axis runs along the body, and its spacing."""
    turn = TO_AXIAL[orientation]
    return voxels.transpose(turn), (spacing[turn[0]], spacing[turn[1]], spacing[turn[2]])


def skull_planes(planes: np.ndarray, spacing: tuple[float, float]) -> tuple[int, int]:
    """How many planes [D, H, W] hold a body at all, and how many of these show a skull; `spacing` mm in the plane."""
    looks = [_look(plane, spacing) for plane in planes]
    return sum(look is not None for look in looks), sum(bool(look) for look in looks)


def _look(plane: np.ndarray, spacing: tuple[float, float]) -> bool | None:
    """Whether one plane shows a skull; None when it holds no body."""
    body = _largest(plane > BODY)
    area = float(body.sum()) * spacing[0] * spacing[1]
    if area < 1000:
        return None
    if not AREA[0] <= area <= AREA[1]:
        return False
    values, inside, radius = _rays(plane, body, spacing)
    skin = np.where(inside, radius, 0).max(axis=1, keepdims=True)
    bone = inside & (values > BONE) & (radius > skin - SCALP)
    if bone.any(axis=1).mean() < RING_SHARE:
        return False
    shell = np.where(bone, radius, np.inf).min(axis=1, keepdims=True)
    within = inside & (radius < np.where(np.isfinite(shell), shell, skin - SCALP))
    soft = within & (values > SOFT[0]) & (values < SOFT[1])
    weight = np.broadcast_to(radius, within.shape)  # a sample stands for an area that grows with its radius
    return bool(weight[soft].sum() >= SOFT_SHARE * weight[within].sum() > 0)


def _largest(mask: np.ndarray) -> np.ndarray:
    """The largest connected part of a mask with its holes filled."""
    labels, count = ndimage.label(mask)
    if count == 0:
        return mask
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(ndimage.binary_fill_holes(labels == sizes.argmax()))


def _rays(
    plane: np.ndarray, body: np.ndarray, spacing: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and body mask along the rays [ray, sample] from the body's centroid; the radii [1, sample] in mm."""
    rows, columns = np.nonzero(body)
    angle = np.linspace(0, 2 * np.pi, RAYS, endpoint=False)[:, None]
    radius = np.arange(STEP, 260.0, STEP)[None]
    row = np.rint(rows.mean() + radius * np.sin(angle) / spacing[0]).astype(int)
    column = np.rint(columns.mean() + radius * np.cos(angle) / spacing[1]).astype(int)
    valid = (row >= 0) & (row < plane.shape[0]) & (column >= 0) & (column < plane.shape[1])
    row, column = np.where(valid, row, 0), np.where(valid, column, 0)
    return plane[row, column], body[row, column] & valid, radius
