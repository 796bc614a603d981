"""Reading the index: what workers need of a study, and what people want to see."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session, selectinload

from plugin.index.database import Database, clock
from plugin.index.tables import Delivery, Event, Instance, Result, Revision, Series, Study
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
            InstanceView(i.sop_class_uid, i.sop_instance_uid, i.is_content, i.patient_digest) for i in row.instances
        ),
    )


def series_view(database: Database, series_id: int) -> SeriesView:
    with database.read() as session:
        row = session.get_one(Series, series_id)
        return _series_view(row.study.study_instance_uid, row)


def study_view(database: Database, study_id: int) -> StudyView:
    with database.read() as session:
        study = session.get_one(Study, study_id, options=[selectinload(Study.series, Series.instances)])
        current = next((r for r in study.revisions if r.current), None)
        views = (_series_view(study.study_instance_uid, row) for row in study.series)
        return StudyView(
            study_instance_uid=study.study_instance_uid,
            revision=study.revision,
            series=tuple(sorted(views, key=lambda series: series.order)),
            current=None if current is None else _revision_view(current),
        )


def _revision_view(row: Revision) -> RevisionView:
    results = (ResultView(r.sop_class_uid, r.sop_instance_uid, r.series_instance_uid) for r in row.results)
    return RevisionView(row.number, row.inputs_digest, tuple(results))


def _deliveries(result: Result) -> list[dict[str, Any]]:
    return [
        {"destination": d.destination, "state": d.state, "attempts": d.attempts, "detail": d.detail}
        for d in result.deliveries
    ]


def _revision(revision: Revision, *, findings: bool) -> dict[str, Any]:
    return {
        "number": revision.number,
        "current": revision.current,
        "created_at": revision.created_at,
        "bundle_digest": revision.bundle_digest,
        "preprocessing": revision.preprocessing,
        **({"findings": revision.findings} if findings else {}),
        "results": [
            {
                "description": r.description,
                "sop_instance_uid": r.sop_instance_uid,
                "path": r.path,
                "deliveries": _deliveries(r),
            }
            for r in revision.results
        ],
    }


def _timeline(session: Session, study_id: int) -> list[dict[str, Any]]:
    events = session.scalars(select(Event).where(Event.study_id == study_id).order_by(Event.at, Event.id))
    return [
        {"stage": e.stage, "series_instance_uid": e.series_instance_uid, "at": e.at, "seconds": e.seconds}
        for e in events
    ]


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
    }


def _counts(session: Session, table: type[Series | Study | Delivery]) -> dict[str, int]:
    rows = session.execute(select(table.state, func.count()).group_by(table.state).order_by(table.state))
    return {state: count for state, count in rows}


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
            "studies": [_study(session, study, whole=findings) for study in session.scalars(chosen)],
        }
