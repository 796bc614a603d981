"""Signals as work: what is offered with a new revision, and one signal from its claim to what it came to."""

import time
from typing import TYPE_CHECKING

import structlog

from plugin import delivery, metrics
from plugin.analysis import Analysis
from plugin.index import leases, signals
from plugin.index.leases import Claim
from plugin.index.signals import Offer
from plugin.lifecycle import backoff_seconds
from plugin.signals.facts import facts, offer

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin

log = structlog.get_logger("hlip.work")

LONGEST_WAIT_SECONDS = 60.0
"""Someone may be waiting for it: a receiver that is back is told within this time, whatever results may wait."""


def offers(plugin: "Plugin", analysis: Analysis) -> list[Offer]:
    """To every receiver of the settings; the index decides which of them is news."""
    receivers = plugin.settings.signals
    if not receivers:
        return []
    results = [(file.sop_instance_uid, file.series_instance_uid, file.description) for file in analysis.files]
    told = facts(analysis.report, results=results)
    return [offer(row, analysis.report, told, hold=plugin.holds_signals_to(row)) for row in receivers]


def send(plugin: "Plugin", claim: Claim) -> None:
    """Send one signal, and write down what came of it."""
    started = time.monotonic()
    errand = signals.errand(plugin.database, claim)
    said = {"receiver": errand.receiver, "status": errand.status, "study_instance_uid": errand.study_instance_uid}
    retry = plugin.settings.delivery
    try:
        plugin.switchboard.send(errand)
    except delivery.NotNow as trouble:
        longest = min(retry.longest_retry_seconds, LONGEST_WAIT_SECONDS)
        wait = backoff_seconds(claim.attempts, first=retry.first_retry_seconds, longest=longest)
        if isinstance(trouble, delivery.Away):
            leases.put_off(plugin.database, claim, wait_seconds=wait)
        leases.put_back(plugin.database, claim, detail=str(trouble), wait_seconds=wait)
        log.warning("not signalled", **said, cause=str(trouble), next_try_seconds=wait)
        metrics.SIGNALS.labels(errand.receiver, "not now").inc()
    except delivery.Refused as refusal:
        signals.refused(plugin.database, claim, detail=str(refusal), seconds=time.monotonic() - started)
        log.error("signal refused", **said, cause=str(refusal))
        metrics.SIGNALS.labels(errand.receiver, "refused").inc()
    else:
        seconds = time.monotonic() - started
        signals.delivered(plugin.database, claim, seconds=seconds)
        metrics.SIGNALS.labels(errand.receiver, "delivered").inc()
        log.info("signalled", **said, seconds=round(seconds, 2))
