"""The table of embeddings, the truth behind every vector index; rows are written with the revision they belong to."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import ForeignKey, LargeBinary, String, Text, UniqueConstraint
from sqlalchemy.orm import Mapped, Session, mapped_column

from plugin.index.tables import Base, Revision, Uid


class Embedding(Base):
    """The vector of a study, or of one of its series, as one revision's model saw it."""

    __tablename__ = "embedding"
    __table_args__ = (UniqueConstraint("revision_id", "series_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    revision_id: Mapped[int] = mapped_column(ForeignKey("revision.id"))
    series_instance_uid: Mapped[str] = mapped_column(Uid, default="")
    """Empty for the vector of the whole study."""
    bundle_digest: Mapped[str] = mapped_column(String(64))
    encoder_digest: Mapped[str] = mapped_column(String(64))
    """Of what fixes the vector (`hlip_core.bundle.Bundle.encoder_digest`); empty in rows older than this column."""
    preprocessing: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(Text, default="")
    station_name: Mapped[str] = mapped_column(Text, default="")
    patient_age: Mapped[float | None]
    """At the study, in years."""
    vector: Mapped[bytes] = mapped_column(LargeBinary)
    """Of unit length, float32, little-endian."""


@dataclass(frozen=True, kw_only=True)
class NewEmbedding:
    """A vector as the analysis hands it over; the fields are those of `Embedding`."""

    series_instance_uid: str = ""
    bundle_digest: str
    encoder_digest: str
    preprocessing: str
    modality: str
    station_name: str
    patient_age: float | None
    vector: bytes


def add(session: Session, revision: Revision, embeddings: Iterable[NewEmbedding]) -> None:
    """Keep the vectors of a revision, in the transaction that makes it."""
    session.flush()
    session.add_all(Embedding(revision_id=revision.id, **vars(embedding)) for embedding in embeddings)
