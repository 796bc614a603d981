"""Synthetic series: datasets in memory from an array, in any orientation, one-frame or enhanced, in any encoding."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from hlip_core.errors import Refused
from hlip_core.preprocessing import BRAIN_MRI, HEAD_CT, Preprocessing
from hlip_core.reasons import Reason
from hlip_core.volume import prepare

CT, ENHANCED_CT, LEGACY_CT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2"
MR, ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.4.1"
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

SMALL = dataclasses.replace(HEAD_CT, num_slices=10, size=64, crop=56)
SMALL_MR = dataclasses.replace(BRAIN_MRI, num_slices=10, size=64, crop=56)

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
CORONAL = ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0))
SAGITTAL = ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0))
Directions = tuple[tuple[float, float, float], tuple[float, float, float]]


def series(
    values: np.ndarray,
    *,
    directions: Directions = AXIAL,
    spacing: tuple[float, float, float] = (5.0, 2.5, 2.5),
    step: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
    sop_class_uid: str = CT,
    intercept: float = -1024,
    **elements: object,
) -> list[Dataset]:
    """One dataset for each slice of `values` [slice, row, column], in HU (CT) or as stored (MR).

    `directions` are those of growing column and row index; `spacing` is between slices, rows, columns (mm).
    `step` is the way from slice to slice (mm), along the normal unless given; `offsets` count such steps.
    `elements` are set on every dataset by keyword.
    """
    across, down = (np.array(direction) for direction in directions)
    normal = np.cross(across, down)
    step = normal * spacing[0] if step is None else np.array(step)
    offsets = range(len(values)) if offsets is None else offsets
    centre = across * spacing[2] * values.shape[2] / 2 + down * spacing[1] * values.shape[1] / 2
    datasets = []
    for i, offset in enumerate(offsets):
        dataset = _header(sop_class_uid, i)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.3"
        dataset.ImageOrientationPatient = [*map(float, across), *map(float, down)]
        dataset.ImagePositionPatient = [round(float(v), 6) for v in offset * step - centre]
        dataset.PixelSpacing, dataset.SliceThickness = [spacing[1], spacing[2]], spacing[0]
        is_ct = dataset.Modality == "CT"
        if is_ct:
            dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, intercept, "HU"
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        set_pixels(dataset, values[i] - intercept if is_ct else values[i])
        datasets.append(dataset)
    return datasets


def _header(sop_class_uid: str, i: int) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class_uid, f"1.2.4.{i + 1}"
    dataset.file_meta.MediaStorageSOPClassUID = sop_class_uid
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = "MR" if sop_class_uid in (MR, ENHANCED_MR) else "CT"
    dataset.PatientID, dataset.PatientName, dataset.PatientAge = "P1", "Phantom", "063Y"
    dataset.StudyDate = "20260102"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.BodyPartExamined = "HEAD"
    dataset.SeriesNumber, dataset.SeriesDescription, dataset.InstanceNumber = 2, "Head", i + 1
    return dataset


def set_pixels(dataset: Dataset, stored: np.ndarray, *, signed: bool = False) -> None:
    """Put one frame [rows, columns], or several [frames, rows, columns], into a dataset, 16 bits, little endian."""
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = int(signed)
    dataset.PixelData = np.rint(stored).astype("<i2" if signed else "<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def enhanced(datasets: Sequence[Dataset], sop_class_uid: str = ENHANCED_CT) -> Dataset:
    """The same slices as one multi-frame image, frames in the order given."""
    image = copy.deepcopy(datasets[0])
    for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SliceThickness"):
        del image[keyword]
    rescale = ("RescaleSlope", "RescaleIntercept", "RescaleType")
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class_uid
    image.NumberOfFrames = len(datasets)
    measures, orientation, shared = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = datasets[0].PixelSpacing, datasets[0].SliceThickness
    orientation.ImageOrientationPatient = datasets[0].ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    if rescale[0] in image:
        transformation = Dataset()
        for keyword in rescale:
            setattr(transformation, keyword, image[keyword].value)
            del image[keyword]
        shared.PixelValueTransformationSequence = [transformation]
    image.SharedFunctionalGroupsSequence = [shared]
    image.PerFrameFunctionalGroupsSequence = [_groups(dataset) for dataset in datasets]
    image.PixelData = b"".join(dataset.PixelData for dataset in datasets)
    image["PixelData"].VR = "OW"
    return image


def _groups(dataset: Dataset) -> Dataset:
    position, content, item = Dataset(), Dataset(), Dataset()
    position.ImagePositionPatient = dataset.ImagePositionPatient
    content.TemporalPositionIndex = int(dataset.get("TemporalPositionIdentifier", 1))
    item.PlanePositionSequence, item.FrameContentSequence = [position], [content]
    return item


def big_endian(dataset: Dataset) -> Dataset:
    """The same image in Explicit VR Big Endian."""
    turned = copy.deepcopy(dataset)
    turned.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    turned.PixelData = np.frombuffer(dataset.PixelData, "<u2").astype(">u2").tobytes()
    turned["PixelData"].VR = "OW"
    return turned


def write(datasets: Sequence[Dataset], folder: Path) -> list[Path]:
    """Each dataset as a file of its own, named so that the order of names means nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for i, dataset in enumerate(datasets):
        path = folder / f"{i * 7919 % 10007:05d}.dcm"
        dcmwrite(path, dataset, enforce_file_format=True)
        paths.append(path)
    return paths


def blocks(shape: tuple[int, int, int]) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """HU [slice, row, column] with one bright block in each slice, elsewhere in each, and the blocks' centres."""
    values = np.full(shape, -1000.0)
    centres = []
    for k, image in enumerate(values):
        row, column = 6 + 3 * k % (shape[1] - 14), 8 + 5 * k % (shape[2] - 18)
        image[row : row + 5, column : column + 5] = 1000
        centres.append((row + 2.0, column + 2.0))
    return values, centres


def head(num_slices: int = 12, side: int = 96, *, width: float = 150.0, length: float = 180.0) -> np.ndarray:
    """A simple head in HU [slice, row, column] on a field of 240 mm: scalp, skull, brain."""
    pixel = 240 / side
    y, x = (np.arange(side) - (side - 1) / 2)[:, None] * pixel, (np.arange(side) - (side - 1) / 2)[None] * pixel
    values = np.full((num_slices, side, side), -1000.0)
    for k, image in enumerate(values):
        shrink = np.sqrt(1 - (k / num_slices) ** 2 * 0.8)
        for inset, hu in ((0, 20), (6, 900), (14, 35)):
            inside = (x / (width / 2 * shrink - inset)) ** 2 + (y / (length / 2 * shrink - inset)) ** 2 < 1
            image[inside] = hu
    return values


def chest(num_slices: int = 12, side: int = 96) -> np.ndarray:
    """A simple chest in HU on a field of 400 mm: wall with ribs, two lungs, spine."""
    pixel = 400 / side
    y, x = (np.arange(side) - (side - 1) / 2)[:, None] * pixel, (np.arange(side) - (side - 1) / 2)[None] * pixel
    image = np.full((side, side), -1000.0)
    image[(x / 170) ** 2 + (y / 115) ** 2 < 1] = 40
    image[((x / 150) ** 2 + (y / 95) ** 2 < 1) & ((x / 143) ** 2 + (y / 88) ** 2 > 1)] = 500
    for centre in (-70, 70):
        image[((x - centre) / 55) ** 2 + (y / 80) ** 2 < 1] = -850
    image[(x / 20) ** 2 + ((y - 75) / 20) ** 2 < 1] = 500
    return np.repeat(image[None], num_slices, 0)


def refusal(datasets: list[Dataset], spec: Preprocessing = SMALL) -> Reason:
    """The reason why a series is refused."""
    with pytest.raises(Refused) as caught:
        prepare(datasets, spec)
    return caught.value.reason
