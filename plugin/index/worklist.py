"""The worklist: which study to open first, and what changed since the last look.

The order is kept in the index itself (`study.attention`, `study.priority`, `study.first_image_at`), so that the first
page of a long list is read from an index of the database, not sorted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from sqlalchemy import ColumnElement, ForeignKey, String, and_, delete, or_, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from plugin.index.database import Database, clock
from plugin.index.tables import Base, Event, Revision, Study
from plugin.lifecycle import STUDY_DONE, StudyState

MAX_ACTIVE = 2000
"""So many unfinished studies are watched; of a whole archive that waits, these show that it moves."""

SECONDS_A_DAY = 86400.0


class Attention(IntEnum):
    """What a study asks of a reader, the most first. It leads the order of the worklist."""

    CRITICAL = 0
    """A critical finding is positive, and no one has said anything of it."""
    UNREAD = 1
    READ = 2
    """Someone has agreed or disagreed with what stands."""


class Positive(Base):
    """A finding that stands as positive: of the current revision, so that studies can be found by it."""

    __tablename__ = "positive"

    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), primary_key=True)
    label: Mapped[str] = mapped_column(String(64), primary_key=True, index=True)
    critical: Mapped[bool]


# ---- kept up to date by what changes it --------------------------------------------------------------------


def note_reported(session: Session, study_id: int, findings: Sequence[Mapping[str, Any]]) -> None:
    """A new revision stands: its positive findings are the study's, and it is unread."""
    positive = [row for row in findings if row.get("positive")]
    critical = {row["label"]: bool(row.get("critical")) for row in positive}
    _stands(session, study_id, Attention.CRITICAL if any(critical.values()) else Attention.UNREAD)
    session.add_all(Positive(study_id=study_id, label=label, critical=is_) for label, is_ in critical.items())


def note_withdrawn(session: Session, study_id: int) -> None:
    """Nothing stands of the study any more."""
    _stands(session, study_id, Attention.UNREAD)


def note_read(session: Session, study_id: int) -> None:
    session.execute(_attention(study_id, Attention.READ))


def _stands(session: Session, study_id: int, attention: Attention) -> None:
    session.execute(_attention(study_id, attention))
    session.execute(delete(Positive).where(Positive.study_id == study_id).execution_options(synchronize_session=False))


def _attention(study_id: int, attention: Attention) -> Any:
    return (
        update(Study)
        .where(Study.id == study_id)
        .values(attention=int(attention))
        .execution_options(synchronize_session=False)
    )


# ---- the list ----------------------------------------------------------------------------------------------

IN_PROGRESS = (StudyState.RECEIVING, StudyState.READY, StudyState.ANALYSING)


def _withdrawn() -> ColumnElement[bool]:
    last = and_(Revision.study_id == Study.id, Revision.number == Study.revision)
    return select(Revision.id).where(last, Revision.withdrawn.is_not(None)).exists()


def _is(*states: StudyState) -> ColumnElement[bool]:
    return Study.state.in_(states)


KINDS: dict[str, ColumnElement[bool]] = {
    "open": Study.state != StudyState.IGNORED,
    "critical": Study.attention == Attention.CRITICAL,
    "unread": and_(_is(StudyState.REPORTED), Study.attention < Attention.READ),
    "read": Study.attention == Attention.READ,
    "in progress": _is(*IN_PROGRESS),
    "reported": _is(StudyState.REPORTED),
    "refused": _is(StudyState.REFUSED),
    "failed": _is(StudyState.FAILED),
    "withdrawn": _withdrawn(),
    "ignored": _is(StudyState.IGNORED),
}
"""What the list may be narrowed to."""


@dataclass(frozen=True)
class Filters:
    """What is asked for: a kind, words in what names the study, a positive finding, how lately it came (0: ever)."""

    kind: str = "open"
    text: str = ""
    finding: str = ""
    days: float = 0
    study_date: str = ""


@dataclass(frozen=True)
class Row:
    """A study on the list; `findings` are the positive ones that stand, the critical first."""

    study_instance_uid: str
    patient_name: str
    patient_id: str
    accession_number: str
    study_date: str
    study_description: str
    state: str
    reason: str | None
    priority: int
    attention: Attention
    first_image_at: float | None
    last_image_at: float | None
    revision: int
    reported_at: float | None = None
    withdrawn: str | None = None
    findings: tuple[dict[str, Any], ...] = ()

    @property
    def seconds_to_result(self) -> float | None:
        """From the last image to the result that stands; None where there is none, or it came before that image."""
        if self.reported_at is None or self.last_image_at is None or self.reported_at < self.last_image_at:
            return None
        return self.reported_at - self.last_image_at


@dataclass(frozen=True)
class List:
    """A page of the worklist; `at` is the time by the database's clock."""

    at: float
    rows: tuple[Row, ...]
    has_more: bool


COLUMNS = (
    "study_instance_uid", "patient_name", "patient_id", "accession_number", "study_date", "study_description", "state",
    "reason", "priority", "first_image_at", "last_image_at", "revision",
)  # fmt: skip
TEXTS = (Study.patient_name, Study.patient_id, Study.accession_number, Study.study_description)


def _matching(filters: Filters) -> list[ColumnElement[bool]]:
    """Raises KeyError for an unknown kind."""
    conditions = [KINDS[filters.kind]]
    for word in filters.text.split():
        found = [column.icontains(word, autoescape=True) for column in TEXTS]
        conditions.append(or_(*found, Study.study_instance_uid == word))
    if filters.finding:
        conditions.append(
            select(Positive.study_id).where(Positive.study_id == Study.id, Positive.label == filters.finding).exists()
        )
    if filters.days:
        conditions.append(Study.first_image_at >= clock() - filters.days * SECONDS_A_DAY)
    if filters.study_date:
        conditions.append(Study.study_date == filters.study_date)
    return conditions


def worklist(database: Database, filters: Filters, *, offset: int = 0, limit: int = 50) -> List:
    """Studies in the order in which to open them: critical ones, by priority, the longest waiting first."""
    ordered = (
        select(Study)
        .where(*_matching(filters))
        .order_by(Study.attention, Study.priority, Study.first_image_at, Study.id)
        .offset(offset)
        .limit(limit + 1)
    )
    with database.read() as session:
        at = session.scalar(select(clock())) or 0.0
        studies = list(session.scalars(ordered))
        shown = studies[:limit]
        said = _said(session, [study.id for study in shown])
        return List(at, tuple(_row(study, said.get(study.id)) for study in shown), len(studies) > limit)


@dataclass(frozen=True)
class _Said:
    created_at: float
    current: bool
    withdrawn: str | None
    findings: list[dict[str, Any]]


def _said(session: Session, ids: Sequence[int]) -> dict[int, _Said]:
    """The last revision of each study."""
    columns = (Revision.study_id, Revision.created_at, Revision.current, Revision.withdrawn, Revision.findings)
    last = select(*columns).join(Study, and_(Study.id == Revision.study_id, Study.revision == Revision.number))
    return {row[0]: _Said(*row[1:]) for row in session.execute(last.where(Study.id.in_(ids)))}


def _row(study: Study, said: _Said | None) -> Row:
    values = {name: getattr(study, name) for name in COLUMNS}
    stands = said is not None and said.current
    positive = [row for row in said.findings if row.get("positive")] if said and stands else []
    return Row(
        **values,
        attention=Attention(study.attention),
        reported_at=said.created_at if said and stands else None,
        withdrawn=said.withdrawn if said else None,
        findings=tuple(sorted(positive, key=lambda row: not row.get("critical", False))),
    )


# ---- what changed ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Glance:
    """All that tells one moment of the index from the next: the studies under way, and the last event."""

    last_event: int
    active: Mapping[str, tuple[str, float | None]]
    touched: frozenset[str] = frozenset()
    """Studies with events since the glance before."""

    def changed_since(self, before: "Glance") -> frozenset[str]:
        moved = {uid for uid, state in self.active.items() if before.active.get(uid) != state}
        return self.touched | moved | (before.active.keys() - self.active.keys())


def glance(database: Database, before: Glance | None = None) -> Glance:
    """Cheap however long the list: the studies that are not done (an index on their state), and new events."""
    with database.read() as session:
        undone = [state for state in StudyState if state not in STUDY_DONE]
        active = session.execute(
            select(Study.study_instance_uid, Study.state, Study.last_image_at)
            .where(Study.state.in_(undone))
            .limit(MAX_ACTIVE)
        )
        under_way = {uid: (state, at) for uid, state, at in active}
        if before is None:
            last = session.scalar(select(Event.id).order_by(Event.id.desc()).limit(1))
            return Glance(last or 0, under_way)
        new = session.execute(
            select(Event.id, Study.study_instance_uid)
            .join(Study, Study.id == Event.study_id)
            .where(Event.id > before.last_event)
        ).all()
        last_event = max((row[0] for row in new), default=before.last_event)
        return Glance(last_event, under_way, frozenset(row[1] for row in new))


def row_of(database: Database, study_instance_uid: str) -> Row | None:
    """One study as the list shows it; None where the index does not know it."""
    with database.read() as session:
        study = session.scalar(select(Study).where(Study.study_instance_uid == study_instance_uid))
        return None if study is None else _row(study, _said(session, [study.id]).get(study.id))
