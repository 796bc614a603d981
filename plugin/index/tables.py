"""The index's tables. Times are seconds since 1970 by the database's clock.

One study has series, a series has instances; a study has revisions, a revision has results, a result has a
delivery for each destination. What a person would be identified by is in `study` only, for the page and the
results; nothing here is ever logged.
"""

from sqlalchemy import BigInteger, ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.types import JSON

Uid = String(64)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Leased:
    """A row that a worker may claim: until when, by whom, how often tried, not before when."""

    state: Mapped[str] = mapped_column(String(16), index=True)
    lease_owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[float | None]
    attempts: Mapped[int] = mapped_column(default=0)
    next_try_at: Mapped[float] = mapped_column(default=0.0)
    detail: Mapped[str] = mapped_column(Text, default="")


class Study(Leased, Base):
    __tablename__ = "study"
    __table_args__ = (Index("ix_study_worklist", "attention", "priority", "first_image_at", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_instance_uid: Mapped[str] = mapped_column(Uid, unique=True)
    patient_id: Mapped[str] = mapped_column(Text, default="")
    patient_name: Mapped[str] = mapped_column(Text, default="")
    accession_number: Mapped[str] = mapped_column(Text, default="")
    study_date: Mapped[str] = mapped_column(Text, default="")
    study_description: Mapped[str] = mapped_column(Text, default="")
    priority: Mapped[int] = mapped_column(default=50)
    attention: Mapped[int] = mapped_column(default=1, server_default="1")
    """What it asks of a reader, see `plugin.index.worklist.Attention`; leads the order of the worklist."""
    reason: Mapped[str | None] = mapped_column(String(32))
    revision: Mapped[int] = mapped_column(default=0)
    conflicts: Mapped[int] = mapped_column(default=0)
    first_image_at: Mapped[float | None]
    last_image_at: Mapped[float | None]
    committed_at: Mapped[float | None]
    """When storage commitment was first given for instances of it: from then on they stay."""
    instances_removed_at: Mapped[float | None]
    """When the rules of retention last removed its instances; None while some lie here. The next two alike."""
    prepared_removed_at: Mapped[float | None]
    results_removed_at: Mapped[float | None]
    scan_id: Mapped[int | None]
    """The archive scan that fetched its images, where no one has sent any. None: the clinic's."""

    series: Mapped[list["Series"]] = relationship(back_populates="study", order_by="Series.id")
    revisions: Mapped[list["Revision"]] = relationship(back_populates="study", order_by="Revision.number")


class Series(Leased, Base):
    __tablename__ = "series"
    __table_args__ = (UniqueConstraint("study_id", "series_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    series_instance_uid: Mapped[str] = mapped_column(Uid)
    modality: Mapped[str] = mapped_column(Text, default="")
    series_number: Mapped[int | None]
    series_description: Mapped[str] = mapped_column(Text, default="")
    reason: Mapped[str | None] = mapped_column(String(32))
    notes: Mapped[list[str]] = mapped_column(JSON, default=list)
    num_instances: Mapped[int] = mapped_column(default=0)
    last_image_at: Mapped[float | None]
    prepared_removed_at: Mapped[float | None]
    """Its prepared scan and header are gone since then; a series that is needed again is prepared again."""

    study: Mapped[Study] = relationship(back_populates="series")
    instances: Mapped[list["Instance"]] = relationship(back_populates="series", order_by="Instance.sop_instance_uid")


class Instance(Base):
    __tablename__ = "instance"
    __table_args__ = (UniqueConstraint("series_id", "sop_instance_uid"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), index=True)
    sop_class_uid: Mapped[str] = mapped_column(Uid)
    sop_instance_uid: Mapped[str] = mapped_column(Uid, index=True)
    digest: Mapped[str] = mapped_column(String(64))
    patient_digest: Mapped[str] = mapped_column(String(64))
    is_content: Mapped[bool]
    size: Mapped[int] = mapped_column(BigInteger)
    received_at: Mapped[float]
    removed_at: Mapped[float | None]
    """Its file is gone since then, or is just going; None again when the same instance comes back."""

    series: Mapped[Series] = relationship(back_populates="instances")


class Revision(Base):
    """What one analysis of a study said, and what would make it say something else."""

    __tablename__ = "revision"
    __table_args__ = (UniqueConstraint("study_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"), index=True)
    number: Mapped[int]
    inputs_digest: Mapped[str] = mapped_column(String(64))
    content_digest: Mapped[str] = mapped_column(String(64))
    bundle_digest: Mapped[str] = mapped_column(String(64))
    preprocessing: Mapped[str] = mapped_column(String(64))
    findings: Mapped[list[dict]] = mapped_column(JSON, default=list)
    created_at: Mapped[float]
    current: Mapped[bool] = mapped_column(default=True)
    withdrawn: Mapped[str | None] = mapped_column(String(16))
    """Why it was withdrawn by hand: a `plugin.lifecycle.Rejection`."""
    reissue: Mapped[bool] = mapped_column(default=False)
    """To be made again as the next revision: it is withdrawn, or nobody was told of it."""

    study: Mapped[Study] = relationship(back_populates="revisions")
    results: Mapped[list["Result"]] = relationship(back_populates="revision", order_by="Result.id")


class Result(Base):
    __tablename__ = "result"

    id: Mapped[int] = mapped_column(primary_key=True)
    revision_id: Mapped[int] = mapped_column(ForeignKey("revision.id"), index=True)
    sop_class_uid: Mapped[str] = mapped_column(Uid)
    sop_instance_uid: Mapped[str] = mapped_column(Uid, unique=True)
    series_instance_uid: Mapped[str] = mapped_column(Uid, index=True)
    description: Mapped[str] = mapped_column(Text, default="")
    path: Mapped[str] = mapped_column(Text)
    is_note: Mapped[bool] = mapped_column(default=False)
    """The note that rejects objects of its revision, not one of them."""
    removed_at: Mapped[float | None]
    """Its file is gone since then, or is just going."""

    revision: Mapped[Revision] = relationship(back_populates="results")
    deliveries: Mapped[list["Delivery"]] = relationship(back_populates="result", order_by="Delivery.id")


class Delivery(Leased, Base):
    __tablename__ = "delivery"
    __table_args__ = (UniqueConstraint("result_id", "destination"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    result_id: Mapped[int] = mapped_column(ForeignKey("result.id"), index=True)
    destination: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(8), default="store")
    """What to do at the destination: ``store`` or ``delete``."""
    delivered_at: Mapped[float | None]

    result: Mapped[Result] = relationship(back_populates="deliveries")


class Event(Base):
    """The timeline: when a stage of a study, of one of its series, or of a delivery ended, and how long it took."""

    __tablename__ = "event"
    __table_args__ = (Index("ix_event_study_at", "study_id", "at"), Index("ix_event_stage_at", "stage", "at"))

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int] = mapped_column(ForeignKey("study.id"))
    series_instance_uid: Mapped[str | None] = mapped_column(Uid)
    stage: Mapped[str] = mapped_column(String(32))
    at: Mapped[float]
    seconds: Mapped[float | None]


class Removal(Base):
    """What the rules of retention removed of a study, and when. Without `done_at` its files may still be there."""

    __tablename__ = "removal"

    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[int | None] = mapped_column(ForeignKey("study.id"), index=True)
    """None for arrivals that could not be read."""
    kind: Mapped[str] = mapped_column(String(16))
    """The folder in the spool: ``instances``, ``prepared``, ``results`` or ``conflicting``."""
    marked_at: Mapped[float]
    done_at: Mapped[float | None]
    files: Mapped[int] = mapped_column(default=0)
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
