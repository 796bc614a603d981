"""The lives of a series, a study and a delivery, as tables; pure.

A row reads: in these states, on this event, into that state. An event in any other state changes nothing:
the index turns a row into ``UPDATE ... WHERE state IN (...)``, so that two processes cannot both make a step.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

WORK_QUEUES = ("prepare", "analyse", "deliver", "signal")


Rejection = Literal["quality", "patient-safety", "worklist", "retention"]
"""Why results are withdrawn: the titles of rejection notes, PS3.16 CID 7010."""


class SeriesState(StrEnum):
    RECEIVING = "receiving"
    READY = "ready"
    PREPARING = "preparing"
    PREPARED = "prepared"
    REFUSED = "refused"
    IGNORED = "ignored"
    """Holds no images (SR, KO, PR, SEG, ...) or objects of our own: kept, and never starts anything."""


class StudyState(StrEnum):
    RECEIVING = "receiving"
    READY = "ready"
    ANALYSING = "analysing"
    REPORTED = "reported"
    REFUSED = "refused"
    FAILED = "failed"
    IGNORED = "ignored"


class DeliveryState(StrEnum):
    WAITING = "waiting"
    SENDING = "sending"
    DELIVERED = "delivered"
    REFUSED = "refused"
    """The destination answered that it will never take it; visible, and sent again only by hand."""
    HELD = "held"
    """Made by an untrained or phantom-trained model, and no setting lets such results out."""
    OBSOLETE = "obsolete"
    """Superseded or withdrawn before it was delivered."""
    DELETED = "deleted"
    """Withdrawn, and deleted at the destination, which the settings asked for."""


class SignalStatus(StrEnum):
    """What a signal says in relation to the one before it of the same study to the same receiver.

    A signal's states and steps are those of a delivery.
    """

    NEW = "new"
    CORRECTED = "corrected"
    """Other findings than the receiver was told: a positive is gone, or has come."""
    WITHDRAWN = "withdrawn"
    """What the receiver was told no longer holds, and nothing is said in its place."""


class FetchState(StrEnum):
    """Of one study of an archive scan's plan."""

    PLANNED = "planned"
    FETCHING = "fetching"
    FETCHED = "fetched"
    """Here as a whole, and on its way through the steps that every study goes."""
    ANALYSED = "analysed"
    REFUSED = "refused"
    SKIPPED = "skipped"
    """The index has it already, or nothing of it was selected."""
    GONE = "gone"
    """The PACS no longer has it."""
    FAILED = "failed"


class ScanState(StrEnum):
    RUNNING = "running"
    """Wanted: whether a process works on it at the moment is another question."""
    PAUSED = "paused"
    FINISHED = "finished"


@dataclass(frozen=True)
class Step:
    sources: frozenset[str]
    target: str


def _step(sources: list[StrEnum], target: StrEnum) -> Step:
    return Step(frozenset(sources), target)


_S, _T, _D = SeriesState, StudyState, DeliveryState

SERIES_STEPS = {
    "image arrived": _step(list(_S), _S.RECEIVING),
    "settled": _step([_S.RECEIVING], _S.READY),
    "claimed": _step([_S.READY, _S.PREPARING], _S.PREPARING),
    "prepared": _step([_S.PREPARING], _S.PREPARED),
    "refused": _step([_S.PREPARING], _S.REFUSED),
    "failed once": _step([_S.PREPARING], _S.READY),
    "gave up": _step([_S.READY, _S.PREPARING], _S.REFUSED),
    "retry": _step([_S.REFUSED, _S.PREPARED], _S.READY),
    "needed again": _step([_S.PREPARED], _S.READY),
}

STUDY_STEPS = {
    "image arrived": _step(list(_T), _T.RECEIVING),
    "settled": _step([_T.RECEIVING], _T.READY),
    "claimed": _step([_T.READY, _T.ANALYSING], _T.ANALYSING),
    "reported": _step([_T.ANALYSING], _T.REPORTED),
    "refused": _step([_T.ANALYSING], _T.REFUSED),
    "failed once": _step([_T.ANALYSING], _T.READY),
    "lacked a scan": _step([_T.ANALYSING], _T.RECEIVING),
    "gave up": _step([_T.READY, _T.ANALYSING], _T.FAILED),
    "retry": _step([_T.FAILED, _T.REFUSED, _T.REPORTED], _T.RECEIVING),
}

DELIVERY_STEPS = {
    "claimed": _step([_D.WAITING, _D.SENDING], _D.SENDING),
    "delivered": _step([_D.SENDING], _D.DELIVERED),
    "refused": _step([_D.SENDING], _D.REFUSED),
    "failed once": _step([_D.SENDING], _D.WAITING),
    "superseded": _step([_D.WAITING, _D.HELD], _D.OBSOLETE),
    "superseded meanwhile": _step([_D.WAITING, _D.SENDING], _D.OBSOLETE),
    "to be deleted": _step([_D.WAITING, _D.SENDING, _D.DELIVERED, _D.REFUSED, _D.OBSOLETE], _D.WAITING),
    "deleted": _step([_D.SENDING], _D.DELETED),
    "retry": _step([_D.REFUSED, _D.WAITING], _D.WAITING),
    "let out": _step([_D.HELD], _D.WAITING),
}

_F = FetchState

FETCH_STEPS = {
    "claimed": _step([_F.PLANNED, _F.FETCHING], _F.FETCHING),
    "whole": _step([_F.FETCHING], _F.FETCHED),
    "skipped": _step([_F.FETCHING], _F.SKIPPED),
    "gone": _step([_F.FETCHING], _F.GONE),
    "failed once": _step([_F.FETCHING], _F.PLANNED),
    "gave up": _step([_F.FETCHING], _F.FAILED),
    "analysed": _step([_F.FETCHED], _F.ANALYSED),
    "refused": _step([_F.FETCHED], _F.REFUSED),
    "failed": _step([_F.FETCHED], _F.FAILED),
    "retry": _step([_F.FAILED, _F.GONE], _F.PLANNED),
}

SCAN_STEPS = {
    "paused": _step([ScanState.RUNNING], ScanState.PAUSED),
    "resumed": _step([ScanState.PAUSED, ScanState.FINISHED], ScanState.RUNNING),
    "finished": _step([ScanState.RUNNING], ScanState.FINISHED),
}

SERIES_DONE = frozenset({_S.PREPARED, _S.REFUSED, _S.IGNORED})
STUDY_DONE = frozenset({_T.REPORTED, _T.REFUSED, _T.FAILED, _T.IGNORED})
DELIVERY_DONE = frozenset({_D.DELIVERED, _D.REFUSED, _D.HELD, _D.OBSOLETE, _D.DELETED})
FETCH_DONE = frozenset({_F.ANALYSED, _F.REFUSED, _F.SKIPPED, _F.GONE, _F.FAILED})


def backoff_seconds(attempts: int, *, first: float, longest: float) -> float:
    """The wait before the next try: doubled after each failure, up to `longest`."""
    return min(longest, first * 2.0 ** max(0, min(attempts, 40) - 1))


class Urgency(StrEnum):
    """What the index's `priority` number means; the lower is served first."""

    TRIAGE = "triage"
    ROUTINE = "routine"
    ARCHIVE = "archive"


ARCHIVE_FROM = 67
URGENCY = ((34, Urgency.TRIAGE), (ARCHIVE_FROM, Urgency.ROUTINE))


def urgency(priority: int) -> Urgency:
    return next((name for below, name in URGENCY if priority < below), Urgency.ARCHIVE)
