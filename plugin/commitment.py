"""Storage Commitment Push Model as SCP (PS3.4 Annex J): whether instances are safe here, as the listener is asked.

An N-ACTION is written to a file in the spool, fsynced, and taken; so the listener needs no database, and a restart
forgets nothing. The scheduler answers (`plugin.commitment_report`).
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import structlog
from pydicom import Dataset
from pynetdicom import build_context, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from hlip_core.headers import MALFORMED
from plugin.handover import Service
from plugin.settings import CommitmentSettings
from plugin.spool import Spool, UnsafeUid, check_uid, write_durably

log = structlog.get_logger("hlip.commitment")

# N-ACTION response status (PS3.7 Annex C)
SUCCESS = 0x0000
NO_SUCH_OBJECT_INSTANCE = 0x0112
INVALID_ARGUMENT_VALUE = 0x0115
NO_SUCH_ACTION = 0x0123
NOT_AUTHORIZED = 0x0124
RESOURCE_LIMITATION = 0x0213

REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 section J.3.2
MAX_REFERENCES = 100_000


class NotUnderstood(ValueError):
    """The request's Action Information is not that of Table J.3-1."""


@dataclass(frozen=True)
class Request:
    """A request that was taken. `references` are pairs of SOP class and SOP instance UIDs."""

    ae_title: str
    transaction_uid: str
    references: tuple[tuple[str, str], ...]
    received_ns: int

    @classmethod
    def from_information(cls, information: Dataset, *, ae_title: str) -> "Request":
        """From the Action Information of an N-ACTION (PS3.4 Table J.3-1).

        Raises:
            NotUnderstood: see there.
        """
        try:
            transaction_uid = check_uid(information.get("TransactionUID"), "TransactionUID")
            items = information.get("ReferencedSOPSequence") or ()
            references = tuple(
                (check_uid(item.get("ReferencedSOPClassUID")), check_uid(item.get("ReferencedSOPInstanceUID")))
                for item in items
            )
        except UnsafeUid as error:
            raise NotUnderstood(str(error)) from None
        except MALFORMED as error:
            raise NotUnderstood(type(error).__name__) from None
        if not references:
            raise NotUnderstood("no instance is named")
        return cls(ae_title, transaction_uid, references, time.time_ns())

    @property
    def name(self) -> str:
        """Of its file: the same for the same transaction, which is then asked once more, not twice."""
        return hashlib.sha256(f"{self.ae_title}\n{self.transaction_uid}".encode()).hexdigest()[:32] + ".json"


class Requests:
    """What was asked and is not answered yet: a file each in the spool."""

    def __init__(self, spool: Spool) -> None:
        self._folder = spool.folder / "commitments"
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def add(self, request: Request) -> None:
        """On return it survives a power cut. Raises OSError."""
        write_durably(self._folder / request.name, json.dumps(asdict(request)).encode())

    def remove(self, request: Request) -> None:
        (self._folder / request.name).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Request]:
        for path in sorted(self._folder.glob("*.json")):
            try:
                row = json.loads(path.read_text())
                references = tuple((sop_class, sop_instance) for sop_class, sop_instance in row.pop("references"))
                request = Request(references=references, **row)
            except FileNotFoundError:
                continue
            except (ValueError, LookupError, TypeError, AttributeError) as error:  # not one that was written here
                log.error("unreadable request set aside", file=path.name, cause=type(error).__name__)
                path.rename(path.with_suffix(".unreadable"))
                continue
            yield request


def service(settings: CommitmentSettings, spool: Spool) -> Service:
    """What the listener offers, and does with an N-ACTION."""
    requests = Requests(spool)
    known = {requester.ae_title for requester in settings.requesters}

    def on_n_action(event: Event) -> tuple[int, None]:
        status = _take(event, requests, known, has_room=spool.has_room())
        if status != SUCCESS:
            log.warning("refused", status=f"0x{status:04X}")
        return status, None

    return Service(
        contexts=[build_context(StorageCommitmentPushModel)],
        handlers=[(evt.EVT_N_ACTION, on_n_action)],
        calling_ae_titles=frozenset(known),
    )


def _take(event: Event, requests: Requests, known: set[str], *, has_room: bool) -> int:
    """Keep one N-ACTION; the response's status."""
    ae_title = str(event.assoc.requestor.ae_title).strip()
    if ae_title not in known:
        return NOT_AUTHORIZED
    if event.request.RequestedSOPInstanceUID != StorageCommitmentPushModelInstance:  # type: ignore[union-attr]
        return NO_SUCH_OBJECT_INSTANCE
    if event.action_type != REQUEST_COMMITMENT:
        return NO_SUCH_ACTION
    try:
        request = Request.from_information(_information(event), ae_title=ae_title)
        if len(request.references) > MAX_REFERENCES or not has_room:
            return RESOURCE_LIMITATION
        requests.add(request)
    except NotUnderstood as error:
        log.warning("not understood", cause=str(error))
        return INVALID_ARGUMENT_VALUE
    except OSError as error:
        log.error("not kept", cause=os.strerror(error.errno or 0))
        return RESOURCE_LIMITATION
    log.info("asked", transaction_uid=request.transaction_uid, instances=len(request.references))
    return SUCCESS


def _information(event: Event) -> Dataset:
    """Raises NotUnderstood."""
    try:
        return event.action_information
    except MALFORMED as error:
        raise NotUnderstood(type(error).__name__) from None
