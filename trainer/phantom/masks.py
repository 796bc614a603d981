"""Where the lesions of a study are, in patient coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .lesions import PUSHES
from .population import BLEEDS, LABEL_OF_KIND
from .scanner import Scanner
from .truth import SEPTUM, Truth

MIDLINE_MM = 20.0
"""Midline shift and mass effect are also at the septum pellucidum, within this radius."""


@dataclass(frozen=True)
class LesionMask:
    """Lesions as points in the patient.

    voxels: uint8 [D, H, W], 0 or 1 + index of `kinds`, cut to the lesions; kinds: of the lesions;
    origin, spacing: of `voxels` in head coordinates (z, y, x), mm; rotation, shift: head to patient, (x, y, z) mm.
    """

    voxels: NDArray[np.uint8]
    kinds: tuple[str, ...]
    origin: NDArray[np.float64]
    spacing: NDArray[np.float64]
    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]

    @classmethod
    def of(cls, truth: Truth, scanner: Scanner) -> LesionMask:
        """The mask of a rendered head in a scanner."""
        spacing, origin = np.array(truth.grid.spacing), np.array(truth.grid.origin)
        voxels = truth.mask
        where = [np.flatnonzero(voxels.any(axis=axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        if where[0].size:
            cut = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in where)
            voxels = voxels[cut]
            origin = origin + spacing * [piece.start for piece in cut]
        else:
            voxels = voxels[:1, :1, :1]
        kinds = tuple(lesion.kind for lesion in truth.lesions)
        return cls(voxels, kinds, origin, spacing, scanner.rotation, scanner.shift)

    def save(self, path: Path) -> None:
        """Writes a compressed npz."""
        np.savez_compressed(path, **{**vars(self), "kinds": np.array(self.kinds, dtype="U32")})

    @classmethod
    def load(cls, path: Path) -> LesionMask:
        """Reads what `save` wrote."""
        with np.load(path) as stored:
            values = dict(stored)
        return cls(**{**values, "kinds": tuple(str(kind) for kind in values["kinds"])})

    def points(self, label: str) -> NDArray[np.float64]:
        """Patient coordinates (x, y, z) mm [N, 3] of all voxels that bear a finding; N is 0 without it."""
        causes = {kind for kind, of in LABEL_OF_KIND.items() if of == label}
        if label == "intracranial_hemorrhage":
            causes = set(BLEEDS)
        elif label in ("mass_effect", "midline_shift"):
            causes = set(PUSHES)
        values = [index + 1 for index, kind in enumerate(self.kinds) if kind in causes]
        at = np.argwhere(np.isin(self.voxels, values)) * self.spacing + self.origin
        if label in ("mass_effect", "midline_shift") and len(at):
            ball = np.stack(np.meshgrid(*[np.arange(-MIDLINE_MM, MIDLINE_MM + 1, 4)] * 3), axis=-1).reshape(-1, 3)
            at = np.concatenate([at, SEPTUM + ball[np.linalg.norm(ball, axis=1) <= MIDLINE_MM]])
        return at[:, ::-1] @ self.rotation.T + self.shift

    def distance(self, label: str, point: NDArray[np.float64]) -> float:
        """Distance in mm from a patient point (x, y, z) to the nearest voxel of a finding; inf without it."""
        points = self.points(label)
        return float(np.linalg.norm(points - point, axis=1).min()) if len(points) else float("inf")
