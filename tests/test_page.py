"""The page in a real Chromium: the list moves by itself, a study shows its images, people say what they think of it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from pydicom import Dataset
from pydicom.uid import generate_uid

from peers import needs, wait_until
from plugin.index import assessments, worklist
from plugin.index.worklist import Attention, Filters
from plugin.web.app import create_app
from plugin.web.images import Kept
from plugin.web.server import serving
from plugin.web.timeline import picture
from road import Road, renamed, road, tiny_bundle
from series import head, series
from visitors import add_study, showing
from web import Web

CHROMIUM = ["--no-sandbox", "--disable-quic", "--disable-background-networking", "--disable-component-update"]
MARKUP = "<script>document.title.x()</script>^<b>Jane</b>"
MARKUP_TOO = '<img src=x onerror="document.title=1">'
SERIOUS = ("serious", "critical")
DRAWN = "document.getElementById('canvas')?.dataset.drawn"


@dataclass
class Site:
    """A running road with its page, and a browser before it."""

    road: Road
    server: Web
    browser: Any

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server.port}"

    def send(self, name: str, *, slices: int = 12, **elements: object) -> str:
        """A head CT by STOW-RS; its StudyInstanceUID."""
        images: Sequence[Dataset] = renamed(series(head(slices), **elements), name=name, number=2)
        assert self.server.store(images).status_code == 200
        return str(images[0].StudyInstanceUID)

    def reported(self, uid: str) -> None:
        wait_until(lambda: self._is_reported(uid) and self.road.is_idle(), "the report", 120)

    def _is_reported(self, uid: str) -> bool:
        row = worklist.row_of(self.road.plugin.database, uid)
        return row is not None and row.state == "reported"

    @contextmanager
    def tab(self, path: str) -> Iterator[Any]:
        """A page of the site; no error of a script is forgiven."""
        context = self.browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
        tab = context.new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda said: errors.append(said.text) if "Content Security Policy" in said.text else None)
        tab.set_default_timeout(60_000)
        tab.goto(self.base + path)
        try:
            yield tab
            assert errors == []
        finally:
            context.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = needs("chromium", "chromium")
    settings: dict[str, Any] = {
        "model": {"bundle": str(tiny_bundle())},
        "thresholds": {"intracranial_hemorrhage": -1.0},
        "results": {"key_images": False},
        "settle": {"series_quiet_seconds": 0.8, "study_quiet_seconds": 1.2},
        "web": {"port": 0, "viewer_url": "https://viewer.example/?study={StudyInstanceUID}"},
    }
    with (
        road(tmp_path_factory.mktemp("site"), **settings) as running,
        serving(create_app(running.plugin), running.plugin.settings.web) as server,
        playwright.sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=CHROMIUM)
        yield Site(running, Web(server.port, running.plugin.spool), browser)
        browser.close()


@pytest.fixture(scope="module")
def positive(site: Site) -> str:
    """A study with a critical finding, whose patient has markup for a name."""
    uid = site.send("positive", PatientName=MARKUP, StudyDescription=MARKUP_TOO)
    site.reported(uid)
    return uid


def shown(tab: Any) -> list[str]:
    """The studies of the list, from the top."""
    return tab.evaluate("[...document.querySelectorAll('.worklist tbody tr')].map(row => row.dataset.uid)")


def until(tab: Any, expression: str, seconds: float = 60) -> None:
    """Wait until it is true in the page; Playwright's own way to wait needs `eval`, which the page forbids."""
    wait_until(lambda: tab.evaluate(expression), expression, seconds)


def wait_for_drawing(tab: Any, what: str) -> None:
    """Wait until series/slice/window/overlay is on the canvas."""
    until(tab, f"{DRAWN} === {what!r}")


# ---- the worklist ------------------------------------------------------------------------------------------


def test_a_study_arrives_and_moves_up_the_list_live(site: Site, positive: str) -> None:
    database = site.road.plugin.database
    assessments.assess(database, positive, revision=1, person="someone", verdict="agree")
    waiting = "2.25.77"
    add_study(site.road.plugin, waiting, state="failed", seconds_ago=3000)
    with site.tab("/") as tab:
        until(tab, "document.getElementById('live').textContent === 'live'")
        assert shown(tab) == [waiting, positive]
        arriving = site.send("arriving")
        until(tab, "[...document.querySelectorAll('.worklist tbody tr')].length === 3")
        until(tab, f"document.querySelector('.worklist tbody tr').dataset.uid === {arriving!r}", 120)
        assert shown(tab) == [arriving, waiting, positive]
        row = tab.locator(f"tr[data-uid='{arriving}']")
        assert "Intracranial hemorrhage" in row.inner_text() and "critical" in row.inner_text()
        site.reported(arriving)


def test_a_name_full_of_markup_shows_as_text(site: Site, positive: str) -> None:
    with site.tab("/?days=") as tab:
        row = tab.locator(f"tr[data-uid='{positive}']")
        assert all(text in row.inner_text() for text in ("</script>, <b>Jane</b>", MARKUP_TOO))
        row.locator("a").first.click()
        tab.wait_for_selector("#study-head")
        head = tab.locator("#study-head")
        assert "<b>Jane</b>" in head.inner_text() and MARKUP_TOO in head.inner_text()
        assert tab.title() == "Study, hlip" and head.locator("img, b, script").count() == 0


def test_the_list_is_walked_by_keyboard(site: Site, positive: str) -> None:
    with site.tab("/?days=") as tab:
        uids = shown(tab)
        for key in ("j", "j", "k"):
            tab.keyboard.press(key)
        assert tab.locator("tr.selected").get_attribute("data-uid") == uids[0]
        tab.keyboard.press("/")
        assert tab.evaluate("document.activeElement.id") == "search"
        tab.keyboard.press("Escape")
        tab.keyboard.press("?")
        assert tab.locator("#help").is_visible()
        tab.keyboard.press("Escape")
        tab.keyboard.press("j")
        tab.keyboard.press("Enter")
        tab.wait_for_url(f"**/studies/{uids[1]}")


def test_the_list_is_narrowed_while_one_types(site: Site, positive: str) -> None:
    with site.tab("/?days=") as tab:
        tab.locator("#search").fill("onerror")
        until(tab, "document.querySelectorAll('.worklist tbody tr').length === 1")
        assert shown(tab) == [positive] and "q=onerror" in tab.url
        tab.reload()
        assert shown(tab) == [positive] and tab.locator("#search").input_value() == "onerror"
        tab.locator("select[name=kind]").select_option("refused")
        tab.wait_for_selector("#list .empty")


# ---- a study -----------------------------------------------------------------------------------------------


def test_the_key_slice_opens_with_where_the_model_looked_and_without(site: Site, positive: str) -> None:
    with site.tab(f"/studies/{positive}") as tab:
        until(tab, f"{DRAWN}?.endsWith('/brain/intracranial_hemorrhage')")
        assert "Intracranial hemorrhage" in tab.locator("[data-corner=br]").inner_text()
        with_look = canvas(tab)
        tab.keyboard.press("o")
        until(tab, f"{DRAWN}?.endsWith('/brain/')")
        assert (with_look != canvas(tab)).any()
        assert tab.locator("#overlay").get_attribute("aria-pressed") == "false"
        tab.locator("#overlay").click()
        until(tab, f"{DRAWN}?.endsWith('/intracranial_hemorrhage')")
        assert (with_look == canvas(tab)).all()


def canvas(tab: Any) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(tab.locator("#canvas").screenshot())).convert("RGB"), np.int16)


def test_slices_scroll_by_wheel_keys_and_slider_through_three_windows(site: Site, positive: str) -> None:
    with site.tab(f"/studies/{positive}") as tab:
        until(tab, DRAWN)
        tab.keyboard.press("o")
        tab.keyboard.press("Home")
        wait_for_drawing(tab, "2/0/brain/")
        tab.locator("#frame").hover()
        tab.mouse.wheel(0, 60)
        wait_for_drawing(tab, "2/1/brain/")
        tab.keyboard.press("ArrowDown")
        wait_for_drawing(tab, "2/2/brain/")
        seen = canvas(tab)
        tab.keyboard.press("3")
        wait_for_drawing(tab, "2/2/bone/")
        assert (seen != canvas(tab)).any()
        tab.locator("[data-view=blood]").click()
        wait_for_drawing(tab, "2/2/blood/")
        tab.locator("#slice").fill("7")
        wait_for_drawing(tab, "2/7/blood/")
        tab.keyboard.press("End")
        assert tab.locator("[data-corner=bl]").inner_text() == "slice 8 of 8"


def test_a_study_tells_its_scores_series_stages_and_report(site: Site, positive: str) -> None:
    with site.tab(f"/studies/{positive}") as tab:
        findings = tab.locator("#study-side").inner_text()
        assert "uncalibrated" in findings and "not a probability" in findings and "%" not in findings
        below = tab.locator("#study-below").inner_text()
        assert "prepare series 2" in below and "analyse" in below and "no destination set" in below
        tab.locator("#report-title ~ div summary").first.wait_for()
        assert "HLIP" in tab.locator(".report").inner_text()
        link = tab.locator("a[target=_blank]")
        assert link.get_attribute("href") == f"https://viewer.example/?study={positive}"


def test_a_person_agrees_with_a_comment_and_the_study_is_read(site: Site) -> None:
    uid = site.send("judged")
    site.reported(uid)
    with site.tab(f"/studies/{uid}") as tab:
        tab.locator("#comment").fill("seen on <b>slice</b> 3")
        tab.get_by_role("button", name="Disagree").click()
        tab.locator(".said-before").wait_for()
        assert "disagrees with revision 1: seen on <b>slice</b> 3" in tab.locator(".said-before").inner_text()
        tab.get_by_role("button", name="Agree", exact=True).click()
        until(tab, "document.querySelectorAll('.said-before li').length === 2")
        assert "agrees with revision 1" in tab.locator(".said-before li").first.inner_text()
        assert tab.locator("#comment").input_value() == ""
    row = worklist.row_of(site.road.plugin.database, uid)
    assert row is not None and row.attention is Attention.READ


def test_a_study_is_run_again_and_withdrawn_from_the_page(site: Site) -> None:
    uid = site.send("withdrawn")
    site.reported(uid)
    with site.tab(f"/studies/{uid}") as tab:
        tab.get_by_role("button", name="Run again").click()
        until(tab, "document.getElementById('said').textContent.includes('1 series')")
        wait_until(lambda: site.road.is_idle() and stages(site, uid)[-1] == "unchanged", "the second look")
        until(tab, "document.getElementById('study-below').textContent.includes('unchanged')")
        tab.get_by_role("button", name="Withdraw").click()
        tab.locator("#withdraw select").select_option("patient-safety")
        tab.locator("#withdraw button.danger").click()
        until(tab, "document.getElementById('study-side').textContent.includes('no longer hold')")
        assert "withdrawn" in tab.locator("#state").inner_text()
        assert tab.locator(".actions button.danger").is_disabled() and not tab.locator("#withdraw").is_visible()


def test_an_answer_is_said_though_its_button_was_replaced_meanwhile(site: Site) -> None:
    uid = site.send("replaced")
    site.reported(uid)
    with site.tab(f"/studies/{uid}") as tab:
        tab.evaluate("document.addEventListener('htmx:beforeSend', (event) => event.target.remove())")
        tab.get_by_role("button", name="Run again").click()
        until(tab, "document.getElementById('said').textContent.includes('1 series')", 10)
    wait_until(lambda: site.road.is_idle() and stages(site, uid)[-1] == "unchanged", "the second look")


def stages(site: Site, uid: str) -> list[str]:
    from plugin.index.overview import overview

    return [event["stage"] for event in overview(site.road.plugin.database, study_uids=[uid])["studies"][0]["timeline"]]


@pytest.mark.parametrize("path", ["/?days=", "/studies/{uid}"])
def test_axe_finds_no_serious_issue(site: Site, positive: str, path: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with site.tab(path.format(uid=positive)) as tab:
        tab.wait_for_timeout(1500)  # the stream stays open, so there is no moment without requests
        found = axe.Axe().run(tab).response["violations"]
        serious = [(issue["id"], issue["nodes"][0]["html"][:200]) for issue in found if issue["impact"] in SERIOUS]
        assert serious == []
        if folder := os.environ.get("HLIP_SCREENSHOTS"):
            tab.screenshot(path=Path(folder) / f"page{path.split('/')[1][:7]}.png")


# ---- without a browser -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/studies/2.25.404", "/studies/..%2f..%2fetc", "/studies/1.2.3%27--", "/studies/{uid}/series/x/brain/0.png",
     "/studies/{uid}/series/2.25.1/brain/0.png", "/studies/{uid}/series/{series}/brain/8.png",
     "/studies/{uid}/series/{series}/brain/-1.png", "/studies/{uid}/series/{series}/lung/0.png",
     "/studies/{uid}/series/{series}/looks/1/nothing/0.png",
     "/studies/{uid}/series/{series}/looks/2/intracranial_hemorrhage/0.png"],
)  # fmt: skip
def test_what_there_is_not_is_not_found(site: Site, positive: str, path: str) -> None:
    series_uid = generate_uid(entropy_srcs=["positive", "2"])
    address = site.base + path.format(uid=positive, series=series_uid)
    assert requests.get(address, timeout=30).status_code == 404


def test_pictures_are_kept_up_to_a_size() -> None:
    kept: Kept[bytes] = Kept(10, len)
    made: list[str] = []

    def make(name: str, size: int) -> bytes:
        return kept.get(name, lambda: made.append(name) or bytes(size))  # type: ignore[func-returns-value]

    for name, size in (("a", 4), ("b", 4), ("a", 4), ("c", 4), ("a", 4), ("b", 4), ("big", 11), ("a", 4)):
        make(name, size)
    assert made == ["a", "b", "c", "b", "big", "a"] and kept.bytes == 4


def test_what_is_positive_and_critical_leads_the_list_until_it_is_read_or_withdrawn(tmp_path: Path) -> None:
    with showing(tmp_path) as page:
        database = page.plugin.database
        old, new = add_study(page.plugin, "2.25.1", seconds_ago=900), add_study(page.plugin, "2.25.2", seconds_ago=60)
        add_study(page.plugin, "2.25.3", seconds_ago=2000, priority=80)

        def order(**filters: Any) -> list[str]:
            return [row.study_instance_uid[-1] for row in worklist.worklist(database, Filters(**filters)).rows]

        assert order() == ["1", "2", "3"]
        finding = {"label": "mass_effect", "positive": True, "critical": True}
        with database.write() as session:
            worklist.note_reported(session, new, [finding])
            worklist.note_reported(session, old, [{**finding, "positive": False}])
        assert order() == ["2", "1", "3"] and order(finding="mass_effect") == ["2"] == order(kind="critical")
        with database.write() as session:
            worklist.note_read(session, new)
        assert order() == ["1", "3", "2"] and order(kind="unread") == ["1", "3"]
        with database.write() as session:
            worklist.note_withdrawn(session, new)
        assert order() == ["1", "2", "3"] and order(finding="mass_effect") == []
        assert order(days=1 / 96) == ["2"] and order(text="2.25.3") == ["3"] and order(text="%") == []


def test_a_long_wait_in_a_timeline_is_cut_short() -> None:
    events = [("prepared", 12.0, 2.0), ("analysed", 20.0, 5.0), ("delivered", 7220.0, 1.0), ("delivered", 7222.0, 1.0)]
    study = {
        "first_image_at": 0.0,
        "last_image_at": 8.0,
        "series": [],
        "timeline": [
            {"stage": stage, "series_instance_uid": None, "at": at, "seconds": took} for stage, at, took in events
        ],
    }
    drawn = picture(study)
    assert drawn is not None
    assert [bar.name for bar in drawn.bars] == ["receive", "prepare", "analyse", "deliver (2 objects)"]
    assert len(drawn.cuts) == 1 and drawn.bars[2].x < drawn.cuts[0] < drawn.bars[3].x
    assert all(bar.width > 5 and bar.x + bar.width <= drawn.right + 1 for bar in drawn.bars)
