"""The archive: a box for words, and the studies that are nearest to them. Names no patient."""

import threading
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response

from hlip_core.errors import HlipError
from plugin.index import operations
from plugin.index.filters import AGE_GROUPS, Filters, SearchError
from plugin.index.search import prepared_series
from plugin.spool import UnsafeUid, check_uid
from plugin.web.access import Viewer
from plugin.web.images import Images, NoImage
from plugin.web.pages import FINDING_NAMES, page, plugin_of
from plugin.web.watched import actor_of

router = APIRouter(prefix="/archive")

HITS = 24
PICTURE_VIEW = "brain"
Words = Annotated[str, Query(max_length=4000)]  # the search itself says why not more than 2000
Short = Annotated[str, Query(max_length=256)]
"""What is asked, whole, is in the audit trail (`plugin.audit_message.MAX_QUERY`)."""

_making = threading.Lock()


def _searcher(request: Request) -> Any:
    """The process' one `plugin.search.Searcher`, made with the first question: it brings torch along."""
    state = request.app.state
    with _making:
        if not hasattr(state, "searcher"):
            from plugin.search import Searcher

            state.searcher = Searcher(plugin_of(request))
        return state.searcher


@router.get("")
def archive_page(
    request: Request,
    person: Viewer,
    words: Words = "",
    like: Short = "",
    since: Short = "",
    until: Short = "",
    modality: Short = "",
    age: Short = "",
    station: Short = "",
    finding: Short = "",
) -> Response:
    """The box, and the answer where something was asked."""
    asked = {"since": since, "until": until, "modality": modality, "age": age, "station": station, "finding": finding}
    found, trouble = None, ""
    if words.strip() or like or finding.strip():
        question = " ".join([*asked.values(), f"like {like}" if like else "", words])
        plugin_of(request).audit.searched(actor_of(request, person), question)
        try:
            found = _answer(request, words, like, asked)
        except (SearchError, HlipError) as error:
            trouble = str(error)
    return page(
        request,
        "archive.html",
        section="Archive",
        words=words,
        like=like,
        found=found,
        trouble=trouble,
        asked=asked,
        groups=AGE_GROUPS,
        labels=FINDING_NAMES,
        pictured=operations.pictured(plugin_of(request).database, [hit.study_instance_uid for hit in found.hits])
        if found
        else frozenset(),
    )


def _answer(request: Request, words: str, like: str, asked: dict[str, str]) -> Any:
    """Raises SearchError for what cannot be answered, HlipError where the model cannot be loaded."""
    filters = Filters.parse(
        **{name: text for name, text in asked.items() if name != "finding"},
        findings=asked["finding"].split(","),
    )
    return _searcher(request).search(words, like=like, filters=filters, limit=HITS)


@router.get("/picture/{study_uid}.png")
def picture(request: Request, study_uid: str, person: Viewer) -> Response:
    """The middle slice of the study's first prepared series."""
    images: Images = request.app.state.images
    try:
        series_uid = next(iter(prepared_series(plugin_of(request).database, check_uid(study_uid))), "")
        middle = len(images.scan(study_uid, series_uid).voxels) // 2
        content = images.slice_png(study_uid, series_uid, middle, PICTURE_VIEW)
    except (UnsafeUid, NoImage):
        raise HTTPException(404, "there is no such picture") from None
    return Response(content, media_type="image/png", headers={"Cache-Control": "no-store"})
