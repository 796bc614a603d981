"""From frames to one stack of slices in a fixed patient order, and the way back from a voxel to its source.

The rules, in the order in which they are applied:

1. Frames of one size, orientation and pixel spacing belong together. The largest such group is used when it
   holds at least two thirds of the frames (the rest is noted); otherwise the series is refused.
2. Slices are sorted by their position along the slice normal; instance numbers and file names say nothing.
3. A series of several volumes gives its first complete one. Frames of one temporal position and acquisition are
   a part. Parts that follow each other (sequential CT) are joined; of parts that lie in one place the first is
   used whose extent is at least 0.9 of the longest one's, and a part is left out that has more than half of its
   extent where those before it lie already. A slice is as thick as it says, though not thicker than its distance
   to the next one of its part: parts whose slices lie in each other's gaps are joined. A part of one slice is
   left out only where it lies between two slices of another part.
4. Frames closer than 0.05 mm lie at one position. The first of them is used: lowest temporal position, then
   acquisition, echo, b-value, instance or frame number.
5. Positions that drift sideways on a straight line are a gantry tilt: noted, not resampled. Above 45 degrees,
   or with more than 30 mm between a slice and that line, the frames are no stack.
6. A gap is a hole when it is wider than 1.5 x the median gap and 1.5 x the thickness of the slices beside it.
   Holes are noted; refused when together they hide more than a fifth of the extent.
7. The stack is partial where slices are missing in a hole, or where images that rule 1 left out lie more than half
   a gap beyond its ends. Images of another volume do so when they lie beyond them by a tenth of its extent.

Nothing is resampled: axes are only swapped and turned round, so that they run in one order (ORIENTATIONS).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hlip_core.errors import Refused
from hlip_core.frames import Frame
from hlip_core.reasons import Reason

__all__ = ["ORIENTATIONS", "Axis", "Stack", "stack_of"]

SAME_PLACE = 0.05  # mm
DOMINANT = 2 / 3
COMPLETE = 0.9
MAX_SHARED = 0.5
MAX_TILT = 45.0  # degrees
MAX_DRIFT = 30.0  # mm
MAX_HIDDEN = 0.2

# name: the patient direction in which depth, row and column index grow (LPS: x to the left, y to the back, z up)
ORIENTATIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "axial": ((2, +1), (1, +1), (0, +1)),  # depth I>S, rows A>P, columns R>L
    "coronal": ((1, +1), (2, -1), (0, +1)),  # depth A>P, rows S>I, columns R>L
    "sagittal": ((0, +1), (2, -1), (1, +1)),  # depth R>L, rows S>I, columns A>P
}
OF_NORMAL = {2: "axial", 1: "coronal", 0: "sagittal"}


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of the ordered volume: which axis of the stack it is (0 slice, 1 row, 2 column), turned round or not."""

    source: int
    flipped: bool
    length: int
    spacing: float  # mm

    def to_stack(self, index: float) -> float:
        """The stack index of an index on this axis."""
        return self.length - 1 - index if self.flipped else index


@dataclass(frozen=True)
class Stack:
    """Slices of one series, sorted along their normal, and how their axes become depth, rows, columns."""

    frames: tuple[Frame, ...]
    orientation: str
    axes: tuple[Axis, Axis, Axis]
    notes: tuple[str, ...]
    is_partial: bool  # slices are missing, or were left out and lie where the stack does not reach

    @property
    def shape(self) -> tuple[int, int, int]:
        """Depth, rows, columns of the ordered volume."""
        depth, rows, columns = (axis.length for axis in self.axes)
        return depth, rows, columns

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm between depths (mean), rows, columns of the ordered volume."""
        depth, rows, columns = (axis.spacing for axis in self.axes)
        return depth, rows, columns

    def order_image(self, image: np.ndarray) -> np.ndarray:
        """One slice [row, column] turned like the volume, where the slice axis is the depth; a view."""
        _, rows, columns = self.axes
        turned = image if rows.source == 1 else image.T
        return turned[:: -1 if rows.flipped else 1, :: -1 if columns.flipped else 1]

    def order(self, array: np.ndarray) -> np.ndarray:
        """A stack array [slice, row, column] as the ordered volume [depth, row, column]; a view."""
        turned = array.transpose([axis.source for axis in self.axes])
        return turned[tuple(slice(None, None, -1 if axis.flipped else 1) for axis in self.axes)]


def stack_of(frames: Sequence[Frame], *, depth: str = "slice") -> Stack:
    """The stack that the frames of one series form.

    `depth` "slice": the slice axis is the depth; "coarsest": the axis with the largest spacing is, unless the
    slice axis comes within 1 % of it. Raises Refused(geometry).
    """
    group, unlike, notes = _dominant(sorted(frames, key=lambda frame: frame.order))
    across, down = np.array(group[0].across), np.array(group[0].down)
    normal = np.cross(across, down)
    positions = np.array([frame.position for frame in group])
    along = positions @ normal
    others = _other_volumes(group, along)
    kept, at, duplicates = _first_at_each_position(group, along, others)
    notes += duplicates
    places = positions[kept]
    tilt = _tilt(places @ np.stack([across, down], axis=1), at)
    notes += tilt
    slices = tuple(group[i] for i in kept)
    gap_notes, has_holes = _gaps(slices, at)
    notes += gap_notes
    gap = (at[-1] - at[0]) / (len(at) - 1) if len(at) > 1 else slices[0].thickness or 1.0
    lengths = (len(slices), *slices[0].shape)
    spacings = (float(gap), *slices[0].spacing)
    orientation, axes = _axes(np.stack([normal, down, across]), lengths, spacings, depth)
    if not tilt:
        notes += _oblique(normal)
    beyond = _beyond(_centres(unlike) @ normal, at, gap / 2) + _beyond(along[list(others)], at, _allowed(at, gap))
    if beyond:
        notes.append(f"{beyond} of the images left out lie beyond the slices that are used")
    return Stack(slices, orientation, axes, tuple(notes), is_partial=has_holes or beyond > 0)


def _dominant(frames: Sequence[Frame]) -> tuple[list[Frame], list[Frame], list[str]]:
    """The frames of the dominant group, the others, and notes."""
    groups: list[list[Frame]] = []
    for frame in frames:
        home = next((group for group in groups if _alike(group[0], frame)), None)
        if home is None:
            groups.append([frame])
        else:
            home.append(frame)
        if len(groups) > 64:
            raise Refused(Reason.GEOMETRY, "the images share neither size nor orientation")
    largest = max(groups, key=len)
    if len(largest) < DOMINANT * len(frames):
        raise Refused(Reason.GEOMETRY, f"{len(groups)} stacks of different size or orientation, none dominant")
    unlike = [frame for group in groups if group is not largest for frame in group]
    return largest, unlike, [f"{len(unlike)} images of another size or orientation left out"] if unlike else []


def _alike(a: Frame, b: Frame) -> bool:
    if a.shape != b.shape:
        return False
    ours, theirs = (*a.across, *a.down, *a.spacing), (*b.across, *b.down, *b.spacing)
    return ours == theirs or max(abs(x - y) for x, y in zip(ours, theirs, strict=True)) < 2e-3


@dataclass(frozen=True)
class _Part:
    """Frames of one temporal position and acquisition, and from where to where each reaches along the normal (mm)."""

    frames: Sequence[int]  # indices into the group
    starts: np.ndarray
    ends: np.ndarray
    first: float  # the position of its first slice
    last: float

    @property
    def is_flat(self) -> bool:
        return self.last - self.first < SAME_PLACE

    def cells(self, edges: np.ndarray) -> np.ndarray:
        """Which of the cells between these edges it lies in, bool [edges - 1]."""
        inside = np.zeros(len(edges) - 1, dtype=bool)
        for start, end in zip(*(np.searchsorted(edges, side) for side in (self.starts, self.ends)), strict=True):
            inside[start:end] = True
        return inside


def _part(frames: Sequence[int], group: Sequence[Frame], at: np.ndarray) -> _Part:
    places = at[frames]
    steps = np.diff(np.sort(places))
    steps = steps[steps >= SAME_PLACE]
    thickness = np.array([group[i].thickness or math.inf for i in frames])
    thickness = np.minimum(thickness, np.median(steps) if len(steps) else math.inf)
    half = np.where(np.isfinite(thickness), thickness, SAME_PLACE) / 2
    return _Part(frames, places - half, places + half, float(places.min()), float(places.max()))


def _other_volumes(group: Sequence[Frame], at: np.ndarray) -> set[int]:
    """Indices of the frames that do not belong to the first complete volume (rule 3)."""
    numbered: dict[tuple[float, ...], list[int]] = {}
    for i, frame in enumerate(group):
        numbered.setdefault(frame.volume, []).append(i)
    parts = [_part(numbered[volume], group, at) for volume in sorted(numbered)]
    if len(parts) == 1 or all(part.is_flat for part in parts):
        return set()
    edges = np.unique([edge for part in parts for edge in (*part.starts, *part.ends, part.first, part.last)])
    widths = np.diff(edges)
    extents = [float(widths[part.cells(edges)].sum()) for part in parts]
    complete = COMPLETE * max(extents)
    others: set[int] = set()
    taken, amid = np.zeros((2, len(widths)), dtype=bool)
    for k in sorted(range(len(parts)), key=lambda k: (parts[k].is_flat, extents[k] < complete)):
        cells = parts[k].cells(edges)
        shared = cells & (amid if parts[k].is_flat else taken)
        if widths[shared].sum() > MAX_SHARED * extents[k]:
            others.update(parts[k].frames)
        elif not parts[k].is_flat:
            taken |= cells
            amid |= cells & (edges[:-1] >= parts[k].first) & (edges[1:] <= parts[k].last)
    return others


def _first_at_each_position(
    group: Sequence[Frame], at: np.ndarray, others: set[int]
) -> tuple[list[int], np.ndarray, list[str]]:
    """Indices into the group, sorted along the normal, one for each position; their positions; notes.

    `others` are the frames of other volumes.
    """
    by_place = sorted(range(len(group)), key=lambda i: (at[i], group[i].order))
    places: list[list[int]] = []
    for i in by_place:
        if places and at[i] - at[places[-1][0]] < SAME_PLACE:
            places[-1].append(i)
        else:
            places.append([i])
    used = [place for place in places if not others.issuperset(place)]
    kept = [min(place, key=lambda i: (i in others, group[i].order)) for place in used]
    notes = []
    if len(used) < len(places):
        notes.append(f"{len(others)} images of other volumes left out: the first complete volume is used")
        used = [[i for i in place if i not in others] for place in used]
    left_out = sum(len(place) - 1 for place in used)
    counts = {len(place) for place in used}
    if left_out and len(counts) == 1:
        notes.append(f"{counts.pop()} images at every position: the first volume is used")
    elif left_out:
        notes.append(f"{left_out} images at positions already taken left out")
    return kept, at[kept], notes


def _tilt(offsets: np.ndarray, at: np.ndarray) -> list[str]:
    """Notes on how slices drift sideways: `offsets` [slice, 2] mm in the plane, `at` [slice] mm along the normal."""
    if len(at) < 2:
        return []
    centred = at - at.mean()
    slope = centred @ (offsets - offsets.mean(axis=0)) / (centred @ centred)
    residual = float(np.abs(offsets - offsets.mean(axis=0) - centred[:, None] * slope).max())
    angle = math.degrees(math.atan(float(np.hypot(*slope))))
    if angle > MAX_TILT or residual > MAX_DRIFT:
        raise Refused(Reason.GEOMETRY, f"slices drift sideways: {angle:.0f} degrees, {residual:.0f} mm")
    notes = [f"gantry tilt {angle:.1f} degrees, not resampled"] if angle > 0.5 else []
    if residual > 1:
        notes.append(f"slices lie up to {residual:.1f} mm beside their common line")
    return notes


def _centres(frames: Sequence[Frame]) -> np.ndarray:
    """The centres of images, mm [frame, xyz]."""
    corners, across, down = (
        np.array([getattr(frame, name) for frame in frames], np.float64).reshape(-1, 3)
        for name in ("position", "across", "down")
    )
    sides = np.array([(np.array(frame.shape) - 1) * frame.spacing for frame in frames]).reshape(-1, 2) / 2
    return np.asarray(corners + across * sides[:, 1:] + down * sides[:, :1])


def _beyond(places: np.ndarray, at: np.ndarray, margin: float) -> int:
    """How many places lie further than `margin` beyond the ends of the stack (mm along the normal)."""
    return int(((places < at[0] - margin) | (places > at[-1] + margin)).sum())


def _allowed(at: np.ndarray, gap: float) -> float:
    """How far another volume may reach beyond the one that is used and still be a repeat of it."""
    return max(gap, (1 - COMPLETE) * float(at[-1] - at[0]))


def _gaps(slices: Sequence[Frame], at: np.ndarray) -> tuple[list[str], bool]:
    """Notes on the gaps between slices, and whether some are holes."""
    if len(at) < 3:
        return [], False
    gaps = np.diff(at)
    median = float(np.median(gaps))
    thickness = np.array([frame.thickness or 0.0 for frame in slices])
    covered = np.maximum(median, np.maximum(thickness[:-1], thickness[1:]))
    holes = gaps > 1.5 * covered
    hidden = float((gaps - covered)[holes].sum() / (at[-1] - at[0]))
    if hidden > MAX_HIDDEN:
        raise Refused(Reason.GEOMETRY, f"slices are missing over {hidden:.0%} of the extent")
    notes = []
    if holes.any():
        missing = int(np.round(gaps[holes] / median - 1).sum())
        notes.append(f"about {max(missing, 1)} slices missing in {int(holes.sum())} places")
    steady = gaps[~holes]
    if steady.max() - steady.min() > max(SAME_PLACE, 0.02 * median):
        notes.append(f"variable slice spacing {steady.min():.2f} to {steady.max():.2f} mm")
    overlapping = gaps < 0.95 * np.minimum(thickness[:-1], thickness[1:])
    if overlapping.any():
        notes.append(f"slices overlap in {int(overlapping.sum())} of {len(gaps)} places")
    return notes, bool(holes.any())


def _axes(
    directions: np.ndarray, lengths: Sequence[int], spacings: Sequence[float], depth: str
) -> tuple[str, tuple[Axis, Axis, Axis]]:
    """The orientation's name and its axes; `directions` [3, xyz] of the stack axes slice, row, column."""
    deep = 0
    if depth == "coarsest" and max(spacings) > 1.01 * spacings[0]:
        deep = int(np.argmax(spacings))
    name = OF_NORMAL[int(np.argmax(np.abs(directions[deep])))]
    wanted = ORIENTATIONS[name]
    a, b = (axis for axis in range(3) if axis != deep)
    fit = {
        (rows, columns): abs(directions[rows, wanted[1][0]]) + abs(directions[columns, wanted[2][0]])
        for rows, columns in ((a, b), (b, a))
    }
    rows, columns = max(fit, key=lambda pair: fit[pair])
    depth_axis, row_axis, column_axis = (
        Axis(
            source=source,
            flipped=bool(directions[source, patient] * sign < 0),
            length=int(lengths[source]),
            spacing=float(spacings[source]),
        )
        for source, (patient, sign) in zip((deep, rows, columns), wanted, strict=True)
    )
    return name, (depth_axis, row_axis, column_axis)


def _oblique(normal: np.ndarray) -> list[str]:
    angle = math.degrees(math.acos(min(1.0, float(np.abs(normal).max()))))
    return [f"oblique slices, {angle:.0f} degrees off the patient's axis"] if angle > 10 else []
