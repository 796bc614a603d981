"""Arrivals into the index: a row each for study, series and instance, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.exc import DataError, IntegrityError
from sqlalchemy.orm import Session

from hlip_core.reasons import Reason
from plugin.arrival import Arrival, Kind
from plugin.index.database import Database, IndexUnavailable, clock
from plugin.index.tables import Event, Instance, Result, Revision, Series, Study
from plugin.lifecycle import SERIES_STEPS, STUDY_DONE, STUDY_STEPS, SeriesState, Step, StudyState


def _any_of(name: str) -> Any:
    return bindparam(name, expanding=True)


# Asked with every batch, so built once.
_NOW = select(clock())
_STUDIES = (
    select(Study).where(Study.study_instance_uid.in_(_any_of("uids"))).order_by(Study.id).with_for_update()
)  # locked before its instances are read: none of them is removed between the question and the answer
_SERIES = select(Series).where(
    Series.study_id.in_(_any_of("study_ids")), Series.series_instance_uid.in_(_any_of("uids"))
)
_INSTANCES = select(Instance).where(
    Instance.series_id.in_(_any_of("series_ids")), Instance.sop_instance_uid.in_(_any_of("uids"))
)
_OURS = select(Result.series_instance_uid).where(Result.series_instance_uid.in_(_any_of("uids"))).distinct()


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
    scan_id: int | None = None
    """The archive scan that fetched it; None: someone sent it."""


def _describe(study: Study, arrival: Arrival) -> None:
    """The study's texts are those of its first image."""
    study.patient_id = arrival.text("PatientID")
    study.patient_name = arrival.text("PatientName")
    study.accession_number = arrival.text("AccessionNumber")
    study.study_date = arrival.text("StudyDate")
    study.study_description = arrival.text("StudyDescription")


@dataclass
class _Known:
    """An instance that the index has; without a row where it came with this batch."""

    digest: str
    row: Instance | None = None


class _Batch:
    """A batch's studies, series and instances: what the index has of them is read at once, what is new written at once.

    An instance costs no statement of its own; only a study and a series that are new do.
    """

    def __init__(self, session: Session, batch: Sequence[Intake]) -> None:
        now = session.scalar(_NOW)
        assert now is not None
        self._session, self._now = session, now
        arrivals = [intake.arrival for intake in batch]
        series_uids = list({arrival.series_instance_uid for arrival in arrivals})
        studies = session.scalars(_STUDIES, {"uids": list({arrival.study_instance_uid for arrival in arrivals})}).all()
        self._studies = {study.study_instance_uid: study for study in studies}
        series = session.scalars(_SERIES, {"study_ids": [study.id for study in studies], "uids": series_uids}).all()
        self._series = {(row.study_id, row.series_instance_uid): row for row in series}
        instances = session.scalars(
            _INSTANCES,
            {
                "series_ids": [row.id for row in series],
                "uids": list({arrival.sop_instance_uid for arrival in arrivals}),
            },
        )
        self._known = {(row.series_id, row.sop_instance_uid): _Known(row.digest, row) for row in instances}
        self._ours = set(session.scalars(_OURS, {"uids": series_uids}))
        self._new: list[dict[str, Any]] = []
        self._opened: set[Study | Series] = set()
        self._patients: dict[Kind, str] = {}

    def add(self, intake: Intake) -> Fate:
        arrival = intake.arrival
        study = self._study_of(arrival)
        if arrival.is_content:
            self._belong(study, intake)
        series = self._series_of(study, arrival)
        key = (series.id, arrival.sop_instance_uid)
        known = self._known.get(key)
        if known is not None:
            if known.digest == arrival.digest:
                removed = known.row is not None and known.row.removed_at
                return self._came_back(study, series, known.row, intake) if removed else Fate.DROP
            study.conflicts += 1
            return Fate.SET_ASIDE
        self._known[key] = _Known(arrival.digest)
        self._new.append(
            {
                "series_id": series.id,
                "sop_class_uid": arrival.sop_class_uid,
                "sop_instance_uid": arrival.sop_instance_uid,
                "digest": arrival.digest,
                "patient_digest": self._patient_of(arrival),
                "is_content": arrival.is_content,
                "size": arrival.size,
                "received_at": self._now,
            }
        )
        series.num_instances += 1
        study.instances_removed_at = None
        self._open(study, series, intake)
        return Fate.PLACE

    def write(self) -> None:
        if self._new:
            self._session.execute(insert(Instance), self._new)

    def _study_of(self, arrival: Arrival) -> Study:
        study = self._studies.get(arrival.study_instance_uid)
        if study is None:
            study = self._studies[arrival.study_instance_uid] = Study(
                study_instance_uid=arrival.study_instance_uid,
                state=StudyState.IGNORED,
                priority=100,
                revision=0,
                conflicts=0,
            )
            self._session.add(study)
            self._session.flush()
        return study

    def _series_of(self, study: Study, arrival: Arrival) -> Series:
        key = (study.id, arrival.series_instance_uid)
        series = self._series.get(key)
        if series is None:
            series = self._series[key] = Series(
                study_id=study.id,
                series_instance_uid=arrival.series_instance_uid,
                state=SeriesState.IGNORED,
                reason="non_image",
                modality=arrival.text("Modality", 64),
                series_number=arrival.series_number,
                series_description=arrival.text("SeriesDescription"),
                num_instances=0,
            )
            self._session.add(series)
            self._session.flush()
        return series

    def _patient_of(self, arrival: Arrival) -> str:
        kind = arrival.kind
        if kind not in self._patients:
            self._patients[kind] = arrival.patient_digest
        return self._patients[kind]

    def _belong(self, study: Study, intake: Intake) -> None:
        """A study is the scan's that fetched it until someone sends it: then it is urgent, and its results go out."""
        if intake.scan_id is not None:
            if study.scan_id is not None or study.first_image_at is None:
                study.scan_id = intake.scan_id
        elif study.scan_id is not None:
            study.scan_id = None
            study.priority = min(study.priority, intake.priority)
            if study.state in STUDY_DONE:
                self._reopen(study, STUDY_STEPS["image arrived"])
                unsaid = update(Revision).where(Revision.study_id == study.id, Revision.current).values(reissue=True)
                self._session.execute(unsaid.execution_options(synchronize_session=False))

    def _open(self, study: Study, series: Series, intake: Intake) -> None:
        """Images open their study and series again; objects of other kinds, and our own, do not."""
        if intake.arrival.is_content:
            self._content_arrived(study, intake)
        if intake.arrival.is_image and series.series_instance_uid not in self._ours:
            self._reopen(series, SERIES_STEPS["image arrived"])

    def _content_arrived(self, study: Study, intake: Intake) -> None:
        if study.first_image_at is None:
            study.first_image_at = self._now
            _describe(study, intake.arrival)
            self._session.add(Event(study_id=study.id, stage="first image", at=self._now))
        self._reopen(study, STUDY_STEPS["image arrived"])
        study.priority = min(study.priority, intake.priority)

    def _reopen(self, row: Study | Series, step: Step) -> None:
        if row not in self._opened:
            self._opened.add(row)
            row.state, row.reason, row.detail = step.target, None, ""
            row.lease_owner = row.lease_until = None
            row.attempts, row.next_try_at = 0, 0.0
            row.last_image_at = self._now

    def _came_back(self, study: Study, series: Series, known: Instance | None, intake: Intake) -> Fate:
        """The same instance again after it was removed: kept anew. It starts something only where it was missed."""
        assert known is not None
        known.removed_at, known.received_at = None, self._now
        study.instances_removed_at = None
        is_fetched = intake.scan_id is not None and study.scan_id is not None
        is_needed = study.state == StudyState.RECEIVING and series.prepared_removed_at is not None
        if series.reason == Reason.REMOVED or is_fetched or is_needed:
            self._open(study, series, intake)
        return Fate.PLACE


class NotTaken(ValueError):
    """The database takes a value of the batch for wrong, and will not take it another time either."""


def add_instances(database: Database, batch: Sequence[Intake]) -> list[Fate]:
    """Index a batch in one transaction; what is to become of each file, in the same order.

    Raises:
        NotTaken: nothing of it was indexed.
        plugin.index.database.IndexUnavailable: the same, for now.
    """
    try:
        with database.write() as session:
            rows = _Batch(session, batch)
            fates = [rows.add(intake) for intake in batch]
            rows.write()
            return fates
    except DataError as error:
        raise NotTaken(type(error.orig).__name__) from None
    except IntegrityError as error:  # another scheduler, of a rolling update, was quicker
        raise IndexUnavailable(type(error.orig).__name__) from None
