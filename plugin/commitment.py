"""Storage Commitment Push Model as SCP (PS3.4 Annex J): whether instances are safe here, asked and answered.

An N-ACTION is written to a file in the spool, fsynced, and taken; so the listener needs no database, and a restart
forgets nothing. The answer is found in the index, and goes to the requester as an N-EVENT-REPORT on an association of
its own, again and again until it is taken. Studies are marked as committed before that: retention leaves them alone.
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog
from pydicom import Dataset
from pynetdicom import build_context, evt
from pynetdicom.events import Event
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from hlip_core.headers import MALFORMED
from plugin import dimse, tls
from plugin.handover import Service
from plugin.index.commitment import Holding, hold
from plugin.index.database import Database, IndexUnavailable
from plugin.settings import CommitmentSettings, Requester
from plugin.spool import Spool, UnsafeUid, check_uid, write_durably

log = structlog.get_logger("hlip.commitment")

# N-ACTION response status (PS3.7 Annex C)
SUCCESS = 0x0000
NO_SUCH_OBJECT_INSTANCE = 0x0112
INVALID_ARGUMENT_VALUE = 0x0115
NO_SUCH_ACTION = 0x0123
NOT_AUTHORIZED = 0x0124
RESOURCE_LIMITATION = 0x0213
# Failure Reason (PS3.3 section C.14.1.1); two are as above
PROCESSING_FAILURE = 0x0110
CLASS_INSTANCE_CONFLICT = 0x0119

REQUEST_COMMITMENT = 1  # Action Type ID, PS3.4 section J.3.2
ALL_COMMITTED, FAILURES_EXIST = 1, 2  # Event Type ID, PS3.4 section J.3.3
MAX_REFERENCES = 100_000
LOOK_SECONDS = 0.5
STOP_SECONDS = 5


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
            except FileNotFoundError:
                continue
            references = tuple((sop_class, sop_instance) for sop_class, sop_instance in row.pop("references"))
            yield Request(references=references, **row)


# ---- the listener's side: requests in ----------------------------------------------------------------


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
        contexts=[build_context(StorageCommitmentPushModel)], handlers=[(evt.EVT_N_ACTION, on_n_action)]
    )  # fmt: skip


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


# ---- the scheduler's side: answers out ---------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What is safe here, and what is not, with the reason (PS3.3 section C.14.1.1)."""

    committed: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str, int], ...]

    @property
    def lacks_some(self) -> bool:
        return any(reason == NO_SUCH_OBJECT_INSTANCE for *_, reason in self.failed)

    @property
    def event_type(self) -> int:
        return FAILURES_EXIST if self.failed else ALL_COMMITTED

    def information(self, transaction_uid: str) -> Dataset:
        """The Event Information (PS3.4 Table J.3-2)."""
        information = Dataset()
        information.TransactionUID = transaction_uid
        if self.committed:
            information.ReferencedSOPSequence = [_reference(*row) for row in self.committed]
        if self.failed:
            information.FailedSOPSequence = [_reference(*row) for row in self.failed]
        return information


def _reference(sop_class_uid: str, sop_instance_uid: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item


def judge(request: Request, spool: Spool, database: Database) -> Verdict:
    """Commit what lies here. Raises IndexUnavailable."""
    wanted = list(dict.fromkeys(uid for _, uid in request.references))
    by_uid: dict[str, list[Holding]] = {}
    for holding in hold(database, wanted):
        by_uid.setdefault(holding.sop_instance_uid, []).append(holding)
    ambiguous = _ambiguous(spool, {h.study_instance_uid for row in by_uid.values() for h in row if h.has_conflicts})
    committed, failed = [], []
    for sop_class_uid, uid in dict.fromkeys(request.references):
        here = [h for h in by_uid.get(uid, []) if _path(spool, h).is_file()]
        if not here:
            failed.append((sop_class_uid, uid, NO_SUCH_OBJECT_INSTANCE))
        elif all(h.sop_class_uid != sop_class_uid for h in here):
            failed.append((sop_class_uid, uid, CLASS_INSTANCE_CONFLICT))
        elif any((h.study_instance_uid, uid) in ambiguous for h in here):
            failed.append((sop_class_uid, uid, PROCESSING_FAILURE))
        else:
            committed.append((sop_class_uid, uid))
    return Verdict(tuple(committed), tuple(failed))


def _path(spool: Spool, holding: Holding) -> Path:
    return spool.instance_path(holding.study_instance_uid, holding.series_instance_uid, holding.sop_instance_uid)


def _ambiguous(spool: Spool, study_instance_uids: set[str]) -> set[tuple[str, str]]:
    """(Study, instance) of which other content came too, and lies aside: which of the two is asked about?"""
    return {
        (study, path.name.rsplit(".", 2)[0])
        for study in study_instance_uids
        for path in (spool.conflicting / study).glob("*.dcm")
    }


class Reporter:
    """Answers requests, one after the other.

    Args:
        calling_ae_title: ours, for the associations with the requesters.
    """

    def __init__(
        self, settings: CommitmentSettings, spool: Spool, database: Database, *, calling_ae_title: str
    ) -> None:
        self._settings = settings
        self._spool = spool
        self._database = database
        self._calling_ae_title = calling_ae_title
        self._requests = Requests(spool)
        self._requesters = {requester.ae_title: requester for requester in settings.requesters}
        self._waits: dict[str, tuple[float, float]] = {}
        """By request: not before when (monotonic), and how long the last wait was."""

    def run(self, stop: threading.Event) -> None:
        """Answer until stopped."""
        while not stop.wait(LOOK_SECONDS):
            try:
                self.step()
            except IndexUnavailable as error:
                log.error("the index is away", cause=str(error))
            except OSError as error:
                log.error("the spool is away", cause=os.strerror(error.errno or 0))

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Answer until the end of the block."""
        stop = threading.Event()
        thread = threading.Thread(target=self.run, args=(stop,), name="commitment", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(STOP_SECONDS)

    def step(self) -> int:
        """Answer what can be answered now. How many were. Raises IndexUnavailable."""
        return sum(self._answer(request) for request in self._requests if self._is_due(request))

    def _is_due(self, request: Request) -> bool:
        return self._waits.get(request.name, (0.0, 0.0))[0] <= time.monotonic()

    def _answer(self, request: Request) -> bool:
        verdict = judge(request, self._spool, self._database)
        if verdict.lacks_some and self._may_still_come(request):
            return False
        requester = self._requesters.get(request.ae_title)
        if requester is not None and self._report(requester, request, verdict):
            self._forget(request)
            log.info("answered", transaction_uid=request.transaction_uid, committed=len(verdict.committed),
                     failed=len(verdict.failed))  # fmt: skip
            return True
        self._put_back(request)
        return False

    def _may_still_come(self, request: Request) -> bool:
        """Whether instances that were acknowledged before the request may not be in the index yet."""
        waiting = self._spool.arrivals(1)
        return bool(waiting) and int(waiting[0].name.partition("-")[0]) <= request.received_ns

    def _report(self, requester: Requester, request: Request, verdict: Verdict) -> bool:
        """Whether the requester took the answer."""
        peer = dimse.Peer(
            host=requester.host,
            port=requester.port,
            ae_title=requester.ae_title,
            calling_ae_title=self._calling_ae_title,
            timeout_seconds=self._settings.timeout_seconds,
            tls=tls.client_context(requester, check_hostname=requester.tls_check_hostname) if requester.tls else None,
        )
        try:
            status = dimse.report_event(
                peer,
                sop_class_uid=StorageCommitmentPushModel,
                sop_instance_uid=StorageCommitmentPushModelInstance,
                event_type=verdict.event_type,
                information=verdict.information(request.transaction_uid),
            )
        except (dimse.PeerUnavailable, dimse.PeerRefused) as error:
            log.warning("not answered yet", transaction_uid=request.transaction_uid, cause=str(error))
            return False
        if status != SUCCESS:
            log.warning("not answered yet", transaction_uid=request.transaction_uid, status=f"0x{status:04X}")
        return status == SUCCESS

    def _put_back(self, request: Request) -> None:
        """Try again later, or give up."""
        if time.time_ns() - request.received_ns > self._settings.give_up_days * 86400e9:
            log.error("given up", transaction_uid=request.transaction_uid)
            self._forget(request)
            return
        last = self._waits.get(request.name, (0.0, 0.0))[1]
        wait = min(max(2 * last, self._settings.first_retry_seconds), self._settings.longest_retry_seconds)
        self._waits[request.name] = (time.monotonic() + wait, wait)

    def _forget(self, request: Request) -> None:
        self._requests.remove(request)
        self._waits.pop(request.name, None)
