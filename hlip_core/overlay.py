"""A relevance map brought back to the source: from the cells of the map to the pixels of source frames.

Each prepared slice comes from one source slice, or cuts across all of them, and nothing is sheared or rotated, so
the way back is exact for tilted and unevenly spaced series too: every source pixel has its place on their grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hlip_core.preprocessing import Preprocessing
from hlip_core.volume import PreparedScan, depth_map

__all__ = ["HIGH", "outlines", "relevance_on_source"]

HIGH = 0.5
"""What is outlined: all that has at least this part of the highest relevance of its map."""


def relevance_on_source(
    relevance: np.ndarray, scan: PreparedScan, spec: Preprocessing, frames: Sequence[int]
) -> np.ndarray:
    """float32 [frames, rows, columns]: relevance [d, h, w] of its cells, linear in between.

    `frames` are indices into the source stack. Source slices between two that were sampled lie in between; what
    the crop took off has 0.
    """
    values = relevance.astype(np.float32)
    extents = (spec.num_slices, spec.crop, spec.crop)
    for i, axis in enumerate(scan.source.axes):
        stack = np.array(frames if axis.source == 0 else range(axis.length), np.float64)
        ordered = axis.length - 1 - stack if axis.flipped else stack
        prepared = _prepared(scan, spec, i, ordered)
        margin = 0 if i == 0 else (spec.size - spec.crop) // 2
        patch = extents[i] / relevance.shape[i]
        values = _along(values, i, (prepared - margin + 0.5) / patch - 0.5)
    order = [axis.source for axis in scan.source.axes]
    return np.ascontiguousarray(values.transpose([order.index(axis) for axis in range(3)]))


def _prepared(scan: PreparedScan, spec: Preprocessing, axis: int, ordered: np.ndarray) -> np.ndarray:
    """Prepared indices of indices on an ordered axis."""
    if axis > 0:
        scale, offset = (scan.source.rows, scan.source.columns)[axis - 1]
    elif spec.spacing is not None:  # its padding and what it cuts off are no slices
        scale, offset = depth_map(scan.source.axes[0], spec.spacing[0], spec.num_slices)
    else:
        depths, first, times = np.unique(scan.source.depth_index, return_index=True, return_counts=True)
        return np.interp(ordered, depths, first + (times - 1) / 2)  # a source slice may be several prepared ones
    return (ordered - offset) / scale


def _along(values: np.ndarray, axis: int, positions: np.ndarray) -> np.ndarray:
    """Linear interpolation along one axis; beyond the outer edge of its first and last cell there is 0."""
    last = values.shape[axis] - 1
    inside = (positions >= -0.5) & (positions <= last + 0.5)
    positions = positions.clip(0, last)
    low = np.floor(positions).astype(int)
    shape = [1, 1, 1]
    shape[axis] = -1
    part = (positions - low).astype(np.float32).reshape(shape)
    below, above = values.take(low, axis), values.take(np.minimum(low + 1, last), axis)
    return (below * (1 - part) + above * part) * inside.reshape(shape)


def outlines(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """The borders of the true regions of a mask [rows, columns], each a closed line [points, 2] of (row, column).

    They run along the edges of pixels; 0.0 is the centre of the first pixel.
    """
    padded = np.pad(mask.astype(bool), 1)
    inner = padded[1:-1, 1:-1]
    sides = (  # the neighbour that is outside, and the edge towards it, clockwise
        (padded[:-2, 1:-1], (0, 0), (0, 1)),
        (padded[1:-1, 2:], (0, 1), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (1, 0)),
        (padded[1:-1, :-2], (1, 0), (0, 0)),
    )
    ends: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for neighbour, start, end in sides:
        for row, column in np.argwhere(inner & ~neighbour).tolist():
            corner = (row + start[0], column + start[1])
            ends.setdefault(corner, []).append((row + end[0], column + end[1]))
    lines = []
    while ends:
        at = next(iter(ends))
        line = []
        while at in ends:
            line.append(at)
            following = ends[at].pop()
            if not ends[at]:
                del ends[at]
            at = following
        lines.append(np.array(line, np.float64) - 0.5)
    return tuple(lines)
