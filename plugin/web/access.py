"""Who may see and do what on the page: FastAPI dependencies, and the middleware that all of it stands behind.

A route of the page names its right by a dependency, and is refused without it::

    @router.get("/studies/{study_uid}")
    def study(study_uid: str, person: Viewer, ...): ...          # anyone who is signed in

    @router.post("/studies/{study_uid}/withdraw")
    def withdraw(study_uid: str, person: Operator, ...): ...     # operators only

Either refuses an unsafe method without the CSRF token of the session (`csrf_token`), which htmx sends as the header
X-CSRF-Token and a plain form as the field `csrf_token`. A request with the header X-Live is one that the page makes
by itself: it does not keep a session from going idle.
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote, urlsplit

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from starlette.concurrency import run_in_threadpool
from starlette.middleware.trustedhost import TrustedHostMiddleware

from plugin.index import people
from plugin.index.database import IndexUnavailable
from plugin.index.people import Role
from plugin.web.guard import Guard
from plugin.web.seen import Seen

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1", "[::1]")
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
BY_A_PROXY = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers of a request that did not come straight from a browser on this machine."""


@dataclass(frozen=True)
class Person:
    """Who asks. `is_local`: no one is signed in, and no one needs to: the page is for this machine alone."""

    name: str
    role: Role
    is_local: bool = False

    @property
    def is_operator(self) -> bool:
        return self.role == "operator"


LOCAL = Person("local", "operator", is_local=True)


class NotSignedIn(Exception):
    """The page is for people who are signed in, and this request is nobody's."""


class Access:
    """What decides who a request is from."""

    def __init__(self, plugin: "Plugin") -> None:
        self.plugin = plugin
        self.settings = plugin.settings.web
        self.seen = Seen()
        self.trying = 0
        """How many sign-ins by password are being checked; changed by the event loop alone."""
        self._is_current = False
        self.secret = secrets.token_urlsafe(32)
        """The session of a page that needs no sign-in, for CSRF: another site's page cannot read it."""

    @property
    def is_secure(self) -> bool:
        """Whether browsers come by https, so that cookies are for that alone."""
        return self.settings.public_url.startswith("https://")

    @property
    def cookie(self) -> str:
        """The session cookie's name; with the prefix, browsers hold it to this host and to https."""
        return "__Host-hlip" if self.is_secure else "hlip"

    def person(self, request: Request, *, touch: bool = True) -> Person | None:
        """Raises IndexUnavailable."""
        self._check_index()
        if token := request.cookies.get(self.cookie):
            idle = self.settings.session_idle_minutes * 60
            found = people.session_of(self.plugin.database, digest(token), idle_seconds=idle, touch=touch)
            if found is not None:
                return Person(*found)
        return None if self.needs_sign_in(request) else LOCAL

    def needs_sign_in(self, request: Request) -> bool:
        """False only for this machine's own browser, at a page that has no users and that no one else can reach."""
        if self.settings.others_come or self.plugin.settings.oidc.issuer or request.url.hostname not in LOOPBACK_HOSTS:
            return True
        if any(name in request.headers for name in BY_A_PROXY):
            return True
        return people.has_users(self.plugin.database)

    def _check_index(self) -> None:
        if not self._is_current:
            if not self.plugin.database.is_current():
                raise IndexUnavailable("the index is not of this version yet")
            self._is_current = True


def digest(token: str) -> str:
    """SHA-256, in hexadecimal: of secrets that are random and long."""
    return hashlib.sha256(token.encode()).hexdigest()


def access(request: Request) -> Access:
    found: Access = request.app.state.access
    return found


def csrf_token(request: Request) -> str:
    """What a page must show with every POST, in the meta tag and in forms: of the session that `viewer` has found."""
    found, person = access(request), request.state.person
    return digest(f"csrf {found.secret if person.is_local else request.cookies[found.cookie]}")


async def check_csrf(request: Request) -> None:
    """Raises HTTPException 403 for an unsafe request without the session's token."""
    if request.method in SAFE_METHODS:
        return
    shown = request.headers.get("x-csrf-token", "")
    if not shown and request.headers.get("content-type", "").startswith(FORMS):
        field = (await request.form()).get("csrf_token")
        shown = field if isinstance(field, str) else ""
    if not hmac.compare_digest(shown.encode(), csrf_token(request).encode()):
        raise HTTPException(403, "this page is out of date: load it again, then repeat what you did")


async def viewer(request: Request) -> Person:
    """Whoever is signed in. Raises NotSignedIn, HTTPException 403."""
    touch = "x-live" not in request.headers
    person = await run_in_threadpool(access(request).person, request, touch=touch)
    if person is None:
        raise NotSignedIn
    request.state.person = person
    await check_csrf(request)
    return person


async def operator(request: Request) -> Person:
    """An operator who is signed in. Raises NotSignedIn, HTTPException 403."""
    person = await viewer(request)
    if not person.is_operator:
        raise HTTPException(403, "this is for operators; you are signed in as a viewer")
    return person


Viewer = Annotated[Person, Depends(viewer)]
Operator = Annotated[Person, Depends(operator)]


async def is_still_signed_in(request: Request) -> bool:
    """For a stream that lives long: whether whoever opened it may still see it. Keeps no session alive."""
    return await run_in_threadpool(access(request).person, request, touch=False) is not None


def local_path(path: str | None) -> str:
    """A path of this page, from what a request asked to come back to; "/" for what may lead elsewhere."""
    path = path or ""
    leads_elsewhere = not path.startswith("/") or "//" in path or "\\" in path or not path.isprintable()
    return "/" if leads_elsewhere else path


async def _sign_in_first(request: Request, error: Exception) -> Response:
    """A page: to the sign-in form, and back. A part of one: told to htmx. Else: 401."""
    if request.headers.get("hx-request"):
        current = urlsplit(request.headers.get("hx-current-url", ""))
        to = local_path(current.path + (f"?{current.query}" if current.query else ""))
        return Response(status_code=401, headers={"HX-Redirect": f"/sign-in?next={quote(to, safe='/')}"})
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        to = local_path(request.url.path + (f"?{request.url.query}" if request.url.query else ""))
        return RedirectResponse(f"/sign-in?next={quote(to, safe='/')}", 303)
    return JSONResponse({"status": "not signed in"}, 401)


async def _index_away(request: Request, error: Exception) -> Response:
    return JSONResponse({"status": "the index cannot be reached now"}, 503, headers={"Retry-After": "10"})


def install(app: FastAPI, plugin: "Plugin") -> None:
    """Put a page behind all of this: rights, headers, and the hosts that it answers to."""
    app.state.access = Access(plugin)
    app.add_exception_handler(NotSignedIn, _sign_in_first)
    app.add_exception_handler(IndexUnavailable, _index_away)
    app.add_middleware(Guard, public_url=plugin.settings.web.public_url)
    if not plugin.settings.web.others_come and not plugin.settings.web.stow_token.get_secret_value():
        # so that no page in a browser here gets at it by a name of its own (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK_HOSTS))
