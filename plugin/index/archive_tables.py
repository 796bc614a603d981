"""The index's tables of archive scans: what was chosen, and how far each study of it is."""

from sqlalchemy import ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import JSON

from plugin.index.tables import Base, Leased, Uid


class ArchiveScan(Base):
    __tablename__ = "archive_scan"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(64), unique=True)
    selection: Mapped[dict] = mapped_column(JSON)
    """As `plugin.archive.selection.Selection`; of a list of patients its digest, never the list."""
    state: Mapped[str] = mapped_column(String(16))
    store: Mapped[bool]
    """Whether its results go to the destinations."""
    keep_instances: Mapped[bool]
    keep_prepared: Mapped[bool]
    options: Mapped[dict] = mapped_column(JSON, default=dict)
    """What was asked for by options in place of the settings' section [archive]."""
    listed: Mapped[dict] = mapped_column(JSON, default=dict)
    """What finding the studies came to: counts of answers, repeats, and so on."""
    created_at: Mapped[float]
    listed_at: Mapped[float | None]
    """When all its studies were found; until then they are looked for at each start."""
    finished_at: Mapped[float | None]


class ArchiveStudy(Leased, Base):
    """One study of a scan. `attempts` are those to fetch it."""

    __tablename__ = "archive_study"
    __table_args__ = (
        UniqueConstraint("scan_id", "study_instance_uid"),
        Index("ix_archive_study_scan_state", "scan_id", "state"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    scan_id: Mapped[int] = mapped_column(ForeignKey("archive_scan.id"))
    study_instance_uid: Mapped[str] = mapped_column(Uid)
    reason: Mapped[str | None] = mapped_column(String(32))
    state: Mapped[str] = mapped_column(String(16))
    expected: Mapped[int] = mapped_column(default=0)
    """How many instances the PACS said that it has, of all series; 0: it did not say."""
    instances: Mapped[int] = mapped_column(default=0)
    megabytes: Mapped[float] = mapped_column(default=0.0)
    troubles: Mapped[dict] = mapped_column(JSON, default=dict)
    """What went wrong on the way and was mended, by its name, how often."""
    fetch_seconds: Mapped[float] = mapped_column(default=0.0)
    ended_at: Mapped[float | None]
