"""From datasets to frames: one record for each slice, whether it came alone or inside a multi-frame image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from hlip_core.errors import Refused
from hlip_core.headers import first_item, integer, items, number, numbers, text
from hlip_core.reasons import Reason
from hlip_core.scope import HU_TYPES

__all__ = ["Frame", "frames_of"]

MAX_FRAMES = 20_000  # of one series
ORDER = (  # of two one-frame images at one place, the lower is the first
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "AcquisitionNumber",
    "EchoNumbers",
    "DiffusionBValue",
    "InstanceNumber",
)
OF_VOLUME = ORDER.index("AcquisitionNumber") + 1  # that many of them are the same for all frames of one volume
OF_VOLUME_MULTI_FRAME = 2

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """One slice and where it lies, in the patient's coordinates (LPS, mm; PS3.3 C.7.6.2.1.1).

    `position` is the centre of the first pixel; `across` the direction in which the column index grows, `down`
    that of the row index. `spacing` is (between rows, between columns). `order` says which of two frames at
    one place is the first; `volume`, how it begins: the numbers of the temporal position and the acquisition.
    """

    instance: int  # index into the datasets of the series
    number: int | None  # 1-based frame number of a multi-frame image
    shape: tuple[int, int]  # rows, columns
    position: Vector
    across: Vector
    down: Vector
    spacing: tuple[float, float]
    thickness: float | None
    slope: float
    intercept: float
    order: tuple[tuple[float, ...], str]
    volume: tuple[float, ...]


def frames_of(datasets: Sequence[Dataset], modality: str) -> list[Frame]:
    """All frames of a series in the order given.

    Raises Refused: geometry (no position, orientation or spacing that can be meant), header (functional groups
    that do not fit NumberOfFrames), non_hu (enhanced CT in other units), too_large.
    """
    frames: list[Frame] = []
    for instance, dataset in enumerate(datasets):
        per_frame = items(dataset, "PerFrameFunctionalGroupsSequence")
        number_of_frames = integer(dataset, "NumberOfFrames") or 1
        if len(frames) + max(number_of_frames, len(per_frame)) > MAX_FRAMES:
            raise Refused(Reason.TOO_LARGE, f"more than {MAX_FRAMES} frames")
        if not per_frame and number_of_frames == 1:
            frames.append(_single(dataset, instance, modality))
        elif len(per_frame) == number_of_frames:
            shared = first_item(dataset, "SharedFunctionalGroupsSequence")
            frames += [
                _of_group(dataset, instance, frame_number, _Groups(item, shared), modality)
                for frame_number, item in enumerate(per_frame, start=1)
            ]
        else:
            detail = f"{number_of_frames} frames, {len(per_frame)} functional groups"
            raise Refused(Reason.HEADER, detail)
    return frames


def _single(dataset: Dataset, instance: int, modality: str) -> Frame:
    numbered = tuple(number(dataset, keyword) or 0.0 for keyword in ORDER)
    places = _Places(dataset, dataset, dataset)
    return _frame(dataset, instance, None, places, (dataset, modality), (numbered, OF_VOLUME))


class _Groups:
    """The functional groups of one frame: its own, else those that all frames share (PS3.3 C.7.6.16)."""

    def __init__(self, own: Dataset, shared: Dataset) -> None:
        self.own, self.shared = own, shared

    def __getitem__(self, keyword: str) -> Dataset:
        return first_item(self.own if keyword in self.own else self.shared, keyword)


@dataclass(frozen=True, slots=True)
class _Places:
    """Where the three parts of the geometry are written down."""

    position: Dataset
    orientation: Dataset
    measures: Dataset


def _of_group(dataset: Dataset, instance: int, frame_number: int, groups: _Groups, modality: str) -> Frame:
    content = groups["FrameContentSequence"]
    numbered = (
        number(content, "TemporalPositionIndex") or 0.0,
        number(content, "FrameAcquisitionNumber") or 0.0,
        number(groups["MREchoSequence"], "EffectiveEchoTime") or 0.0,
        number(groups["MRDiffusionSequence"], "DiffusionBValue") or 0.0,
        number(dataset, "InstanceNumber") or 0.0,
        float(frame_number),
    )
    places = _Places(
        groups["PlanePositionSequence"], groups["PlaneOrientationSequence"], groups["PixelMeasuresSequence"]
    )
    transformation = groups["PixelValueTransformationSequence"]
    return _frame(
        dataset, instance, frame_number, places, (transformation, modality), (numbered, OF_VOLUME_MULTI_FRAME)
    )


def _frame(
    dataset: Dataset,
    instance: int,
    frame_number: int | None,
    places: _Places,
    values: tuple[Dataset, str],
    numbers_of: tuple[tuple[float, ...], int],
) -> Frame:
    numbered, of_volume = numbers_of
    across, down = _directions(places.orientation)
    slope, intercept = _rescale(*values)
    thickness = number(places.measures, "SliceThickness")
    return Frame(
        instance=instance,
        number=frame_number,
        shape=(integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0),
        position=_position(places.position),
        across=across,
        down=down,
        spacing=_spacing(places.measures),
        thickness=thickness if thickness and 0 < thickness <= 50 else None,
        slope=slope,
        intercept=intercept,
        order=(numbered, text(dataset, "SOPInstanceUID")),
        volume=numbered[:of_volume],
    )


def _position(place: Dataset) -> Vector:
    values = numbers(place, "ImagePositionPatient")
    if values is None or len(values) != 3 or max(abs(value) for value in values) > 1e5:
        raise Refused(Reason.GEOMETRY, "no usable ImagePositionPatient")
    return values[0], values[1], values[2]


def _directions(place: Dataset) -> tuple[Vector, Vector]:
    """Two unit vectors at right angles; headers that miss that by more than 1 % cannot be meant."""
    values = numbers(place, "ImageOrientationPatient")
    if values is None or len(values) != 6:
        raise Refused(Reason.GEOMETRY, "no usable ImageOrientationPatient")
    lengths = math.hypot(*values[:3]), math.hypot(*values[3:])
    dot = sum(a * b for a, b in zip(values[:3], values[3:], strict=True))
    if max(abs(length - 1) for length in lengths) > 0.01 or abs(dot) > 0.01:
        raise Refused(Reason.GEOMETRY, "ImageOrientationPatient is not a pair of unit vectors at right angles")
    across, down = ([value / lengths[i // 3] for i, value in enumerate(values)][k : k + 3] for k in (0, 3))
    return (across[0], across[1], across[2]), (down[0], down[1], down[2])


def _spacing(place: Dataset) -> tuple[float, float]:
    values = numbers(place, "PixelSpacing")
    if values is None or len(values) != 2 or not all(0.01 <= value <= 20 for value in values):
        raise Refused(Reason.GEOMETRY, "no usable PixelSpacing")
    return values[0], values[1]


def _rescale(place: Dataset, modality: str) -> tuple[float, float]:
    slope, intercept = number(place, "RescaleSlope"), number(place, "RescaleIntercept")
    if modality == "MR":
        slope, intercept = slope or 1.0, intercept or 0.0
    elif text(place, "RescaleType").upper() not in HU_TYPES:
        raise Refused(Reason.NON_HU, "RescaleType is not HU")
    if slope is None or intercept is None or not 1e-6 < abs(slope) < 1e6 or abs(intercept) > 1e6:
        raise Refused(Reason.HEADER, "no usable RescaleSlope and RescaleIntercept")
    return slope, intercept
