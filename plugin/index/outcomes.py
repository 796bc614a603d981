"""What work came to: the only writes that end a claim. Each does nothing, and says so, where the claim is lost."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import and_, case, exists, select, update
from sqlalchemy.orm import Session

from plugin.index import archive, embeddings, signals, withdrawal, worklist
from plugin.index.database import Database, clock
from plugin.index.embeddings import NewEmbedding
from plugin.index.leases import Claim, held
from plugin.index.signals import Offer
from plugin.index.tables import Delivery, Event, Instance, Result, Revision, Series, Study
from plugin.index.withdrawal import NewNote, NewResult
from plugin.lifecycle import (
    DELIVERY_STEPS,
    SERIES_STEPS,
    STUDY_STEPS,
    DeliveryState,
    SeriesState,
    StudyState,
)


def _end(session: Session, claim: Claim, table: type[Series | Study | Delivery], **values: object) -> bool:
    values = {"lease_owner": None, "lease_until": None, "detail": "", **values}
    ended = update(table).where(held(claim)).values(**values).execution_options(synchronize_session=False)
    return session.execute(ended).rowcount == 1  # type: ignore[attr-defined]


# ---- prepare -----------------------------------------------------------------------------------------------


def series_prepared(
    database: Database,
    claim: Claim,
    *,
    notes: Sequence[str],
    seconds: float,
    publish: Callable[[], object] = lambda: None,
) -> bool:
    """`publish` puts the prepared scan in its place; see `study_reported`."""
    values = {"state": SERIES_STEPS["prepared"].target, "reason": None, "notes": list(notes)}
    return _series_done(database, claim, "prepared", values, seconds=seconds, publish=publish)


def series_refused(database: Database, claim: Claim, *, reason: str, detail: str, seconds: float) -> bool:
    values = {"state": SERIES_STEPS["refused"].target, "reason": reason, "detail": detail}
    return _series_done(database, claim, "refused", values, seconds=seconds, publish=lambda: None)


def _series_done(
    database: Database, claim: Claim, stage: str, values: dict, *, seconds: float, publish: Callable[[], object]
) -> bool:
    with database.write() as session:
        if not _end(session, claim, Series, prepared_removed_at=None, **values):
            return False
        _series_event(session, claim, stage, seconds)
        session.flush()
        publish()
        return True


def _series_event(session: Session, claim: Claim, stage: str, seconds: float) -> None:
    series = session.get_one(Series, claim.id)
    series.study.prepared_removed_at = None
    session.add(
        Event(
            study_id=series.study_id,
            series_instance_uid=series.series_instance_uid,
            stage=stage,
            at=clock(),
            seconds=seconds,
        )
    )


# ---- analyse -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewRevision:
    """A revision as the analysis hands it over; `findings` is JSON-ready."""

    number: int
    inputs_digest: str
    content_digest: str
    bundle_digest: str
    preprocessing: str
    created_at: float
    findings: list[dict]
    embeddings: list[NewEmbedding] = field(default_factory=list)
    results: list[NewResult] = field(default_factory=list)
    signals: list[Offer] = field(default_factory=list)


def study_refused(database: Database, claim: Claim, *, reason: str, detail: str, seconds: float) -> bool:
    """Nothing of the study can be analysed and nothing is to be said in the PACS; the page shows the reason."""
    with database.write() as session:
        ended = _end(session, claim, Study, state=STUDY_STEPS["refused"].target, reason=reason, detail=detail)
        if ended:
            session.add(Event(study_id=claim.id, stage="refused", at=clock(), seconds=seconds))
        return ended


def study_lacked(database: Database, claim: Claim, series_instance_uids: Collection[str]) -> bool:
    """Prepared scans, or the headers beside them, are missing or damaged: they are as good as removed.

    The scheduler has them made anew, and the study waits for that. The try counts.
    """
    lost = update(Series).where(
        Series.study_id == claim.id,
        Series.series_instance_uid.in_(series_instance_uids),
        Series.state == SeriesState.PREPARED,
    )
    with database.write() as session:
        ended = _end(session, claim, Study, state=STUDY_STEPS["lacked a scan"].target)
        if ended:
            session.execute(lost.values(prepared_removed_at=clock()).execution_options(synchronize_session=False))
        return ended


def study_unchanged(database: Database, claim: Claim, *, seconds: float) -> bool:
    """The same inputs as the current revision's: what was said stands."""
    with database.write() as session:
        ended = _end(session, claim, Study, state=STUDY_STEPS["reported"].target, reason=None)
        if ended:
            session.add(Event(study_id=claim.id, stage="unchanged", at=clock(), seconds=seconds))
        return ended


def study_reported(
    database: Database,
    claim: Claim,
    revision: NewRevision,
    *,
    destinations: Sequence[str],
    hold: bool,
    seconds: float,
    note: NewNote | None = None,
    publish: Callable[[], object],
) -> bool:
    """Make `revision` the study's current one, supersede the one before, and fill the outbox.

    `note` withdraws objects of the revision before. Of a study that an archive scan fetched nobody is told, unless
    the scan is to store its results.
    `publish` puts the result files in their place. It is called inside the transaction, once the claim is known
    to stand: a worker whose lease was lost never touches them.
    """
    with database.write() as session:
        if not _end(
            session,
            claim,
            Study,
            state=STUDY_STEPS["reported"].target,
            reason=None,
            revision=revision.number,
            results_removed_at=None,
        ):
            return False
        _supersede(session, claim.id, note)
        row = Revision(
            study_id=claim.id,
            number=revision.number,
            inputs_digest=revision.inputs_digest,
            content_digest=revision.content_digest,
            bundle_digest=revision.bundle_digest,
            preprocessing=revision.preprocessing,
            findings=revision.findings,
            created_at=revision.created_at,
            current=True,
        )
        state = DeliveryState.HELD if hold else DeliveryState.WAITING
        fetched = archive.origin(session, claim.id)
        if fetched is not None and not fetched.store:
            destinations = ()
        for result in revision.results:
            deliveries = [Delivery(destination=name, state=state) for name in destinations]
            row.results.append(Result(**vars(result), deliveries=deliveries))
        session.add(row)
        embeddings.add(session, row, revision.embeddings)
        worklist.note_reported(session, claim.id, revision.findings)
        session.add(Event(study_id=claim.id, stage="analysed", at=clock(), seconds=seconds))
        session.flush()
        signals.offer(session, row, [] if fetched is not None else revision.signals)
        session.flush()
        publish()
        return True


def _supersede(session: Session, study_id: int, note: NewNote | None) -> None:
    """What the current revision said is past: what still waits is not sent, and the note withdraws what was."""
    revision = session.scalar(select(Revision).where(Revision.study_id == study_id, Revision.current))
    if revision is None:
        return
    withdrawal.lock(session, revision, note)
    if note is not None:
        withdrawal.reject(session, revision, note)
    withdrawal.drop_waiting(session, revision)
    revision.current = False


# ---- deliver -----------------------------------------------------------------------------------------------


def delivered(database: Database, claim: Claim, *, action: str, seconds: float) -> bool:
    """The destination confirmed that it stored the object, or deleted it."""
    step = {"store": "delivered", "delete": "deleted"}[action]
    values = {"delivered_at": clock()} if action == "store" else {}
    with database.write() as session:
        ended = _end(session, claim, Delivery, state=DELIVERY_STEPS[step].target, **values)
        if ended:
            session.add(_delivery_event(session, claim, step, seconds))
        return ended


def delivery_refused(database: Database, claim: Claim, *, detail: str, seconds: float) -> bool:
    with database.write() as session:
        ended = _end(session, claim, Delivery, state=DELIVERY_STEPS["refused"].target, detail=detail)
        if ended:
            session.add(_delivery_event(session, claim, "delivery refused", seconds))
        return ended


def _delivery_event(session: Session, claim: Claim, stage: str, seconds: float) -> Event:
    delivery = session.get_one(Delivery, claim.id)
    return Event(
        study_id=delivery.result.revision.study_id,
        series_instance_uid=delivery.result.series_instance_uid,
        stage=stage,
        at=clock(),
        seconds=seconds,
    )


# ---- by hand -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Retried:
    series: int
    studies: int
    deliveries: int
    signals: int = 0


def retry(database: Database, *, study_instance_uid: str | None = None) -> Retried:
    """Everything that was given up or refused by a destination or receiver waits again; of one study, or of all.

    Naming a study prepares all its series again, whatever became of them, and analyses it anew. A series whose
    images were removed stays as it is.
    """
    with database.write() as session:
        chosen = select(Study.id)
        if study_instance_uid is not None:
            chosen = chosen.where(Study.study_instance_uid == study_instance_uid)
        anew = {"attempts": 0, "next_try_at": 0.0, "detail": "", "lease_owner": None, "lease_until": None}
        gone = exists().where(Instance.series_id == Series.id, Instance.removed_at.is_not(None))
        series = update(Series).where(
            Series.study_id.in_(chosen), Series.state.in_(SERIES_STEPS["retry"].sources), ~gone
        )
        if study_instance_uid is None:
            series = series.where(Series.reason == "crashed")
        series = series.values(state=SERIES_STEPS["retry"].target, reason=None, **anew)
        touched = list(session.scalars(series.returning(Series.study_id).execution_options(synchronize_session=False)))
        again = [StudyState.FAILED] if study_instance_uid is None else list(STUDY_STEPS["retry"].sources)
        studies = session.execute(
            update(Study)
            .where(Study.id.in_(chosen), Study.state.in_(again) | Study.id.in_(set(touched)))
            .values(state=STUDY_STEPS["retry"].target, reason=None, **anew)
            .execution_options(synchronize_session=False)
        ).rowcount  # type: ignore[attr-defined]
        refused = (
            select(Delivery.id).join(Result).join(Revision).where(
                Revision.study_id.in_(chosen),
                Result.removed_at.is_(None),
                Revision.current | Result.is_note | (Delivery.action == "delete"),
                Delivery.state.in_(DELIVERY_STEPS["retry"].sources))
        )  # fmt: skip
        refused_at_once = and_(Delivery.state == DeliveryState.REFUSED, Delivery.attempts == 1)
        tries = case((refused_at_once, 0), else_=Delivery.attempts)  # what may have arrived stays known as such
        deliveries = session.execute(
            update(Delivery)
            .where(Delivery.id.in_(refused), Delivery.state.in_(DELIVERY_STEPS["retry"].sources))
            .values(state=DELIVERY_STEPS["retry"].target, **anew | {"attempts": tries})
            .execution_options(synchronize_session=False)
        ).rowcount  # type: ignore[attr-defined]
        return Retried(len(touched), studies, deliveries, signals.retry(session, chosen))


def let_out_held(database: Database) -> int:
    """A setting now allows results of unproven models to be sent: those of current revisions wait for delivery."""
    with database.write() as session:
        held_ids = (
            select(Delivery.id).join(Result).join(Revision)
            .where(Revision.current, Delivery.state == DeliveryState.HELD, Result.removed_at.is_(None))
        )  # fmt: skip
        return session.execute(
            update(Delivery)
            .where(Delivery.id.in_(held_ids), Delivery.state.in_(DELIVERY_STEPS["let out"].sources))
            .values(state=DELIVERY_STEPS["let out"].target)
            .execution_options(synchronize_session=False)
        ).rowcount  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Errand:
    """What to do with which file at which destination."""

    path: Path
    destination: str
    action: str
    study_instance_uid: str


def errand(database: Database, claim: Claim, folder: Path) -> Errand:
    """What a claimed delivery asks for."""
    with database.read() as session:
        delivery = session.get_one(Delivery, claim.id)
        study = delivery.result.revision.study
        return Errand(folder / delivery.result.path, delivery.destination, delivery.action, study.study_instance_uid)
