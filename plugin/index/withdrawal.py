"""Withdrawal: what was said of a study no longer holds, and whoever was told so is told that."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from plugin.index import signals, worklist
from plugin.index.database import Database, clock
from plugin.index.tables import Delivery, Event, Result, Revision, Study
from plugin.lifecycle import DELIVERY_STEPS, STUDY_STEPS, DeliveryState, StudyState


@dataclass(frozen=True)
class NewResult:
    """An object of ours for the outbox; `path` is relative to the data folder."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    description: str
    path: str


@dataclass(frozen=True)
class NewNote:
    """A rejection note, the SOPInstanceUIDs that it rejects, and the destinations that are to delete those.

    A try to send one of them may go on for `sending_seconds` after its lease was taken from it.
    """

    object: NewResult
    rejects: frozenset[str]
    delete_at: frozenset[str]
    sending_seconds: float = 60.0


def reject(session: Session, revision: Revision, note: NewNote) -> list[str]:
    """Put the note, and the deletions, in the outbox. The destinations: all that may hold one of the objects.

    What is to be deleted is named by its file, so an object whose file was removed here is rejected only.
    """
    reached = list(
        session.scalars(
            select(Delivery)
            .join(Result)
            .where(
                Result.sop_instance_uid.in_(note.rejects),
                Delivery.state.in_(DELIVERY_STEPS["to be deleted"].sources),
                _may_have_arrived(),
            )
            .order_by(Delivery.id)
            .with_for_update(of=Delivery)
        )
    )
    not_before = dict.fromkeys(sorted({delivery.destination for delivery in reached}), 0.0)
    for delivery in reached:
        if delivery.destination in note.delete_at and delivery.result.removed_at is None:
            sent_until = 0.0 if delivery.lease_until is None else delivery.lease_until + note.sending_seconds
            not_before[delivery.destination] = max(not_before[delivery.destination], sent_until)
            delivery.action, delivery.state = "delete", DELIVERY_STEPS["to be deleted"].target
            delivery.next_try_at = sent_until
            delivery.attempts, delivery.detail = 0, ""
            delivery.lease_owner = delivery.lease_until = None
    destinations = list(not_before)
    deliveries = [
        Delivery(destination=name, state=DeliveryState.WAITING, next_try_at=at) for name, at in not_before.items()
    ]
    row = Result(**vars(note.object), revision_id=revision.id, is_note=True, deliveries=deliveries)
    session.add(row)
    session.flush()
    return destinations


def _may_have_arrived() -> ColumnElement[bool]:
    """It was tried, and not just refused at once: the answer may have got lost, not the object."""
    return and_(Delivery.attempts > 0, or_(Delivery.state != DeliveryState.REFUSED, Delivery.attempts > 1))


def lock(session: Session, revision: Revision, note: NewNote | None) -> None:
    """Nobody claims a delivery of the revision, or of what the note rejects, from here to the end.

    Comes first: a claim that is just being written is waited for, and then seen.
    """
    rejects = () if note is None else note.rejects
    concerned = or_(Result.revision_id == revision.id, Result.sop_instance_uid.in_(rejects))
    rows = select(Delivery.id).join(Result).where(concerned).order_by(Delivery.id)
    session.execute(rows.with_for_update(of=Delivery)).all()


def drop_waiting(session: Session, revision: Revision) -> None:
    """What was not sent yet of a revision's objects stays here."""
    step = DELIVERY_STEPS["superseded"]
    waiting = (
        select(Delivery.id)
        .join(Result)
        .where(
            Result.revision_id == revision.id,
            ~Result.is_note,
            Delivery.action == "store",
            Delivery.state.in_(step.sources),
        )
    )
    session.execute(
        update(Delivery)
        .where(Delivery.id.in_(waiting), Delivery.state.in_(step.sources))
        .values(state=step.target)
        .execution_options(synchronize_session=False)
    )


def withdraw(
    database: Database,
    study_instance_uid: str,
    note: NewNote,
    *,
    number: int,
    reason: str,
    publish: Callable[[], object],
) -> list[str]:
    """Withdraw revision `number`, the current one. The destinations that are told.

    `publish` writes the note's file; it is called once the withdrawal is known to stand. Raises ValueError where
    the revision is not current, or while the study is analysed.
    """
    with database.write() as session:
        study = session.scalar(
            select(Study).where(Study.study_instance_uid == study_instance_uid).with_for_update(of=Study)
        )
        if study is None or study.state == StudyState.ANALYSING:
            raise ValueError("the study is being analysed at the moment: withdraw it when it is reported")
        revision = session.scalar(
            select(Revision).where(Revision.study_id == study.id, Revision.number == number, Revision.current)
        )
        if revision is None:
            raise ValueError("the study has just been reported anew: look at it before you withdraw it")
        lock(session, revision, note)
        destinations = reject(session, revision, note)
        drop_waiting(session, revision)
        signals.withdraw(session, revision)
        revision.current, revision.withdrawn = False, reason
        study.results_removed_at = None
        worklist.note_withdrawn(session, study.id)
        session.add(Event(study_id=study.id, stage="withdrawn", at=clock()))
        session.flush()
        publish()
        return destinations


def reissue(database: Database, study_instance_uid: str) -> None:
    """Analyse a withdrawn study again: its next revision follows even if nothing changed."""
    step = STUDY_STEPS["retry"]
    with database.write() as session:
        study = session.scalars(select(Study).where(Study.study_instance_uid == study_instance_uid)).one()
        session.execute(
            update(Revision)
            .where(Revision.study_id == study.id, Revision.number == study.revision, Revision.withdrawn.is_not(None))
            .values(reissue=True)
            .execution_options(synchronize_session=False)
        )
        session.execute(
            update(Study)
            .where(Study.id == study.id, Study.state.in_(step.sources))
            .values(state=step.target, reason=None, attempts=0, next_try_at=0.0, detail="")
            .execution_options(synchronize_session=False)
        )
