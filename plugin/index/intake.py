"""Arrivals into the index: a row each for study, series and instance, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from sqlalchemy import select
from sqlalchemy.orm import Session

from plugin.arrival import Arrival
from plugin.index.database import Database, clock
from plugin.index.tables import Event, Instance, Result, Series, Study
from plugin.lifecycle import SERIES_STEPS, STUDY_STEPS, SeriesState, Step, StudyState


class Fate(Enum):
    """What becomes of an arrival's file."""

    PLACE = auto()
    DROP = auto()
    """The same instance with the same content is in the index already."""
    SET_ASIDE = auto()
    """The UID is taken by other content."""


@dataclass(frozen=True)
class Intake:
    arrival: Arrival
    priority: int
    """Of the routing rule that fits; the study takes the most urgent of its series."""


def _study(session: Session, arrival: Arrival) -> Study:
    study = session.scalar(select(Study).where(Study.study_instance_uid == arrival.study_instance_uid))
    if study is None:
        study = Study(
            study_instance_uid=arrival.study_instance_uid,
            state=StudyState.IGNORED,
            priority=100,
            revision=0,
            conflicts=0,
        )
        session.add(study)
        session.flush()
    return study


def _describe(study: Study, arrival: Arrival) -> None:
    """The study's texts are those of its first image."""
    study.patient_id = arrival.text("PatientID")
    study.patient_name = arrival.text("PatientName")
    study.accession_number = arrival.text("AccessionNumber")
    study.study_date = arrival.text("StudyDate")
    study.study_description = arrival.text("StudyDescription")


def _series(session: Session, study: Study, arrival: Arrival) -> Series:
    uid = arrival.series_instance_uid
    series = session.scalar(select(Series).where(Series.study_id == study.id, Series.series_instance_uid == uid))
    if series is None:
        series = Series(
            study_id=study.id,
            series_instance_uid=uid,
            state=SeriesState.IGNORED,
            reason="non_image",
            modality=arrival.text("Modality", 64),
            series_number=arrival.series_number,
            series_description=arrival.text("SeriesDescription"),
            num_instances=0,
        )
        session.add(series)
        session.flush()
    return series


def _reopen(row: Study | Series, step: Step, now: float) -> None:
    row.state, row.reason, row.detail = step.target, None, ""
    row.lease_owner = row.lease_until = None
    row.attempts, row.next_try_at = 0, 0.0
    row.last_image_at = now


def _content_arrived(session: Session, study: Study, intake: Intake, now: float) -> None:
    if study.first_image_at is None:
        study.first_image_at = now
        _describe(study, intake.arrival)
        session.add(Event(study_id=study.id, stage="first image", at=now))
    _reopen(study, STUDY_STEPS["image arrived"], now)
    study.priority = min(study.priority, intake.priority)


def _is_ours(session: Session, series: Series) -> bool:
    """A result that came back from a PACS."""
    ours = select(Result.id).where(Result.series_instance_uid == series.series_instance_uid).limit(1)
    return session.scalar(ours) is not None


def _add(session: Session, intake: Intake, now: float) -> Fate:
    arrival = intake.arrival
    study = _study(session, arrival)
    series = _series(session, study, arrival)
    known = session.scalar(
        select(Instance).where(Instance.series_id == series.id, Instance.sop_instance_uid == arrival.sop_instance_uid)
    )
    if known is not None:
        if known.digest == arrival.digest:
            return Fate.DROP
        study.conflicts += 1
        return Fate.SET_ASIDE
    session.add(
        Instance(
            series_id=series.id,
            sop_class_uid=arrival.sop_class_uid,
            sop_instance_uid=arrival.sop_instance_uid,
            digest=arrival.digest,
            patient_digest=arrival.patient_digest,
            is_content=arrival.is_content,
            size=arrival.size,
            received_at=now,
        )
    )
    series.num_instances += 1
    if arrival.is_content:
        _content_arrived(session, study, intake, now)
    if arrival.is_image and not _is_ours(session, series):
        _reopen(series, SERIES_STEPS["image arrived"], now)
    return Fate.PLACE


def add_instances(database: Database, batch: Sequence[Intake]) -> list[Fate]:
    """Index a batch in one transaction; what is to become of each file, in the same order."""
    with database.write() as session:
        now = session.scalar(select(clock()))
        assert now is not None
        return [_add(session, intake, now) for intake in batch]
