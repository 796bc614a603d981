"""The model against the reports: who finds what, how well the scores rank, and where the two disagree."""

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hlip_core.errors import InputError
from hlip_core.metrics import Bootstrap, wilson
from hlip_core.report_labels import ReportWords, Said
from plugin.index.database import Database
from plugin.index.rescoring import reported
from plugin.index.search import Space
from plugin.search.scoring import Scoring

__all__ = ["Agreement", "Disagreement", "FindingRow", "compare", "read_reports"]

COLUMNS: dict[str, tuple[str, ...]] = {
    "study": ("studyinstanceuid", "studyuid", "study"),
    "accession": ("accessionnumber", "accession", "accessionno"),
    "text": ("report", "text", "reporttext", "reportbody"),
    "findings": ("findings",),
    "impression": ("impression", "conclusion"),
}
"""What a column may be called, without blanks, underscores and case; of the last three at least one is needed."""

BYTES = 10_000_000
Unmentioned = Literal["absent", "unknown"]


@dataclass(frozen=True)
class Disagreement:
    """A study in which the model and the report differ; the worst first."""

    study_instance_uid: str
    study_date: str
    label: str
    model: Literal["positive", "negative"]
    value: float
    report: Literal["present", "absent"]
    sentence: str


@dataclass(frozen=True)
class FindingRow:
    """One finding over all linked studies; measures are (value, low, high) with their 95 % interval.

    Without a threshold the model says neither yes nor no, and the counts and rates are None.
    """

    label: str
    present: int
    absent: int
    uncertain: int
    true_positive: int | None
    false_positive: int | None
    false_negative: int | None
    true_negative: int | None
    sensitivity: tuple[float, float, float] | None
    specificity: tuple[float, float, float] | None
    auc: tuple[float, float, float] | None


@dataclass(frozen=True)
class Agreement:
    """What a comparison comes to. `reports`: rows of the file; `linked`: studies that have one."""

    reports: int
    linked: int
    ambiguous: int
    findings: tuple[FindingRow, ...]
    disagreements: tuple[Disagreement, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the disagreements."""
        return {**asdict(self), "disagreements": len(self.disagreements)}


class Reports:
    """Texts by StudyInstanceUID and AccessionNumber. A number that several reports share is not used."""

    def __init__(self) -> None:
        self.count = 0
        self._by_study: dict[str, str] = {}
        self._by_accession: dict[str, str] = {}
        self._twice: set[str] = set()

    def add(self, study: str, accession: str, text: str) -> None:
        """Two reports of one StudyInstanceUID (an addendum) are read as one."""
        self.count += 1
        if study:
            self._by_study[study] = "\n\n".join(filter(None, [self._by_study.get(study, ""), text]))
        elif accession in self._by_accession:
            self._twice.add(accession)
        else:
            self._by_accession[accession] = text

    def of(self, study: str, accession: str) -> str | None:
        """The text of a study: by its UID, else by its accession number."""
        by_number = accession and accession not in self._twice
        return self._by_study.get(study) or (self._by_accession.get(accession) if by_number else None)

    @property
    def ambiguous(self) -> int:
        """Accession numbers of which there are several reports."""
        return len(self._twice)


def read_reports(path: Path) -> Reports:
    """A CSV, TSV or JSON lines file: StudyInstanceUID or AccessionNumber, and `report` (or findings, impression).

    Raises InputError for a file that is none, or has no such columns.
    """
    reports = Reports()
    try:
        for row in _rows(path):
            named = _by_kind(row)
            text = "\n\n".join(filter(None, (named[kind] for kind in ("text", "findings", "impression"))))
            study, accession = named["study"], named["accession"]
            if text and (study or accession):
                reports.add(study, accession, text)
    except (UnicodeDecodeError, csv.Error, json.JSONDecodeError, RecursionError, AttributeError) as error:
        raise InputError(f"{path.name} is no CSV, TSV or JSON lines file in UTF-8") from error
    if not reports.count:
        raise InputError(
            f"{path.name} holds no report: a column StudyInstanceUID or AccessionNumber is needed, and one `report` "
            "(or findings, impression)"
        )
    return reports


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        if path.suffix in (".jsonl", ".json"):
            yield from (json.loads(line) for line in file if line.strip())
            return
        csv.field_size_limit(BYTES)
        yield from csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")


def _by_kind(row: Mapping[str, Any]) -> dict[str, str]:
    """Of several columns of one kind, the first in the order of COLUMNS that holds anything."""
    cells = {
        column.replace("_", "").replace(" ", "").casefold(): str(value or "").strip()
        for column, value in row.items()
        if column
    }
    return {kind: next(filter(None, map(cells.get, names)), "") for kind, names in COLUMNS.items()}


@dataclass(frozen=True)
class _Linked:
    study_instance_uid: str
    study_date: str
    said: dict[str, Said]


def compare(
    database: Database,
    space: Space,
    scoring: Scoring,
    reports: Reports,
    *,
    words: ReportWords,
    unmentioned: Unmentioned = "absent",
) -> Agreement:
    """Every study of the archive that has a report, against what the report says; by the scores of today.

    Findings that a report doubts are left out. Those that it does not mention count as absent, or are left out too.
    """
    linked: list[_Linked] = []
    values, positive = [], []
    for part in reported(database, space):
        scores = scoring.scores(part.vectors)
        for place, uid in enumerate(part.study_instance_uids):
            text = reports.of(uid, part.accession_numbers[place])
            if text is not None:
                linked.append(_Linked(uid, part.study_dates[place], words.read(text)))
                values.append(scores.values[place])
                positive.append(scores.positive[place])
    if not linked:
        raise InputError("no report belongs to a study that was analysed: they are linked by UID, or accession number")
    rows: list[FindingRow] = []
    disagreements: list[tuple[float, Disagreement]] = []
    bootstrap = Bootstrap(len(linked))
    for column, label in enumerate(scoring.labels):
        if label in words.labels:
            of_model = np.array(values)[:, column], np.array(positive)[:, column]
            truth = _Truth(linked, label, unmentioned)
            has_threshold = scoring.thresholds[label] is not None
            rows.append(_finding_row(label, truth, *of_model, bootstrap=bootstrap, has_threshold=has_threshold))
            if has_threshold:
                disagreements += _disagreements(label, truth, linked, *of_model, limit=scoring.limits[column])
    worst_first = [row for _, row in sorted(disagreements, key=lambda found: -found[0])]
    return Agreement(reports.count, len(linked), reports.ambiguous, tuple(rows), tuple(worst_first))


class _Truth:
    """What the reports say of a finding: bool [S] each."""

    def __init__(self, linked: list[_Linked], label: str, unmentioned: Unmentioned) -> None:
        states = np.array([study.said[label].state for study in linked])
        self.present = states == "present"
        self.absent = (states == "absent") | ((states == "unmentioned") & (unmentioned == "absent"))
        self.uncertain = states == "uncertain"


def _finding_row(
    label: str, truth: _Truth, values: np.ndarray, positive: np.ndarray, *, bootstrap: Bootstrap, has_threshold: bool
) -> FindingRow:
    known = truth.present | truth.absent
    auc = None
    if truth.present.any() and truth.absent.any():
        measured = bootstrap.auc(values, truth.present, known)
        if not math.isnan(measured.value):
            auc = (measured.value, *measured.interval)
    hits, misses = int((truth.present & positive).sum()), int((truth.present & ~positive).sum())
    alarms, quiet = int((truth.absent & positive).sum()), int((truth.absent & ~positive).sum())
    return FindingRow(
        label=label,
        present=int(truth.present.sum()),
        absent=int(truth.absent.sum()),
        uncertain=int(truth.uncertain.sum()),
        true_positive=hits if has_threshold else None,
        false_positive=alarms if has_threshold else None,
        false_negative=misses if has_threshold else None,
        true_negative=quiet if has_threshold else None,
        sensitivity=wilson(hits, hits + misses) if has_threshold else None,
        specificity=wilson(quiet, quiet + alarms) if has_threshold else None,
        auc=auc,
    )


def _disagreements(
    label: str, truth: _Truth, linked: list[_Linked], values: np.ndarray, positive: np.ndarray, *, limit: float
) -> Iterator[tuple[float, Disagreement]]:
    """Each with how far it is from the threshold, in standard deviations of the finding's values."""
    spread = float(values.std()) or 1.0
    for place in np.flatnonzero((truth.present & ~positive) | (truth.absent & positive)):
        study = linked[place]
        yield (
            abs(float(values[place]) - limit) / spread,
            Disagreement(
                study_instance_uid=study.study_instance_uid,
                study_date=study.study_date,
                label=label,
                model="positive" if positive[place] else "negative",
                value=round(float(values[place]), 6),
                report="present" if truth.present[place] else "absent",
                sentence=study.said[label].sentence,
            ),
        )
