"""Studies in a folder of DICOM files: phantoms, the plugin's spool, or files in any layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset

from hlip_core.files import BoundedFile
from hlip_core.headers import MALFORMED, integer, lenient, text

from .study import FoundSeries, FoundStudy, Phantom

__all__ = ["FolderSource"]

KEYWORDS = (
    "SpecificCharacterSet", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "Modality", "SeriesNumber",
    "PatientID", "AccessionNumber", "Manufacturer",
)  # fmt: skip
CHUNK = 256  # files whose headers one task reads
PHANTOM_MAKER = "HLIP phantom"

Progress = Callable[[int, int], None]
"""Called with (files read, files in all)."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file's header says of where it belongs."""

    path: str
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    modality: str
    series_number: int | None
    patient_id: str
    accession_number: str
    manufacturer: str


UNFINISHED = ".part"
"""What a phantom's folder ends with while it is written, or where that was killed."""


@dataclass
class FolderSource:
    """A folder; `unreadable` counts the files that are not DICOM instances once `studies` was read."""

    folder: Path
    kind: str = "folder"
    unreadable: int = 0

    def studies(self, pool: Executor, progress: Progress) -> list[FoundStudy]:
        """All studies, in a fixed order. Headers are read in parallel; a phantom's only once."""
        found: dict[str, FoundStudy] = {}
        loose: list[Path] = []
        entries = sorted(entry for entry in self.folder.iterdir() if entry.suffix != UNFINISHED)
        for done, entry in enumerate(entries, 1):
            phantom = _phantom(entry)
            if phantom is None:
                loose.append(entry)
            else:
                found.setdefault(phantom.study_instance_uid, phantom)
            progress(done, len(entries))
        files = _files(loose)
        for study in self._read(files, pool, lambda done: progress(len(found) + done, len(found) + len(files))):
            found.setdefault(study.study_instance_uid, study)
        return list(found.values())

    def _read(self, files: list[str], pool: Executor, progress: Callable[[int], None]) -> Iterator[FoundStudy]:
        chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
        headers: list[Header] = []
        done = 0
        several = pool.map(read_headers, chunks) if len(chunks) > 1 else map(read_headers, chunks)
        for chunk, read in zip(chunks, several, strict=True):
            headers += read
            done += len(chunk)
            progress(done)
        self.unreadable = len(files) - len(headers)
        yield from _grouped(headers)


def _files(entries: Iterable[Path]) -> list[str]:
    """All files, in a fixed order; names that begin with a dot are of other programs."""
    found: list[str] = []
    for entry in entries:
        inside = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
        found += [str(path) for path in inside if path.is_file() and not path.name.startswith(".")]
    return found


def read_headers(paths: list[str]) -> list[Header]:
    """The headers of the files that are DICOM instances of a study."""
    found = (read_header(path) for path in paths)
    return [header for header in found if header is not None]


def read_header(path: str) -> Header | None:
    """The header of one file, None for what is no DICOM instance of a study."""
    try:
        with lenient(), BoundedFile(path) as file:
            dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(KEYWORDS))
            header = _header(path, dataset)
    except MALFORMED:
        return None
    return header if header.study_instance_uid and header.series_instance_uid else None


def _header(path: str, dataset: Dataset) -> Header:
    return Header(
        path=path,
        study_instance_uid=text(dataset, "StudyInstanceUID"),
        series_instance_uid=text(dataset, "SeriesInstanceUID"),
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        modality=text(dataset, "Modality").upper(),
        series_number=integer(dataset, "SeriesNumber"),
        patient_id=text(dataset, "PatientID"),
        accession_number=text(dataset, "AccessionNumber"),
        manufacturer=text(dataset, "Manufacturer"),
    )


def _grouped(headers: list[Header]) -> Iterator[FoundStudy]:
    """Studies with their series; of two files of one SOPInstanceUID the first counts, as in the spool."""
    studies: dict[str, dict[str, dict[str, Header]]] = {}
    for header in headers:
        series = studies.setdefault(header.study_instance_uid, {}).setdefault(header.series_instance_uid, {})
        series.setdefault(header.sop_instance_uid or header.path, header)
    for study_uid, of_study in studies.items():
        firsts = [next(iter(instances.values())) for instances in of_study.values()]
        yield FoundStudy(
            study_instance_uid=study_uid,
            patient_id=next((first.patient_id for first in firsts if first.patient_id), ""),
            accession_number=next((first.accession_number for first in firsts if first.accession_number), ""),
            series=tuple(
                FoundSeries(
                    series_instance_uid=first.series_instance_uid,
                    modality=first.modality,
                    series_number=first.series_number,
                    num_instances=len(instances),
                    files=tuple(header.path for header in instances.values()),
                )
                for first, instances in zip(firsts, of_study.values(), strict=True)
            ),
        )


# ---- phantoms ------------------------------------------------------------------------------------------------


def _phantom(folder: Path) -> FoundStudy | None:
    """The study of a phantom's folder. Its headers must say so too: a stray study.json makes no phantom."""
    try:
        row = json.loads((folder / "study.json").read_text())
        series = tuple(_phantom_series(folder, number, entry) for number, entry in enumerate(row["series"], 1))
        known = Phantom(
            source=folder.name,
            sentences=tuple(str(sentence) for sentence in row["sentences"]),
            labels={str(label): bool(value) for label, value in row["labels"].items()},
            conspicuity={str(label): float(value) for label, value in row["conspicuity"].items()},
        )
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
        return None
    header = read_header(series[0].files[0]) if series and series[0].files else None
    if header is None or header.manufacturer != PHANTOM_MAKER or header.study_instance_uid != row["study_instance_uid"]:
        return None
    return FoundStudy(
        study_instance_uid=header.study_instance_uid,
        patient_id=header.patient_id,
        accession_number=header.accession_number,
        series=tuple(replace(one, modality=header.modality) for one in series),
        phantom=known,
    )


def _phantom_series(folder: Path, number: int, entry: dict[str, object]) -> FoundSeries:
    name = str(entry["folder"])
    if Path(name).name != name or name.startswith("."):
        raise ValueError("a series folder outside the study's")
    files = tuple(str(path) for path in sorted((folder / name).glob("*.dcm")))
    return FoundSeries(
        series_instance_uid=str(entry["series_instance_uid"]),
        series_number=number,
        num_instances=len(files),
        files=files,
    )
