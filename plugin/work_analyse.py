"""Analysing one study: prepared scans in, the next revision and its results out (see `plugin.work`)."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC
from functools import partial
from pathlib import Path

import structlog
from pydicom import Dataset

from hlip_core.errors import DamagedScan
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan
from plugin import looks, metrics, withdrawal
from plugin.analysis import (
    Analysis,
    NothingToSay,
    ResultFile,
    analyse_study,
    check_patient,
    check_scope,
    fates,
    inputs_digest,
    read_source,
)
from plugin.bootstrap import Plugin
from plugin.index import outcomes, overview
from plugin.index.embeddings import NewEmbedding
from plugin.index.leases import Claim
from plugin.index.withdrawal import NewNote
from plugin.lifecycle import SeriesState
from plugin.results import StudyReport
from plugin.search.kept import new_embeddings, series_vectors
from plugin.signals import sending
from plugin.study import StudyView

log = structlog.get_logger("hlip.work")


class _Lacking(Exception):
    """What was prepared of these series is missing or damaged."""

    def __init__(self, series_instance_uids: Sequence[str]) -> None:
        self.series_instance_uids = series_instance_uids


def _scans(plugin: Plugin, study: StudyView) -> dict[str, PreparedScan]:
    """By SeriesInstanceUID. Raises _Lacking, and OSError where the disk failed."""
    scans, lost = {}, []
    for series_uid in (row.series_instance_uid for row in study.series if row.state == SeriesState.PREPARED):
        try:
            scans[series_uid] = PreparedScan.load(plugin.spool.prepared_path(study.study_instance_uid, series_uid))
        except (DamagedScan, FileNotFoundError):
            lost.append(series_uid)
    if lost:
        raise _Lacking(lost)
    return scans


def _source(plugin: Plugin, study: StudyView, scans: Mapping[str, PreparedScan]) -> Dataset:
    """The header that results copy. Raises _Lacking where preparing again may bring one back."""
    try:
        return read_source(study, _header_paths(plugin, study))
    except FileNotFoundError:
        if scans:
            raise _Lacking(list(scans)) from None
        raise


def analyse(plugin: Plugin, claim: Claim) -> None:
    study = overview.study_view(plugin.database, claim.id)
    try:
        _analyse_study(plugin, claim, study)
    except _Lacking as lacking:
        outcomes.study_lacked(plugin.database, claim, lacking.series_instance_uids)
        metrics.FAILURES.labels("analyse").inc()
        log.error(
            "prepared scans are missing or damaged",
            study_instance_uid=study.study_instance_uid,
            series=len(lacking.series_instance_uids),
            attempt=claim.attempts,
        )


def _analyse_study(plugin: Plugin, claim: Claim, study: StudyView) -> None:
    started = time.monotonic()
    scans = _scans(plugin, study)
    fate_rows = fates(study, scans, plugin.bundle)
    try:
        check_patient(study)
        check_scope(fate_rows)
    except NothingToSay as nothing:
        outcomes.study_refused(
            plugin.database,
            claim,
            reason=str(nothing.reason),
            detail="",
            seconds=time.monotonic() - started,
        )
        metrics.STUDIES.labels("refused", str(nothing.reason)).inc()
        log.info("refused", study_instance_uid=study.study_instance_uid, reason=str(nothing.reason))
        return
    thresholds = plugin.settings.thresholds
    same = inputs_digest(study, fate_rows, plugin.bundle, thresholds)
    if study.last is not None and study.last.stands(inputs_digest=same, content_digest=study.content_digest):
        outcomes.study_unchanged(plugin.database, claim, seconds=time.monotonic() - started)
        metrics.STUDIES.labels("unchanged", "").inc()
        log.info("unchanged", study_instance_uid=study.study_instance_uid, revision=study.revision)
        return
    analysis = analyse_study(
        study,
        scans,
        _source(plugin, study, scans),
        plugin.bundle,
        fate_rows=fate_rows,
        thresholds=thresholds,
        device=plugin.device,
        installation_uid=plugin.installation_uid,
        created=plugin.now(),
        kept=plugin.spool.results_folder(study.study_instance_uid, study.revision + 1),
        results=plugin.settings.results,
        image_path=partial(plugin.spool.instance_path, study.study_instance_uid),
    )
    of_series = {}
    if plugin.settings.search.series_embeddings:
        of_series = series_vectors(analysis.report, scans, plugin.bundle, device=plugin.device)
    kept = new_embeddings(analysis.report, plugin.bundle, of_series)
    _report(plugin, claim, study, analysis, embeddings=kept, started=started)


def _header_paths(plugin: Plugin, study: StudyView) -> dict:
    return {
        series.series_instance_uid: plugin.spool.header_path(study.study_instance_uid, series.series_instance_uid)
        for series in study.series
    }


def _report(
    plugin: Plugin,
    claim: Claim,
    study: StudyView,
    analysis: Analysis,
    *,
    embeddings: list[NewEmbedding],
    started: float,
) -> None:
    report, spool = analysis.report, plugin.spool
    folder = spool.results_folder(study.study_instance_uid, report.revision)
    revision = outcomes.NewRevision(
        number=report.revision,
        inputs_digest=analysis.inputs_digest,
        content_digest=report.content_digest,
        bundle_digest=plugin.bundle.digest,
        preprocessing=plugin.bundle.preprocessing.name,
        created_at=report.created.astimezone(UTC).timestamp(),
        findings=analysis.findings,
        embeddings=embeddings,
        results=[
            outcomes.NewResult(
                sop_class_uid=file.sop_class_uid,
                sop_instance_uid=file.sop_instance_uid,
                series_instance_uid=file.series_instance_uid,
                description=file.description,
                path=spool.relative(folder / file.name),
            )
            for file in analysis.files
        ],
        signals=sending.offers(plugin, analysis),
    )
    _keep_looks(plugin, study, analysis)
    note_file, note = _note(plugin, study, report, folder)
    files = (*analysis.files, *([note_file] if note_file else []))
    staged = spool.stage_results(study.study_instance_uid, {file.name: file.content for file in files})
    seconds = time.monotonic() - started
    try:
        stands = outcomes.study_reported(
            plugin.database,
            claim,
            revision,
            destinations=[row.name for row in plugin.settings.destinations],
            hold=plugin.holds_results,
            seconds=seconds,
            note=note,
            publish=lambda: spool.publish_results(staged, study.study_instance_uid, report.revision),
        )
    finally:
        spool.discard_results(staged)  # nothing is left of it where it was put in its place
    _count(analysis, stands=stands)
    log.info(
        "reported" if stands else "overtaken by new images",
        study_instance_uid=study.study_instance_uid,
        revision=report.revision,
        positive=sum(row["positive"] for row in analysis.findings),
        seconds=round(seconds, 2),
    )


def _count(analysis: Analysis, *, stands: bool) -> None:
    """A report, for the metrics."""
    metrics.STUDIES.labels("reported" if stands else "overtaken", "").inc()
    positive = [row for row in analysis.findings if row["positive"]]
    if stands and positive:
        metrics.POSITIVE.labels("true" if any(row["critical"] for row in positive) else "false").inc()


def _keep_looks(plugin: Plugin, study: StudyView, analysis: Analysis) -> None:
    """Where the model looked, for the page."""
    crop = plugin.bundle.preprocessing.crop
    for series_uid, of_series in looks.looks_of(analysis.assessment, crop=crop).items():
        path = looks.looks_path(plugin.spool.prepared_path(study.study_instance_uid, series_uid))
        looks.save(path, of_series, revision=analysis.report.revision)


def _note(
    plugin: Plugin, study: StudyView, report: StudyReport, folder: Path
) -> tuple[ResultFile, NewNote] | tuple[None, None]:
    """What withdraws the findings and pictures that stand, where there are some and the settings say so.

    What was found in images that are no longer here was not looked at again: it stands until they are.
    """
    rejected = withdrawal.superseded(study)
    if any(fate.reason is Reason.REMOVED for fate in report.series):
        return None, None
    if not rejected or not plugin.settings.results.withdraw_superseded:
        return None, None
    file = withdrawal.note_file(
        report.source,
        rejected,
        explanation=f"Superseded by revision {report.revision}.",
        created=report.created,
        installation_uid=plugin.installation_uid,
    )
    return file, withdrawal.new_note(plugin, file, folder / file.name, rejected)
