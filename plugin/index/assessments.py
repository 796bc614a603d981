"""What people said of a result: they agree or disagree, with a comment. Kept for good; the last of a person counts."""

from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.orm import Mapped, mapped_column

from plugin.index import worklist
from plugin.index.database import Database, clock
from plugin.index.tables import Base, Event, Revision, Study

Verdict = Literal["agree", "disagree"]
MAX_COMMENT = 4000


class Assessment(Base):
    """What one person said of one revision of a study (the assessment of IHE's AI profiles)."""

    __tablename__ = "assessment"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    revision: Mapped[int]
    person: Mapped[str] = mapped_column(Text)
    verdict: Mapped[str] = mapped_column(String(16))
    comment: Mapped[str] = mapped_column(Text, default="")
    at: Mapped[float]


@dataclass(frozen=True)
class Said:
    """An assessment, to be read."""

    revision: int
    person: str
    verdict: str
    comment: str
    at: float


def assess(
    database: Database, study_instance_uid: str, *, revision: int, person: str, verdict: str, comment: str = ""
) -> None:
    """Keep what a person says of a revision; the study counts as read then.

    Raises ValueError for another verdict or a long comment, and where the revision is not the current one: what was
    read is not what stands.
    """
    if verdict not in get_args(Verdict):
        raise ValueError(f"an assessment says {' or '.join(get_args(Verdict))}")
    if len(comment) > MAX_COMMENT:
        raise ValueError(f"a comment has at most {MAX_COMMENT} characters")
    with database.write() as session:
        current = session.execute(
            select(Revision.study_id, Revision.number)
            .join(Study)
            .where(Study.study_instance_uid == study_instance_uid, Revision.current)
        ).first()
        if current is None:
            raise ValueError("nothing stands of this study that could be assessed")
        if current.number != revision:
            raise ValueError(f"the study is at revision {current.number} by now: read it again before you judge it")
        session.add(
            Assessment(
                study_id=current.study_id,
                revision=revision,
                person=person,
                verdict=verdict,
                comment=comment.strip(),
                at=session.scalar(select(clock())),
            )
        )
        session.add(Event(study_id=current.study_id, stage="assessed", at=clock()))
        worklist.note_read(session, current.study_id)


def assessments(database: Database, study_instance_uid: str) -> list[Said]:
    """All of a study, the latest first."""
    with database.read() as session:
        rows = session.scalars(
            select(Assessment)
            .join(Study, Study.id == Assessment.study_id)
            .where(Study.study_instance_uid == study_instance_uid)
            .order_by(Assessment.at.desc(), Assessment.id.desc())
        )
        return [Said(row.revision, row.person, row.verdict, row.comment, row.at) for row in rows]
