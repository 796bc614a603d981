"""Work, claimed from the index: the most urgent ready item, by one atomic statement, for a limited time.

A killed worker's lease runs out by the database's clock and its item is claimed again; a message of the broker
says only that there may be work.
"""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, and_, case, exists, or_, select, update
from sqlalchemy.orm import Session, aliased

from plugin.index.database import Database, IndexUnavailable, clock
from plugin.index.signal_table import Signal, waits_for_another
from plugin.index.tables import Delivery, Result, Revision, Series, Study
from plugin.lifecycle import (
    ARCHIVE_FROM,
    DELIVERY_STEPS,
    SERIES_STEPS,
    STUDY_STEPS,
    DeliveryState,
    SeriesState,
    StudyState,
)

YIELD_SECONDS = 60.0
"""So long after its last image a study that is more urgent than the archive holds up work on the archive."""

LONGEST_PUT_OFF_SECONDS = 60.0
"""So long at most a failure of one item keeps others from the same peer: it may be back, or take them."""


@dataclass(frozen=True)
class Queue:
    """One kind of work: the rows that hold it, the states in which it waits and is being done, its order."""

    name: str
    table: Any
    steps: dict
    waiting: str
    busy: str
    gives_up: bool
    peer: tuple[str, ...] = ()
    """The columns that say who is spoken to, and how; none where the work is done here."""


QUEUES = {
    queue.name: queue
    for queue in (
        Queue("prepare", Series, SERIES_STEPS, SeriesState.READY, SeriesState.PREPARING, gives_up=True),
        Queue("analyse", Study, STUDY_STEPS, StudyState.READY, StudyState.ANALYSING, gives_up=True),
        Queue(
            "deliver",
            Delivery,
            DELIVERY_STEPS,
            DeliveryState.WAITING,
            DeliveryState.SENDING,
            gives_up=False,
            peer=("destination", "action"),
        ),
        Queue(
            "signal",
            Signal,
            DELIVERY_STEPS,
            DeliveryState.WAITING,
            DeliveryState.SENDING,
            gives_up=False,
            peer=("receiver",),
        ),
    )
}


@dataclass(frozen=True)
class Claim:
    """The right to work on a row until the lease ends."""

    queue: str
    id: int
    owner: str
    attempts: int


def _claimable(queue: Queue, table: Any, max_attempts: int) -> ColumnElement[bool]:
    due = or_(
        and_(table.state == queue.waiting, table.next_try_at <= clock()),
        and_(table.state == queue.busy, table.lease_until < clock()),
    )
    if queue.name == "signal":
        return and_(due, ~waits_for_another(table))
    if queue.name == "deliver":
        return and_(due, ~_waits_for_the_rejected(table), ~_is_past(table))
    if not queue.gives_up:
        return due
    priority = Study.priority if queue.name == "prepare" else table.priority
    return and_(due, table.attempts < max_attempts, or_(priority < ARCHIVE_FROM, ~_someone_urgent_arrives()))


def _is_past(delivery: Any) -> ColumnElement[bool]:
    """Whether a delivery would store what was superseded or withdrawn."""
    result, revision = aliased(Result), aliased(Revision)
    old = exists().where(
        result.id == delivery.result_id, ~result.is_note, revision.id == result.revision_id, ~revision.current
    )
    return and_(delivery.action == "store", old)


def _waits_for_the_rejected(delivery: Any) -> ColumnElement[bool]:
    """Whether a note would come to its destination before an object that it rejects, which is just being sent."""
    note, rejected, other = aliased(Result), aliased(Result), aliased(Delivery)
    return exists().where(
        note.id == delivery.result_id,
        note.is_note,
        rejected.revision_id == note.revision_id,
        ~rejected.is_note,
        other.result_id == rejected.id,
        other.destination == delivery.destination,
        other.action == "store",
        other.state == DeliveryState.SENDING,
    )


def _someone_urgent_arrives() -> ColumnElement[bool]:
    """Then no work on the archive is begun: the worker that is to take the urgent study would still be at it."""
    urgent = aliased(Study)
    return exists().where(
        urgent.state.in_((StudyState.RECEIVING, StudyState.READY)),
        urgent.priority < ARCHIVE_FROM,
        urgent.last_image_at > clock() - YIELD_SECONDS,
    )


def _most_urgent_first(queue: Queue, table: Any) -> Select:
    """The queue's rows in the order of service: by the study's priority, then the longest waiting.

    Of what is sent, each has its first try before any has another: a peer that is away, and takes a time-out to say
    so, must not keep what is new from the others. What is of the archive comes after both.
    """
    if queue.name == "prepare":
        return select(table.id).join(Study, Study.id == table.study_id).order_by(Study.priority, table.id)
    if queue.name == "analyse":
        return select(table.id).order_by(table.priority, table.last_image_at, table.id)
    if queue.name == "signal":
        return select(table.id).join(Study, Study.id == table.study_id).order_by(*_first_tries_first(table))
    return (
        select(table.id)
        .join(Result, Result.id == table.result_id)
        .join(Revision, Revision.id == Result.revision_id)
        .join(Study, Study.id == Revision.study_id)
        .order_by(*_first_tries_first(table))
    )


def _first_tries_first(table: Any) -> tuple[Any, ...]:
    later = or_(table.attempts > 0, table.next_try_at > 0, Study.priority >= ARCHIVE_FROM)
    return case((later, 1), else_=0), Study.priority, table.attempts, table.next_try_at, table.id


def claim(database: Database, name: str, *, owner: str, lease_seconds: float, max_attempts: int) -> Claim | None:
    """Take the most urgent item of a queue, or None where there is none."""
    queue = QUEUES[name]
    token = f"{owner[:90]}/{uuid.uuid4().hex}"  # no two claims alike, so that an old one never passes for a new one
    candidate = aliased(queue.table)
    best = (
        _most_urgent_first(queue, candidate)
        .where(_claimable(queue, candidate, max_attempts))
        .limit(1)
        .with_for_update(of=candidate, skip_locked=True)
        .scalar_subquery()
    )
    take = (
        update(queue.table)
        .where(queue.table.id == best)
        .values(
            state=queue.busy,
            lease_owner=token,
            lease_until=clock() + lease_seconds,
            attempts=queue.table.attempts + 1,
        )
        .returning(queue.table.id, queue.table.attempts)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        row = session.execute(take).first()
        return Claim(name, row.id, token, row.attempts) if row is not None else None


def _dropping(which: ColumnElement[bool]) -> Update:
    """What was superseded or withdrawn while it was being sent is not sent once more."""
    step = DELIVERY_STEPS["superseded meanwhile"]
    return (
        update(Delivery)
        .where(which, Delivery.state.in_(step.sources), _is_past(Delivery))
        .values(state=step.target, lease_owner=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )


def held(item: Claim) -> ColumnElement[bool]:
    """The WHERE of every outcome: the claim still stands, so its worker alone may write."""
    queue = QUEUES[item.queue]
    table = queue.table
    return and_(table.id == item.id, table.lease_owner == item.owner, table.state == queue.busy)


def renew(database: Database, item: Claim, lease_seconds: float) -> bool:
    """Extend the lease; False where it is lost."""
    table = QUEUES[item.queue].table
    extend = (
        update(table)
        .where(held(item))
        .values(lease_until=clock() + lease_seconds)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        return _count(session, extend) == 1


@contextmanager
def kept_alive(
    renewed: Callable[[], bool], lease_seconds: float, *, lost: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Renew a lease in the background for as long as the work goes on; `lost` is called when it is ours no more.

    `renewed` renews it, and says whether it could.
    """
    done = threading.Event()

    def keep() -> None:
        while not done.wait(lease_seconds / 3):
            try:
                if not renewed():
                    if not done.is_set():  # else the work has just ended the claim itself
                        lost()
                    return
            except IndexUnavailable:
                continue  # it may be back before the lease ends; if not, the outcome is thrown away

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def claimable(database: Database, name: str, *, max_attempts: int, limit: int = 200) -> list[int]:
    """Ids of the items of a queue that wait to be claimed now."""
    with database.read() as session:
        return list(session.scalars(_waiting(name, max_attempts, limit)))


# What is asked several times a second is built once: that takes longer than the answer.


@cache
def _waiting(name: str, max_attempts: int, limit: int) -> Select:
    queue = QUEUES[name]
    return _most_urgent_first(queue, queue.table).where(_claimable(queue, queue.table, max_attempts)).limit(limit)


@cache
def _dropping_all() -> Update:
    return _dropping(or_(Delivery.state == DeliveryState.WAITING, Delivery.lease_until < clock()))


@cache
def _giving_up(name: str, max_attempts: int) -> Update:
    queue = QUEUES[name]
    table = queue.table
    is_free = or_(table.state == queue.waiting, and_(table.state == queue.busy, table.lease_until < clock()))
    return (
        update(table)
        .where(table.attempts >= max_attempts, is_free)
        .values(state=queue.steps["gave up"].target, reason="crashed", lease_owner=None, lease_until=None)
        .execution_options(synchronize_session=False)
    )


def put_back(database: Database, item: Claim, *, detail: str, wait_seconds: float, is_to_blame: bool = True) -> None:
    """The work failed for now: it waits, and is claimed again after `wait_seconds`.

    Where the item itself `is_to_blame`, the try counts; many of them and it is given up.
    """
    queue = QUEUES[item.queue]
    back = (
        update(queue.table)
        .where(held(item))
        .values(
            state=queue.steps["failed once"].target,
            detail=detail,
            lease_owner=None,
            lease_until=None,
            next_try_at=clock() + wait_seconds,
            attempts=queue.table.attempts - (0 if is_to_blame else 1),
        )
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        if item.queue == "deliver" and _count(session, _dropping(held(item))):
            return
        session.execute(back)


def put_off(database: Database, item: Claim, *, wait_seconds: float) -> None:
    """Nothing was heard from the peer of an item: what else waits for that peer is not due before it may be back.

    Those that were tried least are then tried first: each has its turn.
    """
    queue = QUEUES[item.queue]
    table = queue.table
    due = clock() + min(wait_seconds, LONGEST_PUT_OFF_SECONDS)
    with database.write() as session:
        tried = session.get_one(table, item.id)
        others = (
            select(table.id)
            .where(
                *(getattr(table, column) == getattr(tried, column) for column in queue.peer),
                table.id != item.id,
                table.state == queue.waiting,
                table.next_try_at < due,
            )
            .with_for_update(skip_locked=True)
        )
        session.execute(
            update(table)
            .where(table.id.in_(others), table.state == queue.waiting)
            .values(next_try_at=due)
            .execution_options(synchronize_session=False)
        )


def drop_past(database: Database) -> int:
    """What was superseded or withdrawn while it was being sent, by a worker that was killed too. How many."""
    with database.write() as session:
        return _count(session, _dropping_all())


def give_up(database: Database, *, max_attempts: int) -> int:
    """Items that were tried often enough, the killed ones too, get the reason ``crashed``. How many."""
    with database.write() as session:
        names = [queue.name for queue in QUEUES.values() if queue.gives_up]
        return sum(_count(session, _giving_up(name, max_attempts)) for name in names)


def _count(session: Session, change: Update) -> int:
    return session.execute(change).rowcount  # type: ignore[attr-defined]
