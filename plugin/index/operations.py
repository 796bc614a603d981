"""What an engineer wants to see at a glance: queues, pace, what went wrong, how the destinations do."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, or_, select
from sqlalchemy.orm import Session

from plugin.index.database import Database, clock
from plugin.index.leases import QUEUES, Queue
from plugin.index.signal_table import Signal
from plugin.index.tables import Delivery, Event, Result, Revision, Series, Study
from plugin.lifecycle import ARCHIVE_FROM, DeliveryState, SeriesState, StudyState, urgency

HOUR = 3600.0
HOURS = 24
MAX_LATENCIES = 20_000
"""Of one day; the latest, should there be more."""


# ---- queues ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Depth:
    """What waits in a queue, by urgency, what is being done, and for how long the oldest waits."""

    queue: str
    waiting: dict[str, int]
    later: int
    """Of these, what waits for its next try."""
    busy: int
    oldest_seconds: float | None


def depths(database: Database) -> list[Depth]:
    """All queues, in the order of the road."""
    with database.read() as session:
        return [_depth(session, queue) for queue in QUEUES.values()]


def _to_study(queue: Queue, *columns: ColumnElement) -> Select:
    """Columns of a queue's rows, with their studies."""
    chosen = select(*columns).select_from(queue.table)
    if queue.table in (Series, Signal):
        return chosen.join(Study, Study.id == queue.table.study_id)
    if queue.table is Delivery:
        return (
            chosen.join(Result, Result.id == Delivery.result_id)
            .join(Revision, Revision.id == Result.revision_id)
            .join(Study, Study.id == Revision.study_id)
        )
    return chosen


def _depth(session: Session, queue: Queue) -> Depth:
    table = queue.table
    since = {"deliver": Revision.created_at, "signal": Signal.created_at}.get(queue.name)
    if since is None:
        since = table.last_image_at
    later = func.sum(case((table.next_try_at > clock(), 1), else_=0))
    rows = session.execute(
        _to_study(queue, Study.priority, func.count(), later, clock() - func.min(since))  # type: ignore[arg-type]
        .where(table.state == queue.waiting)
        .group_by(Study.priority)
    ).all()
    waiting: dict[str, int] = defaultdict(int)
    for priority, count, _, _ in rows:
        waiting[str(urgency(priority))] += count
    return Depth(
        queue=queue.name,
        waiting=dict(waiting),
        later=sum(row[2] for row in rows),
        busy=session.scalar(select(func.count()).select_from(table).where(table.state == queue.busy)) or 0,
        oldest_seconds=max((row[3] for row in rows if row[3] is not None), default=None),
    )


# ---- pace ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pace:
    """The last 24 hours, an entry an hour, the current one last.

    Attributes:
        at: when the last hour ends, now.
        clinic: studies analysed that someone waited for.
        archive: studies analysed of archive scans.
        latencies: seconds from the last image to the result, of the clinic's studies, in order.
    """

    at: float
    clinic: list[int]
    archive: list[int]
    latencies: list[list[float]] = field(repr=False)


def pace(database: Database) -> Pace:
    with database.read() as session:
        now = session.scalar(select(clock()))
        assert now is not None
        start = now - HOURS * HOUR
        analysed = and_(Event.stage == "analysed", Event.at > start, Event.at <= now)
        hour = case(*((Event.at <= start + (i + 1) * HOUR, i) for i in range(HOURS - 1)), else_=HOURS - 1)
        is_archive = case((Study.priority >= ARCHIVE_FROM, 1), else_=0)
        made = {0: [0] * HOURS, 1: [0] * HOURS}
        counts = select(hour, is_archive, func.count()).join(Study, Study.id == Event.study_id).where(analysed)
        for i, archive, count in session.execute(counts.group_by(hour, is_archive)):
            made[archive][i] = count
        latencies: list[list[float]] = [[] for _ in range(HOURS)]
        waits = (
            select(hour, Event.at - Study.last_image_at)
            .join(Study, Study.id == Event.study_id)
            .where(analysed, Study.priority < ARCHIVE_FROM, Event.at >= Study.last_image_at)
            .order_by(Event.at.desc())
            .limit(MAX_LATENCIES)
        )
        for i, seconds in session.execute(waits):
            latencies[i].append(seconds)
    return Pace(now, made[0], made[1], [sorted(each) for each in latencies])


# ---- trouble ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """A study that has no result, or whose results did not get where they should; without what names a patient."""

    study_instance_uid: str
    study_date: str
    study_description: str
    what: str
    """``failed``, ``refused``, or a destination's name."""
    reason: str
    detail: str
    at: float | None


@dataclass(frozen=True)
class Troubles:
    failed: list[Trouble]
    refused: list[Trouble]
    undelivered: list[Trouble]
    refused_series: dict[str, int]
    """How many, by reason."""
    counts: dict[str, int]
    """Of the first three, however many of them are listed."""


def troubles(database: Database, *, limit: int = 25) -> Troubles:
    """The latest of each kind."""
    with database.read() as session:
        undelivered = Delivery.state == DeliveryState.REFUSED
        reasons = session.execute(
            select(Series.reason, func.count()).where(Series.state == SeriesState.REFUSED).group_by(Series.reason)
        )
        return Troubles(
            failed=_studies(session, StudyState.FAILED, limit),
            refused=_studies(session, StudyState.REFUSED, limit),
            undelivered=_undelivered(session, undelivered, limit),
            refused_series={reason or "": count for reason, count in reasons},
            counts={
                "failed": _count(session, Study.state == StudyState.FAILED),
                "refused": _count(session, Study.state == StudyState.REFUSED),
                "undelivered": _count(session, undelivered),
            },
        )


def _count(session: Session, condition: ColumnElement[bool]) -> int:
    return session.scalar(select(func.count()).where(condition)) or 0


def _studies(session: Session, state: StudyState, limit: int) -> list[Trouble]:
    rows = session.scalars(select(Study).where(Study.state == state).order_by(Study.id.desc()).limit(limit))
    return [
        Trouble(
            study_instance_uid=study.study_instance_uid,
            study_date=study.study_date,
            study_description=study.study_description,
            what=str(state),
            reason=study.reason or "",
            detail=study.detail,
            at=study.last_image_at,
        )
        for study in rows
    ]


def _undelivered(session: Session, condition: ColumnElement[bool], limit: int) -> list[Trouble]:
    rows = session.execute(
        select(Study, Delivery, Result.description, Revision.created_at)
        .join(Revision, Revision.study_id == Study.id)
        .join(Result, Result.revision_id == Revision.id)
        .join(Delivery, Delivery.result_id == Result.id)
        .where(condition)
        .order_by(Delivery.id.desc())
        .limit(limit)
    )
    return [
        Trouble(
            study_instance_uid=study.study_instance_uid,
            study_date=study.study_date,
            study_description=study.study_description,
            what=delivery.destination,
            reason=description,
            detail=delivery.detail,
            at=created_at,
        )
        for study, delivery, description, created_at in rows
    ]


def troubled(database: Database, *, limit: int = 1000) -> list[str]:
    """StudyInstanceUIDs of the studies that a retry of all takes up again; the latest, should there be more."""
    crashed = select(Series.study_id).where(Series.state == SeriesState.REFUSED, Series.reason == "crashed")
    refused = (
        select(Revision.study_id)
        .join(Result, Result.revision_id == Revision.id)
        .join(Delivery, Delivery.result_id == Result.id)
        .where(Delivery.state.in_([DeliveryState.REFUSED, DeliveryState.WAITING]))
    )
    chosen = or_(Study.state == StudyState.FAILED, Study.id.in_(crashed), Study.id.in_(refused))
    with database.read() as session:
        uids = select(Study.study_instance_uid).where(chosen).order_by(Study.id.desc()).limit(limit)
        return list(session.scalars(uids))


# ---- destinations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Health:
    """How a destination does: when it last took something, what waits, what fails, and with which words."""

    name: str
    last_success_at: float | None
    counts: dict[str, int]
    failing: int
    """Of those that wait, how many were tried already."""
    detail: str

    @property
    def is_well(self) -> bool:
        return not self.failing and not self.counts.get(DeliveryState.REFUSED)


OPEN = (DeliveryState.WAITING, DeliveryState.SENDING, DeliveryState.REFUSED, DeliveryState.HELD)


def health(database: Database, names: Sequence[str]) -> list[Health]:
    """Of the destinations that the settings name, then of those that they named before and that still have work."""
    with database.read() as session:
        return _health(session, Delivery, Delivery.destination, names)


def receivers_health(database: Database, names: Sequence[str]) -> list[Health]:
    """The same of the receivers of signals."""
    with database.read() as session:
        return _health(session, Signal, Signal.receiver, names)


def _health(session: Session, table: Any, destination: Any, names: Sequence[str]) -> list[Health]:
    counts: dict[str, dict[str, int]] = defaultdict(dict)
    failing: dict[str, int] = defaultdict(int)
    tried = func.sum(case((table.attempts > 0, 1), else_=0))
    rows = session.execute(
        select(destination, table.state, func.count(), tried)
        .where(table.state.in_(OPEN))
        .group_by(destination, table.state)
    )
    for name, state, count, attempts in rows:
        counts[name][state] = count
        if state == DeliveryState.WAITING:
            failing[name] = attempts

    def latest(column: Any, name: str, *conditions: ColumnElement[bool]) -> Any:
        return session.scalar(select(column).where(destination == name, *conditions).order_by(table.id.desc()).limit(1))

    is_open = table.state.in_([DeliveryState.WAITING, DeliveryState.REFUSED])
    return [
        Health(
            name=name,
            last_success_at=latest(table.delivered_at, name, table.state == DeliveryState.DELIVERED),
            counts=counts[name],
            failing=failing[name],
            detail=latest(table.detail, name, is_open, table.detail != "") or "",
        )
        for name in (*names, *sorted(set(counts) - set(names)))
    ]


# ---- the archive -----------------------------------------------------------------------------------------------


def pictured(database: Database, study_instance_uids: Sequence[str]) -> frozenset[str]:
    """Those of these studies of which a prepared scan is here."""
    chosen = (
        select(Study.study_instance_uid)
        .join(Series, Series.study_id == Study.id)
        .where(
            Study.study_instance_uid.in_(study_instance_uids),
            Series.state == SeriesState.PREPARED,
            Series.prepared_removed_at.is_(None),
        )
    )
    with database.read() as session:
        return frozenset(session.scalars(chosen))
