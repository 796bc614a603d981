"""One study becomes prepared scans and a record, in a worker process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydicom.dataset import Dataset

from hlip_core.errors import Refused
from hlip_core.headers import lenient, text, words
from hlip_core.preprocessing import Preprocessing
from hlip_core.reasons import Reason
from hlip_core.sentences import sentences
from hlip_core.volume import PreparedScan, open_series, prepare

from .cleaning import DROPPED, Identities, clean
from .documents import Document, read_document, standing
from .headers import deidentified, identities_of
from .pseudonyms import Pseudonyms
from .reasons import CohortReason
from .reports import Report, written
from .study import FoundSeries, FoundStudy, Record, RefusedSeries, StoredScan, Unavailable

if TYPE_CHECKING:
    from .archive import Archive

__all__ = ["Files", "Job", "Recipe", "make_record", "pseudonymous"]

SCANS, HEADERS = "scans", "headers"


class BurnedIn(Exception):
    """The pixels of a series may show who the patient is."""


class Files:
    """Series that lie in files; an `Archive` does the same over the network."""

    def series(self, study: FoundStudy) -> Sequence[FoundSeries]:
        """The series of a study."""
        return study.series

    def datasets(self, study: FoundStudy, series: FoundSeries) -> Sequence[Dataset]:
        """The instances of a series, their pixels left in the files."""
        return open_series(series.files)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides how a study becomes a record. headers: also write de-identified headers."""

    out: Path
    preprocessing: Preprocessing
    pseudonyms: Pseudonyms
    source: Files | Archive = field(default_factory=Files)
    headers: bool = False
    all_sections: bool = False


@dataclass(frozen=True, kw_only=True)
class Job:
    """A study with the reports and labels that are linked to it."""

    study: FoundStudy
    reports: tuple[Report, ...] = ()
    labels: Mapping[str, bool] = field(default_factory=dict)

    @property
    def inputs(self) -> str:
        """What the record is made from; it holds identities, so only a token of it may be written."""
        phantom = self.study.phantom
        known: list[Any] = [self.study.content, None if phantom is None else vars(phantom)]
        if self.reports or self.labels:
            known += [[report.key for report in self.reports], dict(self.labels)]
        return json.dumps(known)


def make_record(job: Job, recipe: Recipe) -> Record:
    """Prepares every series of a study and writes the scans that were not refused; the caller saves the record."""
    maker = _Maker(job, recipe)
    maker.read_study()
    spoken, origin, removed = maker.sentences()
    phantom = job.study.phantom
    record = Record(
        study=maker.uid,
        patient=maker.patient,
        inputs=recipe.pseudonyms.token("inputs", job.inputs),
        scans=tuple(maker.scans),
        refused=tuple(maker.refused),
        sentences=spoken,
        labels=dict(job.labels or (phantom.labels if phantom else {})),
        conspicuity=dict(phantom.conspicuity) if phantom else {},
        source=phantom.source if phantom else "",
        report=origin,
        removed=removed,
    )
    if recipe.headers:
        maker.write_headers()
    return record


class _Maker:
    """One study under way."""

    def __init__(self, job: Job, recipe: Recipe) -> None:
        self.job, self.study, self.recipe = job, job.study, recipe
        salted = recipe.pseudonyms.salted_uid(self.study.study_instance_uid)
        self.uid = recipe.pseudonyms.uid(self.study.study_instance_uid)
        self.folder = Path(SCANS) / salted
        self.scans: list[StoredScan] = []
        self.refused: list[RefusedSeries] = []
        self.patient_ids: set[str] = set()
        self.documents: list[Document] = []
        self.identities = Identities(
            names=frozenset(), numbers=frozenset({self.study.patient_id, self.study.accession_number})
        )
        self.headers: dict[str, Dataset] = {}

    @property
    def patient(self) -> str:
        patient_id = self.study.patient_id or min(self.patient_ids, default="")
        return self.recipe.pseudonyms.patient(patient_id, self.study.study_instance_uid)

    def read_study(self) -> None:
        shutil.rmtree(self.recipe.out / self.folder, ignore_errors=True)  # of a run that was killed
        try:
            found = self.recipe.source.series(self.study)
        except Unavailable:
            self.refuse("", CohortReason.GONE)
            return
        for series in sorted(found, key=lambda s: s.order):
            self.read_series(series)
        if len(self.patient_ids) > 1:  # whose would the report be?
            shutil.rmtree(self.recipe.out / self.folder, ignore_errors=True)
            self.scans, self.headers, self.refused = [], {}, []
            for series in found:
                self.refuse(series.series_instance_uid, Reason.INCONSISTENT, "the study names more than one patient")

    def read_series(self, series: FoundSeries) -> None:
        """Prepares one series or reads its documents, or notes why it was refused."""
        uid = series.series_instance_uid
        try:
            with lenient():
                datasets = self.recipe.source.datasets(self.study, series)
                if datasets and not self._read_documents(datasets):
                    self.scans.append(self._prepared(series, datasets))
        except Refused as refused:
            self.refuse(uid, refused.reason, refused.detail)
        except BurnedIn:
            self.refuse(uid, CohortReason.BURNED_IN)
        except (FileNotFoundError, PermissionError, Unavailable):
            self.refuse(uid, CohortReason.GONE)

    def refuse(self, series_uid: str, reason: str, detail: str = "") -> None:
        uid = self.recipe.pseudonyms.uid(series_uid)
        self.refused.append(RefusedSeries(study=self.uid, series=uid, reason=str(reason), detail=detail))

    def _read_documents(self, datasets: Sequence[Dataset]) -> bool:
        """Learns whom the headers name, and reads the reports; whether there were any."""
        is_document = text(datasets[0], "Modality").upper() == "SR"
        for dataset in datasets if is_document else {id(d): d for d in (datasets[0], datasets[-1])}.values():
            self.identities |= identities_of(dataset)
        self.patient_ids |= {text(dataset, "PatientID") for dataset in datasets} - {""}
        found = [document for dataset in datasets if (document := read_document(dataset)) is not None]
        self.documents += found
        return bool(found)

    def _prepared(self, series: FoundSeries, datasets: Sequence[Dataset]) -> StoredScan:
        pseudonyms = self.recipe.pseudonyms
        if not pseudonyms.keep and any("YES" in words(dataset, "BurnedInAnnotation") for dataset in datasets):
            raise BurnedIn
        scan = pseudonymous(prepare(datasets, self.recipe.preprocessing), pseudonyms)
        path = self.folder / f"{pseudonyms.salted_uid(series.series_instance_uid)}.b2nd"
        target = self.recipe.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        scan.save(target)
        if self.recipe.headers:
            self.headers[scan.series_instance_uid] = datasets[0]
        return StoredScan(path=path.as_posix(), size=target.stat().st_size)

    def sentences(self) -> tuple[tuple[str, ...], str, int]:
        """(sentences, where they come from, how many passages were taken out)."""
        report, origin = written(self.job.reports)
        if not report and self.study.phantom is not None:
            return self._cleaned(self.study.phantom.sentences), "phantom", 0
        if not report:
            report = "\n\n".join(document.text for document in standing(self.documents))
            origin = "document" if report else ""
        for given in self.job.reports:
            self.identities |= given.identities
        removed = 0
        if not self.recipe.pseudonyms.keep:
            cleaned = clean(report, self.identities)
            report, removed = cleaned.text, cleaned.removed
        found = sentences(report, all_sections=self.recipe.all_sections)
        return tuple(one for one in found if not DROPPED.search(one)), origin, removed

    def _cleaned(self, known: Sequence[str]) -> tuple[str, ...]:
        if self.recipe.pseudonyms.keep:
            return tuple(known)
        return tuple(clean(sentence, self.identities).text for sentence in known)

    def write_headers(self) -> None:
        """One JSON file a study: a header of each prepared series by its SeriesInstanceUID."""
        found = {
            uid: deidentified(dataset, self.recipe.pseudonyms, patient=self.patient, identities=self.identities)
            for uid, dataset in self.headers.items()
        }
        path = self.recipe.out / HEADERS / f"{self.folder.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
        part.replace(path)


def pseudonymous(scan: PreparedScan, pseudonyms: Pseudonyms) -> PreparedScan:
    """The scan with salted UIDs and without its series description; voxels, geometry and notes stay.

    The notes are sentences of hlip_core about geometry and hold no text of a header.
    """
    if pseudonyms.keep:
        return scan
    instances = tuple((sop_class, pseudonyms.uid(uid)) for sop_class, uid in scan.source.instances)
    return replace(
        scan,
        study_instance_uid=pseudonyms.uid(scan.study_instance_uid),
        series_instance_uid=pseudonyms.uid(scan.series_instance_uid),
        frame_of_reference_uid=pseudonyms.uid(scan.frame_of_reference_uid),
        source=replace(scan.source, instances=instances),
        series_description="",
    )
