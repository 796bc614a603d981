"""The answers of storage commitment, as the scheduler gives them: N-EVENT-REPORT (PS3.4 section J.3.3).

What is safe is found in the index. An answer goes out on an association of its own, again and again until it is taken.
Studies are marked as committed before that: retention leaves them alone.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydicom import Dataset
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StorageCommitmentPushModel,
    StorageCommitmentPushModelInstance,
)

from plugin import dimse, tls
from plugin.commitment import NO_SUCH_OBJECT_INSTANCE, SUCCESS, Request, Requests
from plugin.index.commitment import Holding, hold
from plugin.index.database import Database, IndexUnavailable
from plugin.settings import CommitmentSettings, Requester
from plugin.spool import Spool

log = structlog.get_logger("hlip.commitment")

# Failure Reason (PS3.3 section C.14.1.1); NO_SUCH_OBJECT_INSTANCE is the third
PROCESSING_FAILURE = 0x0110
CLASS_INSTANCE_CONFLICT = 0x0119

ALL_COMMITTED, FAILURES_EXIST = 1, 2  # Event Type ID, PS3.4 section J.3.3
LOOK_SECONDS = 0.5
STOP_SECONDS = 5


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
            except Exception as error:  # the thread's border: without it no one is answered until a restart
                log.error("no answers for now", cause=type(error).__name__)

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
        return sum(self._try(request) for request in self._requests if self._is_due(request))

    def _is_due(self, request: Request) -> bool:
        return self._waits.get(request.name, (0.0, 0.0))[0] <= time.monotonic()

    def _try(self, request: Request) -> bool:
        """Whether it was answered; what fails of one request keeps no other waiting."""
        try:
            return self._answer(request)
        except IndexUnavailable:
            raise
        except Exception as error:  # certificates in the middle of a change, a disk, an answer that cannot be encoded
            log.error("not answered yet", transaction_uid=request.transaction_uid, cause=type(error).__name__)
            self._put_back(request)
            return False

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
        oldest_ns = self._spool.oldest_arrival_ns()
        return oldest_ns is not None and oldest_ns <= request.received_ns

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
