"""Which studies of an archive, and which series of them."""

import csv
import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Any

from plugin.archive.source import FoundSeries, FoundStudy, Query
from plugin.spool import UnsafeUid, check_uid

COLUMN = "StudyInstanceUID"


@dataclass(frozen=True)
class NamedFile:
    """A list that a file holds, and by which it is known again: the list itself goes into no index."""

    path: str
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "NamedFile":
        return cls(str(path.absolute()), hashlib.sha256(path.read_bytes()).hexdigest())

    def lines(self) -> list[str]:
        """Raises ValueError where the file is gone or is another one now."""
        path = Path(self.path)
        if not path.is_file() or NamedFile.of(path) != self:
            raise ValueError(f"{path} is not the list any more with which the scan was begun")
        return path.read_text(encoding="utf-8-sig").splitlines()


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is chosen; texts are regular expressions in any case, dates as 20240131, "" chooses all."""

    first_date: str = ""
    last_date: str = ""
    modality: str = "CT"
    body_part: str = ""
    description: str = ""
    series_description: str = ""
    station: str = ""
    patients: NamedFile | None = None
    studies: NamedFile | None = None

    def __post_init__(self) -> None:
        for name in ("body_part", "description", "series_description", "station"):
            try:
                re.compile(getattr(self, name))
            except re.error as error:
                raise ValueError(f"--{name.replace('_', '-')} is no regular expression: {error}") from None
        if self.first_date and self.last_date and self.first_date > self.last_date:
            raise ValueError("--from is later than --to")

    @classmethod
    def from_options(
        cls, *, first_date: str, last_date: str, patients: Path | None, studies: Path | None, **texts: str
    ) -> "Selection":
        """Raises ValueError for a date that is none, a file that is none, and what is no regular expression."""
        return cls(
            first_date=_date(first_date, "--from"),
            last_date=_date(last_date, "--to"),
            patients=None if patients is None else _named(patients, "--patients"),
            studies=None if studies is None else _named(studies, "--studies"),
            **texts,
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Selection":
        files = {name: NamedFile(**stored[name]) for name in ("patients", "studies") if stored[name] is not None}
        return cls(**{**stored, **files})

    # ---- finding ---------------------------------------------------------------------------------------

    @cached_property
    def study_uids(self) -> list[str] | None:
        """Those of the file, each once; None where there is no file. Raises ValueError where it names none."""
        return None if self.studies is None else read_uids(self.studies.lines())

    def queries(self) -> Iterable[Query]:
        """What to ask the PACS for."""
        query = Query(first_date=self.first_date, last_date=self.last_date, modality=self.modality)
        if self.patients is None:
            return [query]
        ids = dict.fromkeys(line.strip() for line in self.patients.lines() if line.strip())
        return [replace(query, patient_id=patient_id) for patient_id in ids]

    def fits(self, study: FoundStudy) -> bool:
        """Whether a study is chosen, as far as it can be told before its series are known."""
        return _fits(self.description, study.description)

    def wants(self, series: FoundSeries) -> bool:
        """Whether a series of a chosen study is fetched."""
        return (
            series.modality in ("", self.modality)
            and _fits(self.body_part, series.body_part)
            and _fits(self.series_description, series.description)
            and _fits(self.station, series.station)
        )


def _fits(pattern: str, value: str) -> bool:
    """What is not told excludes nothing."""
    return not pattern or not value or re.search(pattern, value, re.IGNORECASE) is not None


def _date(text: str, option: str) -> str:
    if not text:
        return ""
    try:
        return date.fromisoformat(text).strftime("%Y%m%d")
    except ValueError:
        raise ValueError(f"{option} takes a date such as 2024-01-31") from None


def _named(path: Path, option: str) -> NamedFile:
    if not path.is_file():
        raise ValueError(f"{option}: there is no file {path}")
    return NamedFile.of(path)


def read_uids(lines: list[str]) -> list[str]:
    """StudyInstanceUIDs of a CSV file: of its column of that name, else of the first one, each once.

    Raises ValueError where there is none, or something else stands there.
    """
    rows = [row for row in csv.reader(lines) if row]
    at = rows[0].index(COLUMN) if rows and COLUMN in rows[0] else 0
    if rows and COLUMN in rows[0]:
        rows = rows[1:]
    uids: dict[str, None] = {}
    for number, row in enumerate(rows, start=1):
        try:
            uids[check_uid(row[at].strip() if at < len(row) else "", COLUMN)] = None
        except UnsafeUid:
            raise ValueError(f"--studies: row {number} holds no {COLUMN}") from None
    if not uids:
        raise ValueError("--studies: the file names no study")
    return list(uids)
