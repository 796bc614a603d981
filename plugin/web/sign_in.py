"""Signing in and out: by a name and a password, or by the provider of the settings."""

import hmac
import math
import secrets
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

import structlog
from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from starlette.concurrency import run_in_threadpool

from plugin import passwords
from plugin.audit_message import MINOR_FAILURE, SUCCESS, Actor
from plugin.index import people
from plugin.index.people import Role
from plugin.web import throttle
from plugin.web.access import Access, Viewer, access, digest, local_path
from plugin.web.oidc import Attempt, OidcError, Provider
from plugin.web.origin import address_of
from plugin.web.pages import page

log = structlog.get_logger("hlip.web")

router = APIRouter()

FORM_COOKIE = "hlip-form"
"""Of a browser that is not signed in: what the form's token is bound to."""

ATTEMPT_COOKIE = "hlip-oidc"
ATTEMPT_SECONDS = 600
CALLBACK = "/sign-in/provider/callback"
MAX_TRYING = 10
"""Passwords take their turns to be checked, and what waits for it must leave threads for the rest of the page."""

NOT_THIS = "That is not a name and password that we know."


def set_cookie(found: Access, answer: Response, name: str, value: str, **more: Any) -> None:
    """A cookie that no script reads; sent along by a link from elsewhere, never by another site's form."""
    prefix = "__Host-" if found.is_secure else ""
    answer.set_cookie(prefix + name, value, httponly=True, samesite="lax", secure=found.is_secure, path="/", **more)


def cookie(found: Access, request: Request, name: str) -> str:
    return request.cookies.get(("__Host-" if found.is_secure else "") + name, "")


def drop_cookie(found: Access, answer: Response, name: str) -> None:
    set_cookie(found, answer, name, "", max_age=0)


def _form(request: Request, *, status: int = 200, name: str = "", said: str = "", to: str = "/") -> Response:
    """The page with the form. Blocks: for a thread."""
    found = access(request)
    bound_to = cookie(found, request, FORM_COOKIE) or secrets.token_urlsafe(24)
    oidc = found.plugin.settings.oidc
    answer = page(
        request,
        "sign_in.html",
        status=status,
        form_token=digest(f"form {bound_to}"),
        who=name,
        said=said,
        to=to,
        provider=oidc.name if oidc.issuer else "",
        has_users=people.has_users(found.plugin.database),
    )
    set_cookie(found, answer, FORM_COOKIE, bound_to)
    return answer


@router.get("/sign-in")
def sign_in_page(request: Request, next: str = "/") -> Response:
    """Who is signed in already, or need not, goes on."""
    to = local_path(next)
    if access(request).person(request) is not None:
        return RedirectResponse(to, 303)
    return _form(request, to=to)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """A name and a password; as slow for a name that there is not."""
    form = {name: value if isinstance(value, str) else "" for name, value in (await request.form()).items()}
    found = access(request)
    bound_to = cookie(found, request, FORM_COOKIE)
    shown = form.get("form_token", "")
    if not bound_to or not hmac.compare_digest(shown.encode(), digest(f"form {bound_to}").encode()):
        raise HTTPException(403, "this form is out of date: go back and load it again, with cookies allowed")
    if found.trying >= MAX_TRYING:
        raise HTTPException(503, "very many people try to sign in: do it again in a moment")
    to = local_path(form.get("next"))
    found.trying += 1
    try:
        return await run_in_threadpool(_try_password, request, form.get("name", ""), form.get("password", ""), to)
    finally:
        found.trying -= 1


def _try_password(request: Request, name: str, password: str, to: str) -> Response:
    found = access(request)
    database = found.plugin.database
    is_alone = not found.settings.public_url or bool(found.settings.trusted_proxies)
    counted = throttle.keys(name, _address(request) if is_alone else "")
    wait = throttle.try_now(database, counted)
    if wait > 0:
        said = f"Too many wrong guesses. Try again in {math.ceil(wait)} s."
        answer = _form(request, status=429, name=name, said=said, to=to)
        answer.headers["Retry-After"] = str(math.ceil(wait))
        return answer
    if not passwords.verify(password, people.password_hash(database, name)):
        _tell(request, name, outcome_is_success=False)
        log.warning("not signed in", cause="wrong name or password")
        return _form(request, status=401, name=name, said=NOT_THIS, to=to)
    throttle.was_right(database, counted)
    return _signed_in(request, name, role=None, to=to)


def _signed_in(request: Request, name: str, *, role: Role | None, to: str) -> Response:
    """A new session, whatever the browser brought along; the old one, if there was one, ends."""
    found = access(request)
    token = secrets.token_urlsafe(32)
    if old := request.cookies.get(found.cookie):
        people.end_session(found.plugin.database, digest(old))
    people.begin_session(found.plugin.database, digest(token), name=name, role=role, hours=found.settings.session_hours)
    _tell(request, name)
    answer = RedirectResponse(to, 303)
    set_cookie(found, answer, "hlip", token, max_age=int(found.settings.session_hours * 3600))
    drop_cookie(found, answer, FORM_COOKIE)
    return answer


@router.post("/sign-out")
async def sign_out(request: Request, person: Viewer) -> Response:
    found = access(request)
    if token := request.cookies.get(found.cookie):
        await run_in_threadpool(people.end_session, found.plugin.database, digest(token))
        await run_in_threadpool(partial(_tell, request, person.name, is_login=False))
    answer = RedirectResponse("/sign-in", 303)
    drop_cookie(found, answer, "hlip")
    answer.headers["Clear-Site-Data"] = '"cache", "storage"'
    return answer


# ---- by the provider -------------------------------------------------------------------------------------------


def _provider(request: Request) -> Provider:
    """Raises HTTPException 404 where the settings name none."""
    state = request.app.state
    if not access(request).plugin.settings.oidc.issuer:
        raise HTTPException(404, "there is no other sign-in than by name and password")
    if not hasattr(state, "provider"):
        state.provider = Provider(access(request).plugin.settings.oidc)
    return state.provider


def _redirect_uri(request: Request) -> str:
    public = access(request).settings.public_url
    return f"{public or f'{request.url.scheme}://{request.url.netloc}'}{CALLBACK}"


@router.get("/sign-in/provider")
def to_provider(request: Request, next: str = "/") -> Response:
    """The browser takes along what it must come back with."""
    found, attempt = access(request), Attempt.new()
    try:
        answer = RedirectResponse(_provider(request).authorization_url(attempt, _redirect_uri(request)), 303)
    except OidcError as error:
        return _form(request, status=503, said=f"That did not work: {error}.", to=local_path(next))
    kept = " ".join([attempt.state, attempt.nonce, attempt.verifier, quote(local_path(next), safe="")])
    set_cookie(found, answer, ATTEMPT_COOKIE, kept, max_age=ATTEMPT_SECONDS)
    return answer


@router.get(CALLBACK)
def from_provider(request: Request, state: str = "", code: str = "", error: str = "") -> Response:
    """Back from the provider: with a code, or with the word that it did not let them in."""
    found = access(request)
    attempt, to = _kept_attempt(cookie(found, request, ATTEMPT_COOKIE))
    if attempt is None or not hmac.compare_digest(state.encode(), attempt.state.encode()):
        answer = _form(request, status=403, said="That took too long, or began elsewhere. Try again.")
    elif error or not code:
        answer = _form(request, status=403, said="The provider did not let you in.", to=to)
    else:
        answer = _try_code(request, code, attempt, to)
    drop_cookie(found, answer, ATTEMPT_COOKIE)
    return answer


def _try_code(request: Request, code: str, attempt: Attempt, to: str) -> Response:
    try:
        name, role = _provider(request).person(code, attempt, _redirect_uri(request))
    except OidcError as error:
        log.warning("not signed in", cause=str(error))
        _tell(request, "unknown", outcome_is_success=False)
        return _form(request, status=403, said=f"That did not work: {error}.", to=to)
    return _signed_in(request, name, role=role, to=to)


def _kept_attempt(text: str) -> tuple[Attempt | None, str]:
    parts = text.split(" ")
    return (Attempt(*parts[:3]), local_path(unquote(parts[3]))) if len(parts) == 4 else (None, "/")


# ---- who, from where -------------------------------------------------------------------------------------------


def _address(request: Request) -> str:
    return address_of(request, access(request).settings)


def _tell(request: Request, name: str, *, is_login: bool = True, outcome_is_success: bool = True) -> None:
    access(request).plugin.audit.signed(
        Actor(name, _address(request)),
        is_login=is_login,
        outcome=SUCCESS if outcome_is_success else MINOR_FAILURE,
    )
