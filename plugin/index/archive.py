"""Archive scans in the index: the plan, a study a row, and each step of a row, by one who still holds it."""

import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from plugin.index.archive_tables import ArchiveScan, ArchiveStudy
from plugin.index.database import Database, clock
from plugin.index.tables import Event, Revision, Series, Study
from plugin.lifecycle import (
    FETCH_DONE,
    FETCH_STEPS,
    SCAN_STEPS,
    SERIES_DONE,
    STUDY_DONE,
    STUDY_STEPS,
    FetchState,
    ScanState,
    StudyState,
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


# ---- one study ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fetch:
    """The right to fetch one study until the lease ends."""

    id: int
    scan_id: int
    study_instance_uid: str
    owner: str
    attempts: int

    @property
    def token(self) -> str:
        return self.owner.rpartition("/")[2]


def claim(database: Database, scan_id: int, *, owner: str, lease_seconds: float, look_ahead: int) -> Fetch | None:
    """The next study of a running scan; None where none is due, or `look_ahead` studies are here already."""
    row, due = ArchiveStudy, _due()
    in_flight = or_(row.state == FetchState.FETCHED, and_(row.state == FetchState.FETCHING, row.lease_until >= clock()))
    with database.write() as session:
        if session.get_one(ArchiveScan, scan_id).state != ScanState.RUNNING:
            return None
        if (session.scalar(select(func.count()).where(in_flight)) or 0) >= look_ahead:
            return None
        chosen = select(row).where(row.scan_id == scan_id, due).order_by(row.next_try_at, row.id).limit(1)
        found = session.scalar(chosen.with_for_update(skip_locked=True))
        if found is None:
            return None
        token = f"{owner[:90]}/{uuid.uuid4().hex}"
        take = (
            update(row)
            .where(row.id == found.id)
            .values(state=FETCH_STEPS["claimed"].target, lease_owner=token, lease_until=clock() + lease_seconds)
        )
        session.execute(take.execution_options(synchronize_session=False))
        return Fetch(found.id, scan_id, found.study_instance_uid, token, found.attempts)


def _due() -> ColumnElement[bool]:
    row = ArchiveStudy
    return or_(
        and_(row.state == FetchState.PLANNED, row.next_try_at <= clock()),
        and_(row.state == FetchState.FETCHING, row.lease_until < clock()),
    )


def _held(fetch: Fetch) -> ColumnElement[bool]:
    row = ArchiveStudy
    return and_(row.id == fetch.id, row.lease_owner == fetch.owner, row.state == FetchState.FETCHING)


def renew(database: Database, fetch: Fetch, lease_seconds: float) -> bool:
    """Extend the lease; False where it is lost."""
    extend = update(ArchiveStudy).where(_held(fetch)).values(lease_until=clock() + lease_seconds)
    with database.write() as session:
        return session.execute(extend.execution_options(synchronize_session=False)).rowcount == 1  # type: ignore[attr-defined]


def free_dead(database: Database, scan_id: int, is_dead: Callable[[str], bool]) -> int:
    """Give up the claims of processes that are known to be dead, before their leases end. How many."""
    with database.write() as session:
        rows = session.scalars(
            select(ArchiveStudy).where(ArchiveStudy.scan_id == scan_id, ArchiveStudy.state == FetchState.FETCHING)
        )
        dead = [row for row in rows if is_dead((row.lease_owner or "").rpartition("/")[0])]
        for row in dead:
            row.state = FETCH_STEPS["failed once"].target
            row.lease_owner = row.lease_until = None
        return len(dead)


def end(
    database: Database, fetch: Fetch, event: str, *, publish: Callable[[], object] | None = None, **values: Any
) -> bool:
    """Make a step of a study that is held; False where it is lost. `values` are columns.

    `publish` is called inside the transaction, once the claim is known to stand.
    """
    step = FETCH_STEPS[event]
    if step.target in FETCH_DONE:
        values["ended_at"] = clock()
    change = (
        update(ArchiveStudy)
        .where(_held(fetch))
        .values(state=step.target, lease_owner=None, lease_until=None, **values)
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        if session.execute(change).rowcount != 1:  # type: ignore[attr-defined]
            return False
        if publish is not None:
            publish()
        return True


def put_back(database: Database, fetch: Fetch, *, reason: str, wait_seconds: float, is_to_blame: bool) -> bool:
    """It could not be fetched now: later again."""
    return end(
        database,
        fetch,
        "failed once",
        reason=reason,
        attempts=ArchiveStudy.attempts + (1 if is_to_blame else 0),
        next_try_at=clock() + wait_seconds,
    )


def note_troubles(database: Database, fetch: Fetch, troubles: dict[str, int]) -> None:
    """Count what went wrong on the way, whatever comes of it."""
    if not troubles:
        return
    with database.write() as session:
        row = session.scalar(select(ArchiveStudy).where(ArchiveStudy.id == fetch.id).with_for_update())
        assert row is not None
        row.troubles = {name: row.troubles.get(name, 0) + troubles.get(name, 0) for name in {*row.troubles, *troubles}}


# ---- what the index knows of it ----------------------------------------------------------------------------


def origin(session: Session, study_id: int) -> ArchiveScan | None:
    """The scan that fetched a study, where nobody sent it."""
    return session.scalar(select(ArchiveScan).join(Study, Study.scan_id == ArchiveScan.id).where(Study.id == study_id))


@dataclass(frozen=True)
class Known:
    """Why a study need not be fetched: `event` is a step of the plan."""

    event: str
    reason: str | None = None


def known(database: Database, fetch: Fetch, bundle_digest: str) -> Known | None:
    """What the index has of a study that a scan is to fetch; None: fetch it.

    The clinic's studies are left as they are, whatever model analysed them. One that a scan fetched and another model
    analysed is done again: from the images, where they were kept.
    """
    with database.write() as session:
        study = session.scalar(
            select(Study).where(Study.study_instance_uid == fetch.study_instance_uid).with_for_update()
        )
        if study is None or (study.scan_id is None and study.first_image_at is None):
            return None
        if study.state not in STUDY_DONE:
            return Known("whole") if study.scan_id is not None else Known("skipped", "in_progress")
        current = session.scalar(select(Revision).where(Revision.study_id == study.id, Revision.current))
        same = current is not None and current.bundle_digest == bundle_digest
        if study.scan_id is None:
            said = "analysed_before" if same else "older_model" if current is not None else study.reason
            return Known("skipped", said or str(study.state))
        is_ours = study.scan_id == fetch.scan_id
        if study.state == StudyState.REPORTED and same:
            return Known("whole") if is_ours else Known("skipped", "analysed_before")
        if study.state == StudyState.REFUSED and is_ours:
            return Known("whole")
        if study.instances_removed_at is not None:
            return None
        study.scan_id = fetch.scan_id
        study.state, study.reason = STUDY_STEPS["retry"].target, None
        study.attempts, study.next_try_at = 0, 0.0
        return Known("whole")


@dataclass(frozen=True)
class Done:
    """A fetched study that went its way to the end: which step of the plan that is."""

    id: int
    study_id: int | None
    event: str
    reason: str | None


def done(database: Database, scan_id: int, still_coming: Callable[[], Collection[str]]) -> list[Done]:
    """Fetched studies with which the road is through; those that are `still_coming` are not all in the index yet.

    Asked in this order: what is fetched now and no longer coming is in the index, and then its state is of now.
    """
    row = ArchiveStudy
    fetched = select(row.id, row.study_instance_uid).where(row.scan_id == scan_id, row.state == FetchState.FETCHED)
    with database.read() as session:
        candidates = {uid: plan_id for plan_id, uid in session.execute(fetched)}
    coming = still_coming() if candidates else ()
    ids = [plan_id for uid, plan_id in candidates.items() if uid not in coming]
    undone = exists().where(Series.study_id == Study.id, Series.state.not_in(SERIES_DONE))
    rows = (
        select(row.id, Study.id, Study.state, Study.reason)
        .outerjoin(Study, Study.study_instance_uid == row.study_instance_uid)
        .where(row.id.in_(ids), or_(Study.id.is_(None), and_(Study.state.in_(STUDY_DONE), ~undone)))
    )
    with database.read() as session:
        return [_fate(session, *found) for found in session.execute(rows)]


def _fate(session: Session, plan_id: int, study_id: int | None, state: str | None, reason: str | None) -> Done:
    if study_id is None:
        return Done(plan_id, None, "failed", "unreadable")
    if state == StudyState.FAILED:
        return Done(plan_id, study_id, "failed", reason or "crashed")
    if state == StudyState.IGNORED:
        return Done(plan_id, study_id, "refused", "non_image")
    if state == StudyState.REFUSED:
        return Done(plan_id, study_id, "refused", reason)
    findings = session.scalar(select(Revision.findings).where(Revision.study_id == study_id, Revision.current))
    if findings:
        return Done(plan_id, study_id, "analysed", None)
    reasons = (
        select(Series.reason)
        .where(Series.study_id == study_id, Series.reason.is_not(None), Series.reason != "non_image")
        .group_by(Series.reason)
        .order_by(func.count().desc(), Series.reason)
    )
    return Done(plan_id, study_id, "refused", session.scalar(reasons.limit(1)) or "nothing_to_analyse")


def conclude(database: Database, fate: Done) -> bool:
    """Write down what a fetched study came to."""
    step = FETCH_STEPS[fate.event]
    change = (
        update(ArchiveStudy)
        .where(ArchiveStudy.id == fate.id, ArchiveStudy.state.in_(step.sources))
        .values(state=step.target, reason=fate.reason, ended_at=clock())
        .execution_options(synchronize_session=False)
    )
    with database.write() as session:
        return session.execute(change).rowcount == 1  # type: ignore[attr-defined]


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
            due=session.scalar(select(func.count()).where(of_scan, _due())) or 0,
            next_try_seconds=session.scalar(first),
        )


def rows(database: Database, scan_id: int) -> list[dict[str, Any]]:
    """Every study of a scan, in the order of the plan."""
    columns = (
        ArchiveStudy.study_instance_uid, ArchiveStudy.state, ArchiveStudy.reason, ArchiveStudy.attempts,
        ArchiveStudy.instances, ArchiveStudy.megabytes, ArchiveStudy.fetch_seconds, ArchiveStudy.troubles,
        ArchiveStudy.ended_at,
    )  # fmt: skip
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
    with database.read() as session:
        latest = select(Event.seconds).where(Event.stage == stage, Event.seconds.is_not(None))
        took = [s for s in session.scalars(latest.order_by(Event.at.desc()).limit(limit)) if s is not None]
    return sum(took) / len(took) if took else None


def usual_fetch_seconds(database: Database, *, limit: int = 200) -> float | None:
    """The mean time that a study took of late to be fetched; None where none was."""
    with database.read() as session:
        latest = select(ArchiveStudy.fetch_seconds).where(ArchiveStudy.fetch_seconds > 0)
        took = list(session.scalars(latest.order_by(ArchiveStudy.id.desc()).limit(limit)))
    return sum(took) / len(took) if took else None
