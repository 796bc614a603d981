"""What may be removed, and what was: the rules of retention, as far as the index decides them.

First a study's rows are marked, in one transaction that sees everything else that happens to the study; then its
files go. A kill in between leaves a removal without an end, which is taken up again. Nothing is marked that
something still waits for: `KEPT` is the table.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, true, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from plugin.index.database import Database, clock
from plugin.index.tables import Delivery, Event, Instance, Removal, Result, Revision, Series, Study
from plugin.lifecycle import SERIES_DONE, STUDY_DONE, DeliveryState, SeriesState, StudyState

SECONDS_A_DAY = 86400.0
ACKNOWLEDGED = "acknowledged"

REMOVED_AT: dict[str, InstrumentedAttribute[float | None]] = {
    "instances": Study.instances_removed_at,
    "prepared": Study.prepared_removed_at,
    "results": Study.results_removed_at,
}
"""The kinds that have rows. While the column is None a study may have something of the kind: it spares a look."""

CHUNK = 500


def _delivery(state: DeliveryState) -> ColumnElement[bool]:
    return exists().where(
        Delivery.state == state,
        Delivery.result_id == Result.id,
        Result.revision_id == Revision.id,
        Revision.study_id == Study.id,
    )


_UNSENT = and_(
    Study.scan_id.is_(None),  # what an archive scan finds is not to be sent
    exists().where(
        Revision.study_id == Study.id,
        Revision.current,
        Result.revision_id == Revision.id,
        ~Result.is_note,
        ~exists().where(Delivery.result_id == Result.id),
    ),
)
_CRASHED = exists().where(Series.study_id == Study.id, Series.state == SeriesState.REFUSED, Series.reason == "crashed")
_UNDONE = exists().where(Series.study_id == Study.id, Series.state.not_in(SERIES_DONE))


@dataclass(frozen=True)
class Keeper:
    """A reason to keep a study whatever its age; `yields`: unless an operator has acknowledged it."""

    why: str
    holds: ColumnElement[bool]
    yields: bool = False


KEPT = (
    Keeper("in progress", or_(Study.state.not_in(STUDY_DONE), _UNDONE)),
    Keeper("committed to a sender", Study.committed_at.is_not(None)),
    Keeper("not confirmed yet", or_(_delivery(DeliveryState.WAITING), _delivery(DeliveryState.SENDING))),
    Keeper("refused by a destination", _delivery(DeliveryState.REFUSED), yields=True),
    Keeper("held back", _delivery(DeliveryState.HELD), yields=True),
    Keeper("no destination was set", _UNSENT, yields=True),
    Keeper("analysis given up", or_(Study.state == StudyState.FAILED, _CRASHED), yields=True),
)
"""The first that holds is the one that is told."""


_HAS = {
    "instances": exists().where(
        Series.study_id == Study.id, Instance.series_id == Series.id, Instance.removed_at.is_(None)
    ),
    "prepared": exists().where(
        Series.study_id == Study.id,
        Series.state.in_([SeriesState.PREPARED, SeriesState.REFUSED]),
        Series.prepared_removed_at.is_(None),
    ),
    "results": exists().where(
        Revision.study_id == Study.id, Result.revision_id == Revision.id, Result.removed_at.is_(None)
    ),
}


def _at(stage: ColumnElement[bool]) -> ColumnElement[float]:
    of_study = select(func.max(Event.at)).where(Event.study_id == Study.id, stage)
    return func.coalesce(of_study.correlate(Study).scalar_subquery(), 0.0)


def _acknowledged() -> ColumnElement[bool]:
    """By an operator, and nothing has happened since."""
    seen = _at(Event.stage == ACKNOWLEDGED)
    return and_(seen > 0, seen >= _at(Event.stage != ACKNOWLEDGED), seen >= func.coalesce(Study.last_image_at, 0.0))


def _keeps(keeper: Keeper) -> ColumnElement[bool]:
    return and_(keeper.holds, ~_acknowledged()) if keeper.yields else keeper.holds


def _old(kind: str, days: float) -> ColumnElement[bool]:
    """Has something of the kind, and nothing happened to the study for so long."""
    before = clock() - days * SECONDS_A_DAY
    late = exists().where(Instance.series_id == Series.id, Series.study_id == Study.id, Instance.received_at > before)
    return and_(
        REMOVED_AT[kind].is_(None),
        or_(Study.last_image_at.is_(None), Study.last_image_at <= before),
        ~exists().where(Event.study_id == Study.id, Event.at > before),
        ~late,
        _HAS[kind],
    )


@dataclass(frozen=True)
class Due:
    """A study of which everything of a kind may go."""

    study_id: int
    study_instance_uid: str
    kind: str


def due(
    database: Database, kind: str, *, days: float, limit: int | None = None, but: Collection[str] = ()
) -> list[Due]:
    """Studies whose `kind` may go, the oldest first; none of the StudyInstanceUIDs in `but`."""
    chosen = (
        select(Study.id, Study.study_instance_uid)
        .where(_old(kind, days), *(~_keeps(keeper) for keeper in KEPT), Study.study_instance_uid.not_in(but))
        .order_by(Study.id)
        .limit(limit)
    )
    with database.read() as session:
        return [Due(row.id, row.study_instance_uid, kind) for row in session.execute(chosen)]


def kept(database: Database, kind: str, *, days: float) -> dict[str, int]:
    """How many studies are old enough and stay all the same, by the reason."""
    counts: dict[str, int] = {}
    others: ColumnElement[bool] = true()
    with database.read() as session:
        for keeper in KEPT:
            which = and_(_old(kind, days), others, _keeps(keeper))
            if count := session.scalar(select(func.count()).select_from(Study).where(which)):
                counts[keeper.why] = count
            others = and_(others, ~_keeps(keeper))
    return counts


# ---- marking ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A removal that is marked and whose files are to go."""

    id: int
    study_id: int
    study_instance_uid: str
    kind: str


@dataclass(frozen=True)
class Rows:
    """The rows that stand for the files of a kind in one study, and what names those files."""

    table: Any
    of_study: ColumnElement[bool]
    removed_at: InstrumentedAttribute[float | None]
    name: InstrumentedAttribute[str]


def _rows(kind: str, study_id: int) -> Rows:
    series = select(Series.id).where(Series.study_id == study_id)
    revisions = select(Revision.id).where(Revision.study_id == study_id)
    return {
        "instances": Rows(Instance, Instance.series_id.in_(series), Instance.removed_at, Instance.sop_instance_uid),
        "prepared": Rows(Series, Series.study_id == study_id, Series.prepared_removed_at, Series.series_instance_uid),
        "results": Rows(Result, Result.revision_id.in_(revisions), Result.removed_at, Result.path),
    }[kind]


@dataclass(frozen=True)
class Marked:
    """What a row's files are named by: the SeriesInstanceUID, and the SOPInstanceUID or the path where there is one."""

    series_instance_uid: str
    name: str


def _named(rows: Rows) -> Select:
    """(id, SeriesInstanceUID, name) of rows."""
    of_series = rows.table.series_instance_uid if rows.table is not Instance else Series.series_instance_uid
    named = select(rows.table.id, of_series, rows.name).where(rows.of_study)
    return named.join(Series, Series.id == Instance.series_id) if rows.table is Instance else named


def lying(database: Database, kind: str, study_id: int) -> list[Marked]:
    """What lies here of a study, by the index."""
    rows = _rows(kind, study_id)
    with database.read() as session:
        return [Marked(row[1], row[2]) for row in session.execute(_named(rows).where(rows.removed_at.is_(None)))]


def mark(database: Database, item: Due, *, days: float) -> Job | None:
    """Mark what is due as removed; None where the study is not due any more."""
    with database.write() as session:
        # the lock first, and then the question, so that it is answered after whatever held the row
        session.execute(select(Study.id).where(Study.id == item.study_id).with_for_update())
        still = select(Study).where(
            Study.id == item.study_id, _old(item.kind, days), *(~_keeps(keeper) for keeper in KEPT)
        )
        study = session.scalar(still)
        return None if study is None else _mark(session, study, item.kind)


def _mark(session: Session, study: Study, kind: str) -> Job:
    now = session.scalar(select(clock()))
    assert now is not None
    rows = _rows(kind, study.id)
    session.execute(
        update(rows.table)
        .where(rows.of_study, rows.removed_at.is_(None))
        .values({rows.removed_at.key: now})
        .execution_options(synchronize_session=False)
    )
    setattr(study, REMOVED_AT[kind].key, now)
    row = Removal(study_id=study.id, kind=kind, marked_at=now, files=0, bytes=0)
    session.add(row)
    session.flush()
    return Job(row.id, study.id, study.study_instance_uid, kind)


def release(database: Database, study_id: int, kind: str) -> Job | None:
    """Mark what an archive scan fetched, or made of it, as removed: the PACS has it, and it has served its turn.

    None where there is nothing, where something is still in progress, or where the study is the clinic's by now.
    """
    with database.write() as session:
        session.execute(select(Study.id).where(Study.id == study_id).with_for_update())
        fetched = select(Study).where(
            Study.id == study_id,
            Study.scan_id.is_not(None),
            Study.committed_at.is_(None),
            Study.state.in_(STUDY_DONE),
            ~_UNDONE,
            _HAS[kind],
        )
        study = session.scalar(fetched)
        return None if study is None else _mark(session, study, kind)


def unfinished(database: Database) -> list[Job]:
    """Removals that were marked, and cut before their files were gone."""
    rows = (
        select(Removal.id, Removal.study_id, Study.study_instance_uid, Removal.kind)
        .join(Study)
        .where(Removal.done_at.is_(None))
        .order_by(Removal.id)
    )
    with database.read() as session:
        return [Job(row.id, row.study_id, row.study_instance_uid, row.kind) for row in session.execute(rows)]


# ---- the files go ----------------------------------------------------------------------------------------


def _marked(session: Session, job: Job, after: int) -> list[tuple[int, Marked]]:
    """The next rows of a job, locked: what comes back meanwhile waits, and is then not marked any more."""
    rows = _rows(job.kind, job.study_id)
    chosen = _named(rows).where(rows.removed_at.is_not(None), rows.table.id > after)
    if rows.table is Series:  # not from under a worker that prepares it anew
        chosen = chosen.where(Series.state.in_(SERIES_DONE))
    found = session.execute(chosen.order_by(rows.table.id).limit(CHUNK).with_for_update(of=rows.table))
    return [(row[0], Marked(row[1], row[2])) for row in found]


def sweep(database: Database, job: Job, remove: Callable[[Sequence[Marked]], tuple[int, int]]) -> tuple[int, int]:
    """Have the files of a job removed, and write down how many files and bytes that were.

    `remove` is called with some rows at a time, while no one else can change them; it may be called again for rows
    whose files are gone.
    """
    after, files, size = 0, 0, 0
    while True:
        with database.write() as session:
            rows = _marked(session, job, after)
            gone = remove([marked for _, marked in rows]) if rows else (0, 0)
            files, size = files + gone[0], size + gone[1]
            if len(rows) < CHUNK:
                row = session.get_one(Removal, job.id)
                row.done_at, row.files, row.bytes = clock(), row.files + files, row.bytes + size
                return files, size
            after = rows[-1][0]


def note_conflicting(database: Database, study_instance_uid: str, *, files: int, size: int) -> bool:
    """Write down that arrivals that were set aside go; False where they stay, since the study is committed."""
    with database.write() as session:
        found = session.execute(
            select(Study.id, Study.committed_at).where(Study.study_instance_uid == study_instance_uid)
        ).first()
        if found is not None and found.committed_at is not None:
            return False
        study_id = None if found is None else found.id
        row = Removal(study_id=study_id, kind="conflicting", marked_at=clock(), done_at=clock(), files=files)
        row.bytes = size
        session.add(row)
        return True


# ---- by hand ---------------------------------------------------------------------------------------------


def acknowledge(database: Database, study_instance_uid: str) -> bool:
    """An operator has seen what became of a study, and that may be its end. False where there is no such study."""
    with database.write() as session:
        study_id = session.scalar(select(Study.id).where(Study.study_instance_uid == study_instance_uid))
        if study_id is None:
            return False
        session.add(Event(study_id=study_id, stage=ACKNOWLEDGED, at=clock()))
        return True


def known(database: Database, kind: str, study_instance_uid: str) -> dict[tuple[str, str], bool]:
    """What the index knows of a study, by the SeriesInstanceUID and the name of `Marked`, and whether it lies here."""
    with database.read() as session:
        return _known(session, kind, select(Study.id).where(Study.study_instance_uid == study_instance_uid))


@contextmanager
def known_and_held(database: Database, kind: str, study_instance_uid: str) -> Iterator[dict[tuple[str, str], bool]]:
    """The same, and it stays so for as long as the context is open: nothing of the study comes or goes."""
    with database.write() as session:
        chosen = select(Study.id).where(Study.study_instance_uid == study_instance_uid)
        yield _known(session, kind, chosen.with_for_update())


def _known(session: Session, kind: str, study: Select[int]) -> dict[tuple[str, str], bool]:
    study_id = session.scalar(study)
    if study_id is None:
        return {}
    rows = _rows(kind, study_id)
    found = session.execute(_named(rows).add_columns(rows.removed_at))
    return {(row[1], row[2]): row[3] is None for row in found}
