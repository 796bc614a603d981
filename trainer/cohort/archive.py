"""Studies of a DICOMweb archive: found by QIDO-RS, page by page, retrieved by WADO-RS into memory, never to a disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset

from hlip_core.errors import Refused
from hlip_core.headers import MALFORMED, integer, lenient, text
from hlip_core.reasons import Reason

from .study import FoundSeries, FoundStudy, Unavailable

__all__ = ["Archive"]

PAGE = 200
FAILURES = (requests.RequestException, *MALFORMED)
Page = Callable[[int, int], list[dict[str, Any]]]
"""The matches of a query in DICOM JSON, for (limit, offset)."""
STUDY_FIELDS = ("PatientID", "AccessionNumber", "NumberOfStudyRelatedInstances", "ModalitiesInStudy")
SERIES_FIELDS = ("Modality", "SeriesNumber", "NumberOfSeriesRelatedInstances")


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Where an archive is, and who asks. match: QIDO-RS attributes that studies must have."""

    url: str
    modality: str
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    match: Mapping[str, str] = field(default_factory=dict)

    def _client(self) -> DICOMwebClient:
        session = requests.Session()
        if self.token:
            session.headers["Authorization"] = f"Bearer {self.token}"
        elif self.user:
            session.auth = (self.user, self.password)
        return DICOMwebClient(url=self.url.rstrip("/"), session=session)

    def studies(self, progress: Callable[[int, int], None]) -> list[FoundStudy]:
        """All studies of the modality that match.

        Raises:
            Unavailable: the archive cannot be asked.
        """
        client = self._client()
        client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=500)  # someone waits for the answer
        filters = {"ModalitiesInStudy": self.modality, **self.match}

        def page(limit: int, offset: int) -> list[dict[str, Any]]:
            return client.search_for_studies(
                limit=limit, offset=offset, search_filters=filters, fields=list(STUDY_FIELDS)
            )

        found: dict[str, FoundStudy] = {}
        for dataset in _pages(page, "StudyInstanceUID"):
            uid = text(dataset, "StudyInstanceUID")
            found[uid] = FoundStudy(
                study_instance_uid=uid,
                patient_id=text(dataset, "PatientID"),
                accession_number=text(dataset, "AccessionNumber"),
                num_instances=integer(dataset, "NumberOfStudyRelatedInstances") or 0,
            )
            progress(len(found), len(found))
        return list(found.values())

    def series(self, study: FoundStudy) -> list[FoundSeries]:
        """The series of a study. Raises Unavailable."""
        client = self._client()

        def page(limit: int, offset: int) -> list[dict[str, Any]]:
            return client.search_for_series(
                study.study_instance_uid, limit=limit, offset=offset, fields=list(SERIES_FIELDS)
            )

        return [
            FoundSeries(
                series_instance_uid=text(dataset, "SeriesInstanceUID"),
                modality=text(dataset, "Modality").upper(),
                series_number=integer(dataset, "SeriesNumber"),
                num_instances=integer(dataset, "NumberOfSeriesRelatedInstances") or 0,
            )
            for dataset in _pages(page, "SeriesInstanceUID")
        ]

    def datasets(self, study: FoundStudy, series: FoundSeries) -> Sequence[Dataset]:
        """The instances of a series, whole.

        Raises:
            Refused: the series is of a modality that is neither prepared nor a report, so it is not fetched.
            Unavailable: the archive does not give it.
        """
        if series.modality not in (self.modality, "SR", ""):
            raise Refused(Reason.MODALITY, f"{self.modality} expected")
        try:
            with lenient():
                return self._client().retrieve_series(study.study_instance_uid, series.series_instance_uid)
        except FAILURES as error:
            raise Unavailable(type(error).__name__) from error


def _pages(page: Page, keyword: str) -> Iterator[Dataset]:
    """All matches of a query, each once.

    Some servers know no offset, or lose it beside a filter (Orthanc 1.10 does, beside ModalitiesInStudy) and answer
    with nothing: a full page with nothing new after it is asked for again, from the start and twice as long.
    """
    seen: set[str] = set()
    first = 0
    limit, offset = PAGE, 0
    while True:
        matches = _ask(page, limit, offset)
        new = {uid: match for match in matches if (uid := text(match, keyword)) and uid not in seen}
        yield from new.values()
        seen |= new.keys()
        first = first or len(matches)
        is_last = not new and (limit > PAGE or len(seen) % max(first, 1) != 0 or not seen)
        if is_last:
            return
        if new and limit == PAGE:
            offset += len(matches)
        else:
            limit, offset = max(2 * len(seen), PAGE + 1), 0


def _ask(page: Page, limit: int, offset: int) -> list[Dataset]:
    try:
        with lenient():
            return [Dataset.from_json(match) for match in page(limit, offset)]
    except FAILURES as error:
        raise Unavailable(_why(error)) from error


def _why(error: BaseException) -> str:
    """A sentence without the query, which may hold names."""
    answer = getattr(error, "response", None)
    status = getattr(answer, "status_code", None)
    return f"the archive answers {status}" if status else f"no answer from the archive ({type(error).__name__})"
