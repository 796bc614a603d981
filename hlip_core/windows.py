"""Windows: from a prepared scan to what the model sees, and to what a person sees.

A *scan* of the model is one prepared volume seen through one window: a head CT is three scans.
"""

from __future__ import annotations

import numpy as np

from hlip_core.errors import InputError
from hlip_core.preprocessing import WINDOWS, Preprocessing, Window
from hlip_core.resample import centre_fit, normalise
from hlip_core.volume import PreparedScan

__all__ = ["WINDOWS", "Window", "display", "model_scan", "model_scans", "prepared_voxel"]


def model_scans(prepared: PreparedScan, spec: Preprocessing) -> np.ndarray:
    """float32 [W, 1, D, crop, crop]: one scan for each window of `spec`, in its order.

    Windowed to 0..1, centre-cropped, normalised. The reference windows to 8 bits first and resizes then; here
    the volume was resized in HU, so nothing is rounded to 8 bits.
    Raises InputError when `prepared` was made by another specification.
    """
    if prepared.preprocessing_digest != spec.digest:
        raise InputError(f"prepared by {prepared.preprocessing}, not by this {spec.name}")
    cropped = centre_fit(prepared.voxels, (spec.crop, spec.crop))
    return np.stack([model_scan(cropped, name, spec) for name in spec.windows])


def model_scan(cropped: np.ndarray, window: str, spec: Preprocessing) -> np.ndarray:
    """float32 [1, D, crop, crop]: prepared voxels, already cropped, through one window, normalised."""
    return normalise(_unit(cropped, WINDOWS[window]), spec)[None]


def _unit(values: np.ndarray, window: Window) -> np.ndarray:
    scaled = (values.astype(np.float32) - np.float32(window.low)) / np.float32(window.width)
    return np.clip(scaled, 0, 1)


def prepared_voxel(z: float, y: float, x: float, *, spec: Preprocessing) -> tuple[float, float, float]:
    """The prepared-scan indices of a model-scan voxel: what the centre crop took off is added again."""
    margin = (spec.size - spec.crop) // 2
    return z, y + margin, x + margin


def display(values: np.ndarray, *, center: float, width: float) -> np.ndarray:
    """uint8 grey values for a person: `center` (level) and `width` in the units of `values`, of the same shape.

    Raises ValueError for a width that is not positive.
    """
    if not width > 0:
        raise ValueError("a window has a positive width")
    return np.round(_unit(values, Window(center - width / 2, center + width / 2)) * 255).astype(np.uint8)
