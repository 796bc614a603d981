"""Results to their destinations, by STOW-RS (PS3.18 section 10.5) or C-STORE (PS3.4 Annex B).

An answer is one of three: taken, refused for good, or not now. Only the first two end a delivery.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext
from typing import Any, Protocol
from xml.etree import ElementTree

import requests
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.web import _load_xml_dataset
from pydicom import Dataset, dcmread
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth

from plugin import dimse, tls
from plugin import settings as s

RETRY_HTTP = frozenset({401, 403, 404, 408, 421, 423, 425, 429})
"""4xx that a person or time mends: credentials, a service not up yet, too many requests. All 5xx are retried too."""

NONE_STORED = 409
"""The answer of PS3.18 section 10.5.3 where no instance of the request was stored; its body says why."""

HAS_IT = frozenset({0x0111, 0xB00E})
"""Failure reasons of an object that is there already: a repeat of ours stores the same bytes."""

UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, RecursionError, ElementTree.ParseError)
"""What the parsers say of a stranger's body."""

GONE = frozenset({404, 410})

SILENCE = (requests.ConnectionError, requests.Timeout, ConnectionError, TimeoutError)


class NotNow(Exception):
    """The destination cannot take it at the moment: try again later."""


class Away(NotNow):
    """Nothing was heard from the destination: what else is meant for it need not be tried at once."""


class Refused(Exception):
    """The destination will never take this object."""


class Destination(Protocol):
    def store(self, path: Path) -> None:
        """Hand over one object. Raises NotNow or Refused."""


class Eraser(Protocol):
    def delete(self, path: Path) -> None:
        """Delete the object of a file; one that is not there is deleted. Raises NotNow or Refused."""


def judge_status(code: int) -> None:
    """What an HTTP status says. Raises NotNow or Refused; redirects and what is no status are not now."""
    if 200 <= code < 300:
        return
    if not 400 <= code < 500 or code in RETRY_HTTP:
        raise NotNow(f"HTTP {code}")
    raise Refused(f"HTTP {code}")


@contextmanager
def judged(*, gone: frozenset[int] = frozenset()) -> Iterator[None]:
    """What an HTTP exchange came to; a status in `gone` is no failure."""
    try:
        yield
    except requests.HTTPError as error:
        code = error.response.status_code if error.response is not None else 0
        if code in gone:
            return
        try:
            judge_status(code)
        except (NotNow, Refused) as verdict:
            raise verdict from None
    except SILENCE as error:
        raise Away(type(error).__name__) from None
    except (requests.RequestException, OSError, ValueError) as error:
        raise NotNow(type(error).__name__) from None


def _answer_of(response: requests.Response) -> Dataset:
    """The body of a STOW-RS response (PS3.18 section 10.5.3.2), in DICOM JSON or XML. Raises NotNow for no such."""
    try:
        if "xml" in response.headers.get("Content-Type", ""):
            return _load_xml_dataset(ElementTree.fromstring(response.content))
        found = response.json()
        return Dataset.from_json(found[0] if isinstance(found, list) else found)
    except UNREADABLE:
        raise NotNow(f"HTTP {response.status_code} without a reason") from None


def _judge_failure_reason(reason: int) -> None:
    """FailureReason and C-STORE status values: 0xA7xx and 0x0110 may pass (PS3.4 Table B.2-1, PS3.18 I.2.2)."""
    if reason >> 8 == 0xA7 or reason in (0x0110, 0x0213):
        raise NotNow(f"out of resources (0x{reason:04X})")
    raise Refused(f"refused (0x{reason:04X})")


class _Adapter(HTTPAdapter):
    """With a timeout for every request, and where there is a TLS `context`, with that and nothing else trusted."""

    def __init__(self, seconds: float, context: SSLContext | None) -> None:
        self._seconds = seconds
        self._tls: dict[str, Any] = {}
        if context is not None:
            self._tls = {"ssl_context": context, "assert_hostname": None if context.check_hostname else False}
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **kwargs, **self._tls)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        return super().proxy_manager_for(proxy, **kwargs, **self._tls)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        if not self._tls:  # else requests would add the public authorities to the context's own
            super().cert_verify(conn, url, verify, cert)

    def send(self, request: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        kwargs["timeout"] = self._seconds
        if self._tls:
            kwargs["verify"] = True  # not by the authority of a variable such as REQUESTS_CA_BUNDLE
        return super().send(request, **kwargs)


def session(settings: s.Destination | s.SignalReceiver | s.ArchiveSettings, timeout_seconds: float) -> requests.Session:
    """With the credentials, the authority and the certificate of the settings; https as `plugin.tls` has it.

    Raises plugin.tls.TlsError.
    """
    made = requests.Session()
    context = tls.client_context(settings, check_hostname=settings.tls_check_hostname)
    made.mount("http://", _Adapter(timeout_seconds, None))
    made.mount("https://", _Adapter(timeout_seconds, context))
    if settings.user:
        made.auth = HTTPBasicAuth(settings.user, settings.password.get_secret_value())
    if token := settings.token.get_secret_value():
        made.headers["Authorization"] = f"Bearer {token}"
    return made


class DicomwebDestination:
    """A STOW-RS service."""

    def __init__(self, settings: s.Destination, *, timeout_seconds: float) -> None:
        self._url = settings.url.rstrip("/")
        self._session = session(settings, timeout_seconds)
        self._client = DICOMwebClient(self._url, session=self._session)
        self._client.set_http_retry_params(retry=False)

    def store(self, path: Path) -> None:
        dataset = dcmread(path)
        with judged():
            try:
                answer = self._client.store_instances([dataset])
            except requests.HTTPError as error:
                if error.response.status_code != NONE_STORED:
                    raise
                answer = _answer_of(error.response)
        self._check(answer, dataset.SOPInstanceUID)

    def delete(self, path: Path) -> None:
        """By DELETE on the instance, which is not in PS3.18 but offered by several archives."""
        header = dcmread(path, stop_before_pixels=True)
        address = f"{self._url}/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
        with judged():  # no redirect is followed: where it leads, a GET would be answered 200 and nothing be deleted
            answer = self._session.delete(f"{address}/instances/{header.SOPInstanceUID}", allow_redirects=False)
        if answer.status_code in GONE:
            self._confirm_gone(header.SOPInstanceUID)
        else:
            judge_status(answer.status_code)

    def _confirm_gone(self, sop_instance_uid: str) -> None:
        """By QIDO-RS: a proxy without its server and a service without DELETE answer 404 as well. Raises NotNow."""
        with judged():
            found = self._session.get(
                f"{self._url}/instances",
                params={"SOPInstanceUID": sop_instance_uid},
                headers={"Accept": "application/dicom+json"},
            )
            if found.status_code == 204 or (found.status_code == 200 and found.json() == []):
                return
        raise NotNow(f"the instance may still be there (HTTP {found.status_code})")

    def _check(self, answer: Dataset | None, sop_instance_uid: str) -> None:
        """Delivered is only what the response lists as stored."""
        answer = answer or Dataset()
        stored = {item.get("ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence") or ()}
        if sop_instance_uid in stored:
            return
        for item in answer.get("FailedSOPSequence") or ():
            reason = int(item.get("FailureReason") or 0x0110)
            if reason in HAS_IT and item.get("ReferencedSOPInstanceUID") == sop_instance_uid:
                return
            _judge_failure_reason(reason)
        raise NotNow("the response does not confirm the object")


class DimseDestination:
    """A storage SCP."""

    def __init__(self, settings: s.Destination, *, calling_ae_title: str, timeout_seconds: float) -> None:
        self._peer = dimse.Peer(
            host=settings.host,
            port=settings.port,
            ae_title=settings.ae_title,
            calling_ae_title=calling_ae_title,
            timeout_seconds=timeout_seconds,
            tls=tls.client_context(settings, check_hostname=settings.tls_check_hostname) if settings.tls else None,
        )

    def store(self, path: Path) -> None:
        try:
            (_, status), *_ = dimse.send([path], self._peer)
        except dimse.PeerUnavailable as error:
            raise Away(str(error)) from None
        except dimse.PeerRefused as error:
            raise Refused(str(error)) from None
        if status != 0x0000 and status >> 12 != 0xB and status not in HAS_IT:
            _judge_failure_reason(status)


class OrthancEraser:
    """An Orthanc by its REST API."""

    def __init__(self, settings: s.Destination, *, timeout_seconds: float) -> None:
        self._url = settings.orthanc
        self._session = session(settings, timeout_seconds)

    def delete(self, path: Path) -> None:
        uid = dcmread(path, stop_before_pixels=True).SOPInstanceUID
        with judged():
            found = self._session.post(f"{self._url}/tools/lookup", data=str(uid))
            found.raise_for_status()
            places = [row["Path"] for row in found.json() if row["Type"] == "Instance"]
        for place in places:
            with judged(gone=frozenset({404})):
                self._session.delete(f"{self._url}{place}").raise_for_status()


@dataclass(frozen=True)
class Outbox:
    """The destinations by name, and what deletes there.

    An object for a destination that was taken out of the settings waits for its return.
    """

    destinations: dict[str, Destination]
    erasers: dict[str, Eraser]

    @classmethod
    def from_settings(cls, settings: s.Settings) -> "Outbox":
        timeout = settings.delivery.timeout_seconds
        destinations: dict[str, Destination] = {}
        erasers: dict[str, Eraser] = {}
        for row in settings.destinations:
            if row.url:
                dicomweb = destinations[row.name] = DicomwebDestination(row, timeout_seconds=timeout)
                if row.delete_withdrawn == "dicomweb":
                    erasers[row.name] = dicomweb
            else:
                calling = settings.listener.ae_title
                destinations[row.name] = DimseDestination(row, calling_ae_title=calling, timeout_seconds=timeout)
            if row.delete_withdrawn == "orthanc":
                erasers[row.name] = OrthancEraser(row, timeout_seconds=timeout)
        return cls(destinations, erasers)

    def store(self, destination: str, path: Path) -> None:
        """Raises NotNow or Refused."""
        if destination not in self.destinations:
            raise NotNow("no such destination in the settings")
        self.destinations[destination].store(path)

    def delete(self, destination: str, path: Path) -> None:
        """Raises NotNow or Refused."""
        if destination not in self.erasers:
            raise NotNow("the settings do not let delete there (delete_withdrawn)")
        self.erasers[destination].delete(path)
