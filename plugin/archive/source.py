"""What a PACS can be asked, and how it fails: the one protocol that DICOMweb and DIMSE are spoken behind."""

from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from pydicom import Dataset

from hlip_core.headers import integer, text, words
from plugin.spool import UnsafeUid, check_uid

STUDY_FIELDS = ("StudyDate", "StudyDescription", "PatientID", "ModalitiesInStudy", "NumberOfStudyRelatedInstances")
SERIES_FIELDS = ("Modality", "BodyPartExamined", "SeriesDescription", "StationName", "NumberOfSeriesRelatedInstances")
"""What is asked for of each, besides its UID."""


class Denied(Exception):
    """The PACS does not let us in: a person has to mend that, and nothing more is asked."""


class Forbidden(Denied):
    """As Denied, unless others are let through: then it is this study only."""


class Gone(Exception):
    """The PACS has no such study, series or instance (any more)."""


class NotNow(Exception):
    """It failed this time.

    Args:
        reason: a short code for the report.
        wait_seconds: how long the PACS wants to be left alone; None: as our rules say.
        is_to_blame: whether it is this study, and not the PACS as a whole: too often and it is given up.
    """

    def __init__(self, reason: str, *, wait_seconds: float | None = None, is_to_blame: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_seconds = wait_seconds
        self.is_to_blame = is_to_blame


class Stopped(Exception):
    """The scan ends: nothing is wrong with what was under way."""


@dataclass(frozen=True, kw_only=True)
class Query:
    """What studies must have; dates as 20240131, both ends included, "" for any."""

    first_date: str = ""
    last_date: str = ""
    modality: str = ""
    patient_id: str = ""

    @property
    def dates(self) -> str:
        """As a DA range (PS3.4 C.2.2.2.5), "" for any."""
        if self.first_date and self.first_date == self.last_date:
            return self.first_date
        return f"{self.first_date}-{self.last_date}".strip() if self.first_date or self.last_date else ""

    @property
    def matched(self) -> dict[str, str]:
        """The attributes that are matched, by their keyword."""
        given = {"StudyDate": self.dates, "ModalitiesInStudy": self.modality, "PatientID": self.patient_id}
        return {keyword: value for keyword, value in given.items() if value}


@dataclass(frozen=True, kw_only=True)
class FoundStudy:
    """What the PACS says of a study; "" and 0 where it does not say."""

    study_instance_uid: str
    date: str = ""
    description: str = ""
    patient_id: str = ""
    modalities: tuple[str, ...] = ()
    num_instances: int = 0


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """What the PACS says of a series; "" and 0 where it does not say."""

    series_instance_uid: str
    modality: str = ""
    body_part: str = ""
    description: str = ""
    station: str = ""
    num_instances: int = 0


def study_of(row: Dataset) -> FoundStudy | None:
    """What an answer says of a study; None where it names none."""
    try:
        uid = check_uid(text(row, "StudyInstanceUID"))
    except UnsafeUid:
        return None
    return FoundStudy(
        study_instance_uid=uid,
        date=text(row, "StudyDate"),
        description=text(row, "StudyDescription"),
        patient_id=text(row, "PatientID"),
        modalities=tuple(filter(None, words(row, "ModalitiesInStudy"))),  # returned without a value: unknown
        num_instances=max(0, integer(row, "NumberOfStudyRelatedInstances") or 0),
    )


def series_of(row: Dataset) -> FoundSeries | None:
    """What an answer says of a series; None where it names none."""
    try:
        uid = check_uid(text(row, "SeriesInstanceUID"))
    except UnsafeUid:
        return None
    return FoundSeries(
        series_instance_uid=uid,
        modality=text(row, "Modality").upper(),
        body_part=text(row, "BodyPartExamined"),
        description=text(row, "SeriesDescription"),
        station=text(row, "StationName"),
        num_instances=max(0, integer(row, "NumberOfSeriesRelatedInstances") or 0),
    )


@dataclass(frozen=True)
class Answer:
    """The studies of one answer, how many entries it had, how many of them were none, whether the PACS cut it short."""

    studies: list[FoundStudy]
    entries: int
    malformed: int = 0
    cut: bool = False


class Sink(Protocol):
    """Where instances of one study go."""

    study_instance_uid: str
    troubles: Counter[str]

    def begin(self) -> None:
        """An instance begins, as a Part 10 file."""

    def write(self, piece: bytes | memoryview) -> None:
        """A piece of it. Raises NotNow where it grows too large, or the disk is full; Stopped."""

    def end(self) -> None:
        """It is whole. What it is not, an instance of the study, is counted and left out."""

    def abandon(self) -> None:
        """It broke off."""

    def took(self, num_bytes: int) -> None:
        """So much came from the PACS, on another way than by `write`: waits as long as the pace wants."""


class Source(Protocol):
    """A PACS. Every method raises Denied, Gone or NotNow."""

    pages: bool
    """Whether `limit` and `offset` mean something to it."""

    def studies(self, query: Query, *, limit: int, offset: int) -> Answer: ...

    def series(self, study_uid: str) -> list[FoundSeries]: ...

    def instances(self, study_uid: str, series_uid: str) -> dict[str, str]:
        """SOPInstanceUIDs of a series with their SOPClassUIDs, "" where it does not say."""
        ...

    def fetch_series(self, study_uid: str, series_uid: str, sink: Sink) -> None: ...

    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, sink: Sink) -> None: ...

    def close(self) -> None: ...
