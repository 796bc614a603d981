"""The outbox of signals: who is to be told what, decided in the transaction that writes the results.

At least once, in order, and never a stale word: a signal that no one has tried to send yet gives way to the next
revision's; one that may have reached its receiver stays, and what follows says what it corrects.
"""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, select, update
from sqlalchemy.orm import Session, aliased

from plugin.index.database import Database, clock
from plugin.index.leases import Claim, held
from plugin.index.signal_table import Signal
from plugin.index.tables import Event, Revision
from plugin.lifecycle import DELIVERY_STEPS, DeliveryState, SignalStatus

REACHED = frozenset({DeliveryState.SENDING, DeliveryState.DELIVERED})
MAY_HAVE_REACHED = frozenset({DeliveryState.WAITING, DeliveryState.OBSOLETE})
"""Of these, what was tried: the answer may have got lost, not the message."""

UNTRIED = frozenset({DeliveryState.WAITING, DeliveryState.HELD})


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a receiver would be told of a revision, if it does not know that already.

    Attributes
    ----------
    identity
        Everything that can change the message: the same again gives the same key.
    positive
        Labels of the positive findings that the receiver wants to know of.
    always
        Tell it of every revision, whatever was found.
    hold
        Keep it here: the model is not trained, and no setting lets the signal out.
    content
        JSON-ready; what the message is made of.
    """

    receiver: str
    identity: str
    positive: tuple[str, ...]
    always: bool
    hold: bool
    content: dict[str, Any]


def offer(session: Session, revision: Revision, offers: Sequence[Offer]) -> None:
    """Write what is news to each receiver; what none was told of an older revision is dropped."""
    for each in offers:
        told = _told(session, revision.study_id, each.receiver)
        is_live = told is not None and told.state != DeliveryState.OBSOLETE
        is_known = is_live and told is not None and set(told.positive) == set(each.positive)
        is_nothing = told is None and not each.positive
        if (is_known or is_nothing) and not each.always:
            continue
        status = SignalStatus.NEW if told is None else SignalStatus.CORRECTED
        row = _row(revision, each.receiver, status, each.identity, each.content, told)
        row.positive, row.state = list(each.positive), DeliveryState.HELD if each.hold else DeliveryState.WAITING
        row.retracted = sorted(_may_be_believed(told) - set(each.positive)) if told else []
        session.add(row)


def withdraw(session: Session, revision: Revision) -> None:
    """Whoever was told of the study is told that it no longer holds."""
    receivers = select(Signal.receiver).where(Signal.study_id == revision.study_id).distinct().order_by(Signal.receiver)
    for receiver in list(session.scalars(receivers)):
        told = _told(session, revision.study_id, receiver, but=SignalStatus.WITHDRAWN)
        if told is None or told.status == SignalStatus.WITHDRAWN:
            continue
        identity = f"{told.key}\n{revision.number}"
        row = _row(revision, receiver, SignalStatus.WITHDRAWN, identity, told.content, told)
        row.positive, row.retracted, row.state = [], sorted(_may_be_believed(told)), DeliveryState.WAITING
        session.add(row)


def _row(
    revision: Revision, receiver: str, status: SignalStatus, identity: str, content: dict, told: Signal | None
) -> Signal:
    """A message of its own; what it takes the place of is not sent again."""
    if told is not None and told.state == DeliveryState.WAITING:
        told.state = DELIVERY_STEPS["superseded"].target
    return Signal(
        study_id=revision.study_id,
        revision_id=revision.id,
        receiver=receiver,
        status=status,
        key=hashlib.sha256(f"{identity}\n{receiver}\n{status}".encode()).hexdigest()[:32],
        corrects=None if told is None else told.key,
        content=content,
        created_at=clock(),
    )


def _may_be_believed(told: Signal) -> set[str]:
    """Labels that the receiver may take for positive: what perhaps never reached it took nothing back for certain."""
    taken_back = [] if told.state == DeliveryState.DELIVERED else told.retracted
    return {*told.positive, *taken_back}


def _told(session: Session, study_id: int, receiver: str, *, but: SignalStatus | None = None) -> Signal | None:
    """What the receiver was, or may have been, told last. What was not even tried becomes obsolete.

    If the last is of status `but` and holds, it is that one, whether it was tried or not.
    """
    rows = session.scalars(
        select(Signal)
        .where(Signal.study_id == study_id, Signal.receiver == receiver)
        .order_by(Signal.id.desc())
        .with_for_update()
    ).all()
    if rows and rows[0].status == but and rows[0].state != DeliveryState.OBSOLETE:
        return rows[0]
    for row in rows:
        if row.state in UNTRIED and not row.attempts:
            row.state = DELIVERY_STEPS["superseded"].target
    return next((row for row in rows if row.state in REACHED or (row.state in MAY_HAVE_REACHED and row.attempts)), None)


# ---- sending -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignalErrand:
    """What to tell whom."""

    receiver: str
    study_instance_uid: str
    key: str
    status: str
    corrects: str | None
    retracted: tuple[str, ...]
    created_at: float
    content: dict[str, Any]


def errand(database: Database, claim: Claim) -> SignalErrand:
    """What a claimed signal asks for."""
    with database.read() as session:
        row = session.get_one(Signal, claim.id)
        return SignalErrand(
            receiver=row.receiver,
            study_instance_uid=row.revision.study.study_instance_uid,
            key=row.key,
            status=row.status,
            corrects=row.corrects,
            retracted=tuple(row.retracted),
            created_at=row.created_at,
            content=row.content,
        )


def delivered(database: Database, claim: Claim, *, seconds: float) -> bool:
    """The receiver acknowledged it."""
    return _end(database, claim, "delivered", "signalled", seconds, delivered_at=clock())


def refused(database: Database, claim: Claim, *, detail: str, seconds: float) -> bool:
    """The receiver will not take it: visible until a person looks, and sent again only by hand."""
    return _end(database, claim, "refused", "signal refused", seconds, detail=detail)


def _end(database: Database, claim: Claim, step: str, stage: str, seconds: float, **values: Any) -> bool:
    values = {"lease_owner": None, "lease_until": None, "detail": "", "state": DELIVERY_STEPS[step].target, **values}
    with database.write() as session:
        ended = update(Signal).where(held(claim)).values(**values).returning(Signal.study_id)
        study_id = session.scalar(ended.execution_options(synchronize_session=False))
        if study_id is not None:
            session.add(Event(study_id=study_id, stage=stage, at=clock(), seconds=seconds))
        return study_id is not None


# ---- by hand -----------------------------------------------------------------------------------------------


def _is_last() -> ColumnElement[bool]:
    later = aliased(Signal)
    return ~exists().where(
        later.study_id == Signal.study_id, later.receiver == Signal.receiver, later.id > Signal.id
    )  # fmt: skip


def retry(session: Session, studies: Select) -> int:
    """What was refused, and nothing has taken the place of, waits again; what waits is due at once. How many."""
    values = {"next_try_at": 0.0, "detail": "", "lease_owner": None, "lease_until": None}
    waiting = Signal.state == DeliveryState.WAITING
    refused_last = and_(Signal.state == DeliveryState.REFUSED, _is_last())
    count = 0
    for which, anew in ((waiting, {}), (refused_last, {"state": DELIVERY_STEPS["retry"].target, "attempts": 0})):
        again = update(Signal).where(Signal.study_id.in_(studies), which).values(**values, **anew)
        count += session.execute(again.execution_options(synchronize_session=False)).rowcount  # type: ignore[attr-defined]
    return count


def let_out_held(database: Database, receivers: Collection[str]) -> int:
    """A setting now allows `receivers` to be told of results of unproven models: what still holds waits for them."""
    let_out = (
        update(Signal)
        .where(Signal.state == DeliveryState.HELD, Signal.receiver.in_(receivers), _is_last())
        .values(state=DELIVERY_STEPS["let out"].target)
    )
    with database.write() as session:
        return session.execute(let_out.execution_options(synchronize_session=False)).rowcount  # type: ignore[attr-defined]


# ---- looking -----------------------------------------------------------------------------------------------


def of_study(session: Session, study_id: int) -> list[dict[str, Any]]:
    """A study's signals, without what they say of the patient."""
    rows = session.execute(
        select(Signal, Revision.number)
        .join(Revision, Revision.id == Signal.revision_id)
        .where(Signal.study_id == study_id)
        .order_by(Signal.id)
    )
    return [
        {
            "receiver": row.receiver,
            "status": row.status,
            "revision": number,
            "key": row.key,
            "state": row.state,
            "attempts": row.attempts,
            "detail": row.detail,
            "created_at": row.created_at,
            "delivered_at": row.delivered_at,
        }
        for row, number in rows
    ]
