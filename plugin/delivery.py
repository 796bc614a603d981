"""Results to their destinations, by STOW-RS (PS3.18 section 10.5) or C-STORE (PS3.4 Annex B).

An answer is one of three: taken, refused for good, or not now. Only the first two end a delivery.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth

from plugin import dimse
from plugin import settings as s

RETRY_HTTP = frozenset({401, 403, 404, 408, 421, 423, 425, 429})
"""4xx that a person or time mends: credentials, a service not up yet, too many requests. All 5xx are retried too."""


class NotNow(Exception):
    """The destination cannot take it at the moment: try again later."""


class Refused(Exception):
    """The destination will never take this object."""


class Destination(Protocol):
    def store(self, path: Path) -> None:
        """Hand over one object. Raises NotNow or Refused."""


def _judge_failure_reason(reason: int) -> None:
    """FailureReason and C-STORE status values: 0xA7xx and 0x0110 may pass (PS3.4 Table B.2-1, PS3.18 I.2.2)."""
    if reason >> 8 == 0xA7 or reason in (0x0110, 0x0213):
        raise NotNow(f"out of resources (0x{reason:04X})")
    raise Refused(f"refused (0x{reason:04X})")


class _Timeout(HTTPAdapter):
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        super().__init__()

    def send(self, request: Any, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        kwargs["timeout"] = self._seconds
        return super().send(request, **kwargs)


class DicomwebDestination:
    """A STOW-RS service."""

    def __init__(self, settings: s.Destination, *, timeout_seconds: float) -> None:
        session = requests.Session()
        adapter = _Timeout(timeout_seconds)
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        if settings.user:
            session.auth = HTTPBasicAuth(settings.user, settings.password.get_secret_value())
        if token := settings.token.get_secret_value():
            session.headers["Authorization"] = f"Bearer {token}"
        self._client = DICOMwebClient(settings.url.rstrip("/"), session=session)
        self._client.set_http_retry_params(retry=False)

    def store(self, path: Path) -> None:
        dataset = dcmread(path)
        try:
            answer = self._client.store_instances([dataset])
        except requests.HTTPError as error:
            code = error.response.status_code if error.response is not None else 0
            if code >= 500 or code in RETRY_HTTP or code == 0:
                raise NotNow(f"HTTP {code}") from None
            raise Refused(f"HTTP {code}") from None
        except (requests.RequestException, OSError, ValueError) as error:
            raise NotNow(type(error).__name__) from None
        self._check(answer, dataset.SOPInstanceUID)

    def _check(self, answer: Dataset | None, sop_instance_uid: str) -> None:
        """Delivered is only what the response lists as stored."""
        answer = answer or Dataset()
        stored = {item.get("ReferencedSOPInstanceUID") for item in answer.get("ReferencedSOPSequence") or ()}
        if sop_instance_uid in stored:
            return
        for item in answer.get("FailedSOPSequence") or ():
            _judge_failure_reason(int(item.get("FailureReason") or 0x0110))
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
        )

    def store(self, path: Path) -> None:
        try:
            (_, status), *_ = dimse.send([path], self._peer)
        except dimse.PeerUnavailable as error:
            raise NotNow(str(error)) from None
        except dimse.PeerRefused as error:
            raise Refused(str(error)) from None
        if status != 0x0000 and status >> 12 != 0xB:
            _judge_failure_reason(status)


@dataclass(frozen=True)
class Outbox:
    """The destinations by name; an object for one that was taken out of the settings waits for its return."""

    destinations: dict[str, Destination]

    @classmethod
    def from_settings(cls, settings: s.Settings) -> "Outbox":
        timeout = settings.delivery.timeout_seconds
        return cls(
            {
                row.name: DicomwebDestination(row, timeout_seconds=timeout)
                if row.url
                else DimseDestination(row, calling_ae_title=settings.listener.ae_title, timeout_seconds=timeout)
                for row in settings.destinations
            }
        )

    def store(self, destination: str, path: Path) -> None:
        """Raises NotNow or Refused."""
        if destination not in self.destinations:
            raise NotNow("no such destination in the settings")
        self.destinations[destination].store(path)
