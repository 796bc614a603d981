"""Operations and the archive's search on the page: what they show, and in a real Chromium how they are used."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from peers import needs
from plugin.heartbeat import beating
from plugin.index import archive, heartbeats, operations
from plugin.index.database import clock
from plugin.index.heartbeats import Introduction, Worker
from plugin.index.tables import Study
from plugin.web import chart
from plugin.web.operations import quantile
from road import tiny_bundle
from searches import add_studies, random_vectors, tiny
from visitors import PASSWORD, Page, add_delivery, add_study, add_user, showing

MARKUP = '<img src=x onerror="window.owned=1"><script>window.owned=1</script>'
ESCAPED = "&lt;script&gt;window.owned=1"
DESTINATIONS = ({"name": "pacs", "url": "http://127.0.0.1:1/dicom-web"}, {"name": "spare", "url": "http://127.0.0.1:2"})
QUESTION = "acute subdural hematoma with midline shift"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of a site on a bad day: something of everything."""
    folder = tmp_path_factory.mktemp("operations")
    sections: dict[str, Any] = {
        "model": {"bundle": str(tiny_bundle())}, "destinations": DESTINATIONS,
        "audit": {"file": str(folder / "audit.log")},
    }  # fmt: skip
    with showing(folder, **sections) as shown:
        shown.plugin.bundle = tiny()
        fill(shown)
        yield shown


def fill(shown: Page) -> None:
    plugin = shown.plugin
    add_user(plugin, "vera", "viewer")
    add_user(plugin, "otto", "operator")
    for i in range(40):
        add_study(plugin, f"1.3.{i}", seconds_ago=i * 2000 + 500, took=20 + 3 * i)
    for i in range(12):
        add_study(plugin, f"1.4.{i}", priority=80, seconds_ago=i * 3000 + 500)
    add_study(plugin, "1.5.1", state="ready", priority=10, seconds_ago=90)
    add_study(plugin, "1.5.2", state="ready", priority=50, seconds_ago=30)
    add_study(plugin, "1.5.3", state="ready", priority=300, seconds_ago=30)
    add_study(plugin, "1.6.1", state="failed", reason="crashed", study_description=f"CT {MARKUP}", detail=MARKUP)
    add_study(plugin, "1.6.2", state="refused", reason="too_few_slices", study_date="20261124")
    refused = add_study(plugin, "1.6.3", study_description="CT HEAD")
    add_delivery(plugin, refused, destination="pacs", state="refused", detail=f"409 {MARKUP}", attempts=1)
    waiting = add_study(plugin, "1.6.4")
    add_delivery(plugin, waiting, destination="pacs", state="waiting", attempts=3, detail="connection refused")
    delivered = add_study(plugin, "1.6.5")
    add_delivery(plugin, delivered, destination="spare", state="delivered", delivered_at=1.8e9)
    for name, queues, device in (("ct1-10-1", ("prepare",), ""), ("gpu1-20-1", ("analyse",), "cuda, Card 9000"),
                                 ("ct2-30-1", ("prepare",), ""), (f"{MARKUP}-1-1", ("deliver",), "")):  # fmt: skip
        heartbeats.beat(plugin.database, Introduction(name, queues, device=device, model="tiny (trained)"))
    with plugin.database.write() as session:
        session.execute(update(Worker).where(Worker.name == "ct1-10-1").values(seen_at=clock() - 300))
    heartbeats.stopped(plugin.database, "ct2-30-1")
    scan = archive.open_scan(plugin.database, "2019", {"modality": "CT"}, store=False, keep_instances=False,
                             keep_prepared=False, options={})  # fmt: skip
    archive.plan(plugin.database, scan.id, [(f"1.7.{i}", 40) for i in range(30)])
    add_studies(plugin, random_vectors(30), rows=[{"study_description": f"CT {MARKUP}"}] + [{}] * 29)


# ---- what it shows -----------------------------------------------------------------------------------------------


def test_queues_are_counted_by_urgency(page: Page) -> None:
    depths = {depth.queue: depth for depth in operations.depths(page.plugin.database)}
    assert depths["analyse"].waiting == {"triage": 1, "routine": 1, "archive": 1}
    assert 85 < (depths["analyse"].oldest_seconds or 0) < 400
    assert depths["prepare"].waiting == {} and depths["prepare"].oldest_seconds is None
    assert depths["deliver"].waiting == {"triage": 1} and depths["deliver"].busy == 0


def test_a_worker_that_was_not_heard_of_is_not_taken_for_alive(page: Page) -> None:
    heartbeats.beat(page.plugin.database, Introduction("gpu1-20-1", ("analyse",)))
    state = {worker.name: (worker.is_alive, worker.stopped) for worker in heartbeats.workers(page.plugin.database)}
    assert state["gpu1-20-1"] == (True, False)
    assert state["ct1-10-1"] == (False, False)
    assert state["ct2-30-1"] == (False, True)
    shown = page.signed_in("vera").get("/operations").text
    assert "cuda, Card 9000" in shown and "silent for" in shown


def test_a_worker_beats_while_it_works_and_says_when_it_ends(page: Page) -> None:
    def ours() -> heartbeats.WorkerView:
        (worker,) = [each for each in heartbeats.workers(page.plugin.database) if each.queues == ("prepare", "signal")]
        return worker

    with beating(page.plugin, ("prepare", "signal"), seconds=0.02):
        while True:
            try:
                first = ours()
                break
            except ValueError:
                continue
        assert first.is_alive and first.model == "tiny (trained)" and str(os.getpid()) in first.name
    assert ours().stopped


def test_the_pace_of_the_day_is_by_hour_and_the_archive_apart(page: Page) -> None:
    pace = operations.pace(page.plugin.database)
    assert (sum(pace.clinic), sum(pace.archive)) == (43, 12)
    assert len(pace.clinic) == 24 and pace.clinic[-1] >= 3
    day = sorted(seconds for hour in pace.latencies for seconds in hour)
    assert len(day) == 43 and day[0] == pytest.approx(20, abs=0.01)
    assert (quantile(day, 0.5), quantile([], 0.5), quantile([7.0], 0.95)) == (day[21], None, 7.0)


def test_charts_stay_within_their_frame() -> None:
    bars = chart.stacked_bars(1e9, {"clinic": [0, 3, 7], "archive": [1, 0, 5]})
    assert len(bars.bars) == 4
    assert all(bar.y >= 0 and bar.y + bar.height <= chart.HEIGHT - chart.BOTTOM + 0.1 for bar in bars.bars)
    lines = chart.hourly_lines(1e9, {"median": [1.0, None, 3.0, 400.0]})
    assert lines.lines[0].path.count("M") == 2 and lines.y_ticks[-1].says == "8 min"
    assert chart.top_of(0) == 1 and chart.top_of(7) == 8 and chart.top_of(0.03) == pytest.approx(0.04)
    empty = chart.stacked_bars(1e9, {"clinic": [0] * 24, "archive": [0] * 24})
    assert not empty.bars and empty.y_ticks[-1].says == "2"


def test_destinations_say_how_they_do(page: Page) -> None:
    pacs, spare = operations.health(page.plugin.database, ["pacs", "spare"])
    assert (pacs.failing, pacs.counts, pacs.is_well, pacs.last_success_at) == (
        1, {"waiting": 1, "refused": 1}, False, None,
    )  # fmt: skip
    assert spare.is_well and spare.last_success_at == 1.8e9


def test_what_did_not_work_is_listed_with_its_reason(page: Page) -> None:
    text = page.signed_in("vera").get("/operations").text
    assert "Failed studies <small>1</small>" in text and "/studies/1.6.1" in text
    assert "<code>too_few_slices</code>" in text and "2026-11-24" in text
    assert "409 " in text and "30 planned" in text


def test_markup_stays_text(page: Page) -> None:
    """From descriptions, errors of a destination, names of hosts, questions."""
    visitor = page.signed_in("otto")
    for path in ("/operations", f"/archive?words={MARKUP}&station={MARKUP}&like=%22%3E{MARKUP}"):
        text = visitor.get(path).text
        assert "<script>window" not in text and "<img src=x" not in text and ESCAPED in text


def test_a_part_with_buttons_is_left_alone_while_nothing_changes(page: Page) -> None:
    from visitors import field

    visitor = page.signed_in("otto")
    seen = field(visitor.get("/operations/part/troubles").text, "seen")
    assert visitor.get("/operations/part/troubles", params={"seen": seen}).status_code == 204
    assert visitor.get("/operations/part/troubles", params={"seen": "other"}).status_code == 200
    assert visitor.get("/operations/part/nothing").status_code == 404


def test_a_retry_of_all_names_each_study_in_the_audit_trail(tmp_path: Path) -> None:
    with showing(tmp_path, audit={"file": str(tmp_path / "audit.log")}) as shown:
        add_user(shown.plugin, "otto", "operator")
        add_study(shown.plugin, "1.6.1", state="failed", reason="crashed")
        add_delivery(shown.plugin, add_study(shown.plugin, "1.6.3"), destination="pacs", state="refused", detail="409")
        visitor = shown.signed_in("otto")
        answer = visitor.post("/operations/retry", data={"csrf_token": visitor.csrf})
        assert answer.headers["Location"].startswith("/operations?series=0&studies=1&deliveries=1")
        assert "1 study, 1 delivery" in visitor.get(answer.headers["Location"]).text
        trail = (tmp_path / "audit.log").read_text()
        assert trail.count("Take up again") == 2 and "1.6.1" in trail and "1.6.3" in trail


# ---- the archive -------------------------------------------------------------------------------------------------


def test_words_find_studies_and_the_question_is_in_the_audit_trail(page: Page) -> None:
    visitor = page.signed_in("vera")
    text = visitor.get("/archive", params={"words": QUESTION, "until": "2026-06-01"}).text
    assert "24 of 30 studies" in text and "not for diagnosis" in text and 'href="/studies/1.2.' in text
    assert "Query" in Path(page.plugin.settings.audit.file).read_text()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"words": "x", "since": "yesterday"}, "2026-01-31"),
        ({"like": "1.2.999"}, "analysed no study"),
        ({"finding": "no_such_finding"}, "no_such_finding"),
        ({"words": "x" * 2001}, "2000 characters"),
        ({"words": "x", "like": "1.2.3"}, "not both"),
    ],
)
def test_a_question_that_cannot_be_answered_is_explained(page: Page, asked: dict[str, str], says: str) -> None:
    answer = page.signed_in("vera").get("/archive", params=asked)
    assert answer.status_code == 200 and says in answer.text


@pytest.mark.parametrize("uid", ["1.2.3", "..%2F..%2Fetc", "1.2..3", "%00"])
def test_a_picture_that_there_is_not_is_not_found(page: Page, uid: str) -> None:
    assert page.signed_in("vera").get(f"/archive/picture/{uid}.png").status_code == 404


# ---- in a browser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = needs("chromium", "chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, headless=True, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def tab(chromium: Any, page: Page, *, complaints: tuple[str, ...] = ()) -> Iterator[Any]:
    """A tab of a new browser profile; whatever its console complains of afterwards must be one of `complaints`."""
    context = chromium.new_context(base_url=page.base, viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(60_000)
    opened = context.new_page()
    said: list[str] = []
    opened.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: said.append(str(error)))
    try:
        yield opened
        wrong = [text for text in said if not any(allowed in text for allowed in complaints)]
        assert wrong == []
        assert opened.evaluate("window.owned") is None
    finally:
        context.close()


def sign_in(opened: Any, name: str) -> None:
    opened.fill("input[name=name]", name)
    opened.fill("input[name=password]", PASSWORD)
    opened.click("button:has-text('Sign in')")


def shoot(opened: Any, name: str, folder: Path) -> None:
    shots = Path(os.environ.get("HLIP_SCREENSHOTS", folder))
    shots.mkdir(parents=True, exist_ok=True)
    opened.screenshot(path=shots / f"{name}.png", full_page=True)


def assert_accessible(opened: Any) -> None:
    """axe-core finds nothing that is serious."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    found = axe.run(opened).response["violations"]
    serious = [(each["id"], [node["html"][:120] for node in each["nodes"]]) for each in found
               if each["impact"] in ("serious", "critical")]  # fmt: skip
    assert serious == []


def test_a_viewer_signs_in_and_sees_but_cannot_act(chromium: Any, page: Page, tmp_path: Path) -> None:
    with tab(chromium, page, complaints=("401", "403")) as opened:
        opened.goto("/operations")
        assert opened.url.endswith("/sign-in?next=/operations")
        assert_accessible(opened)
        shoot(opened, "sign-in", tmp_path)
        opened.fill("input[name=name]", "vera")
        opened.fill("input[name=password]", "a wrong guess")
        opened.click("button:has-text('Sign in')")
        opened.wait_for_selector("[role=alert]")
        assert opened.input_value("input[name=name]") == "vera"
        shoot(opened, "sign-in refused", tmp_path)
        sign_in(opened, "vera")
        opened.wait_for_url("**/operations")
        assert opened.locator("button:has-text('Retry')").count() == 0
        assert_accessible(opened)
        status = opened.evaluate(
            """async () => (await fetch('/operations/retry', {method: 'POST', headers: {
                 'X-CSRF-Token': document.querySelector('meta[name=csrf-token]').content}})).status"""
        )
        assert status == 403
        opened.click("button:has-text('Sign out')")
        opened.wait_for_url("**/sign-in")
        opened.goto("/operations")
        assert "/sign-in" in opened.url


def test_an_operator_takes_up_again_what_failed(chromium: Any, page: Page, tmp_path: Path) -> None:
    with tab(chromium, page) as opened:
        opened.goto("/sign-in?next=/operations")
        sign_in(opened, "otto")
        opened.wait_for_url("**/operations")
        assert_accessible(opened)
        shoot(opened, "operations", tmp_path)
        opened.get_by_role("button", name="Retry study 1.6.1").click()
        opened.wait_for_selector(".done")
        assert "1 study" in opened.inner_text(".done")
        assert opened.get_by_role("button", name="Retry study 1.6.1").count() == 0
        with page.plugin.database.write() as session:
            assert session.query(Study).filter_by(study_instance_uid="1.6.1").one().state == "receiving"
            session.execute(
                update(Study).where(Study.study_instance_uid == "1.6.1").values(state="failed", reason="crashed")
            )


def test_words_are_asked_and_similar_studies_follow(chromium: Any, page: Page, tmp_path: Path) -> None:
    with tab(chromium, page) as opened:
        opened.goto("/sign-in?next=/archive")
        sign_in(opened, "vera")
        opened.wait_for_url("**/archive")
        opened.fill("input[name=words]", QUESTION)
        opened.press("input[name=words]", "Enter")
        opened.wait_for_selector(".hit-table tbody tr")
        assert opened.locator(".hit-table tbody tr").count() == 24
        assert "words=acute" in opened.url
        assert_accessible(opened)
        shoot(opened, "archive", tmp_path)
        opened.locator("a:has-text('Similar')").first.click()
        opened.wait_for_url("**/archive?like=*")
        assert opened.locator(".hit-table tbody tr").count() == 24
        opened.fill("input[name=finding]", "no_such_finding")
        opened.press("input[name=finding]", "Enter")
        opened.wait_for_selector("#hits [role=alert]")
