"""All studies of the archive with what was reported of them, to be scored again; and making them due again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import exists, select, update

from plugin.index.database import Database
from plugin.index.embeddings import Embedding
from plugin.index.filters import Filters
from plugin.index.search import CHUNK, MOST_PARAMETERS, NO_FILTERS, Space, chosen_ids, conditions, of_space
from plugin.index.tables import Revision, Series, Study
from plugin.lifecycle import STUDY_STEPS, SeriesState, StudyState


@dataclass(frozen=True, eq=False)
class ReportedPart:
    """A part of the archive, one place for each study in every list; `vectors` [n, E] float32."""

    study_instance_uids: list[str]
    accession_numbers: list[str]
    study_dates: list[str]
    findings: list[list[dict[str, Any]]]
    vectors: np.ndarray


def reported(database: Database, space: Space, filters: Filters = NO_FILTERS) -> Iterator[ReportedPart]:
    """All studies that can be scored again, in parts, with what was reported of them. `space` is that of studies."""
    columns = (
        Embedding.id, Study.study_instance_uid, Study.accession_number, Study.study_date, Revision.findings,
        Embedding.vector,
    )  # fmt: skip
    ids = chosen_ids(database, space, filters)  # first: "the next so many" would sort all that is left, each time
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        statement = (
            select(*columns)
            .join(Revision, Revision.id == Embedding.revision_id)
            .join(Study, Study.id == Revision.study_id)
            .where(of_space(space), Embedding.id.between(int(part[0]), int(part[-1])), *conditions(filters))
            .order_by(Embedding.id)
        )
        with database.read() as session:
            found = session.execute(statement).all()
        if found:
            _, uids, numbers, dates, findings, vectors = map(list, zip(*found, strict=True))
            yield ReportedPart(
                uids, numbers, dates, findings, np.frombuffer(b"".join(vectors), "<f4").reshape(len(uids), -1)
            )


def make_due(database: Database, study_instance_uids: Sequence[str], *, priority: int) -> int:
    """Have reported studies analysed again, no more urgently than `priority`; how many.

    Left as they are: studies in progress, and those of which a prepared scan is gone, since they could not be looked
    at again as a whole.
    """
    gone = exists().where(
        Series.study_id == Study.id, Series.state == SeriesState.PREPARED, Series.prepared_removed_at.is_not(None)
    )
    due = 0
    for start in range(0, len(study_instance_uids), MOST_PARAMETERS):
        part = study_instance_uids[start : start + MOST_PARAMETERS]
        again = (
            update(Study)
            .where(Study.study_instance_uid.in_(part), Study.state == StudyState.REPORTED, ~gone)
            .values(state=STUDY_STEPS["retry"].target, priority=priority, attempts=0, next_try_at=0.0, detail="")
            .execution_options(synchronize_session=False)
        )
        with database.write() as session:
            due += session.execute(again).rowcount  # type: ignore[attr-defined]
    return due
