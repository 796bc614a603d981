"""One study: what was found and where, its images, what became of it, and what a person may do about it."""

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, get_args

import anyio.from_thread
from fastapi import APIRouter, Depends, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from plugin.bootstrap import Plugin
from plugin.index import assessments, outcomes, overview, worklist
from plugin.lifecycle import Rejection, SeriesState
from plugin.spool import UnsafeUid, check_uid
from plugin.web.access import Operator, Person, Viewer
from plugin.web.events import Watch
from plugin.web.images import VIEWS, Images, NoImage
from plugin.web.pages import page, plugin_of, templates
from plugin.web.timeline import picture
from plugin.web.watched import audit_act, audit_list, watched_viewer

PNG = {"Cache-Control": "no-store"}
REASONS = get_args(Rejection)
PLACEHOLDER = "{StudyInstanceUID}"

router = APIRouter(prefix="/studies/{study_uid}")


def known_uid(study_uid: str) -> str:
    return _uid(study_uid, "study")


def _uid(value: str, what: str) -> str:
    try:
        return check_uid(value)
    except UnsafeUid:
        raise HTTPException(404, f"there is no such {what}") from None


Study = Annotated[str, Depends(known_uid)]
Watched = Annotated[Person, Depends(watched_viewer)]


def _seen(request: Request, person: Viewer, uid: Study) -> Person:
    """For the parts of a study's page: in the audit trail where the page itself was not asked for just before."""
    audit_list(request, [uid])
    return person


Seen = Annotated[Person, Depends(_seen)]


# ---- the page ----------------------------------------------------------------------------------------------


@router.get("")
def study_page(request: Request, uid: Study, person: Watched) -> HTMLResponse:
    """The whole page."""
    return page(request, "study.html", section="Worklist", views=VIEWS, reasons=REASONS, **_context(request, uid))


@router.get("/live")
def live(request: Request, uid: Study, person: Seen) -> HTMLResponse:
    """The parts of the page that change, for a page that was told of news."""
    html = templates.get_template("_study_live.html")
    return HTMLResponse(html.render(person=person, is_update=True, **_context(request, uid)))


def _context(request: Request, uid: str) -> dict[str, Any]:
    plugin = plugin_of(request)
    row = worklist.row_of(plugin.database, uid)
    study = overview.study(plugin.database, uid, findings=True)
    if row is None or study is None:
        raise HTTPException(404, "there is no such study")
    study["series"].sort(key=lambda series: (series["series_number"] is None, series["series_number"] or 0))
    revision = study["revisions"][-1] if study["revisions"] else None
    return {
        "uid": uid,
        "row": row,
        "study": study,
        "revision": revision,
        "findings": _in_order(revision["findings"]) if revision else [],
        "said": assessments.assessments(plugin.database, uid),
        "timeline": picture(study),
        "viewer": json.dumps(_viewer(request.app.state.images, study, revision)),
        "viewer_url": viewer_url(plugin, uid),
    }


def _in_order(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Positive ones first, of them the critical ones, then by what they reach."""
    return sorted(findings, key=lambda row: (not row["positive"], not row["critical"], -row["score"], row["label"]))


def viewer_url(plugin: Plugin, uid: str) -> str:
    """Where the study opens in the site's viewer; empty where none is set."""
    return plugin.settings.web.viewer_url.replace(PLACEHOLDER, uid)


def _viewer(images: Images, study: Mapping[str, Any], revision: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the page's script needs to show the images: series, places, where to begin."""
    uid, number = study["study_instance_uid"], revision["number"] if revision else 0
    rows = {row["label"]: row for row in (revision["findings"] if revision else ())}
    series = []
    for one in study["series"]:
        if one["state"] != SeriesState.PREPARED:
            continue
        try:
            scan = images.scan(uid, one["series_instance_uid"])
        except NoImage:
            continue
        looks = images.looks(uid, one["series_instance_uid"], revision=number)
        series.append(
            {
                "uid": one["series_instance_uid"],
                "number": one["series_number"],
                "description": one["series_description"] or "no description",
                "orientation": scan.orientation,
                "slices": len(scan.voxels),
                "rows": scan.voxels.shape[1],
                "columns": scan.voxels.shape[2],
                "looks": {
                    label: {"z": look.z, "y": look.y, "x": look.x, "name": rows[label]["name"]}
                    for label, look in looks.items()
                    if label in rows
                },
            }
        )
    series.sort(key=lambda one: (one["orientation"] != "axial", one["number"] is None, one["number"] or 0))
    order = [row["label"] for row in _in_order(list(rows.values())) if row["positive"]]
    start = next((label for label in order for one in series if label in one["looks"]), "")
    return {"study": uid, "revision": number, "series": series, "start": start}


@router.get("/series/{series_uid}/{view}/{number}.png")
def slice_png(request: Request, uid: Study, series_uid: str, view: str, number: int, person: Seen) -> Response:
    """A prepared slice through a window."""
    images: Images = request.app.state.images
    return _png(partial(images.slice_png, uid, _uid(series_uid, "series"), number, view))


@router.get("/series/{series_uid}/looks/{revision}/{label}/{number}.png")
def look_png(
    request: Request, uid: Study, series_uid: str, revision: int, label: str, number: int, person: Seen
) -> Response:
    """Where the model looked for a finding, on that slice."""
    images: Images = request.app.state.images
    return _png(partial(images.look_png, uid, _uid(series_uid, "series"), number, label, revision=revision))


def _png(make: Any) -> Response:
    try:
        return Response(make(), media_type="image/png", headers=PNG)
    except NoImage:
        raise HTTPException(404, "there is no such picture") from None


# ---- reports -----------------------------------------------------------------------------------------------


@router.get("/report")
def report(request: Request, uid: Study, person: Seen) -> HTMLResponse:
    """The reports of the last revision, to be read in the page."""
    plugin = plugin_of(request)
    study = overview.study(plugin.database, uid)
    results = study["revisions"][-1]["results"] if study and study["revisions"] else []
    pages = [one for one in (_readable(plugin, result["path"]) for result in results) if one is not None]
    from plugin.results.readable import is_alarming

    return HTMLResponse(templates.get_template("_report.html").render(pages=pages, is_alarming=is_alarming))


def _readable(plugin: Plugin, path: str) -> Any:
    """A report as a readable page; None for a picture, and for what is no longer here."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    from plugin.results.readable import page_of  # highdicom: only where a report is read

    try:
        return page_of(dcmread(plugin.spool / path, stop_before_pixels=True))
    except (OSError, InvalidDicomError, ValueError):
        return None


# ---- what a person does ------------------------------------------------------------------------------------


@router.post("/assessments")
def assess(
    request: Request,
    uid: Study,
    person: Viewer,
    verdict: Annotated[str, Form()],
    revision: Annotated[int, Form()],
    comment: Annotated[str, Form()] = "",
) -> Response:
    """Agree or disagree with what stands."""
    act = partial(assessments.assess, revision=revision, person=person.name, verdict=verdict, comment=comment)
    _do(request, uid, "assess", lambda plugin: act(plugin.database, uid))
    return _done(request, uid, f"Noted: you {verdict}.")


@router.post("/retry")
def retry(request: Request, uid: Study, person: Operator) -> Response:
    """Prepare and analyse the study anew, and send again what was refused."""
    taken = _do(request, uid, "retry", lambda plugin: outcomes.retry(plugin.database, study_instance_uid=uid))
    return _done(request, uid, f"{taken.series} series, {taken.deliveries} deliveries wait again.")


@router.post("/withdraw")
def withdraw(
    request: Request,
    uid: Study,
    person: Operator,
    reason: Annotated[Rejection, Form()] = "quality",
    reissue: Annotated[bool, Form()] = False,
) -> Response:
    """Tell every destination that our results of the study no longer hold."""
    from plugin import withdrawal  # highdicom: only where something is withdrawn

    done = _do(request, uid, "withdraw", lambda plugin: withdrawal.withdraw(plugin, uid, reason=reason))
    told = ", ".join(done.destinations) or "no destination: none had received anything"
    if reissue:
        _do(request, uid, "reissue", lambda plugin: withdrawal.reissue(plugin, uid))
    return _done(request, uid, f"Revision {done.revision} is withdrawn. Told: {told}.")


def _do(request: Request, uid: str, act: str, do: Any) -> Any:
    """Do it, and write down who did, or tried. Raises HTTPException 409 where it cannot be done."""
    try:
        done = do(plugin_of(request))
    except ValueError as error:
        audit_act(request, uid, act, succeeded=False)
        raise HTTPException(409, str(error)) from None
    audit_act(request, uid, act)
    return done


def _done(request: Request, uid: str, text: str) -> Response:
    """Tell the browsers that look at the study, and the one that asked."""
    watch: Watch = request.app.state.watch
    anyio.from_thread.run_sync(watch.tell, frozenset({uid}))
    if "hx-request" not in request.headers:
        return RedirectResponse(f"/studies/{uid}", 303)
    return Response(status_code=204, headers={"HX-Trigger": json.dumps({"said": text, "acted": ""})})
