"""Reports and labels from outside the study, and their links to studies: by StudyInstanceUID, else AccessionNumber."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hlip_core.errors import InputError

from .cleaning import Identities

__all__ = ["Book", "Labels", "Report", "read_labels", "read_table", "written"]

COLUMNS: dict[str, tuple[str, ...]] = {  # what a column may be called, without blanks, underscores and case
    "study": ("studyinstanceuid", "studyuid", "study"),
    "accession": ("accessionnumber", "accession", "accessionno"),
    "text": ("report", "text", "reporttext", "reportbody"),
    "findings": ("findings", "findingstext"),
    "impression": ("impression", "impressions", "conclusion"),
    "sentences": ("sentences",),
    "names": ("patientname", "patientsname", "name", "radiologist", "referringphysicianname", "physician", "author"),
    "numbers": ("patientid", "mrn", "patientbirthdate", "birthdate", "dateofbirth", "phone", "ordernumber"),
    "places": ("institutionname", "institution", "hospital", "address", "patientaddress"),
}
TRUE, FALSE = frozenset({"1", "1.0", "true", "yes", "y", "t"}), frozenset({"0", "0.0", "false", "no", "n", "f"})
UNKNOWN = frozenset({"", "nan", "none", "null", "na", "n/a", "?", "-1", "-1.0"})
LONGEST = 2**24  # characters of a field


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report as it came, identities included; it goes no further than a worker's memory.

    version: of two reports of one study from HL7 the greater replaces the other; reports of a table add up.
    """

    study_instance_uid: str
    accession_numbers: tuple[str, ...]
    text: str
    origin: str
    identities: Identities = field(default_factory=Identities)
    version: tuple[int, str] = (0, "")

    @property
    def key(self) -> str:
        """What tells this report from all others; it holds the text, so only a token of it may be written."""
        return json.dumps([self.origin, self.study_instance_uid, self.accession_numbers, self.text])


class Book:
    """All reports that were given, and those of a study."""

    def __init__(self, reports: Iterable[Report]) -> None:
        self.reports = tuple(reports)
        self._asked: set[int] = set()
        self._by_uid: dict[str, list[Report]] = {}
        self._by_accession: dict[str, list[Report]] = {}
        for report in self.reports:
            if report.study_instance_uid:
                self._by_uid.setdefault(report.study_instance_uid, []).append(report)
            for number in report.accession_numbers:
                self._by_accession.setdefault(_normal(number), []).append(report)

    def of(self, study_instance_uid: str, accession_number: str) -> tuple[Report, ...]:
        """The reports of a study. One that names another StudyInstanceUID is not linked by its accession number."""
        found = self._by_uid.get(study_instance_uid, [])
        if not found and accession_number.strip():
            by_number = self._by_accession.get(_normal(accession_number), [])
            found = [report for report in by_number if report.study_instance_uid in ("", study_instance_uid)]
        self._asked |= {id(report) for report in found}
        return tuple(found)

    @property
    def counts(self) -> dict[str, int]:
        """Reports that were given, that were linked to a study, and that were not."""
        linked = len(self._asked)
        return {"given": len(self.reports), "linked": linked, "unlinked": len(self.reports) - linked}


def _normal(number: str) -> str:
    return number.strip().casefold()


def written(reports: Iterable[Report]) -> tuple[str, str]:
    """(text, origin) of the reports of one study: a table's go before messages, of these the newest counts."""
    found = list(reports)
    tables = [report for report in found if report.origin == "table"]
    if tables:
        return "\n\n".join(dict.fromkeys(report.text for report in tables)), "table"
    newest = max(found, key=lambda report: report.version, default=None)
    return (newest.text, newest.origin) if newest else ("", "")


# ---- tables --------------------------------------------------------------------------------------------------


def read_table(path: Path) -> list[Report]:
    """The reports in a .csv, .tsv or .jsonl file. Columns as in COLUMNS; others are ignored.

    Raises:
        InputError: the file cannot be read, or has no column of texts or none to link by.
    """
    rows = list(_rows(path))
    names = {column: _known(column) for row in rows[:1000] for column in row}
    if rows and not {"study", "accession"} & set(names.values()):
        raise InputError(f"{path.name}: no column StudyInstanceUID or AccessionNumber")
    if rows and not {"text", "findings", "impression", "sentences"} & set(names.values()):
        raise InputError(f"{path.name}: no column `report` (or `findings`, `impression`, `sentences`)")
    found = (_report({**{column: _known(column) for column in row}}, row) for row in rows)
    return [report for report in found if report is not None]


def _known(column: str) -> str:
    plain = "".join(character for character in str(column).casefold() if character.isalnum())
    return next((kind for kind, names in COLUMNS.items() if plain in names), "")


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, LONGEST))
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.casefold() in (".jsonl", ".ndjson"):
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield _object(path, number, line)
            else:
                sample = file.readline()
                file.seek(0)
                yield from csv.DictReader(file, delimiter=max(",;\t", key=sample.count))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path.name} cannot be read: {type(error).__name__}") from error


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path.name}, line {number} is not JSON") from error
    if not isinstance(row, dict):
        raise InputError(f"{path.name}, line {number} is not a JSON object")
    return row


def _text(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(str(one) for one in value)
    return "" if value is None else str(value).strip()


def _report(kinds: Mapping[str, str], row: Mapping[str, Any]) -> Report | None:
    values: dict[str, list[str]] = {}
    for column, kind in kinds.items():
        if kind and _text(row[column]):
            values.setdefault(kind, []).append(_text(row[column]))
    parts = values.get("text", []) + values.get("sentences", [])
    parts += [f"{kind.upper()}:\n{one}" for kind in ("findings", "impression") for one in values.get(kind, [])]
    study, accession = values.get("study", [""])[0], tuple(values.get("accession", [])[:1])
    if not parts or not (study or accession):
        return None
    identities = {kind: frozenset(values.get(kind, [])) for kind in ("names", "numbers", "places")}
    return Report(
        study_instance_uid=study,
        accession_numbers=accession,
        text="\n\n".join(parts),
        origin="table",
        identities=Identities(**identities),
    )


class Labels:
    """Labels by StudyInstanceUID or AccessionNumber; `unlinked` counts those that no study asked for."""

    def __init__(self, by_key: Mapping[str, Mapping[str, bool]], rows: Sequence[tuple[str, ...]]) -> None:
        self._by_key, self._rows = by_key, rows
        self._asked: set[str] = set()

    def of(self, study_instance_uid: str, accession_number: str) -> dict[str, bool]:
        """The labels of a study; a row of its StudyInstanceUID goes before one of its accession number."""
        for key in (_normal(study_instance_uid), _normal(accession_number)):
            if key and key in self._by_key:
                self._asked.add(key)
                return dict(self._by_key[key])
        return {}

    @property
    def counts(self) -> dict[str, int]:
        """Rows that were given, and that were not linked to any study."""
        return {"given": len(self._rows), "unlinked": sum(not self._asked & set(keys) for keys in self._rows)}


def read_labels(path: Path) -> Labels:
    """Labels in a .csv, .tsv or .jsonl file: a row a study; every column that COLUMNS does not name is a finding.

    1, true, yes and 0, false, no are known; an empty field, or -1, says nothing.

    Raises:
        InputError: the file cannot be read, or a field is none of these.
    """
    rows: list[tuple[str, ...]] = []
    found: dict[str, dict[str, bool]] = {}
    for number, row in enumerate(_rows(path), 2):
        linking = [_text(row[column]) for column in row if column and _known(column) in ("study", "accession")]
        keys = tuple(_normal(value) for value in linking if value)
        labels: dict[str, bool] = {}
        for column, value in row.items():
            plain = _text(value).casefold()
            if not column or _known(column) or plain in UNKNOWN:
                continue
            if plain not in TRUE | FALSE:
                raise InputError(f"{path.name}, line {number}, column {column}: neither true (1) nor false (0)")
            labels[str(column)] = plain in TRUE
        if keys:
            rows.append(keys)
        for key in keys:
            found.setdefault(key, {}).update(labels)
    if not found:
        raise InputError(f"{path.name}: no row with a StudyInstanceUID or AccessionNumber")
    return Labels(found, rows)
