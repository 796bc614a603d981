"""When a series, and then its study, is complete: nothing came for a while, and no one is sending it.

What an archive scan fetched is complete as soon as it is all indexed: it was handed over as a whole.
"""

from functools import cache

from sqlalchemy import Select, Update, exists, or_, select, update

from plugin.index.database import Database, clock
from plugin.index.tables import Event, Series, Study
from plugin.lifecycle import SERIES_DONE, SERIES_STEPS, STUDY_STEPS, SeriesState, StudyState
from plugin.spool import OpenStudies


def settle_series(database: Database, *, quiet_seconds: float, open_studies: OpenStudies) -> int:
    """Series that were quiet long enough become ready to prepare. How many."""
    quiet = _quiet_series(quiet_seconds)
    if open_studies.series:
        quiet = quiet.where(Series.series_instance_uid.not_in(open_studies.series))
    with database.write() as session:
        return session.execute(quiet).rowcount  # type: ignore[attr-defined]


def prepare_again(database: Database) -> int:
    """Series of studies that are taken up again, and whose prepared scans were removed meanwhile. How many."""
    with database.write() as session:
        return session.execute(_needed_again()).rowcount  # type: ignore[attr-defined]


def settle_studies(database: Database, *, quiet_seconds: float, open_studies: OpenStudies) -> int:
    """Studies that were quiet long enough and whose series are all prepared or refused become ready. How many."""
    quiet = _quiet_studies(quiet_seconds)
    if open_studies.studies:
        quiet = quiet.where(Study.study_instance_uid.not_in(open_studies.studies))
    with database.write() as session:
        ids = list(session.scalars(quiet))
        if not ids:
            return 0
        session.execute(
            update(Study)
            .where(Study.id.in_(ids))
            .values(state=STUDY_STEPS["settled"].target)
            .execution_options(synchronize_session=False)
        )
        session.add_all(Event(study_id=study_id, stage="settled", at=clock()) for study_id in ids)
        return len(ids)


def has_unsettled(database: Database) -> bool:
    """Whether anything still waits to settle; spares an idle tick its writes."""
    with database.read() as session:
        return any(session.scalar(waiting) is not None for waiting in _receiving())


# What is asked several times a second is built once: that takes longer than the answer.


@cache
def _quiet_series(quiet_seconds: float) -> Update:
    is_fetched = exists().where(Study.id == Series.study_id, Study.scan_id.is_not(None))
    return (
        update(Series)
        .where(Series.state == SeriesState.RECEIVING, or_(Series.last_image_at <= clock() - quiet_seconds, is_fetched))
        .values(state=SERIES_STEPS["settled"].target)
        .execution_options(synchronize_session=False)
    )


@cache
def _needed_again() -> Update:
    step = SERIES_STEPS["needed again"]
    open_again = select(Study.id).where(Study.state == StudyState.RECEIVING)
    return (
        update(Series)
        .where(
            Series.state.in_(step.sources),
            Series.prepared_removed_at.is_not(None),
            Series.study_id.in_(open_again),
        )
        .values(state=step.target, attempts=0, next_try_at=0.0)
        .execution_options(synchronize_session=False)
    )


@cache
def _quiet_studies(quiet_seconds: float) -> Select:
    undone = exists().where(Series.study_id == Study.id, Series.state.not_in(SERIES_DONE))
    is_quiet = or_(Study.last_image_at <= clock() - quiet_seconds, Study.scan_id.is_not(None))
    return select(Study.id).where(Study.state == StudyState.RECEIVING, is_quiet, ~undone)


@cache
def _receiving() -> tuple[Select, Select]:
    return (
        select(Study.id).where(Study.state == StudyState.RECEIVING).limit(1),
        select(Series.id).where(Series.state == SeriesState.RECEIVING).limit(1),
    )
