"""CT Image objects (PS3.3 A.3) of synthetic studies: headers without any person, UIDs that follow from the seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID, uuid5

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian

from .grid import Array
from .scanner import Geometry

NAMESPACE = UUID("6e0f6a50-3d0b-5a0e-9a7e-2f6d7c1c8a11")
IMPLEMENTATION_UID = "2.25." + str(uuid5(NAMESPACE, "hlip-train phantom").int)
PADDING = -2000
"""Pixel padding outside the scanner's field, as some scanners write it."""


def uid(*parts: object) -> str:
    """A UID (2.25 form, PS3.5 B.2) that depends on nothing but its parts."""
    return "2.25." + str(uuid5(NAMESPACE, "/".join(map(str, parts))).int)


@dataclass(frozen=True)
class SeriesPlan:
    """A series to make: what it is called and how it is reconstructed."""

    kind: str
    number: int
    description: str
    image_type: tuple[str, ...]
    kernel: str
    window: tuple[int, int]


def study_header(*, key: str, seed: int, body: str, body_part: str | None, rng: np.random.Generator) -> Dataset:
    """Patient and study modules of a synthetic person; `key` decides the UIDs."""
    age = int(rng.integers(18, 95))
    day, month, year = int(rng.integers(1, 29)), int(rng.integers(1, 13)), int(rng.integers(2015, 2026))
    header = Dataset()
    header.SpecificCharacterSet = "ISO_IR 192"
    header.StudyDate = header.SeriesDate = header.ContentDate = header.AcquisitionDate = f"{year}{month:02}{day:02}"
    clock = f"{rng.integers(0, 24):02}{rng.integers(0, 60):02}00"
    header.StudyTime = header.SeriesTime = header.ContentTime = header.AcquisitionTime = clock
    header.AccessionNumber = f"PH{seed:010d}"[:16]
    header.Modality = "CT"
    header.Manufacturer = "HLIP phantom"
    header.ManufacturerModelName = "Synthetic scanner"
    header.InstitutionName = "No hospital"
    header.DeviceSerialNumber = "0"
    header.SoftwareVersions = "1"
    header.ReferringPhysicianName = ""
    header.StudyDescription = {"head": "CT HEAD"}.get(body, f"CT {body.upper()}")
    header.PatientName = f"Phantom^{body.capitalize()}"
    header.PatientID = f"PHANTOM-{seed}"
    header.PatientBirthDate = f"{year - age}0101"
    header.PatientSex = str(rng.choice(["F", "M"]))
    header.PatientAge = f"{age:03}Y"
    header.PatientComments = "Synthetic phantom, no patient"
    header.BodyPartExamined = {"cylinder": "PHANTOM"}.get(body, body.upper()) if body_part is None else body_part
    header.StudyInstanceUID = uid(key, "study")
    header.FrameOfReferenceUID = uid(key, "frame")
    header.StudyID = str(seed % 10**8)
    header.PatientPosition = "HFS"
    header.PositionReferenceIndicator = ""
    return header


def images(
    study: Dataset, plan: SeriesPlan, geometry: Geometry, hu: Array, *, key: str, tilt_deg: float,
    pad_outside: bool, contrast: bool,
) -> Iterator[FileDataset]:  # fmt: skip
    """The slices of a series from HU [slices, rows, columns], one CT Image each."""
    series = _series_header(study, plan, geometry, key=key, tilt_deg=tilt_deg, contrast=contrast)
    stored = np.clip(np.rint(hu), -1024, 3071).astype(np.int16)
    if pad_outside:
        _, rows, columns = geometry.shape
        y, x = np.ogrid[:rows, :columns]
        outside = (y - rows / 2 + 0.5) ** 2 + (x - columns / 2 + 0.5) ** 2 > (columns / 2) ** 2
        stored[:, outside] = PADDING
        series.add_new("PixelPaddingValue", "SS", PADDING)
    for index, pixels in enumerate(stored):
        yield _image(series, plan, geometry, index, pixels, key)


def _series_header(
    study: Dataset, plan: SeriesPlan, geometry: Geometry, *, key: str, tilt_deg: float, contrast: bool
) -> Dataset:
    series = _copy(study)
    series.SOPClassUID = CTImageStorage
    series.SeriesInstanceUID = uid(key, "series", plan.kind)
    series.SeriesNumber = plan.number
    series.SeriesDescription = plan.description
    series.ImageType = list(plan.image_type)
    if plan.image_type[0] == "DERIVED":
        series.DerivationDescription = "Multiplanar reformat"
    series.AcquisitionNumber = 1
    series.KVP = "120"
    series.GantryDetectorTilt = f"{tilt_deg:g}"
    series.ConvolutionKernel = plan.kernel.upper()
    series.SliceThickness = f"{geometry.thickness_mm:g}"
    series.ReconstructionDiameter = f"{geometry.pixel_mm * geometry.shape[2]:g}"
    if contrast:
        series.ContrastBolusAgent = "Synthetic agent"
    series.ImageOrientationPatient = [_ds(value) for value in (*geometry.row, *geometry.column)]
    series.PixelSpacing = [_ds(geometry.pixel_mm)] * 2
    series.SamplesPerPixel = 1
    series.PhotometricInterpretation = "MONOCHROME2"
    series.Rows, series.Columns = geometry.shape[1:]
    series.BitsAllocated = series.BitsStored = 16
    series.HighBit = 15
    series.PixelRepresentation = 1
    series.RescaleIntercept, series.RescaleSlope = "0", "1"
    series.RescaleType = "US" if "LOCALIZER" in plan.image_type else "HU"
    series.WindowCenter, series.WindowWidth = (str(value) for value in plan.window)
    return series


def _image(
    series: Dataset, plan: SeriesPlan, geometry: Geometry, index: int, pixels: np.ndarray, key: str
) -> FileDataset:
    image = _copy(series)
    image.SOPInstanceUID = uid(key, "image", plan.kind, index)
    image.InstanceNumber = index + 1
    position = geometry.position(index)
    image.ImagePositionPatient = [_ds(value) for value in position]
    image.SliceLocation = _ds(float(position @ np.cross(geometry.row, geometry.column)))
    image.PixelData = pixels.astype("<i2").tobytes()
    image["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = image.SOPClassUID
    meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    meta.ImplementationVersionName = "HLIP_PHANTOM_1"
    return FileDataset("", image, preamble=b"\0" * 128, file_meta=meta)


def _copy(dataset: Dataset) -> Dataset:
    """A dataset with the same elements, to add others to (`Dataset(dataset)` would share them all)."""
    copied = Dataset()
    copied.update(dataset)
    return copied


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return f"{round(float(value), 6) + 0.0:.10g}"
