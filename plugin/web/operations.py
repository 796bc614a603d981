"""Operations: whether all of it works, and why something did not. Names no patient, so no view of it is audited."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from rich.filesize import decimal
from starlette.concurrency import run_in_threadpool

from plugin import screens
from plugin.bootstrap import Plugin
from plugin.index import archive, heartbeats, operations, outcomes
from plugin.index.operations import Pace
from plugin.lifecycle import Urgency
from plugin.web import chart
from plugin.web.access import Operator, Viewer, digest
from plugin.web.pages import page, plugin_of
from plugin.web.watched import audit_act

router = APIRouter(prefix="/operations")

MAX_ARRIVALS = 10_000
"""More files that wait to be indexed are not counted."""

MAX_SCANS = 5
MAX_TOLD = 100
"""Of so many studies at most a retry of all is told to the audit trail one by one, the latest first."""


def _state(plugin: Plugin) -> dict[str, Any]:
    """What changes every few seconds."""
    disk = screens.read_disk(plugin)
    arrivals = len(plugin.spool.arrivals(MAX_ARRIVALS))
    return {
        "depths": operations.depths(plugin.database),
        "urgencies": [str(each) for each in Urgency],
        "arrivals": f"{arrivals}{' or more' if arrivals == MAX_ARRIVALS else ''}",
        "workers": heartbeats.workers(plugin.database),
        "destinations": operations.health(plugin.database, [row.name for row in plugin.settings.destinations]),
        "receivers": operations.receivers_health(plugin.database, [row.name for row in plugin.settings.signals]),
        "scans": _scans(plugin),
        "disk": disk,
        "free": decimal(disk["free_bytes"]),
        "total": decimal(disk["total_bytes"]),
        "used_percent": round(100 * (1 - disk["free_bytes"] / disk["total_bytes"]), 1),
        "marks": {name: decimal(disk[name]["stops_below"]) for name in ("c_store", "workers")},
        "resumes": {name: decimal(disk[name]["resumes_at"]) for name in ("c_store", "workers")},
    }


def _scans(plugin: Plugin) -> list[dict[str, Any]]:
    """The latest archive scans, and how far they are."""
    return [
        {"scan": scan, "standing": archive.standing(plugin.database, scan.id)}
        for scan in archive.scans(plugin.database)[:MAX_SCANS]
    ]


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile of values in order; None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _pace(plugin: Plugin) -> dict[str, Any]:
    """The charts, with the day's figures in words."""
    pace: Pace = operations.pace(plugin.database)
    day = sorted(seconds for hour in pace.latencies for seconds in hour)
    return {
        "throughput": chart.stacked_bars(pace.at, {"clinic": pace.clinic, "archive": pace.archive}),
        "latency": chart.hourly_lines(
            pace.at,
            {
                "median": [quantile(hour, 0.5) for hour in pace.latencies],
                "95th percentile": [quantile(hour, 0.95) for hour in pace.latencies],
            },
        ),
        "clinic": sum(pace.clinic),
        "archive": sum(pace.archive),
        "median": quantile(day, 0.5),
        "slow": quantile(day, 0.95),
    }


def _troubles(plugin: Plugin) -> dict[str, Any]:
    """With a digest, so that a part of the page with buttons in it stays as it is while nothing changes."""
    troubles = operations.troubles(plugin.database)
    return {"troubles": troubles, "seen": digest(repr(troubles))}


PARTS: dict[str, Callable[[Plugin], dict[str, Any]]] = {"state": _state, "pace": _pace, "troubles": _troubles}
"""Parts of the page that refresh themselves, each from its own template."""


@router.get("")
def operations_page(
    request: Request, person: Viewer, series: int | None = None, studies: int = 0, deliveries: int = 0, signals: int = 0
) -> Response:
    """The whole page; the numbers are what a retry came to, where one was just asked for."""
    plugin = plugin_of(request)
    context = {name: value for read in PARTS.values() for name, value in read(plugin).items()}
    retried = "" if series is None else _retried(outcomes.Retried(series, studies, deliveries, signals))
    return page(request, "operations.html", section="Operations", retried=retried, **context)


def _retried(taken: outcomes.Retried) -> str:
    counts = (
        (taken.series, "series", "series"),
        (taken.studies, "study", "studies"),
        (taken.deliveries, "delivery", "deliveries"),
        (taken.signals, "signal", "signals"),
    )
    waiting = [f"{count} {one if count == 1 else many}" for count, one, many in counts if count > 0]
    return f"Taken up again: {', '.join(waiting)}." if waiting else "There was nothing to take up again."


@router.get("/part/{name}")
def operations_part(request: Request, person: Viewer, name: str, seen: str = "") -> Response:
    """A part by itself, as it is now; 204 where the page has `seen` that already."""
    if name not in PARTS:
        raise HTTPException(404, "there is no such part of the page")
    context = PARTS[name](plugin_of(request))
    if seen and seen == context.get("seen"):
        return Response(status_code=204)
    return page(request, f"operations_{name}.html", **context)


@router.post("/retry")
async def retry(request: Request, person: Operator, study_uid: Annotated[str, Form()] = "") -> Response:
    """Take up again one study, or, without a name, all that was given up or refused by a destination."""
    retried = await run_in_threadpool(_retry, request, study_uid)
    return RedirectResponse(f"/operations?{urlencode(vars(retried))}", 303)


def _retry(request: Request, study_uid: str) -> outcomes.Retried:
    database = plugin_of(request).database
    concerned = [study_uid] if study_uid else operations.troubled(database, limit=MAX_TOLD)
    retried = outcomes.retry(database, study_instance_uid=study_uid or None)
    for uid in concerned:
        audit_act(request, uid, "retry")
    return retried
