"""The worklist: which study to open first, live."""

import time
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse

from plugin.index import worklist as index
from plugin.index.worklist import KINDS, Filters, List
from plugin.web.access import Viewer
from plugin.web.events import Watch
from plugin.web.pages import FINDING_NAMES, page, plugin_of, templates
from plugin.web.watched import audit_list

ROWS = 50
MAX_TEXT = 100
FRESH_SECONDS = 1.0
"""A list that was rendered is good for this long, for every browser that asks for the same."""

MAX_KEPT = 64
PERIODS = {"1": "the last day", "3": "the last 3 days", "7": "the last week", "30": "the last 30 days", "": "ever"}
KIND_NAMES = {
    "open": "all but ignored", "critical": "critical, unread", "unread": "reported, unread", "read": "read",
    "in progress": "in progress", "reported": "reported", "refused": "refused", "failed": "failed",
    "withdrawn": "withdrawn", "ignored": "ignored",
}  # fmt: skip

router = APIRouter()


@dataclass(frozen=True)
class Asked:
    """The query of a list, as it stands in its address. What is not known asks for what is shown by default."""

    kind: str = "open"
    q: str = ""
    finding: str = ""
    days: str = "7"
    date: str = ""
    start: int = 0

    @property
    def filters(self) -> Filters:
        return Filters(
            kind=self.kind,
            text=self.q,
            finding=self.finding,
            days=float(self.days or 0),
            study_date=self.date.replace("-", ""),
        )

    def address(self, *, start: int | None = None) -> str:
        """The query string, without what is as by default."""
        values = {**vars(self), "start": self.start if start is None else start}
        return urlencode({name: value for name, value in values.items() if value != getattr(Asked, name)})


def asked(
    kind: str = "open",
    q: Annotated[str, Query(max_length=MAX_TEXT)] = "",
    finding: Annotated[str, Query(max_length=64)] = "",
    days: str = "7",
    date: Annotated[str, Query(pattern=r"^(\d{4}-\d\d-\d\d)?$")] = "",
    start: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
) -> Asked:
    return Asked(
        kind if kind in KINDS else "open", q.replace("\0", ""), finding, days if days in PERIODS else "7", date, start
    )


Query_ = Annotated[Asked, Depends(asked)]


class Lists:
    """The lists that were rendered last, shared by all browsers: fifty that are told of news ask the index once."""

    def __init__(self) -> None:
        self._kept: dict[Asked, tuple[float, int, str, List]] = {}

    def get(self, query: Asked, version: int) -> tuple[str, List] | None:
        made, of_version, html, rows = self._kept.get(query, (0.0, -1, "", None))
        if rows is None or of_version != version or time.monotonic() - made > FRESH_SECONDS:
            return None
        return html, rows

    def keep(self, query: Asked, version: int, html: str, rows: List) -> None:
        if len(self._kept) >= MAX_KEPT:
            self._kept.clear()
        self._kept[query] = (time.monotonic(), version, html, rows)


def _list(request: Request, query: Asked) -> str:
    """The list as HTML, and a line in the trail for each patient that it names."""
    watch: Watch = request.app.state.watch
    lists: Lists = request.app.state.lists
    kept = lists.get(query, watch.version)
    if kept is None:
        version = watch.version
        found = index.worklist(plugin_of(request).database, query.filters, offset=query.start, limit=ROWS)
        html = templates.get_template("_list.html").render(list=found, query=query, rows=ROWS)
        lists.keep(query, version, html, found)
        kept = html, found
    audit_list(request, [row.study_instance_uid for row in kept[1].rows])
    return kept[0]


@router.get("/")
def worklist(request: Request, person: Viewer, query: Query_) -> HTMLResponse:
    """The page."""
    choices: dict[str, Any] = {"kinds": KIND_NAMES, "periods": PERIODS, "names": FINDING_NAMES}
    return page(request, "worklist.html", section="Worklist", query=query, list_html=_list(request, query), **choices)


@router.get("/worklist")
def rows(request: Request, person: Viewer, query: Query_) -> HTMLResponse:
    """The list alone, for a page that was told of news or whose filters were changed."""
    response = HTMLResponse(_list(request, query))
    if "x-live" not in request.headers:
        address = query.address()
        response.headers["HX-Replace-Url"] = f"/?{address}" if address else "/"
    return response
