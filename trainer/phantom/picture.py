"""A sheet of studies to look at: a row of slices each, in the window that its series asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread

COLUMNS = 8
TILE = 128
"""Slices a row, pixels a slice."""
RANGE = (0.14, 0.93)
"""Which share of the stack is shown."""


def contact_sheet(studies: Sequence[Path]) -> Image.Image:
    """One row for each study folder: slices of its first series that is a volume.

    Raises:
        ValueError: when no study has a volume.
    """
    rows = [row for row in (_row(folder) for folder in studies) if row is not None]
    if not rows:
        raise ValueError("no study with a volume to show")
    return Image.fromarray(np.vstack(rows))


def _row(study: Path) -> NDArray[np.uint8] | None:
    for series in sorted(path for path in study.iterdir() if path.is_dir()):
        paths = sorted(series.iterdir())
        if len(paths) >= COLUMNS:
            shown = np.linspace(RANGE[0] * len(paths), RANGE[1] * (len(paths) - 1), COLUMNS).astype(int)
            return np.hstack([_tile(paths[index]) for index in shown])
    return None


def _tile(path: Path) -> NDArray[np.uint8]:
    """One slice [TILE, TILE], windowed."""
    image = dcmread(path)
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    low = float(image.WindowCenter) - float(image.WindowWidth) / 2
    grey = np.clip((hu - low) / float(image.WindowWidth), 0, 1) * 255
    return np.asarray(Image.fromarray(grey.astype(np.uint8)).resize((TILE, TILE), Image.Resampling.BOX))
