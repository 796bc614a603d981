"""What a search asks the index: vectors to compare, rows that fit the filters, and what to say of the hits.

Only vectors of the encoder in use count, and only of revisions that stand: not superseded, not withdrawn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from plugin.index.database import Database
from plugin.index.embeddings import Embedding
from plugin.index.filters import Filters
from plugin.index.tables import Revision, Series, Study
from plugin.lifecycle import SeriesState

Level = Literal["study", "series"]
CHUNK = 5000
"""Rows that are read at once."""
MOST_PARAMETERS = 500
NO_FILTERS = Filters()


@dataclass(frozen=True)
class Space:
    """The vectors that may be compared with each other: of one encoder, of studies or of series."""

    encoder_digest: str
    bundle_digest: str
    level: Level = "study"


@dataclass(frozen=True, eq=False)
class SearchRow:
    """A study (or series) that was found, without anything that names the patient. `findings` as they were reported."""

    id: int
    study_instance_uid: str
    series_instance_uid: str
    study_date: str
    study_description: str
    modality: str
    station_name: str
    patient_age: float | None
    findings: list[dict[str, Any]]
    vector: np.ndarray


def of_space(space: Space) -> ColumnElement[bool]:
    """Rows without an encoder's digest are of this one when they are of this bundle."""
    level = Embedding.series_instance_uid == "" if space.level == "study" else Embedding.series_instance_uid != ""
    of_bundle = and_(Embedding.encoder_digest == "", Embedding.bundle_digest == space.bundle_digest)
    of_encoder = or_(Embedding.encoder_digest == space.encoder_digest, of_bundle)
    return and_(level, of_encoder, Revision.current, Revision.withdrawn.is_(None))


def _like(text: str) -> str:
    """A LIKE pattern for a part of a text; its own wildcards are meant as they stand."""
    for character in "\\%_":
        text = text.replace(character, "\\" + character)
    return f"%{text}%"


def conditions(filters: Filters) -> list[ColumnElement[bool]]:
    """What the filters ask of a row of embedding and study; findings are not among it."""
    asked: list[ColumnElement[bool]] = []
    if filters.since or filters.until:
        asked += [func.length(Study.study_date) == 8]
    if filters.since:
        asked += [Study.study_date >= filters.since]
    if filters.until:
        asked += [Study.study_date <= filters.until]
    if filters.modality:
        asked += [Embedding.modality == filters.modality]
    if filters.ages:
        asked += [Embedding.patient_age >= filters.ages[0], Embedding.patient_age < filters.ages[1]]
    if filters.station:
        asked += [Embedding.station_name.ilike(_like(filters.station), escape="\\")]
    if filters.description:
        asked += [Study.study_description.ilike(_like(filters.description), escape="\\")]
    return asked


def searched(space: Space, filters: Filters, *columns: Any) -> Select[Any]:
    """A statement for columns of the rows that may be found."""
    statement = select(*columns).select_from(Embedding).join(Revision, Revision.id == Embedding.revision_id)
    if filters.of_study:
        statement = statement.join(Study, Study.id == Revision.study_id)
    return statement.where(of_space(space), *conditions(filters))


def count(database: Database, space: Space) -> int:
    """How many vectors can be searched."""
    with database.read() as session:
        return session.scalar(searched(space, NO_FILTERS, func.count(Embedding.id))) or 0


def chosen_ids(database: Database, space: Space, filters: Filters, *, after: int = 0) -> np.ndarray:
    """int64, ascending: the ids of the rows that fit, beyond `after`."""
    with database.read() as session:
        statement = searched(space, filters, Embedding.id).where(Embedding.id > after).order_by(Embedding.id)
        return np.fromiter(session.scalars(statement), np.int64)


def vectors(database: Database, space: Space, ids: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """([n] ids, [n, E] float32) of ascending ids, in parts; a row that no longer stands is left out."""
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        statement = (
            searched(space, NO_FILTERS, Embedding.id, Embedding.vector)
            .where(Embedding.id.between(int(part[0]), int(part[-1])))
            .order_by(Embedding.id)
        )
        with database.read() as session:
            found = {key: vector for key, vector in session.execute(statement)}
        kept = [int(key) for key in part if int(key) in found]
        if kept:
            yield np.array(kept), np.stack([np.frombuffer(found[key], "<f4") for key in kept])


def rows(database: Database, space: Space, ids: Sequence[int]) -> dict[int, SearchRow]:
    """What there is to say of vectors, by id; those that no longer stand are missing."""
    found: dict[int, SearchRow] = {}
    for start in range(0, len(ids), MOST_PARAMETERS):
        part = ids[start : start + MOST_PARAMETERS]
        statement = (
            select(Embedding, Revision.findings, Study)
            .join(Revision, Revision.id == Embedding.revision_id)
            .join(Study, Study.id == Revision.study_id)
            .where(of_space(space), Embedding.id.in_(part))
        )
        with database.read() as session:
            for embedding, findings, study in session.execute(statement):
                found[embedding.id] = _row(embedding, findings, study)
    return found


def _row(embedding: Embedding, findings: list[dict[str, Any]], study: Study) -> SearchRow:
    return SearchRow(
        id=embedding.id,
        study_instance_uid=study.study_instance_uid,
        series_instance_uid=embedding.series_instance_uid,
        study_date=study.study_date,
        study_description=study.study_description,
        modality=embedding.modality,
        station_name=embedding.station_name,
        patient_age=embedding.patient_age,
        findings=findings,
        vector=np.frombuffer(embedding.vector, "<f4"),
    )


def _of_study(space: Space, study_instance_uid: str, *columns: Any) -> Select[Any]:
    of_studies = Space(space.encoder_digest, space.bundle_digest)
    return (
        select(*columns)
        .select_from(Embedding)
        .join(Revision, Revision.id == Embedding.revision_id)
        .join(Study, Study.id == Revision.study_id)
        .where(of_space(of_studies), Study.study_instance_uid == study_instance_uid)
    )


def vector_of(database: Database, space: Space, study_instance_uid: str) -> np.ndarray | None:
    """[E] float32: the vector of a study; None where the index has none that may be compared."""
    with database.read() as session:
        vector = session.scalar(_of_study(space, study_instance_uid, Embedding.vector))
    return None if vector is None else np.frombuffer(vector, "<f4")


def findings_of(database: Database, space: Space, study_instance_uid: str) -> list[dict[str, Any]]:
    """What was reported of a study, the most certain first; nothing of one that has no vector here."""
    statement = _of_study(space, study_instance_uid, Revision.findings)
    with database.read() as session:
        return session.scalar(statement) or []


def prepared_series(database: Database, study_instance_uid: str) -> list[str]:
    """SeriesInstanceUIDs of which a prepared scan should lie in the data folder, in the order of their numbers."""
    statement = (
        select(Series)
        .join(Study)
        .where(
            Study.study_instance_uid == study_instance_uid,
            Series.state == SeriesState.PREPARED,
            Series.prepared_removed_at.is_(None),
        )
        .order_by(Series.series_number, Series.id)
    )
    with database.read() as session:
        return [series.series_instance_uid for series in session.scalars(statement)]
