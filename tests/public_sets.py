"""Tiny copies of the layouts of CQ500 and of RSNA's hemorrhage detection, made of a phantom."""

import csv
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from hlip_core.headers import lenient
from trainer.phantom import PhantomStudy

MARKS = (
    "ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right", "ChronicBleed",
    "Fracture", "CalvarialFracture", "OtherFracture", "MassEffect", "MidlineShift",
)  # fmt: skip
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
RSNA_KEEPS = (
    "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "StudyID",
    "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
    "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter",
    "WindowWidth", "RescaleIntercept", "RescaleSlope", "PixelData",
)  # fmt: skip


def images(phantom: PhantomStudy, kind: str = "thick") -> list[Path]:
    folder = next(record.folder for record in phantom.series if record.kind == kind)
    return sorted((phantom.folder / folder).iterdir())


# ---- CQ500 -------------------------------------------------------------------------------------------------------


def write_reads(path: Path, votes: dict[str, dict[str, str]]) -> None:
    """`votes`: of the three readers ("110") by mark and study, 000 where nothing is said."""
    columns = [f"{reader}:{mark}" for reader in ("R1", "R2", "R3") for mark in MARKS]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "Category", *columns])
        for name, marks in votes.items():
            row = [marks.get(mark, "000")[reader] for reader in range(3) for mark in MARKS]
            writer.writerow([name, "B1", *row])


def copy_series(phantom: PhantomStudy, kind: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    for place, path in enumerate(images(phantom, kind)):
        (folder / f"CT{place:06}.dcm").write_bytes(path.read_bytes())


# ---- RSNA --------------------------------------------------------------------------------------------------------


def rsna_image(path: Path, image: str, study: str) -> Dataset:
    """A phantom's slice with the header that the set leaves."""
    original = dcmread(path)
    stripped = Dataset()
    original.StudyID = ""
    for keyword in RSNA_KEEPS:
        stripped[keyword] = original[keyword]
    stripped.file_meta = original.file_meta
    with lenient():
        for keyword, value in (("SOPInstanceUID", image), ("StudyInstanceUID", study), ("SeriesInstanceUID", study)):
            del stripped[keyword]
            setattr(stripped, keyword, value)
    stripped.PatientID = "ID_0002cd41"
    return stripped


def write_rsna(folder: Path, phantom: PhantomStudy, positives: dict[str, dict[int, str]]) -> list[str]:
    """Studies of all slices; `positives` names the subtype of slices that are positive, by study."""
    (folder / "stage_2_train").mkdir(parents=True)
    lines, names = ["ID,Label"], []
    for place, (study, slices) in enumerate(positives.items()):
        for index, path in enumerate(images(phantom)):
            names.append(image := f"ID_{place:04x}{index:05x}")
            with lenient():
                written = folder / "stage_2_train" / f"{image}.dcm"
                rsna_image(path, image, study).save_as(written, enforce_file_format=True)
            found = {slices[index], "any"} if index in slices else set()
            lines += [f"{image}_{subtype},{int(subtype in found)}" for subtype in SUBTYPES]
    lines += lines[1:7]  # the set holds some images twice
    (folder / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    return names
