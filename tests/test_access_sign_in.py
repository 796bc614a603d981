"""Signing in to the page with a name and a password, how long a session lasts, and users by command."""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import structlog
from sqlalchemy import select, update
from typer.testing import CliRunner

from plugin import cli, passwords
from plugin.index import people
from plugin.index.database import Database, clock
from plugin.index.people import FailedSignIn, WebSession
from plugin.web import throttle
from visitors import PASSWORD, RETRY, Page, Visitor, add_user, forget_guesses, peopled


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with peopled(tmp_path_factory.mktemp("page")) as shown:
        yield shown


@pytest.fixture(autouse=True)
def no_guesses(page: Page) -> None:
    forget_guesses(page)


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
