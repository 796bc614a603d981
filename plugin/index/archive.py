"""Archive scans in the index: what was asked for, the plan with a row a study, and how far it is."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select, update
from sqlalchemy.orm import Session

from plugin.index.archive_fetch import is_due
from plugin.index.archive_tables import ArchiveScan, ArchiveStudy
from plugin.index.database import Database, clock
from plugin.index.tables import Event, Study
from plugin.lifecycle import (
    FETCH_DONE,
    FETCH_STEPS,
    SCAN_STEPS,
    FetchState,
    ScanState,
)

CHUNK = 500


@dataclass(frozen=True)
class ScanView:
    """A scan as it stands."""

    id: int
    name: str
    selection: dict[str, Any]
    state: str
    store: bool
    keep_instances: bool
    keep_prepared: bool
    options: dict[str, Any]
    listed: dict[str, int]
    created_at: float
    listed_at: float | None
    finished_at: float | None


def _view(row: ArchiveScan) -> ScanView:
    return ScanView(**{name: getattr(row, name) for name in ScanView.__dataclass_fields__})


# ---- scans -------------------------------------------------------------------------------------------------


def open_scan(database: Database, name: str, selection: dict[str, Any], **wishes: Any) -> ScanView:
    """The unfinished scan of this selection, or a new one. `wishes` are columns of a new one.

    Raises ValueError where the name belongs to another scan.
    """
    with database.write() as session:
        unfinished = select(ArchiveScan).where(ArchiveScan.state != ScanState.FINISHED).order_by(ArchiveScan.id.desc())
        for row in session.scalars(unfinished):
            if row.selection == selection and name in ("", row.name):
                row.state = ScanState.RUNNING
                for key, value in wishes.items():
                    setattr(row, key, value)
                return _view(row)
        number = session.scalar(select(func.coalesce(func.max(ArchiveScan.id), 0)))
        name = name or f"scan-{(number or 0) + 1}"
        if session.scalar(select(ArchiveScan.id).where(ArchiveScan.name == name)) is not None:
            raise ValueError(f"there is a scan {name} with another selection, or finished: take another --name")
        row = ArchiveScan(name=name, selection=selection, state=ScanState.RUNNING, listed={}, **wishes)
        row.created_at = session.scalar(select(clock())) or 0.0
        session.add(row)
        session.flush()
        return _view(row)


def find_scan(database: Database, name: str | None) -> ScanView:
    """The scan of that name, or the latest. Raises ValueError where there is none."""
    chosen = select(ArchiveScan).order_by(ArchiveScan.id.desc()).limit(1)
    if name is not None:
        chosen = chosen.where(ArchiveScan.name == name)
    with database.read() as session:
        row = session.scalar(chosen)
        if row is None:
            raise ValueError(f"there is no scan {name}" if name else "there is no scan yet: see `hlip archive scan`")
        return _view(row)


def scans(database: Database) -> list[ScanView]:
    """All scans, the latest first."""
    with database.read() as session:
        return [_view(row) for row in session.scalars(select(ArchiveScan).order_by(ArchiveScan.id.desc()))]


def _step(database: Database, scan_id: int, event: str, **values: Any) -> bool:
    step = SCAN_STEPS[event]
    change = (
        update(ArchiveScan)
        .where(ArchiveScan.id == scan_id, ArchiveScan.state.in_(step.sources))
        .values(state=step.target, **values)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        return session.execute(change).rowcount == 1  # type: ignore[attr-defined]


def pause(database: Database, scan_id: int) -> bool:
    return _step(database, scan_id, "paused")


def resume(database: Database, scan_id: int) -> bool:
    return _step(database, scan_id, "resumed", finished_at=None)


def finish(database: Database, scan_id: int) -> bool:
    """Where all its studies were found and none is left to do."""
    with database.read() as session:
        left = select(ArchiveStudy.id).where(ArchiveStudy.scan_id == scan_id, ArchiveStudy.state.not_in(FETCH_DONE))
        if session.scalar(left.limit(1)) is not None or session.get_one(ArchiveScan, scan_id).listed_at is None:
            return False
    return _step(database, scan_id, "finished", finished_at=clock())


# ---- the plan ----------------------------------------------------------------------------------------------


def plan(database: Database, scan_id: int, found: Sequence[tuple[str, int]]) -> int:
    """Add studies, (StudyInstanceUID, number of instances), that the plan has not. How many."""
    added = 0
    for at in range(0, len(found), CHUNK):
        chunk = dict(found[at : at + CHUNK])
        with database.write() as session:
            present = set(
                session.scalars(
                    select(ArchiveStudy.study_instance_uid).where(
                        ArchiveStudy.scan_id == scan_id, ArchiveStudy.study_instance_uid.in_(chunk)
                    )
                )
            )
            rows = [
                ArchiveStudy(
                    scan_id=scan_id, study_instance_uid=uid, state=FetchState.PLANNED, expected=expected, troubles={}
                )
                for uid, expected in chunk.items()
                if uid not in present
            ]
            session.add_all(rows)
            added += len(rows)
    return added


def set_listed(database: Database, scan_id: int, facts: dict[str, int]) -> None:
    """All its studies are in the plan."""
    with database.write() as session:
        row = session.get_one(ArchiveScan, scan_id)
        row.listed, row.listed_at = facts, session.scalar(select(clock()))


def retry(database: Database, scan_id: int) -> int:
    """Plan again what failed or was gone. How many."""
    step = FETCH_STEPS["retry"]
    again = (
        update(ArchiveStudy)
        .where(ArchiveStudy.scan_id == scan_id, ArchiveStudy.state.in_(step.sources))
        .values(state=step.target, reason=None, detail="", attempts=0, next_try_at=0.0, ended_at=None)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        return session.execute(again).rowcount  # type: ignore[attr-defined]


def origin(session: Session, study_id: int) -> ArchiveScan | None:
    """The scan that fetched a study, where nobody sent it."""
    return session.scalar(select(ArchiveScan).join(Study, Study.scan_id == ArchiveScan.id).where(Study.id == study_id))


# ---- how far it is -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Standing:
    """How many studies are in which state, whether the scan is still wanted, and what waits until when."""

    state: str
    counts: dict[str, int]
    due: int
    next_try_seconds: float | None

    @property
    def done(self) -> int:
        return sum(count for state, count in self.counts.items() if state in FETCH_DONE)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def standing(database: Database, scan_id: int) -> Standing:
    row = ArchiveStudy
    of_scan = row.scan_id == scan_id
    with database.read() as session:
        counts = session.execute(select(row.state, func.count()).where(of_scan).group_by(row.state))
        first = select(func.min(row.next_try_at) - clock()).where(of_scan, row.state == FetchState.PLANNED)
        return Standing(
            state=session.get_one(ArchiveScan, scan_id).state,
            counts={state: count for state, count in counts},
            due=session.scalar(select(func.count()).where(of_scan, is_due())) or 0,
            next_try_seconds=session.scalar(first),
        )


COLUMNS = (
    "study_instance_uid", "state", "reason", "attempts", "instances", "megabytes", "fetch_seconds", "troubles",
    "ended_at",
)  # fmt: skip


def rows(database: Database, scan_id: int) -> list[dict[str, Any]]:
    """Every study of a scan, in the order of the plan."""
    columns = [getattr(ArchiveStudy, name) for name in COLUMNS]
    chosen = select(*columns).where(ArchiveStudy.scan_id == scan_id).order_by(ArchiveStudy.id)
    with database.read() as session:
        return [dict(row._mapping) for row in session.execute(chosen)]


def present(database: Database, uids: Collection[str]) -> int:
    """How many of these studies the index has with images."""
    found, wanted = 0, list(uids)
    with database.read() as session:
        for at in range(0, len(wanted), CHUNK):
            chosen = select(func.count()).where(
                Study.study_instance_uid.in_(wanted[at : at + CHUNK]), Study.first_image_at.is_not(None)
            )
            found += session.scalar(chosen) or 0
    return found


def usual_seconds(database: Database, stage: str, *, limit: int = 200) -> float | None:
    """The mean of what a stage of the timeline took of late; None where it never happened."""
    latest = select(Event.seconds).where(Event.stage == stage, Event.seconds.is_not(None)).order_by(Event.at.desc())
    return _mean(database, latest.limit(limit))


def usual_fetch_seconds(database: Database, *, limit: int = 200) -> float | None:
    """The mean time that a study took of late to be fetched; None where none was."""
    took = ArchiveStudy.fetch_seconds
    return _mean(database, select(took).where(took > 0).order_by(ArchiveStudy.id.desc()).limit(limit))


def _mean(database: Database, latest: Select) -> float | None:
    with database.read() as session:
        return session.scalar(select(func.avg(latest.subquery().c[0])))
