"""Withdrawing results: a rejection note for our objects, and deletion where a destination does not act on notes."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydicom import Dataset, dcmread

from plugin.analysis import ResultFile, result_file
from plugin.bootstrap import Plugin
from plugin.index import overview, withdrawal
from plugin.index.withdrawal import NewNote, NewResult
from plugin.lifecycle import Rejection
from plugin.results import SUPERSEDED_KINDS, rejection_note
from plugin.spool import write_durably
from plugin.study import ResultView, RevisionView, StudyView


@dataclass(frozen=True)
class Withdrawn:
    """What was withdrawn: which revision, by which file, told to which destinations."""

    revision: int
    note: Path
    destinations: tuple[str, ...]


def withdraw(plugin: Plugin, study_instance_uid: str, *, reason: Rejection) -> Withdrawn:
    """Withdraw the current results of a study.

    The note goes to every destination that may hold one of them, and lies beside them. Raises ValueError where
    the study has no current results, or is being analysed.
    """
    current = _last(plugin, study_instance_uid)
    if current.withdrawn:
        raise ValueError("the results of this study are withdrawn already")
    try:
        source = dcmread(plugin.spool / current.results[0].path, stop_before_pixels=True)
    except FileNotFoundError:
        raise ValueError(
            "the results of this study are no longer kept here (see `hlip status`): reject them in the PACS"
        ) from None
    rejected = (*current.results, *_contradicted(current.standing))
    file = note_file(
        source,
        rejected,
        reason=reason,
        explanation=f"Revision {current.number} is withdrawn.",
        created=plugin.now(),
        installation_uid=plugin.installation_uid,
    )
    path = plugin.spool.results_folder(study_instance_uid, current.number) / file.name
    destinations = withdrawal.withdraw(
        plugin.database,
        study_instance_uid,
        new_note(plugin, file, path, rejected),
        number=current.number,
        reason=reason,
        publish=lambda: write_durably(path, file.content),
    )
    return Withdrawn(current.number, path, tuple(destinations))


def is_withdrawn(plugin: Plugin, study_instance_uid: str) -> bool:
    """Whether the last results of a study are withdrawn. Raises ValueError for a study without results."""
    return _last(plugin, study_instance_uid).withdrawn


def reissue(plugin: Plugin, study_instance_uid: str) -> None:
    """Analyse a withdrawn study again. Raises ValueError where nothing of it is withdrawn."""
    if not _last(plugin, study_instance_uid).withdrawn:
        raise ValueError("the results of this study are not withdrawn")
    withdrawal.reissue(plugin.database, study_instance_uid)


def _last(plugin: Plugin, study_instance_uid: str) -> RevisionView:
    study_id = overview.study_id(plugin.database, study_instance_uid)
    last = None if study_id is None else overview.study_view(plugin.database, study_id).last
    if last is None:
        raise ValueError("there is no study of this StudyInstanceUID with results")
    return last


def superseded(study: StudyView) -> tuple[ResultView, ...]:
    """What a next revision makes untrue: the findings and pictures that stand, of the last one and before.

    Its summary stays: the next one names it as its predecessor.
    """
    if study.last is None or study.last.withdrawn:
        return ()
    return _contradicted((*study.last.results, *study.last.standing))


def _contradicted(results: Sequence[ResultView]) -> tuple[ResultView, ...]:
    return tuple(result for result in results if result.sop_class_uid in SUPERSEDED_KINDS)


def note_file(
    source: Dataset,
    rejected: Sequence[ResultView],
    *,
    reason: Rejection = "quality",
    explanation: str,
    created: datetime,
    installation_uid: str,
) -> ResultFile:
    """The rejection note as a file; patient and study are those of `source`."""
    note = rejection_note(
        source,
        [(r.sop_class_uid, r.sop_instance_uid, r.series_instance_uid) for r in rejected],
        reason=reason,
        explanation=explanation,
        created=created,
        installation_uid=installation_uid,
    )
    return result_file(note)


def new_note(plugin: Plugin, file: ResultFile, path: Path, rejected: Sequence[ResultView]) -> NewNote:
    """The note as the index takes it, with the destinations at which the settings want a deletion."""
    return NewNote(
        object=NewResult(
            sop_class_uid=file.sop_class_uid,
            sop_instance_uid=file.sop_instance_uid,
            series_instance_uid=file.series_instance_uid,
            description=file.description,
            path=plugin.spool.relative(path),
        ),
        rejects=frozenset(result.sop_instance_uid for result in rejected),
        delete_at=frozenset(row.name for row in plugin.settings.destinations if row.delete_withdrawn != "never"),
        sending_seconds=plugin.settings.delivery.timeout_seconds,
    )
