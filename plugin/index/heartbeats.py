"""Which workers are alive, where, and with what: each writes a row of its own, by the database's clock."""

from dataclasses import dataclass

from sqlalchemy import String, Text, delete, select, update
from sqlalchemy.orm import Mapped, mapped_column

from plugin.index.database import Database, clock
from plugin.index.tables import Base

BEAT_SECONDS = 10.0
SILENT_SECONDS = 3.5 * BEAT_SECONDS
"""A worker that was not heard of for this long is taken for dead."""

FORGET_SECONDS = 24 * 3600.0


class Worker(Base):
    __tablename__ = "worker"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(128), unique=True)
    """Host, number of the process, and when it started: no two alike."""
    queues: Mapped[str] = mapped_column(Text)
    device: Mapped[str] = mapped_column(Text, default="")
    """What a model runs on, where one does."""
    model: Mapped[str] = mapped_column(Text, default="")
    version: Mapped[str] = mapped_column(Text, default="")
    started_at: Mapped[float]
    seen_at: Mapped[float]
    stopped_at: Mapped[float | None]


@dataclass(frozen=True)
class Introduction:
    """Who a worker is, as it says itself."""

    name: str
    queues: tuple[str, ...]
    device: str = ""
    model: str = ""
    version: str = ""


@dataclass(frozen=True)
class WorkerView:
    """A worker, seen so many seconds ago."""

    name: str
    queues: tuple[str, ...]
    device: str
    model: str
    version: str
    up_seconds: float
    silent_seconds: float
    stopped: bool

    @property
    def is_alive(self) -> bool:
        return not self.stopped and self.silent_seconds < SILENT_SECONDS


def beat(database: Database, worker: Introduction) -> None:
    """It lives. Workers that were not heard of for a day are forgotten."""
    with database.write() as session:
        alive = (
            update(Worker)
            .where(Worker.name == worker.name)
            .values(seen_at=clock(), stopped_at=None)
            .execution_options(synchronize_session=False)
        )
        if session.execute(alive).rowcount:  # type: ignore[attr-defined]
            return
        now = session.scalar(select(clock()))
        assert now is not None
        session.execute(delete(Worker).where(Worker.seen_at < now - FORGET_SECONDS))
        session.add(
            Worker(
                name=worker.name,
                queues=" ".join(worker.queues),
                device=worker.device,
                model=worker.model,
                version=worker.version,
                started_at=now,
                seen_at=now,
            )
        )


def stopped(database: Database, name: str) -> None:
    """It ended as it should."""
    with database.write() as session:
        session.execute(update(Worker).where(Worker.name == name).values(stopped_at=clock()))


def workers(database: Database) -> list[WorkerView]:
    """Those of the last day: the living first, then by queue and name."""
    up = Worker.seen_at - Worker.started_at
    with database.read() as session:
        rows = session.execute(select(Worker, up, clock() - Worker.seen_at))
        views = [
            WorkerView(
                name=worker.name,
                queues=tuple(worker.queues.split()),
                device=worker.device,
                model=worker.model,
                version=worker.version,
                up_seconds=up_seconds,
                silent_seconds=silent_seconds,
                stopped=worker.stopped_at is not None,
            )
            for worker, up_seconds, silent_seconds in rows
        ]
    return sorted(views, key=lambda view: (not view.is_alive, view.queues, view.name))
