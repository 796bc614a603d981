"""A synthetic CT study of a given size: one axial series, 512 x 512, 16 bits signed, Explicit VR Little Endian.

Every slice is a valid CT Image (PS3.3 A.3) of half a megabyte, with noise in it: nothing on the way can compress it.
"""

from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid5

import numpy as np
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

NAMESPACE = UUID("0b9d1f4e-6f83-5b0c-9d0e-6a2f5a1f7c34")
SIDE, PIXEL_MM, STEP_MM = 512, 0.46875, 0.625


def write_ct_study(folder: Path, *, instances: int, name: str = "bench") -> list[Path]:
    """The files; the same `name` gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, image in enumerate(ct_study(instances=instances, name=name), 1):
        paths.append(folder / f"{number:05d}.dcm")
        dcmwrite(paths[-1], image, enforce_file_format=True)
    return paths


def ct_study(*, instances: int, name: str = "bench") -> Iterator[Dataset]:
    """The slices from foot to head, as one data set that changes from slice to slice."""
    image = _header(name)
    y, x = np.ogrid[:SIDE, :SIDE]
    head = np.where((y - 256) ** 2 / 200**2 + (x - 256) ** 2 / 160**2 < 1, 40, -1000)
    rng = np.random.default_rng(0)
    for index in range(instances):
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = _uid(name, "image", index)
        image.InstanceNumber = index + 1
        image.ImagePositionPatient = [-120, -120, round(index * STEP_MM, 3)]
        image.SliceLocation = round(index * STEP_MM, 3)
        image.PixelData = (head + rng.integers(-20, 20, head.shape)).astype("<i2").tobytes()
        image["PixelData"].VR = "OW"
        yield image


def _header(name: str) -> Dataset:
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid(name, "study"), _uid(name, "series")
    image.FrameOfReferenceUID = _uid(name, "frame")
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = "20260102"
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "101500"
    image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Bench^Mark", name, "19600101", "O"
    image.PatientAge, image.PatientPosition, image.BodyPartExamined = "065Y", "HFS", "HEAD"
    image.Modality, image.Manufacturer, image.StudyID, image.AccessionNumber = "CT", "HLIP", "1", "1"
    image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
    image.StudyDescription, image.SeriesDescription, image.SeriesNumber = "CT HEAD", "HEAD 0.6", 2
    image.ImageType, image.AcquisitionNumber, image.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], 1, 120
    image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    image.PixelSpacing, image.SliceThickness = [PIXEL_MM, PIXEL_MM], STEP_MM
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.Rows = image.Columns = SIDE
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "HU"
    image.WindowCenter, image.WindowWidth = 40, 80
    return image


def _uid(*parts: object) -> str:
    return "2.25." + str(uuid5(NAMESPACE, "/".join(map(str, parts))).int)
