"""Resizing, cropping and padding of float arrays, number for number as the reference does it (numpy only).

Bilinear means half-pixel centres, align_corners False, no antialiasing; the index arithmetic is float32, as in
the reference, since the weights must agree to 1e-6. Letters: D depth, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hlip_core.errors import InputError
from hlip_core.preprocessing import WINDOWS, Preprocessing

__all__ = ["brain", "centre_fit", "chest", "linear", "nearest_slices", "normalise", "square_pad"]


def nearest_slices(depth: int, num_slices: int) -> np.ndarray:
    """int [num_slices], the source slice of each output slice: floor((i + 0.5) * depth / num_slices).

    In float32 as in the reference, which decides the few ties (224 slices to 48) by rounding.
    """
    centres = (np.arange(num_slices, dtype=np.float32) + np.float32(0.5)) * np.float32(depth / num_slices)
    return np.minimum(centres.astype(np.int64), depth - 1)


def square_pad(volume: np.ndarray, value: float = 0.0) -> np.ndarray:
    """[..., H, W] padded to a centred square; an odd pixel goes to the bottom or the right."""
    rows, columns = volume.shape[-2:]
    side = max(rows, columns)
    return _pad(volume, ((side - rows) // 2, (side - columns) // 2), (side, side), value)


def centre_fit(volume: np.ndarray, shape: Sequence[int], value: float = 0.0) -> np.ndarray:
    """The last axes padded to at least `shape` (the smaller half first), then cropped to it from the floored centre."""
    sizes = volume.shape[-len(shape) :]
    before = [max(0, (want - have) // 2) for have, want in zip(sizes, shape, strict=True)]
    grown = [max(have, want) for have, want in zip(sizes, shape, strict=True)]
    padded = _pad(volume, before, grown, value)
    starts = [(have - want) // 2 for have, want in zip(grown, shape, strict=True)]
    return padded[_last_axes(starts, shape)]


def _pad(volume: np.ndarray, before: Sequence[int], shape: Sequence[int], value: float) -> np.ndarray:
    sizes = volume.shape[-len(shape) :]
    if tuple(sizes) == tuple(shape):
        return volume
    out = np.full((*volume.shape[: -len(shape)], *shape), value, dtype=volume.dtype)
    out[_last_axes(before, sizes)] = volume
    return out


def _last_axes(starts: Sequence[int], sizes: Sequence[int]) -> tuple[Any, ...]:
    return (..., *(slice(start, start + size) for start, size in zip(starts, sizes, strict=True)))


def linear(volume: np.ndarray, size: int, axis: int) -> np.ndarray:
    """float32 `volume` resized along one axis by linear interpolation; applied axis by axis it is bi- or trilinear."""
    length = volume.shape[axis]
    if length == size:
        return volume
    at = np.float32(length / size) * (np.arange(size, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    at = np.maximum(at, np.float32(0))
    low = np.minimum(at.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    weight = (at - low.astype(np.float32)).reshape([-1 if i == axis % volume.ndim else 1 for i in range(volume.ndim)])
    return volume.take(low, axis) * (np.float32(1) - weight) + volume.take(high, axis) * weight


def normalise(volume: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """(volume - mean) / std in float32."""
    return (volume.astype(np.float32, copy=False) - np.float32(spec.mean)) / np.float32(spec.std)


def brain(volume: np.ndarray, spec: Preprocessing) -> np.ndarray:
    """The reference's way from a volume [D, H, W], 0..1, to a model scan, float32 [1, num_slices, crop, crop]."""
    volume = _volume(volume)[nearest_slices(volume.shape[0], spec.num_slices)]
    squared = square_pad(volume)
    resized = linear(linear(squared, spec.size, 1), spec.size, 2)
    return normalise(centre_fit(resized, (spec.crop, spec.crop)), spec)[None]


def chest(volume: np.ndarray, spec: Preprocessing, *, mode: str = "crop") -> np.ndarray:
    """A chest CT [D, H, W] in HU at the specification's spacing as one model scan, float32 [1, D', H', W'].

    `mode` "crop": padded with the window's lower end and cropped to the model's shape; "resize": trilinear.
    """
    window = WINDOWS[spec.windows[0]]
    scaled = np.clip((_volume(volume) - np.float32(window.low)) / np.float32(window.width), 0, 1)
    shape = (spec.num_slices, spec.crop, spec.crop)
    if mode == "crop":
        return normalise(centre_fit(scaled, shape), spec)[None]
    if mode != "resize":
        raise InputError(f"mode {mode!r} is neither crop nor resize")
    for axis, size in enumerate(shape):
        scaled = linear(scaled, size, axis)
    return normalise(scaled, spec)[None]


def _volume(volume: np.ndarray) -> np.ndarray:
    if volume.ndim != 3 or 0 in volume.shape:
        raise InputError(f"a volume has three axes, not the shape {volume.shape}")
    return volume.astype(np.float32, copy=False)
