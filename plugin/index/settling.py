"""When a series, and then its study, is complete: nothing came for a while, and no one is sending it.

What an archive scan fetched is complete as soon as it is all indexed: it was handed over as a whole.
"""

from sqlalchemy import exists, or_, select, update

from plugin.index.database import Database, clock
from plugin.index.tables import Event, Series, Study
from plugin.lifecycle import SERIES_DONE, SERIES_STEPS, STUDY_STEPS, SeriesState, StudyState
from plugin.spool import OpenStudies


def settle_series(database: Database, *, quiet_seconds: float, open_studies: OpenStudies) -> int:
    """Series that were quiet long enough become ready to prepare. How many."""
    is_fetched = exists().where(Study.id == Series.study_id, Study.scan_id.is_not(None))
    is_quiet = or_(Series.last_image_at <= clock() - quiet_seconds, is_fetched)
    quiet = (
        update(Series)
        .where(Series.state == SeriesState.RECEIVING, is_quiet)
        .values(state=SERIES_STEPS["settled"].target)
        .execution_options(synchronize_session=False)
    )
    if open_studies.series:
        quiet = quiet.where(Series.series_instance_uid.not_in(open_studies.series))
    with database.write() as session:
        return session.execute(quiet).rowcount  # type: ignore[attr-defined]


def prepare_again(database: Database) -> int:
    """Series of studies that are taken up again, and whose prepared scans were removed meanwhile. How many."""
    step = SERIES_STEPS["needed again"]
    open_again = select(Study.id).where(Study.state == StudyState.RECEIVING)
    again = (
        update(Series)
        .where(
            Series.state.in_(step.sources),
            Series.prepared_removed_at.is_not(None),
            Series.study_id.in_(open_again),
        )
        .values(state=step.target, attempts=0, next_try_at=0.0)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        return session.execute(again).rowcount  # type: ignore[attr-defined]


def settle_studies(database: Database, *, quiet_seconds: float, open_studies: OpenStudies) -> int:
    """Studies that were quiet long enough and whose series are all prepared or refused become ready. How many."""
    undone = exists().where(Series.study_id == Study.id, Series.state.not_in(SERIES_DONE))
    is_quiet = or_(Study.last_image_at <= clock() - quiet_seconds, Study.scan_id.is_not(None))
    quiet = select(Study.id).where(Study.state == StudyState.RECEIVING, is_quiet, ~undone)
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
        waiting = select(Study.id).where(Study.state == StudyState.RECEIVING).limit(1)
        waiting_series = select(Series.id).where(Series.state == SeriesState.RECEIVING).limit(1)
        return session.scalar(waiting) is not None or session.scalar(waiting_series) is not None
