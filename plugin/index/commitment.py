"""Storage commitment: what the index holds of the instances that someone asks about, and keeping it for good."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import select, update

from plugin.index.database import Database, clock
from plugin.index.tables import Instance, Series, Study

CHUNK = 500


@dataclass(frozen=True)
class Holding:
    """An instance whose file is here, by the index."""

    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    has_conflicts: bool
    """Whether some instance of its study came again with other content."""


def hold(database: Database, sop_instance_uids: Sequence[str]) -> list[Holding]:
    """Keep the studies of these instances from now on, and tell what lies here of them.

    The studies are marked first and read then: retention, which locks a study before it asks, either sees the mark,
    or has removed its instances already and they are not told.
    """
    with database.write() as session:
        for uids in _chunks(sop_instance_uids):
            studies = select(Series.study_id).join(Instance).where(Instance.sop_instance_uid.in_(uids))
            session.execute(
                update(Study)
                .where(Study.id.in_(studies), Study.committed_at.is_(None))
                .values(committed_at=clock())
                .execution_options(synchronize_session=False)
            )
        found = []
        for uids in _chunks(sop_instance_uids):
            rows = (
                select(Instance, Series.series_instance_uid, Study.study_instance_uid, Study.conflicts)
                .join(Series, Series.id == Instance.series_id)
                .join(Study, Study.id == Series.study_id)
                .where(Instance.sop_instance_uid.in_(uids), Instance.removed_at.is_(None))
            )
            found += [
                Holding(study, series, row.sop_instance_uid, row.sop_class_uid, conflicts > 0)
                for row, series, study, conflicts in session.execute(rows)
            ]
        return found


def _chunks(uids: Sequence[str]) -> Iterator[Sequence[str]]:
    for at in range(0, len(uids), CHUNK):
        yield uids[at : at + CHUNK]
