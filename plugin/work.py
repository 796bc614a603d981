"""The kinds of work, each one item at a time: claim it, do it, write down what it came to."""

import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial

import structlog

from hlip_core.errors import Refused
from hlip_core.reasons import Reason
from plugin import delivery, metrics
from plugin.audit_message import MINOR_FAILURE, SUCCESS, Outcome
from plugin.bootstrap import Plugin
from plugin.index import leases, outcomes, overview
from plugin.index.database import IndexUnavailable
from plugin.index.leases import Claim
from plugin.lifecycle import backoff_seconds
from plugin.preparation import Job
from plugin.sandbox import Died, cause_of
from plugin.signals import sending
from plugin.spool import beside
from plugin.study import SeriesView
from plugin.work_analyse import analyse

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
        leases.kept_alive(
            partial(leases.renew, plugin.database, claim, workers.lease_seconds), workers.lease_seconds, lost=lost
        ),
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
    "analyse": analyse,
    "deliver": _deliver,
    "signal": sending.send,
}
