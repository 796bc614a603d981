"""Who may see and do what on the page: sign-in, sessions, rights, CSRF, headers, the audit trail."""

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock
from xml.etree import ElementTree as ET

import pytest
import requests
import structlog
from fastapi.routing import APIRoute
from pydantic import ValidationError
from sqlalchemy import select, update
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Mount, Route
from starlette.types import Message, Receive, Scope, Send
from typer.testing import CliRunner

import provider as oidc
from plugin import cli, passwords
from plugin.index import people
from plugin.index.database import Database, clock
from plugin.index.people import FailedSignIn, WebSession
from plugin.settings import OidcSettings, WebSettings
from plugin.web import access, throttle
from plugin.web.app import ROUTERS, create_app
from plugin.web.guard import Guard
from plugin.web.origin import address_of
from plugin.web.watched import watched_viewer
from test_audit import check, event, parsed
from visitors import PASSWORD, Page, Visitor, add_study, add_user, field, showing

STUDY = "1.2.3"
RETRY = "/operations/retry"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page with a viewer, an operator, and a study; what happens is in its audit trail."""
    folder = tmp_path_factory.mktemp("page")
    with showing(folder, audit={"file": str(folder / "audit.log"), "patient_ids": True}) as shown:
        add_user(shown.plugin, "vera", "viewer")
        add_user(shown.plugin, "otto", "operator")
        add_study(shown.plugin, STUDY, patient_id="4711", patient_name="Canary^Jane")
        yield shown


@pytest.fixture(autouse=True)
def no_guesses(page: Page) -> None:
    """No test pays for the wrong guesses of another."""
    with page.plugin.database.write() as session:
        session.query(FailedSignIn).delete()


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page without users, for this machine alone."""
    with showing(tmp_path_factory.mktemp("open")) as shown:
        yield shown


def trail(page: Page) -> list[ET.Element]:
    return [parsed(line) for line in Path(page.plugin.settings.audit.file).read_bytes().splitlines()]


def person_of(message: ET.Element) -> dict[str, str]:
    participant = message.find("ActiveParticipant")
    assert participant is not None
    return participant.attrib


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


# ---- signing in --------------------------------------------------------------------------------------------------


def test_who_is_not_signed_in_sees_no_page(page: Page) -> None:
    visitor = page.visitor()
    assert visitor.get("/operations?x=1").headers["Location"] == "/sign-in?next=/operations%3Fx%3D1"
    part = visitor.get(
        "/operations/part/state", headers={"HX-Request": "true", "HX-Current-URL": f"{page.base}/operations"}
    )
    assert (part.status_code, part.headers["HX-Redirect"]) == (401, "/sign-in?next=/operations")
    program = visitor.get("/operations", headers={"Accept": "application/json"})
    assert (program.status_code, program.json()) == (401, {"status": "not signed in"})
    assert "Canary" not in visitor.get("/sign-in").text


def test_a_session_is_a_cookie_that_no_script_reads_and_of_which_the_index_has_the_digest_alone(page: Page) -> None:
    visitor = page.visitor()
    answer = visitor.sign_in("vera", to="/operations")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/operations")
    (line,) = [line for line in answer.raw.headers.getlist("Set-Cookie") if line.startswith("hlip=")]
    assert "HttpOnly" in line and "SameSite=lax" in line and "Secure" not in line
    token = visitor.cookies["hlip"]
    assert visitor.get("/operations").status_code == 200
    with page.plugin.database.read() as session:
        digests = list(session.scalars(select(WebSession.token_digest)))
    assert hashlib.sha256(token.encode()).hexdigest() in digests and token not in digests


def test_a_wrong_password_and_a_name_that_there_is_not_are_answered_alike(page: Page) -> None:
    answers = [page.visitor().sign_in(name, password) for name, password in (("vera", "wrong"), ("nobody", PASSWORD))]
    assert [answer.status_code for answer in answers] == [401, 401]
    shown = [re.sub(r'value="[^"]*"', "", answer.text) for answer in answers]
    assert shown[0] == shown[1] and "hlip" not in answers[0].cookies


def test_guesses_are_slowed_down_and_the_right_one_too_until_the_wait_is_over(page: Page) -> None:
    visitor = page.visitor()
    for _ in range(throttle.FREE["name"]):
        assert throttle.try_now(page.plugin.database, {"name": "name vera"}) == 0
    answer = visitor.sign_in("vera")
    assert answer.status_code == 429 and 1 <= int(answer.headers["Retry-After"]) <= 2
    assert page.visitor().sign_in("otto").status_code == 303
    with page.plugin.database.write() as session:
        session.execute(update(FailedSignIn).values(last_at=clock() - 61))
    assert visitor.sign_in("vera").status_code == 303
    assert people.failures(page.plugin.database, "name vera")[0] == 0


def test_no_wait_is_so_long_that_a_stranger_keeps_a_user_out(page: Page) -> None:
    keys = throttle.keys("vera", "127.0.0.1")
    for _ in range(40):
        people.count_guess(page.plugin.database, {key: lambda count: 0 for key in keys.values()})
    assert 55 < throttle.try_now(page.plugin.database, keys) <= throttle.LONGEST_WAIT_SECONDS


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_of_guesses_at_the_same_time_each_counts(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    sqlite = f"sqlite:///{tmp_path / 'index.sqlite'}"
    database = Database(sqlite if kind == "sqlite" else request.getfixturevalue("new_database"), lock=tmp_path / "lock")
    database.upgrade()
    keys = throttle.keys("vera", "127.0.0.1")
    with ThreadPoolExecutor(8) as threads:
        waits = list(threads.map(lambda _: throttle.try_now(database, keys), range(20)))
    assert sum(wait == 0 for wait in waits) == throttle.FREE["name"]
    throttle.was_right(database, keys)
    assert [people.failures(database, key)[0] for key in keys.values()] == [0, throttle.FREE["name"] - 1]
    database.close()


def test_a_session_that_someone_else_chose_is_never_taken_over(page: Page) -> None:
    visitor = page.visitor()
    visitor.cookies.set("hlip", "chosen-by-someone-else", domain="127.0.0.1", path="/")
    visitor.sign_in("vera")
    fixed = requests.get(f"{page.base}/operations", cookies={"hlip": "chosen-by-someone-else"}, timeout=30)
    assert fixed.status_code == 401
    (token,) = {cookie.value for cookie in visitor.cookies if cookie.name == "hlip"} - {"chosen-by-someone-else"}
    assert requests.get(f"{page.base}/operations", cookies={"hlip": str(token)}, timeout=30).status_code == 200


def test_a_new_sign_in_ends_the_session_before(page: Page) -> None:
    visitor = page.signed_in("vera")
    before = visitor.cookies["hlip"]
    visitor.cookies.set("hlip-form", "x")
    assert visitor.get("/sign-in").status_code == 303  # signed in already
    old = Visitor(page.base)
    old.cookies.set("hlip", before)
    assert old.post("/sign-out", headers={"X-CSRF-Token": old.csrf}).status_code == 303
    again = Visitor(page.base)
    again.cookies.set("hlip", before)
    assert again.get("/operations").status_code == 303


def test_a_sign_out_ends_the_session_for_good(page: Page) -> None:
    visitor = page.signed_in("vera")
    kept = visitor.cookies["hlip"]
    assert visitor.post("/sign-out", data={"csrf_token": visitor.csrf}).headers["Location"] == "/sign-in"
    assert "hlip" not in visitor.cookies
    again = page.visitor()
    again.cookies.set("hlip", kept)
    assert again.get("/operations").status_code == 303


@pytest.mark.parametrize("column", [{"seen_at": 31 * 60}, {"ends_at": 1}], ids=["idle", "old"])
def test_a_session_ends_when_it_is_idle_or_old(page: Page, column: dict[str, float]) -> None:
    visitor = page.signed_in("vera")
    token = hashlib.sha256(visitor.cookies["hlip"].encode()).hexdigest()
    with page.plugin.database.write() as session:
        past = {name: clock() - seconds for name, seconds in column.items()}
        session.execute(update(WebSession).where(WebSession.token_digest == token).values(past))
    assert visitor.get("/operations").status_code == 303


def test_what_the_page_asks_for_by_itself_keeps_no_session_from_going_idle(page: Page) -> None:
    visitor = page.signed_in("vera")
    token = hashlib.sha256(visitor.cookies["hlip"].encode()).hexdigest()

    def idle_seconds() -> float:
        with page.plugin.database.read() as session:
            return session.scalar(select(clock() - WebSession.seen_at).where(WebSession.token_digest == token)) or 0

    with page.plugin.database.write() as session:
        session.execute(update(WebSession).where(WebSession.token_digest == token).values(seen_at=clock() - 600))
    assert visitor.get("/operations/part/state", headers={"X-Live": "1"}).status_code == 200
    assert idle_seconds() > 590
    visitor.get("/operations")
    assert idle_seconds() < 60


def test_what_is_changed_of_a_user_counts_at_once(page: Page) -> None:
    database = page.plugin.database
    add_user(page.plugin, "willy", "viewer")
    visitor = page.signed_in("willy")
    token = {"X-CSRF-Token": visitor.csrf}
    assert visitor.post(RETRY, headers=token).status_code == 403
    people.set_role(database, "willy", "operator")
    assert visitor.post(RETRY, headers=token).status_code == 303
    people.set_password(database, "willy", passwords.hash_password("another long password"))
    assert visitor.get("/operations").status_code == 303
    again = page.visitor()
    assert again.sign_in("willy", "another long password").status_code == 303
    people.remove_user(database, "willy")
    assert again.get("/operations").status_code == 303


@pytest.mark.parametrize(
    "to",
    ["https://evil.example/", "//evil.example/", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)", "evil",
     "/a\r\nSet-Cookie: x=1", "/%0d%0a", " /", "/x//evil.example", "https:/evil.example", "///evil.example"],
)  # fmt: skip
def test_after_a_sign_in_nobody_is_led_to_another_site(page: Page, to: str) -> None:
    location = page.visitor().sign_in("vera", to=to).headers["Location"]
    assert re.fullmatch(r"/([\w%][\w/?=&%.-]*)?", location), location
    assert page.signed_in("vera").get("/sign-in", params={"next": to}).headers["Location"] == location


def test_markup_in_a_name_shows_as_text(page: Page) -> None:
    answer = page.visitor().sign_in('"><script>alert(1)</script>', "wrong")
    assert answer.status_code == 401
    assert "<script>alert" not in answer.text and "&lt;script&gt;" in answer.text


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


def test_behind_a_proxy_people_are_audited_and_slowed_down_by_their_own_address(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    web = {"trusted_proxies": ["127.0.0.1"], "public_url": "http://127.0.0.1", "stow": False}
    with showing(tmp_path, web=web, audit={"file": str(file)}) as behind:
        add_user(behind.plugin, "vera", "viewer")
        visitor = behind.visitor()
        visitor.headers["X-Forwarded-For"] = "10.1.2.3"
        assert visitor.sign_in("vera", "wrong").status_code == 401
        assert people.failures(behind.plugin.database, "address 10.1.2.3")[0] == 1
    assert person_of(parsed(file.read_bytes().splitlines()[0]))["NetworkAccessPointID"] == "10.1.2.3"


# ---- the audit trail ---------------------------------------------------------------------------------------------


def test_who_did_what_is_in_the_audit_trail(page: Page) -> None:
    before = len(trail(page))
    page.visitor().sign_in("vera", "wrong")
    operator = page.signed_in("otto")
    operator.post(RETRY, data={"csrf_token": operator.csrf, "study_uid": STUDY})
    operator.post("/sign-out", data={"csrf_token": operator.csrf})
    failed, signed_in, retried, signed_out = trail(page)[before:]
    for message in (failed, signed_in, retried, signed_out):
        check(message)
    events = [event(message) for message in (failed, signed_in, retried, signed_out)]
    assert events == [
        "User Authentication Login", "User Authentication Login", "DICOM Instances Accessed Take up again",
        "User Authentication Logout",
    ]  # fmt: skip
    outcome = failed.find("EventIdentification")
    assert outcome is not None and outcome.attrib["EventOutcomeIndicator"] == "4"
    assert person_of(retried) == {
        "UserID": "otto", "UserIsRequestor": "true", "NetworkAccessPointID": "127.0.0.1",
        "NetworkAccessPointTypeCode": "2",
    }  # fmt: skip
    objects = [each.attrib["ParticipantObjectID"] for each in retried.findall("ParticipantObjectIdentification")]
    assert objects == [STUDY, "4711"]


def test_a_view_that_the_trail_could_not_keep_is_told_the_next_time(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_user(page.plugin, "victor", "viewer")
    visitor = page.signed_in("victor")

    def views() -> int:
        return sum(event(message).startswith("DICOM Instances Accessed") for message in trail(page)[before:])

    before = len(trail(page))
    with monkeypatch.context() as failing:
        failing.setattr("plugin.audit.append", Mock(side_effect=OSError(28, "full"), __name__="append"))
        visitor.get("/worklist")
    visitor.get("/worklist")
    first = views()
    visitor.get("/worklist")
    assert views() == first > 0
    people.remove_user(page.plugin.database, "victor")


def test_a_list_names_a_study_to_the_same_person_once_in_a_while() -> None:
    from plugin.audit_message import Actor
    from plugin.web.seen import Seen

    seen = Seen()
    assert seen.new(Actor("vera"), ["1.1", "1.2"]) == ["1.1", "1.2"]
    seen.mark(Actor("vera"), "1.2")
    assert seen.new(Actor("vera"), ["1.1", "1.2"]) == ["1.1"]
    assert seen.new(Actor("vera"), ["1.2", "1.3"]) == ["1.3"]
    assert seen.new(Actor("otto"), ["1.2"]) == ["1.2"]


# ---- users by command --------------------------------------------------------------------------------------------


def hlip(page: Page, *arguments: str, given: str = "") -> tuple[int, str]:
    """A command in this process, and what it said, an error's text included."""
    environment = {"HLIP_SPOOL__FOLDER": str(page.plugin.spool.folder), "HLIP_CONFIG": ""}
    done = CliRunner().invoke(cli.app, ["user", *arguments], input=given, env=environment)
    structlog.reset_defaults()  # a command's log went to an error stream that is closed now
    return done.exit_code, done.output + (str(done.exception) if done.exception else "")


def test_users_are_added_listed_changed_and_removed_by_command(page: Page) -> None:
    assert hlip(page, "add", "grace", "--role", "operator", given=f"{PASSWORD}\n") == (
        0,
        "grace may sign in as operator.\n",
    )
    assert page.visitor().sign_in("grace").status_code == 303
    assert re.search(r"grace\W+operator\W+[\d: -]+\W+1\W", hlip(page, "list")[1])
    assert hlip(page, "role", "grace", "viewer")[0] == 0
    assert hlip(page, "password", "grace", given="a quite different one\n")[0] == 0
    assert page.visitor().sign_in("grace", "a quite different one").status_code == 303
    assert hlip(page, "remove", "grace")[0] == 0
    assert page.visitor().sign_in("grace", "a quite different one").status_code == 401


@pytest.mark.parametrize(
    ("arguments", "given", "says"),
    [
        (("add", "short"), "secret\n", "12 characters"),
        (("add", "empty"), "", "12 characters"),
        (("add", "longname"), "longname longname\n", "easy to guess"),
        (("add", "vera"), f"{PASSWORD}\n", "already"),
        (("add", "a b"), f"{PASSWORD}\n", "letters, digits"),
        (("remove", "nobody"), "", "no user nobody"),
        (("password", "nobody"), f"{PASSWORD}\n", "no user nobody"),
        (("role", "nobody", "viewer"), "", "no user nobody"),
    ],
)
def test_a_mistake_with_users_is_explained(page: Page, arguments: tuple[str, ...], given: str, says: str) -> None:
    code, said = hlip(page, *arguments, given=given)
    assert code != 0 and says in said


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


# ---- by a provider -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keycloak() -> Iterator[oidc.Provider]:
    with oidc.provider() as made:
        yield made


@pytest.fixture(scope="module")
def sso_page(keycloak: oidc.Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("sso")
    settings = {
        "issuer": keycloak.issuer, "client_id": oidc.CLIENT_ID, "client_secret": oidc.CLIENT_SECRET,
        "role_claim": "realm.roles",
    }  # fmt: skip
    with showing(folder, oidc=settings, audit={"file": str(folder / "audit.log")}) as shown:
        yield shown


@pytest.fixture(autouse=True)
def well_behaved(request: pytest.FixtureRequest) -> None:
    if "keycloak" in request.fixturenames:
        keycloak = request.getfixturevalue("keycloak")
        keycloak.wrong = ""
        keycloak.claims = {"preferred_username": "Grète Müller", "realm": {"roles": ["cook", "hlip-viewer"]}}


def through(visitor: Visitor, to: str = "/operations") -> requests.Response:
    """The way of a browser to the provider and back: the answer of the callback."""
    going = visitor.get("/sign-in/provider", params={"next": to})
    if going.status_code != 303:
        return going
    at_provider = requests.get(going.headers["Location"], allow_redirects=False, timeout=30)
    return visitor.get(at_provider.headers["Location"])


def test_the_provider_signs_people_in_with_the_role_that_it_names(keycloak: oidc.Provider, sso_page: Page) -> None:
    visitor = sso_page.visitor()
    assert "Single sign-on" in visitor.get("/sign-in").text and 'name="password"' not in visitor.get("/sign-in").text
    answer = through(visitor)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/operations")
    shown = visitor.get("/operations").text
    assert "Grète Müller" in shown and "viewer" in shown
    assert visitor.post(RETRY, headers={"X-CSRF-Token": visitor.csrf}).status_code == 403
    assert person_of(trail(sso_page)[-1])["UserID"] == "Grète Müller"
    keycloak.claims["realm"] = {"roles": "hlip-operator"}
    other = sso_page.visitor()
    through(other)
    assert other.post(RETRY, headers={"X-CSRF-Token": other.csrf}).status_code == 303


@pytest.mark.parametrize("wrong", oidc.WRONG)
def test_a_provider_or_a_forger_that_says_something_wrong_lets_nobody_in(
    keycloak: oidc.Provider, sso_page: Page, wrong: str
) -> None:
    fresh = create_app(sso_page.plugin).state  # nothing of the discovery is kept from before
    assert not hasattr(fresh, "provider")
    keycloak.wrong = wrong
    with showing_again(sso_page) as shown:
        visitor = shown.visitor()
        answer = through(visitor)
        assert answer.status_code in (403, 503) and "hlip" not in visitor.cookies
        assert visitor.get("/operations").status_code == 303


def showing_again(page: Page) -> Any:
    """The same index, served by another process, as it were."""
    from contextlib import contextmanager

    from plugin.web.server import serving

    @contextmanager
    def serve() -> Iterator[Page]:
        with serving(create_app(page.plugin), page.plugin.settings.web) as server:
            yield Page(page.plugin, server.port)

    return serve()


def test_a_code_counts_only_for_the_browser_that_asked_and_only_once(keycloak: oidc.Provider, sso_page: Page) -> None:
    victim, attacker = sso_page.visitor(), sso_page.visitor()
    going = attacker.get("/sign-in/provider").headers["Location"]
    back = requests.get(going, allow_redirects=False, timeout=30).headers["Location"]
    victim.get("/sign-in/provider")
    assert victim.get(back).status_code == 403  # the attacker's code, in the victim's browser
    assert attacker.get(back).status_code == 303
    replay = sso_page.visitor()
    assert replay.get(back).status_code == 403


def test_a_provider_that_changes_its_keys_is_asked_for_the_new_ones(
    keycloak: oidc.Provider, sso_page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plugin.web import oidc as ours

    assert through(sso_page.visitor()).status_code == 303
    keycloak.new_key("2")
    monkeypatch.setattr(ours, "KEYS_AGAIN_SECONDS", 0.0)
    assert through(sso_page.visitor()).status_code == 303


def test_a_claim_that_is_no_list_of_texts_gives_no_role(keycloak: oidc.Provider, sso_page: Page) -> None:
    for roles in (None, 7, {"hlip-operator": 1}, [["hlip-operator"]], []):
        keycloak.claims["realm"] = {"roles": roles}
        assert through(sso_page.visitor()).status_code == 403, json.dumps(roles)
    keycloak.claims["realm"] = "hlip-operator"
    assert through(sso_page.visitor()).status_code == 403
