"""The kinds of work, each one item at a time: claim it, do it, write down what it came to."""

import errno
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC
from functools import partial
from pathlib import Path

import structlog
from pydicom import Dataset

from hlip_core.errors import DamagedScan, Refused
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan
from plugin import delivery, looks, metrics, withdrawal
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
from plugin.audit_message import MINOR_FAILURE, SUCCESS, Outcome
from plugin.bootstrap import Plugin
from plugin.index import leases, outcomes, overview
from plugin.index.database import IndexUnavailable
from plugin.index.embeddings import NewEmbedding
from plugin.index.leases import Claim
from plugin.index.withdrawal import NewNote
from plugin.lifecycle import SeriesState, backoff_seconds
from plugin.preparation import Job
from plugin.results import StudyReport
from plugin.sandbox import Died, cause_of
from plugin.search.kept import new_embeddings, series_vectors
from plugin.signals import sending
from plugin.spool import beside
from plugin.study import SeriesView, StudyView

log = structlog.get_logger("hlip.work")

FAILED_WAIT_SECONDS = 2.0
FILLS_THE_DISK = frozenset({"prepare", "analyse"})
MACHINE_WAIT_SECONDS = 10.0
OF_THE_ITEM = frozenset(
    {errno.ENOENT, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR}
)
"""What an item's own files can cause; all else that a system call fails of is the machine's."""


class DeviceLost(Exception):
    """The GPU failed under this process, which can compute nothing any more; a new one may."""


def is_of_the_device(error: BaseException) -> bool:
    """Whether CUDA failed, other than for want of memory; torch is not imported to know."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return "AcceleratorError" in names or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def is_to_blame(error: BaseException) -> bool:
    """Whether it is the item that failed, and not the machine or the index.

    What CUDA says is blamed on the study: it may have brought it about each time; and where the device is gone, the
    worker does not start again, and claims nothing.
    """
    if isinstance(error, IndexUnavailable):
        return False
    return not isinstance(error, OSError) or error.errno is None or error.errno in OF_THE_ITEM


def work_once(plugin: Plugin, queue: str) -> bool:
    """Claim and do the most urgent item of a queue; False where there is none.

    Whatever goes wrong in an item ends here: it is tried again later, and given up by the scheduler in the end.

    Raises:
        DeviceLost: this process is to end.
    """
    workers = plugin.settings.workers
    if queue in FILLS_THE_DISK and not plugin.spool.room_for_work.is_enough():
        return False
    claim = leases.claim(
        plugin.database,
        queue,
        owner=f"{socket.gethostname()}-{os.getpid()}",
        lease_seconds=workers.lease_seconds,
        max_attempts=workers.max_attempts,
    )
    if claim is None:
        return False
    lost = metrics.LEASES_LOST.labels(queue).inc
    is_lost = False
    with (
        leases.kept_alive(plugin.database, claim, workers.lease_seconds, lost=lost),
        metrics.STAGE_SECONDS.labels(queue).time(),
    ):
        try:
            WORK[queue](plugin, claim)
        except Exception as error:  # the task's border: one study's fault is not the worker's end
            metrics.FAILURES.labels(queue).inc()
            log.error("failed", queue=queue, item=claim.id, attempt=claim.attempts, cause=cause_of(error))
            _put_back(plugin, claim, error)
            is_lost = is_of_the_device(error)
    if is_lost:
        raise DeviceLost
    return True


def _put_back(plugin: Plugin, claim: Claim, error: Exception) -> None:
    blamed = is_to_blame(error) or not leases.QUEUES[claim.queue].gives_up
    wait = backoff_seconds(claim.attempts, first=FAILED_WAIT_SECONDS, longest=60)
    try:
        leases.put_back(
            plugin.database,
            claim,
            detail=cause_of(error),
            wait_seconds=wait if blamed else MACHINE_WAIT_SECONDS,
            is_to_blame=blamed,
        )
    except IndexUnavailable as away:  # its lease runs out
        log.error("not put back", queue=claim.queue, item=claim.id, cause=str(away))


# ---- prepare -----------------------------------------------------------------------------------------------


def _prepare(plugin: Plugin, claim: Claim) -> None:
    """The scan lies beside its place until the index says that the claim stands."""
    series = overview.series_view(plugin.database, claim.id)
    uids = (series.study_instance_uid, series.series_instance_uid)
    place = plugin.spool.prepared_path(*uids)
    job = Job(
        paths=[plugin.spool.instance_path(*uids, i.sop_instance_uid) for i in series.instances],
        spec=plugin.bundle.preprocessing,
        rules=plugin.settings.routing.rules,
        prepared_path=beside(place, claim.owner.rpartition("/")[2]),
        header_path=plugin.spool.header_path(*uids),  # at once: what crashes is reported with it
    )
    try:
        _prepare_as(plugin, claim, series, job, partial(plugin.spool.publish_prepared, job.prepared_path, place))
    finally:
        job.prepared_path.unlink(missing_ok=True)


def _prepare_as(plugin: Plugin, claim: Claim, series: SeriesView, job: Job, publish: Callable[[], None]) -> None:
    started, series_uid = time.monotonic(), series.series_instance_uid
    try:
        _check_all_are_here(series)
        notes = plugin.sandbox.prepare(job)
    except Died as death:
        _put_back_poison(plugin, claim, cause=str(death), seconds=time.monotonic() - started)
        metrics.FAILURES.labels("prepare").inc()
        log.error("not prepared", series_instance_uid=series_uid, attempt=claim.attempts, cause=str(death))
        return
    except Refused as refusal:
        outcomes.series_refused(
            plugin.database,
            claim,
            reason=str(refusal.reason),
            detail=refusal.detail,
            seconds=time.monotonic() - started,
        )
        metrics.SERIES.labels("refused", str(refusal.reason)).inc()
        log.info("refused", series_instance_uid=series_uid, reason=str(refusal.reason))
        return
    seconds = time.monotonic() - started
    stands = outcomes.series_prepared(plugin.database, claim, notes=notes, seconds=seconds, publish=publish)
    metrics.SERIES.labels("prepared" if stands else "overtaken", "").inc()
    log.info(
        "prepared" if stands else "overtaken",
        series_instance_uid=series_uid,
        instances=len(job.paths),
        seconds=round(seconds, 2),
    )


def _put_back_poison(plugin: Plugin, claim: Claim, *, cause: str, seconds: float) -> None:
    """To be tried again, but not before others had as much time as this one took; given up in the end."""
    wait = backoff_seconds(claim.attempts, first=FAILED_WAIT_SECONDS, longest=60)
    leases.put_back(plugin.database, claim, detail=cause, wait_seconds=max(wait, seconds))


def _check_all_are_here(series: SeriesView) -> None:
    """Raises Refused where the rules of retention have removed images: a part of a series is not the series."""
    if gone := sum(instance.removed for instance in series.instances):
        raise Refused(Reason.REMOVED, f"{gone} of {len(series.instances)} instances are gone: send the study again")


# ---- analyse -----------------------------------------------------------------------------------------------


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


def _analyse(plugin: Plugin, claim: Claim) -> None:
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


# ---- deliver -----------------------------------------------------------------------------------------------


def _deliver(plugin: Plugin, claim: Claim) -> None:
    started = time.monotonic()
    errand = outcomes.errand(plugin.database, claim, plugin.spool.folder)
    act = {"store": plugin.outbox.store, "delete": plugin.outbox.delete}[errand.action]
    said = {"action": errand.action, "destination": errand.destination}
    retry = plugin.settings.delivery
    try:
        act(errand.destination, errand.path)
    except delivery.NotNow as trouble:
        wait = backoff_seconds(claim.attempts, first=retry.first_retry_seconds, longest=retry.longest_retry_seconds)
        if isinstance(trouble, delivery.Away):
            leases.put_off(plugin.database, claim, wait_seconds=wait)
        leases.put_back(plugin.database, claim, detail=str(trouble), wait_seconds=wait)
        metrics.DELIVERIES.labels(errand.destination, "not now").inc()
        log.warning("not delivered", **said, cause=str(trouble), next_try_seconds=wait)
    except delivery.Refused as refusal:
        outcomes.delivery_refused(plugin.database, claim, detail=str(refusal), seconds=time.monotonic() - started)
        _audit(plugin, errand, outcome=MINOR_FAILURE)
        metrics.DELIVERIES.labels(errand.destination, "refused").inc()
        log.error("delivery refused", **said, cause=str(refusal))
    else:
        seconds = time.monotonic() - started
        outcomes.delivered(plugin.database, claim, action=errand.action, seconds=seconds)
        _audit(plugin, errand)
        metrics.DELIVERIES.labels(errand.destination, errand.action).inc()
        log.info("delivered", **said, study_instance_uid=errand.study_instance_uid, seconds=round(seconds, 2))


def _audit(plugin: Plugin, errand: outcomes.Errand, *, outcome: Outcome = SUCCESS) -> None:
    destination = next((row for row in plugin.settings.destinations if row.name == errand.destination), None)
    if errand.action == "store" and destination is not None:
        plugin.audit.sent_file(errand.path, destination, outcome=outcome)


WORK: dict[str, Callable[[Plugin, Claim], None]] = {
    "prepare": _prepare,
    "analyse": _analyse,
    "deliver": _deliver,
    "signal": sending.send,
}
