"""A PACS by DICOMweb: QIDO-RS (PS3.18 section 10.6) by dicomweb-client, WADO-RS (10.4) as a stream into files."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset
from urllib3.exceptions import ReadTimeoutError

from hlip_core.headers import MALFORMED, text
from plugin.archive.source import (
    SERIES_FIELDS,
    STUDY_FIELDS,
    Answer,
    Denied,
    Forbidden,
    FoundSeries,
    Gone,
    NotNow,
    Query,
    Sink,
    series_of,
    study_of,
)
from plugin.delivery import session
from plugin.sections_archive import LONGEST_RETRY_AFTER_SECONDS, ArchiveSettings
from plugin.web.multipart import Headers, MultipartError, MultipartReader, check_boundary, media_type

PIECE = 1 << 18
SLOWEST_BYTES_PER_SECOND = 1024
ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
LARGE = 10
"""So many pages at once are asked for only where there is no other way: some PACS refuse such a limit."""
BUSY = frozenset({429, 503})
"""The PACS as a whole has no time (RFC 9110, RFC 6585); 502 and 504 may as well be one study that it stumbles over."""


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110 section 10.2.3); None: none."""
    if not value:
        return None
    try:
        seconds = float(value) if value.strip().isdecimal() else _until(parsedate_to_datetime(value))
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _until(moment: datetime) -> float:
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - datetime.now(UTC)).total_seconds()


def _verdict(response: requests.Response | None) -> Exception:
    code = 0 if response is None else response.status_code
    wait = None if response is None else retry_after(response.headers.get("Retry-After"))
    if code in (401, 403):
        return (Denied if code == 401 else Forbidden)(
            f"the PACS answers {code}: user, password or token of the settings' section [archive] do not let us in"
        )
    if code in (404, 410):
        return Gone()
    return NotNow(f"http_{code}", wait_seconds=wait, is_to_blame=code not in BUSY)


@contextmanager
def _judged() -> Iterator[None]:
    """What an exchange came to. No address is repeated: a query may hold names."""
    try:
        yield
    except requests.HTTPError as error:
        raise _verdict(error.response) from None
    except requests.ConnectionError as error:
        if isinstance(error, requests.ReadTimeout) or any(isinstance(a, ReadTimeoutError) for a in error.args):
            raise NotNow("timeout") from None
        raise NotNow("no_connection", is_to_blame=False) from None
    except requests.Timeout:
        raise NotNow("timeout") from None
    except MultipartError:
        raise NotNow("truncated") from None
    except requests.exceptions.ChunkedEncodingError:
        raise NotNow("truncated") from None
    except (requests.RequestException, *MALFORMED) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise NotNow("malformed") from None


class Dicomweb:
    """A `plugin.archive.source.Source`, for any number of threads."""

    pages = True

    def __init__(self, settings: ArchiveSettings) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._own = threading.local()

    def close(self) -> None:
        """Connections end with the threads that opened them."""

    @property
    def _session(self) -> requests.Session:
        if not hasattr(self._own, "session"):
            self._own.session = session(self._settings, self._settings.timeout_seconds)
        return self._own.session

    @property
    def _client(self) -> DICOMwebClient:
        if not hasattr(self._own, "client"):
            self._own.client = DICOMwebClient(self._url, session=self._session)
            self._own.client.set_http_retry_params(retry=False)
        return self._own.client

    # ---- QIDO-RS ---------------------------------------------------------------------------------------

    def studies(self, query: Query, *, limit: int, offset: int) -> Answer:
        with _judged():
            found = self._client.search_for_studies(
                limit=limit, offset=offset, fields=list(STUDY_FIELDS), search_filters=query.matched
            )
        rows = [row for row in map(study_of, _datasets(found)) if row is not None]
        return Answer(rows, len(found), malformed=len(found) - len(rows))

    def series(self, study_uid: str) -> list[FoundSeries]:
        def page(limit: int, offset: int) -> list[Any]:
            return self._client.search_for_series(study_uid, limit=limit, offset=offset, fields=list(SERIES_FIELDS))

        rows = [row for row in map(series_of, self._all(page, "SeriesInstanceUID")) if row is not None]
        if not rows:
            raise Gone
        return rows

    def instances(self, study_uid: str, series_uid: str) -> dict[str, str]:
        def page(limit: int, offset: int) -> list[Any]:
            return self._client.search_for_instances(study_uid, series_uid, limit=limit, offset=offset)

        rows = self._all(page, "SOPInstanceUID")
        return {text(row, "SOPInstanceUID"): text(row, "SOPClassUID") for row in rows}

    def _all(self, page: Any, keyword: str) -> list[Dataset]:
        """Every match once, page by page, until a page brings nothing new; in a large one where pages are all alike."""
        found: dict[str, Dataset] = {}
        offset, limit = 0, self._settings.page
        while True:
            with _judged():
                rows = page(limit, offset)
            new = {uid: row for row in _datasets(rows) if (uid := text(row, keyword)) and uid not in found}
            found |= new
            if not new and offset and len(rows) >= limit == self._settings.page:  # it knows no offset
                offset, limit = 0, LARGE * limit
                continue
            offset += len(rows)
            if not new or (len(rows) < limit and len(rows) % 10):
                return list(found.values())

    # ---- WADO-RS ---------------------------------------------------------------------------------------

    def fetch_series(self, study_uid: str, series_uid: str, sink: Sink) -> None:
        self._fetch(f"{self._url}/studies/{study_uid}/series/{series_uid}", sink)

    def fetch_instance(self, study_uid: str, series_uid: str, sop_uid: str, sink: Sink) -> None:
        self._fetch(f"{self._url}/studies/{study_uid}/series/{series_uid}/instances/{sop_uid}", sink)

    def _fetch(self, address: str, sink: Sink) -> None:
        headers = {"Accept": ACCEPT, "Accept-Encoding": "identity"}
        try:
            with _judged(), self._session.get(address, headers=headers, stream=True) as response:
                response.raise_for_status()
                if response.status_code == 204:
                    raise Gone
                kind, parameters = media_type(response.headers.get("Content-Type", ""))
                if kind != "multipart/related":
                    raise NotNow("no_multipart")
                _take(response, MultipartReader(check_boundary(parameters.get("boundary"))), sink)
        finally:
            sink.abandon()


def _take(response: requests.Response, reader: MultipartReader, sink: Sink) -> None:
    """The body into the sink. Raises MultipartError, NotNow where it comes too slowly, and what the sink raises."""
    for piece in _pieces(response):
        for event in reader.feed(piece):
            _hand_on(event, sink)
    for event in reader.close():
        _hand_on(event, sink)


def _hand_on(event: object, sink: Sink) -> None:
    if isinstance(event, Headers):
        sink.begin()
    elif isinstance(event, memoryview):
        sink.write(event)
    else:
        sink.end()


def _pieces(response: requests.Response) -> Iterator[bytes]:
    waited, size = 0.0, 0
    pieces = response.iter_content(PIECE)
    while True:
        began = time.monotonic()
        piece = next(pieces, None)
        if piece is None:
            return
        waited, size = waited + time.monotonic() - began, size + len(piece)
        if waited > 60 and size < waited * SLOWEST_BYTES_PER_SECOND:
            raise NotNow("too_slow")
        yield piece


def _datasets(rows: Sequence[Any]) -> Iterator[Dataset]:
    """DICOM JSON as datasets; what is none is left out."""
    for row in rows:
        try:
            yield Dataset.from_json(row)
        except MALFORMED:
            continue
