"""Who may see and do what on the page: without users, by right, with the token against CSRF; and its headers."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send

from plugin.settings import OidcSettings, WebSettings
from plugin.web import access
from plugin.web.app import ROUTERS, create_app
from plugin.web.guard import Guard
from plugin.web.origin import address_of
from plugin.web.watched import watched_viewer
from visitors import PASSWORD, RETRY, Page, add_study, add_user, field, forget_guesses, peopled, showing


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with peopled(tmp_path_factory.mktemp("page")) as shown:
        yield shown


@pytest.fixture(autouse=True)
def no_guesses(page: Page) -> None:
    forget_guesses(page)


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page without users, for this machine alone."""
    with showing(tmp_path_factory.mktemp("open")) as shown:
        yield shown


# ---- without users -----------------------------------------------------------------------------------------------


def test_without_users_this_machine_is_an_operator_who_still_needs_the_token(open_page: Page) -> None:
    visitor = open_page.visitor()
    assert visitor.get("/operations").status_code == 200
    assert visitor.post(RETRY).status_code == 403
    assert visitor.post(RETRY, headers={"X-CSRF-Token": visitor.csrf}).status_code == 303
    assert visitor.get("/sign-in").headers["Location"] == "/"


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "X-Real-IP", "Via"])
def test_without_users_what_comes_through_a_proxy_is_not_this_machine(open_page: Page, header: str) -> None:
    answer = open_page.visitor().get("/operations", headers={header: "10.1.2.3"})
    assert (answer.status_code, answer.headers["Location"]) == (303, "/sign-in?next=/operations")


def test_without_users_another_name_for_this_machine_is_refused(open_page: Page) -> None:
    """As in DNS rebinding: a page of another site whose name leads here."""
    assert open_page.visitor().get("/operations", headers={"Host": "evil.example"}).status_code == 400


def test_where_others_come_there_is_no_one_without_a_sign_in(tmp_path: Path) -> None:
    with showing(tmp_path, web={"host": "0.0.0.0", "stow": False}) as shown:
        visitor = shown.visitor()
        assert visitor.get("/operations").status_code == 303
        assert "hlip user add" in visitor.get("/sign-in").text


# ---- rights and CSRF ---------------------------------------------------------------------------------------------


def test_a_viewer_is_not_shown_what_only_operators_may_and_is_refused_it(page: Page) -> None:
    add_study(page.plugin, "1.2.4", state="failed", reason="crashed")
    viewer, operator = page.signed_in("vera"), page.signed_in("otto")
    assert 'action="/operations/retry"' not in viewer.get("/operations").text
    assert 'action="/operations/retry"' in operator.get("/operations").text
    refused = viewer.post(RETRY, data={"csrf_token": viewer.csrf, "study_uid": "1.2.4"})
    assert refused.status_code == 403 and "for operators" in refused.text
    assert operator.post(RETRY, data={"csrf_token": operator.csrf, "study_uid": "1.2.4"}).status_code == 303


def test_without_the_token_of_the_session_nothing_is_done(page: Page) -> None:
    operator, other = page.signed_in("otto"), page.signed_in("otto")
    assert operator.post(RETRY).status_code == 403
    assert operator.post(RETRY, headers={"X-CSRF-Token": other.csrf}).status_code == 403
    assert operator.post(RETRY, data={"csrf_token": "x"}).status_code == 403
    assert operator.post(RETRY, files={"csrf_token": ("a", b"x")}).status_code == 403
    assert operator.post("/sign-out").status_code == 403
    assert page.visitor().post("/sign-in", data={"name": "vera", "password": PASSWORD}).status_code == 403
    assert operator.post(RETRY, headers={"X-CSRF-Token": operator.csrf}).status_code == 303


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
    ],
)
def test_a_request_that_another_site_makes_is_refused_even_with_the_token(
    page: Page, headers: dict[str, str], status: int
) -> None:
    operator = page.signed_in("otto")
    assert operator.post(RETRY, headers={"X-CSRF-Token": operator.csrf, **headers}).status_code == status


def test_a_form_is_small(page: Page) -> None:
    visitor = page.visitor()
    assert visitor.post("/sign-in", data={"name": "x" * 70_000}).status_code == 413
    assert visitor.post("/sign-in", data=iter([b"name=x"])).status_code == 411
    both = {"Content-Length": "6"}  # of which the server obeys Transfer-Encoding
    assert visitor.post("/sign-in", data=iter([b"name=x"]), headers=both).status_code == 411


def test_a_form_is_small_whatever_its_head_says() -> None:
    read: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while True:
            read.append((await receive())["body"])

    async def endless() -> Message:
        return {"type": "http.request", "body": bytes(40_000), "more_body": True}

    async def send(message: Message) -> None: ...

    scope = {"type": "http", "method": "POST", "path": "/sign-in", "headers": [(b"content-length", b"6")]}
    with pytest.raises(HTTPException, match="413"):
        asyncio.run(Guard(app)(scope, endless, send))
    assert len(read) == 1


def test_what_is_asked_of_the_archive_is_bounded(page: Page) -> None:
    visitor = page.signed_in("vera")
    assert visitor.get("/archive", params={"words": "x" * 4001}).status_code == 422
    assert visitor.get("/archive", params={"station": "x" * 257}).status_code == 422


PUBLIC = {"/sign-in", "/sign-in/provider", "/sign-in/provider/callback"}


def test_every_route_of_the_page_names_its_right(open_page: Page) -> None:
    """Whatever is added later: without a dependency on `viewer` or `operator` this fails."""

    def calls(dependant: Any) -> set[Any]:
        return {dependant.call}.union(*(calls(each) for each in dependant.dependencies))

    rights = {access.viewer, access.operator, watched_viewer}
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 20
    for route in routes:
        assert calls(route.dependant) & rights or route.path in PUBLIC, f"{route.path} is for everyone"
    others = {route.path for route in create_app(open_page.plugin).routes if isinstance(route, Route | Mount)}
    assert others == {
        "/healthz", "/readyz", "/metrics", "/static", "/dicom-web/studies", "/dicom-web/studies/{study}",
    }  # fmt: skip


# ---- headers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/operations", "/sign-in", "/nowhere", "/static/operations.css"])
def test_every_answer_carries_the_headers_that_keep_a_browser_safe(page: Page, path: str) -> None:
    answer = page.signed_in("vera").get(path)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "same-origin"
    assert answer.headers["Cache-Control"] == ("no-cache" if path.startswith("/static") else "no-store")


def test_no_page_has_a_script_or_a_style_of_its_own(page: Page) -> None:
    visitor = page.signed_in("otto")
    for path in ("/operations", "/sign-in"):
        text = (visitor if path != "/sign-in" else page.visitor()).get(path).text
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son[a-z]+=", text)


def test_behind_https_cookies_are_for_https_alone(tmp_path: Path) -> None:
    with showing(tmp_path, web={"public_url": "https://hlip.example", "stow": False}) as shown:
        add_user(shown.plugin, "vera", "viewer")
        visitor = shown.visitor()
        form = visitor.get("/sign-in")
        cookies = {"__Host-hlip-form": re.findall(r"__Host-hlip-form=([^;]+)", form.headers["Set-Cookie"])[0]}
        data = {"form_token": field(form.text, "form_token"), "name": "vera", "password": PASSWORD}
        answer = requests.post(
            f"{shown.base}/sign-in", data=data, cookies=cookies, timeout=30, allow_redirects=False,
            headers={"Origin": "https://hlip.example"},
        )  # fmt: skip
        assert answer.status_code == 303
        assert re.search(r"__Host-hlip=[^;]+; HttpOnly; Max-Age=43200; Path=/; SameSite=lax; Secure",
                         answer.headers["Set-Cookie"])  # fmt: skip
        assert answer.headers["Strict-Transport-Security"]


@pytest.mark.parametrize(
    ("peer", "told", "address"),
    [
        ("10.0.0.1", "6.6.6.6, 10.1.2.3", "10.1.2.3"),
        ("10.0.0.1", "fd00::1", "fd00::1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.1.1", "10.1.2.3", "10.0.1.1"),
    ],
)
def test_a_proxy_of_the_settings_tells_where_a_request_comes_from_and_nobody_else(
    peer: str, told: str, address: str
) -> None:
    headers = [(b"x-forwarded-for", told.encode())] if told else []
    request = Request({"type": "http", "client": (peer, 1), "headers": headers})
    assert address_of(request, WebSettings(trusted_proxies=("10.0.0.0/24",))) == address  # type: ignore[arg-type]


# ---- settings ----------------------------------------------------------------------------------------------------


def test_settings_that_would_let_strangers_in_are_refused() -> None:
    for wrong in ({"public_url": "https://hlip.example"}, {"host": "0.0.0.0"}, {"public_url": "hlip.example"}):
        with pytest.raises(ValidationError):
            WebSettings(**wrong)  # type: ignore[arg-type]
    WebSettings(public_url="https://hlip.example", stow=False)
    for wrong_oidc in ({"issuer": "https://x"}, {"issuer": "http://x", "client_id": "a"},
                       {"issuer": "https://x", "client_id": "a", "scopes": ["profile"]}):  # fmt: skip
        with pytest.raises(ValidationError):
            OidcSettings(**wrong_oidc)  # type: ignore[arg-type]
