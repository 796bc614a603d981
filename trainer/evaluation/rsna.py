"""RSNA 2019 (intracranial hemorrhage) as published: `stage_2_train.csv`, and one folder with all DICOM files.

    stage_2_train.csv              ID,Label: ID_12cadc6af_epidural,0 (six rows an image; a few stand twice)
    stage_2_train/ID_12cadc6af.dcm

Which images are of one study stands in their headers only. A study is positive when any of its slices is.

The headers are cut down: no SOPClassUID, no body part, and `ID_...` where a UID belongs. Some images of 12 bits lost
their sign: their values count from 0 to 4095, air is 3096. Both are mended in memory, so that the images go the way
of every other series.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from hlip_core.errors import InputError
from hlip_core.headers import MALFORMED, integer, lenient, number, text
from hlip_core.pixels import stored_values
from hlip_core.preprocessing import Preprocessing
from hlip_core.volume import PreparedScan
from trainer.evaluation.benchmarks import Benchmark, Case, Data
from trainer.evaluation.dicom import prepare_files

__all__ = ["mend", "read_labels", "read_rsna_cases"]

LABELS, INDEX = "stage_2_train.csv", "rsna_studies.json"
LOWEST_HU = -1000
"""Of an image that lost its sign."""
UNSIGNED_FROM = -100
"""A CT whose intercept is above this, and whose 12 bits have no sign, cannot hold air."""

Track = Callable[[Sequence[Path], str], Iterable[Path]]


def read_rsna_cases(folder: Path, benchmark: Benchmark, *, track: Track, keep: Path | None = None) -> Data:
    """The studies that have images here and labels in the table.

    Reading hundreds of thousands of headers takes a while: with `keep` (a folder) the grouping is kept there.
    Raises InputError where there is nothing to evaluate.
    """
    labels = read_labels(folder, benchmark)
    files = {path.stem: path for path in folder.rglob("ID_*.dcm")}
    if not files:
        raise InputError(f"no file ID_*.dcm below {folder}; unpack the images (stage_2_train) there")
    labelled = sorted(files.keys() & labels.keys())
    studies = _studies([files[name] for name in labelled], track, keep / INDEX if keep else None)
    order = [known.name for known in benchmark.classes]
    cases = []
    for study, images in sorted(studies.items()):
        truth = np.any([labels[image] for image in images], axis=0)
        paths = [files[image] for image in images]
        cases.append(Case(study=study, truth=dict(zip(order, truth.tolist(), strict=True)), load=partial(_load, paths)))
    notes = [f"{len(labelled)} labelled images in {len(cases)} studies"]
    if unlabelled := len(files) - len(labelled):
        notes.append(f"{unlabelled} images have no labels and are left out")
    return Data(tuple(cases), tuple(notes))


def read_labels(folder: Path, benchmark: Benchmark) -> dict[str, np.ndarray]:
    """Labels bool [classes] of each image, in the order of the benchmark's classes.

    An image that stands more than once is positive when it ever is. Raises InputError for what is no such table.
    """
    path = Path(folder) / LABELS
    if not path.is_file():
        raise InputError(f"{path} is missing; the RSNA set comes with it")
    place = {known.column: index for index, known in enumerate(benchmark.classes)}
    found: dict[str, np.ndarray] = {}
    with path.open(newline="", encoding="utf-8") as file:
        table = csv.reader(file)
        if next(table, None) != ["ID", "Label"]:
            raise InputError(f"{LABELS} does not begin with ID,Label")
        for line, row in enumerate(table, 2):
            image, _, column = row[0].rpartition("_") if len(row) == 2 else ("", "", "")
            if column not in place or row[1] not in ("0", "1"):
                raise InputError(f"{LABELS}, line {line}: not like ID_12cadc6af_epidural,0")
            found.setdefault(image, np.zeros(len(place), bool))[place[column]] |= row[1] == "1"
    return found


def _studies(paths: Sequence[Path], track: Track, index: Path | None) -> dict[str, list[str]]:
    """Names of the images of each study."""
    if index is not None and index.is_file():
        kept = json.loads(index.read_text())
        if {image for images in kept.values() for image in images} == {path.stem for path in paths}:
            return dict(kept)
    studies: dict[str, list[str]] = {}
    with lenient():
        for path in track(paths, "headers"):
            studies.setdefault(_study_of(path), []).append(path.stem)
    if index is not None:
        part = index.with_name(f".{index.name}.part")
        part.write_text(json.dumps(studies))
        part.replace(index)
    return studies


def _study_of(path: Path) -> str:
    """The StudyInstanceUID as it stands; an image that cannot be read is a study of its own, refused later."""
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["StudyInstanceUID"])
    except MALFORMED:
        return path.stem
    return text(header, "StudyInstanceUID") or path.stem


def _load(paths: Sequence[Path], spec: Preprocessing) -> list[PreparedScan]:
    return prepare_files(paths, spec, mend=mend)


def mend(dataset: Dataset) -> None:
    """Gives an image what the set's makers took away: SOP class, UIDs that are UIDs, the sign of its values."""
    if not text(dataset, "SOPClassUID"):
        dataset.SOPClassUID = CTImageStorage
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        value = text(dataset, keyword)
        if value.startswith("ID_"):
            setattr(dataset, keyword, f"2.25.{uuid5(NAMESPACE_OID, value).int}")
    unsigned = integer(dataset, "PixelRepresentation") == 0 and integer(dataset, "BitsStored") == 12
    intercept = number(dataset, "RescaleIntercept")
    if unsigned and intercept is not None and intercept > UNSIGNED_FROM:
        _give_sign(dataset)


def _give_sign(dataset: Dataset) -> None:
    """Stored values 0..4095 are HU modulo 4096, the lowest of them -1000."""
    hu = (stored_values(dataset, 0).astype(np.int32) - LOWEST_HU) % 4096 + LOWEST_HU
    dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
    dataset.RescaleIntercept = "0"
    dataset.PixelData = hu.astype("<i2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
