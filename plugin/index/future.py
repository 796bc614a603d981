"""Times that lie in the future: the clock was set back, and what waits for them would wait as long as the step."""

from sqlalchemy import ColumnElement, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from plugin.index.archive_tables import ArchiveStudy
from plugin.index.database import Database, clock
from plugin.index.leases import QUEUES
from plugin.index.tables import Series, Study
from plugin.lifecycle import FetchState, SeriesState, StudyState


def bring_back(
    database: Database,
    *,
    lease_seconds: float,
    longest_wait_seconds: float,
    fetch_lease_seconds: float,
    longest_fetch_wait_seconds: float,
) -> int:
    """Bring back what lies further ahead than any rule would have put it. How many times were corrected.

    Nothing that has happened lies ahead of now, no lease ends later than `lease_seconds` from now, and no failure
    waits longer than `longest_wait_seconds`; for the studies of an archive scan the last two have rules of their own.
    """
    now: ColumnElement[float] = clock()
    with database.write() as session:
        corrected = _no_later_than(session, Series.last_image_at, now, Series.state == SeriesState.RECEIVING)
        corrected += _no_later_than(session, Study.last_image_at, now, Study.state == StudyState.RECEIVING)
        for queue in QUEUES.values():
            table, busy, waiting = queue.table, queue.table.state == queue.busy, queue.table.state == queue.waiting
            corrected += _no_later_than(session, table.lease_until, now + lease_seconds, busy)
            corrected += _no_later_than(session, table.next_try_at, now + longest_wait_seconds, waiting)
        row = ArchiveStudy
        fetching, planned = row.state == FetchState.FETCHING, row.state == FetchState.PLANNED
        corrected += _no_later_than(session, row.lease_until, now + fetch_lease_seconds, fetching)
        corrected += _no_later_than(session, row.next_try_at, now + longest_fetch_wait_seconds, planned)
    return corrected


def _no_later_than(
    session: Session, column: InstrumentedAttribute, latest: ColumnElement[float], rows: ColumnElement[bool]
) -> int:
    late = (
        update(column.class_)
        .where(rows, column > latest)
        .values({column.key: latest})
        .execution_options(synchronize_session=False)
    )
    return session.execute(late).rowcount  # type: ignore[attr-defined]
