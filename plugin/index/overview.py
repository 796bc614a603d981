"""Reading the index: what workers need of a study, and what people want to see."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from plugin.index import signals
from plugin.index.database import Database, clock
from plugin.index.signal_table import Signal
from plugin.index.tables import Delivery, Event, Instance, Leased, Removal, Result, Revision, Series, Study
from plugin.study import InstanceView, ResultView, RevisionView, SeriesView, StudyView


def _series_view(study_uid: str, row: Series) -> SeriesView:
    return SeriesView(
        study_instance_uid=study_uid,
        series_instance_uid=row.series_instance_uid,
        modality=row.modality,
        series_number=row.series_number,
        series_description=row.series_description,
        state=row.state,
        reason=row.reason,
        detail=row.detail,
        notes=tuple(row.notes or ()),
        instances=tuple(
            InstanceView(i.sop_class_uid, i.sop_instance_uid, i.is_content, i.patient_digest, i.removed_at is not None)
            for i in row.instances
        ),
    )


def series_view(database: Database, series_id: int) -> SeriesView:
    with database.read() as session:
        row = session.get_one(Series, series_id)
        return _series_view(row.study.study_instance_uid, row)


def study_view(database: Database, study_id: int) -> StudyView:
    with database.read() as session:
        study = session.get_one(Study, study_id, options=[selectinload(Study.series, Series.instances)])
        last = study.revisions[-1] if study.revisions else None
        views = (_series_view(study.study_instance_uid, row) for row in study.series)
        return StudyView(
            study_instance_uid=study.study_instance_uid,
            series=tuple(sorted(views, key=lambda series: series.order)),
            last=None if last is None else _revision_view(last, study.revisions[:-1]),
        )


def _results(row: Revision) -> list[ResultView]:
    return [
        ResultView(r.sop_class_uid, r.sop_instance_uid, r.series_instance_uid, r.path)
        for r in row.results
        if not r.is_note
    ]


def _has_note(row: Revision) -> bool:
    return any(result.is_note for result in row.results)


def _revision_view(row: Revision, earlier: Sequence[Revision]) -> RevisionView:
    standing: list[ResultView] = []
    for before, after in reversed(list(pairwise([*earlier, row]))):
        if _has_note(before) or _has_note(after):  # a note names all that stood when it was written
            break
        standing += _results(before)
    return RevisionView(
        number=row.number,
        inputs_digest=row.inputs_digest,
        content_digest=row.content_digest,
        results=tuple(_results(row)),
        withdrawn=row.withdrawn is not None,
        reissue=row.reissue,
        standing=tuple(standing),
    )


def study_id(database: Database, study_instance_uid: str) -> int | None:
    """The id of a study, None where the index does not know it."""
    with database.read() as session:
        return session.scalar(select(Study.id).where(Study.study_instance_uid == study_instance_uid))


def _deliveries(result: Result) -> list[dict[str, Any]]:
    return [
        {
            "destination": d.destination,
            "action": d.action,
            "state": d.state,
            "attempts": d.attempts,
            "detail": d.detail,
        }
        for d in result.deliveries
    ]


def _result(result: Result) -> dict[str, Any]:
    return {
        "description": result.description,
        "sop_class_uid": result.sop_class_uid,
        "sop_instance_uid": result.sop_instance_uid,
        "path": result.path,
        "removed_at": result.removed_at,
        "deliveries": _deliveries(result),
    }


def _revision(revision: Revision, *, findings: bool) -> dict[str, Any]:
    return {
        "number": revision.number,
        "current": revision.current,
        "withdrawn": revision.withdrawn,
        "created_at": revision.created_at,
        "bundle_digest": revision.bundle_digest,
        "preprocessing": revision.preprocessing,
        **({"findings": revision.findings} if findings else {}),
        "results": [_result(r) for r in revision.results if not r.is_note],
        "rejection_notes": [_result(r) for r in revision.results if r.is_note],
    }


def _timeline(session: Session, study_id: int) -> list[dict[str, Any]]:
    events = session.scalars(select(Event).where(Event.study_id == study_id).order_by(Event.at, Event.id))
    return [
        {"stage": e.stage, "series_instance_uid": e.series_instance_uid, "at": e.at, "seconds": e.seconds}
        for e in events
    ]


def _removals(session: Session, study_id: int) -> list[dict[str, Any]]:
    removals = session.scalars(select(Removal).where(Removal.study_id == study_id).order_by(Removal.id))
    return [{"kind": r.kind, "at": r.marked_at, "files": r.files, "bytes": r.bytes} for r in removals]


def _study(session: Session, study: Study, *, whole: bool) -> dict[str, Any]:
    """One study without anything that names the patient."""
    return {
        "study_instance_uid": study.study_instance_uid,
        "state": study.state,
        "reason": study.reason,
        "detail": study.detail,
        "priority": study.priority,
        "revision": study.revision,
        "conflicting_instances": study.conflicts,
        "first_image_at": study.first_image_at,
        "last_image_at": study.last_image_at,
        "committed_at": study.committed_at,
        "series": [
            {
                "series_instance_uid": s.series_instance_uid,
                "series_number": s.series_number,
                "modality": s.modality,
                "series_description": s.series_description,
                "instances": s.num_instances,
                "state": s.state,
                "reason": s.reason,
                "detail": s.detail,
                "notes": s.notes,
            }
            for s in study.series
        ],
        "revisions": [_revision(r, findings=whole) for r in study.revisions],
        "timeline": _timeline(session, study.id),
        "removals": _removals(session, study.id),
        "signals": signals.of_study(session, study.id),
    }


def _counts(session: Session, table: type[Leased]) -> dict[str, int]:
    rows = session.execute(select(table.state, func.count()).group_by(table.state).order_by(table.state))
    return {state: count for state, count in rows}


def study(database: Database, study_instance_uid: str, *, findings: bool = False) -> dict[str, Any] | None:
    """One study as in the overview, None where the index does not know it; counts nothing else, so it is quick."""
    with database.read() as session:
        found = session.scalar(
            select(Study)
            .where(Study.study_instance_uid == study_instance_uid)
            .options(
                selectinload(Study.series),
                selectinload(Study.revisions, Revision.results, Result.deliveries),
            )
        )
        return None if found is None else _study(session, found, whole=findings)


def overview(
    database: Database, *, study_uids: Sequence[str] = (), limit: int = 100, findings: bool = False
) -> dict[str, Any]:
    """The index in JSON-ready form: counts by state, and the latest studies (or those named), newest first."""
    with database.read() as session:
        chosen = (
            select(Study)
            .order_by(func.coalesce(Study.last_image_at, 0).desc(), Study.id.desc())
            .limit(limit)
            .options(
                selectinload(Study.series),
                selectinload(Study.revisions, Revision.results, Result.deliveries),
            )
        )
        if study_uids:
            chosen = chosen.where(Study.study_instance_uid.in_(study_uids))
        return {
            "at": session.scalar(select(clock())),
            "instances": session.scalar(select(func.count()).select_from(Instance)),
            "studies_by_state": _counts(session, Study),
            "series_by_state": _counts(session, Series),
            "deliveries_by_state": _counts(session, Delivery),
            "signals_by_state": _counts(session, Signal),
            "studies": [_study(session, study, whole=findings) for study in session.scalars(chosen)],
        }
