"""One study of an archive scan in the index: the claim, each step by one who still holds it, and what came of it."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from plugin.index.archive_tables import ArchiveScan, ArchiveStudy
from plugin.index.database import Database, clock
from plugin.index.tables import Revision, Series, Study
from plugin.lifecycle import (
    FETCH_DONE,
    FETCH_STEPS,
    SERIES_DONE,
    STUDY_DONE,
    STUDY_STEPS,
    FetchState,
    ScanState,
    StudyState,
)


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
    """The next study of a running scan; None where none is due, or `look_ahead` studies of it are here already."""
    row, due = ArchiveStudy, is_due()
    here = or_(row.state == FetchState.FETCHED, and_(row.state == FetchState.FETCHING, row.lease_until >= clock()))
    in_flight = and_(row.scan_id == scan_id, here)
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


def is_due() -> ColumnElement[bool]:
    """Whether a row of the plan may be claimed."""
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
