"""From the datasets of one series to its prepared scan: the one function that training and serving share.

    datasets > in scope (scope) > frames (frames) > stack (geometry) > sampled slices (pixels) > voxels (resample)

CT: only the slices that the specification samples are decoded. MR: all are, since its intensities are scaled
by percentiles of the whole volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from hlip_core import content, resample
from hlip_core.errors import Refused
from hlip_core.files import open_series
from hlip_core.frames import frames_of
from hlip_core.geometry import Axis, Stack, stack_of
from hlip_core.headers import MALFORMED, integer, lenient, text
from hlip_core.pixels import values
from hlip_core.prepared import PreparedScan, SourceMap, SourceVoxel
from hlip_core.preprocessing import Preprocessing
from hlip_core.reasons import Reason
from hlip_core.scope import region, screen

__all__ = ["PreparedScan", "SourceMap", "SourceVoxel", "depth_map", "open_series", "prepare"]

MAX_VOXELS = 2**27  # of a volume that has to be decoded whole: 512 MB as float32
AIR_BELOW, AIR_SHARE = -300, 1e-4  # a CT in HU has at least this share of voxels below this value


def prepare(datasets: Sequence[Dataset], spec: Preprocessing) -> PreparedScan:
    """The prepared scan of one series, in any order of its datasets.

    `datasets` come from `open_series`, or whole from memory (with file_meta). The same series and `spec` give
    the same voxels to the bit. Raises Refused with the reason, whatever the headers and pixels hold, and
    FileNotFoundError or PermissionError when a file has gone since it was opened.
    """
    if not datasets:
        raise Refused(Reason.TOO_FEW_SLICES, "no instances")
    with lenient():
        try:
            return _prepare(datasets, spec)
        except (FileNotFoundError, PermissionError):
            raise
        except MALFORMED as error:  # a header that no rule foresaw
            raise Refused(Reason.HEADER, type(error).__name__) from error


def _prepare(datasets: Sequence[Dataset], spec: Preprocessing) -> PreparedScan:
    _one(datasets, ("StudyInstanceUID", "SeriesInstanceUID", "PatientID"))
    kept, notes = screen(datasets, spec)
    _one(kept, ("FrameOfReferenceUID",))
    stack = stack_of(frames_of(kept, spec.modality), depth=spec.depth)
    grid = _grid(stack, spec)
    is_named = region(kept[0]) is not None
    if len(stack.frames) < spec.min_slices:
        _judge_few(kept, stack, spec, is_named=is_named)
    voxels = _voxels(kept, stack, grid, spec)
    spacing = grid.spacing
    notes += [*stack.notes, *_judge(voxels, spacing, stack.orientation, spec, is_named=is_named)]
    used = {instance: k for k, instance in enumerate(dict.fromkeys(frame.instance for frame in stack.frames))}
    first = kept[stack.frames[0].instance]
    return PreparedScan(
        voxels=voxels,
        study_instance_uid=text(first, "StudyInstanceUID"),
        series_instance_uid=text(first, "SeriesInstanceUID"),
        frame_of_reference_uid=text(first, "FrameOfReferenceUID"),
        modality=spec.modality,
        preprocessing=spec.name,
        preprocessing_digest=spec.digest,
        orientation=stack.orientation,
        spacing=spacing,
        source=SourceMap(
            instances=tuple((text(kept[i], "SOPClassUID"), text(kept[i], "SOPInstanceUID")) for i in used),
            frames=tuple((used[frame.instance], frame.number) for frame in stack.frames),
            axes=stack.axes,
            depth_index=tuple(int(i) for i in grid.depth_index),
            rows=grid.rows,
            columns=grid.columns,
        ),
        notes=tuple(notes),
        series_number=integer(first, "SeriesNumber"),
        series_description=text(first, "SeriesDescription"),
        num_instances=len(datasets),
        is_partial=stack.is_partial,
    )


def _one(datasets: Sequence[Dataset], keywords: Sequence[str]) -> None:
    for keyword in keywords:
        if len({text(dataset, keyword) for dataset in datasets} - {""}) > 1:
            raise Refused(Reason.INCONSISTENT, f"more than one {keyword}")


# ---- the grid of the prepared scan ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Grid:
    """Where the prepared voxels lie on the ordered volume, see `SourceMap`."""

    depth_index: np.ndarray  # int [num_slices]
    inside: np.ndarray  # bool [num_slices]: false where the volume has no slice
    resized: tuple[int, int]  # rows, columns of the padded or resampled image before it is cropped
    rows: tuple[float, float]
    columns: tuple[float, float]
    spacing: tuple[float, float, float]


def _grid(stack: Stack, spec: Preprocessing) -> _Grid:
    return _fitted(stack, spec) if spec.spacing is None else _resampled(stack, spec, spec.spacing)


def _fitted(stack: Stack, spec: Preprocessing) -> _Grid:
    """The whole extent of the series on the grid of the specification."""
    depth, rows, columns = stack.shape
    side = max(rows, columns)
    scale = side / spec.size
    offsets = [0.5 * scale - 0.5 - (side - length) // 2 for length in (rows, columns)]
    gap, between_rows, between_columns = stack.spacing
    return _Grid(
        depth_index=resample.nearest_slices(depth, spec.num_slices),
        inside=np.ones(spec.num_slices, dtype=bool),
        resized=(spec.size, spec.size),
        rows=(scale, offsets[0]),
        columns=(scale, offsets[1]),
        spacing=(gap * depth / spec.num_slices, between_rows * scale, between_columns * scale),
    )


def _resampled(stack: Stack, spec: Preprocessing, spacing: tuple[float, float, float]) -> _Grid:
    """The series at the spacing of the specification, its centre on the centre of the grid."""
    lengths = stack.shape
    new = [_length_at(n, have, want) for n, have, want in zip(lengths, stack.spacing, spacing, strict=True)]
    wanted = (spec.num_slices, spec.size, spec.size)
    starts = [_start(have, want) for have, want in zip(new, wanted, strict=True)]
    at = np.arange(spec.num_slices) + starts[0]
    inside = (at >= 0) & (at < new[0])
    nearest = resample.nearest_slices(lengths[0], new[0])[np.clip(at, 0, new[0] - 1)]
    scales = [length / n for length, n in zip(lengths, new, strict=True)]
    rows, columns = ((scales[i], (starts[i] + 0.5) * scales[i] - 0.5) for i in (1, 2))
    return _Grid(nearest, inside, (new[1], new[2]), rows, columns, spacing)


def depth_map(axis: Axis, spacing: float, num_slices: int) -> tuple[float, float]:
    """(scale, offset) from a prepared index to one on the ordered depth axis, resampled to `spacing` (mm)."""
    new = _length_at(axis.length, axis.spacing, spacing)
    scale = axis.length / new
    return scale, (_start(new, num_slices) + 0.5) * scale - 0.5


def _length_at(length: int, have: float, want: float) -> int:
    """How many steps of `want` mm there are in `length` of `have` mm."""
    return max(1, round(length * have / want))


def _start(have: int, want: int) -> int:
    """The first index that `resample.centre_fit` keeps; negative where it pads."""
    return (have - want) // 2 if have > want else -((want - have) // 2)


# ---- voxels --------------------------------------------------------------------------------------------------


def _voxels(datasets: Sequence[Dataset], stack: Stack, grid: _Grid, spec: Preprocessing) -> np.ndarray:
    """int16 [num_slices, size, size]."""
    whole = spec.modality == "MR" or stack.axes[0].source != 0
    ordered = _decode_whole(datasets, stack, spec) if whole else _decode_on_demand(datasets, stack, spec)
    out = np.full((spec.num_slices, spec.size, spec.size), spec.air, dtype=np.int16)
    previous, plane = -1, out[0]
    for z in np.flatnonzero(grid.inside):
        index = int(grid.depth_index[z])
        if index != previous:
            previous, plane = index, _plane(ordered(index), grid, spec)
        out[z] = plane
    return out


def _plane(image: np.ndarray, grid: _Grid, spec: Preprocessing) -> np.ndarray:
    """One ordered slice [rows, columns] on the grid: int16 [size, size]."""
    if spec.spacing is None:
        image = resample.square_pad(image, spec.air)
    for axis, size in enumerate(grid.resized):
        image = resample.linear(image, size, axis)
    image = resample.centre_fit(image, (spec.size, spec.size), spec.air)
    return np.clip(np.rint(image), -32768, 32767).astype(np.int16)


def _decode_on_demand(datasets: Sequence[Dataset], stack: Stack, spec: Preprocessing) -> Callable[[int], np.ndarray]:
    def ordered(index: int) -> np.ndarray:
        frame = stack.frames[round(stack.axes[0].to_stack(index))]
        return stack.order_image(values(datasets[frame.instance], frame, air=spec.air, modality=spec.modality))

    return ordered


def _decode_whole(datasets: Sequence[Dataset], stack: Stack, spec: Preprocessing) -> Callable[[int], np.ndarray]:
    shape = (len(stack.frames), *stack.frames[0].shape)
    if np.prod(shape, dtype=np.int64) > MAX_VOXELS:
        raise Refused(Reason.TOO_LARGE, f"{shape[0]} slices of {shape[1]} x {shape[2]}")
    volume = np.empty(shape, dtype=np.float32)
    for k, frame in enumerate(stack.frames):
        volume[k] = values(datasets[frame.instance], frame, air=spec.air, modality=spec.modality)
    if spec.percentiles is not None:
        low, high = np.percentile(volume, spec.percentiles)
        if not high > low:
            raise Refused(Reason.UNDECODABLE, "all pixels have the same value")
        volume -= np.float32(low)
        volume *= np.float32(32767 / (high - low))
        np.clip(volume, 0, 32767, out=volume)
    ordered = stack.order(volume)
    return lambda index: ordered[index]


# ---- judgement by content ------------------------------------------------------------------------------------


def _judge(
    voxels: np.ndarray, spacing: tuple[float, float, float], orientation: str, spec: Preprocessing, *, is_named: bool
) -> list[str]:
    """Notes on what the voxels look like. Raises Refused: non_hu, not_a_head."""
    if spec.modality != "CT":
        return []
    if np.mean(voxels < AIR_BELOW) < AIR_SHARE:
        raise Refused(Reason.NON_HU, "no voxel has the value of air")
    if spec.region != "head" or content.looks_like_a_head(voxels, spacing, orientation):
        return []
    if not is_named:
        raise Refused(Reason.NOT_A_HEAD)
    return ["the content does not look like a head; its BodyPartExamined says so"]


def _judge_few(datasets: Sequence[Dataset], stack: Stack, spec: Preprocessing, *, is_named: bool) -> None:
    """Too few slices; but if no header names the body part, first whether they show a head at all."""
    if not is_named and spec.modality == "CT":
        grid = _grid(stack, spec)
        _judge(_voxels(datasets, stack, grid, spec), grid.spacing, stack.orientation, spec, is_named=False)
    raise Refused(Reason.TOO_FEW_SLICES, f"{len(stack.frames)} slices, at least {spec.min_slices} are needed")
