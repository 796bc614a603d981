"""Scanning an archive: whatever a PACS does, every study is found once, fetched whole, and ends with a reason."""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid
from sqlalchemy import select

from hostile_pacs import Request, pacs, part10
from plugin.archive import report as reports
from plugin.archive import scan as scans
from plugin.archive.dicomweb import Dicomweb, retry_after
from plugin.archive.listing import Ask, Listing
from plugin.archive.pace import Pace, closed_until
from plugin.archive.scan import End, Run, Wishes
from plugin.archive.selection import Selection, read_uids
from plugin.archive.source import Stopped, study_of
from plugin.archive.staging import Staging
from plugin.bootstrap import Plugin, configure
from plugin.index import archive as index
from plugin.index import archive_fetch, future, intake, leases, overview, retention, settling
from plugin.index.archive_tables import ArchiveStudy
from plugin.index.database import Database, IndexUnavailable
from plugin.index.tables import Series, Study
from plugin.lifecycle import FetchState
from plugin.scheduler import Scheduler
from plugin.settings import Settings
from plugin.spool import OpenStudies
from series import series

QUICK = {"first_retry_seconds": 0.02, "longest_retry_seconds": 0.05, "timeout_seconds": 20}
ALL = Selection(first_date="20240101", last_date="20241231")


def study(number: int, *, slices: int = 3, date: str = "", **elements: Any) -> list[Dataset]:
    """A small study of one series; without a `date` one of 2024, by its number."""
    date = date or f"2024{number % 12 + 1:02d}{number % 28 + 1:02d}"
    datasets = series(np.zeros((slices, 8, 8)), StudyDate=date, **elements)
    for i, dataset in enumerate(datasets):
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["archive", str(number)])
        dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["archive", str(number), "s"])
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["archive", str(number), str(i)])
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return datasets


def studies(count: int) -> list[Dataset]:
    return [dataset for number in range(count) for dataset in study(number)]


STUDIES = studies(31)


@cache
def empty_index() -> bytes:
    """An index without a row, made once."""
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/index.sqlite", lock=Path(folder) / "lock")
        database.upgrade()
        database.close()  # and with it, all is in the one file
        return (Path(folder) / "index.sqlite").read_bytes()


class Site:
    """A plugin of which only the scan runs: what it fetched stays fetched."""

    def __init__(self, folder: Path, url: str, *, database: str = "", **rules: Any) -> None:
        sections = {"spool": {"folder": folder / "data"}, "index": {"url": database}}
        self.plugin = Plugin(Settings(**sections, archive={"url": url, **QUICK, **rules}))
        configure(self.plugin.settings.log)
        self.plugin.bundle = SimpleNamespace(digest="d")  # all that a scan asks of a model
        index_file = self.plugin.spool / "index.sqlite"
        if database:
            self.plugin.database.upgrade()
        elif not index_file.exists():
            index_file.write_bytes(empty_index())

    def scan(self, selection: Selection = ALL, *, until: str = FetchState.FETCHED, **wishes: Any) -> End:
        """Run the scan until no study is left to fetch."""
        scan = scans.open_scan(self.plugin.database, selection, Wishes(**wishes))
        stop = threading.Event()

        def show(standing: index.Standing, why: str) -> None:
            if index.find_scan(self.plugin.database, None).listed_at is None:
                return
            standing = index.standing(self.plugin.database, scan.id)
            left = {FetchState.PLANNED, FetchState.FETCHING} & {state for state, n in standing.counts.items() if n}
            if not left:
                stop.set()

        with scans.open_source(self.plugin, self.plugin.settings.archive) as source:
            return Run(self.plugin, self.plugin.settings.archive, scan, source, stop).run(show)

    def report(self) -> dict[str, Any]:
        return reports.read(self.plugin, None)

    def reasons(self) -> dict[tuple[str, str | None], int]:
        return {(row["state"], row["reason"]): row["studies"] for row in self.report()["by_reason"]}

    def fetched(self) -> Counter[str]:
        """How many instances of each study were handed over whole."""
        return Counter(path.parents[1].name for path in self.plugin.spool.fetched.glob("*/*/*/*.dcm"))


@contextmanager
def site(folder: Path, datasets: list[Dataset], *, rules: dict[str, Any] | None = None, **tricks: Any) -> Iterator[Any]:
    """A PACS and a site that scans it."""
    with pacs(datasets, **tricks) as archive:
        here = Site(folder, archive.url, **{"look_ahead": 100, **(rules or {})})
        try:
            yield here, archive
        finally:
            here.plugin.database.close()


# ---- finding -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        {},
        {"cap": 7},
        {"cap": 10, "knows_dates": False},
        {"repeats": 3},
        {"cap": 10, "drops": True},
        {"cap": 10, "drops": True, "repeats": 2},
        {"cap": 7, "drops": True},
        {"knows_offset": False},
    ],
)
@pytest.mark.parametrize("dated", [True, False])
def test_every_study_is_found_once_however_badly_the_pacs_pages(behaviour: dict[str, Any], dated: bool) -> None:
    with pacs(STUDIES, **behaviour) as archive:
        source = Dicomweb(Settings(archive={"url": archive.url}).archive)
        listing = Listing(source, ALL if dated else Selection(), page=10, ask=ask(source))
        found = Counter(study.study_instance_uid for batch in listing for study in batch)
        assert found == dict.fromkeys(archive.studies, 1)
        assert archive.asked["/dicom-web/studies"] < 40


def test_a_pacs_that_knows_no_offset_and_gives_only_so_many_is_asked_day_by_day() -> None:
    with pacs(STUDIES, cap=10, knows_offset=False) as archive:
        source = Dicomweb(Settings(archive={"url": archive.url}).archive)
        found = [study for batch in Listing(source, ALL, page=200, ask=ask(source)) for study in batch]
        assert {study.study_instance_uid for study in found} == set(archive.studies)


def test_a_pacs_that_allows_small_limits_only_is_scanned_whole(tmp_path: Path) -> None:
    def trick(request: Request) -> None:
        query = parse_qs(urlsplit(request.handler.path).query)
        if int(query.get("limit", ["1"])[0]) > 10:
            request.answer(400)

    with site(tmp_path, STUDIES + study(40, slices=12), rules={"page": 10}, trick=trick) as (here, _archive):
        here.scan(Selection())
        assert here.reasons() == {("fetched", None): 32}
        listed = here.report()["listed"]
        assert listed["not_verified"] == 1 and not listed.get("http_400")


@pytest.mark.parametrize("knows_offset", [True, False])
def test_instances_are_listed_whole_whether_the_pacs_knows_an_offset_or_not(knows_offset: bool) -> None:
    def trick(request: Request) -> None:
        if request.path.endswith("/instances"):
            query = parse_qs(urlsplit(request.handler.path).query)
            limit, offset = int(query["limit"][0]), int(query["offset"][0]) * knows_offset
            rows = [{"00080018": {"vr": "UI", "Value": [d.SOPInstanceUID]}} for d in _all(request)]
            request.json(rows[offset : offset + limit])

    datasets = study(1, slices=30)
    with pacs(datasets, trick=trick) as archive:
        source = Dicomweb(Settings(archive={"url": archive.url, "page": 10}).archive)
        listed = source.instances(datasets[0].StudyInstanceUID, datasets[0].SeriesInstanceUID)
        assert set(listed) == {dataset.SOPInstanceUID for dataset in datasets}


def ask(source: Dicomweb) -> Ask:
    return lambda query, limit, offset: source.studies(query, limit=limit, offset=offset)


def test_what_the_pacs_returns_beyond_the_question_is_left_out(tmp_path: Path) -> None:
    old = study(90, date="20190505")
    with site(tmp_path, studies(2) + old, knows_dates=False) as (here, _archive):
        here.scan()
        assert len(here.fetched()) == 2 and here.report()["listed"]["not_matching"] >= 1


def test_entries_that_are_none_are_counted_and_hold_nothing_up(tmp_path: Path) -> None:
    def trick(request: Request) -> None:
        if request.path.endswith("/studies"):
            rows = request.pacs.find_studies({})
            request.json([{"0020000D": {"vr": "UI", "Value": ["../../etc"]}}, {"0020000D": 7}, *rows])

    with site(tmp_path, studies(2), trick=trick) as (here, _archive):
        here.scan()
        assert len(here.fetched()) == 2 and here.report()["listed"]["malformed"] >= 2


def test_a_study_whose_modalities_the_pacs_leaves_empty_is_fetched(tmp_path: Path) -> None:
    def trick(request: Request) -> None:
        if request.path.endswith("/studies"):
            request.json([{**row, "00080061": {"vr": "CS"}} for row in request.pacs.find_studies({})])

    with site(tmp_path, studies(2), trick=trick) as (here, _archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 2}
    empty = Dataset()
    empty.StudyInstanceUID, empty.ModalitiesInStudy = "1.2.3", ""
    found = study_of(empty)
    assert found is not None and found.modalities == ()


def test_studies_may_be_named_by_a_file(tmp_path: Path) -> None:
    wanted = [study(n)[0].StudyInstanceUID for n in (1, 3)]
    (tmp_path / "uids.csv").write_text("\ufeffnumber,StudyInstanceUID\n1,{}\n2,{}\n2,{}\n".format(*wanted, wanted[1]))
    chosen = Selection.from_options(first_date="", last_date="", patients=None, studies=tmp_path / "uids.csv")
    with site(tmp_path, studies(5)) as (here, archive):
        here.scan(chosen)
        assert set(here.fetched()) == set(wanted)
        assert not archive.asked["/dicom-web/studies"]
    with pytest.raises(ValueError, match="row 2 holds no"):
        read_uids(["1.2.3", "Smith"])


def test_patients_are_named_by_a_file_and_stand_in_no_index(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("P-77\n")
    chosen = Selection.from_options(first_date="", last_date="", patients=tmp_path / "ids", studies=None)
    datasets = studies(2) + study(7, PatientID="P-77")
    with site(tmp_path, datasets) as (here, _archive):
        here.scan(chosen)
        assert set(here.fetched()) == {study(7)[0].StudyInstanceUID}
        assert b"P-77" not in b"".join(path.read_bytes() for path in (tmp_path / "data").glob("index.sqlite*"))
        assert "P-77" not in str(here.report())
    (tmp_path / "ids").write_text("P-78\n")
    with pytest.raises(ValueError, match="not the list any more"):
        list(chosen.queries())


def test_series_are_chosen_by_what_the_pacs_says_of_them(tmp_path: Path) -> None:
    datasets = study(1, SeriesDescription="Thorax") + study(2, SeriesDescription="Head plain") + study(3, Modality="MR")
    with site(tmp_path, datasets) as (here, _archive):
        here.scan(Selection(series_description="head|skull"))
        assert set(here.fetched()) == {study(2)[0].StudyInstanceUID}
        assert here.reasons() == {("fetched", None): 1, ("skipped", "not_selected"): 2}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"first_date": "31.1.2024"}, "2024-01-31"),
        ({"first_date": "2024-02-01", "last_date": "2024-01-01"}, "later than"),
        ({"body_part": "he(ad"}, "--body-part is no regular expression"),
        ({"studies": Path("/nowhere.csv")}, "no file /nowhere.csv"),
    ],
)
def test_a_selection_that_makes_no_sense_is_explained(wrong: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"first_date": "", "last_date": "", "patients": None, "studies": None}
    with pytest.raises(ValueError, match=says):
        Selection.from_options(**{**given, **wrong})


# ---- fetching ----------------------------------------------------------------------------------------------


def at_first(path: str, act: Callable[[Request], None], times: int = 1) -> Callable[[Request], None]:
    """A trick that is played so often with each path that has this in it."""

    def trick(request: Request) -> None:
        if path in request.path and request.number <= times:
            act(request)

    return trick


WADO = "/series/"
MENDED: dict[str, tuple[Callable[[Request], None], str]] = {
    "truncated": (lambda r: r.multipart(_all(r), cut=2500), "truncated"),
    "cut in the middle of the first part": (lambda r: r.multipart(_all(r), cut=300), "truncated"),
    "a part is missing": (lambda r: r.multipart(_all(r)[1:]), "asked_again"),
    "repeated parts": (lambda r: r.multipart([*_all(r), *_all(r)]), "repeated"),
    "parts of another study": (lambda r: r.multipart([*study(99), *_all(r)]), "other_study"),
    "not multipart": (lambda r: r.answer(200, b"<html>", Content_Type="text/html"), "no_multipart"),
    "500": (lambda r: r.answer(500), "http_500"),
    "503": (lambda r: r.answer(503), "http_503"),
    "429": (lambda r: r.answer(429, Retry_After="0"), "http_429"),
    "too slow": (lambda r: r.sleep(4), "timeout"),
}


def _all(request: Request) -> list[Dataset]:
    (uid,) = [uid for uid in request.pacs.studies if uid in request.path]
    return next(iter(request.pacs.studies[uid].values()))


@pytest.mark.parametrize("what", MENDED)
def test_what_goes_wrong_once_is_mended_and_counted(tmp_path: Path, what: str) -> None:
    act, counted = MENDED[what]

    def trick(request: Request) -> None:
        is_series = WADO in request.path and "instances" not in request.path
        if is_series and request.number == 1 and study(0)[0].StudyInstanceUID in request.path:
            act(request)

    rules = {"timeout_seconds": 2 if counted == "timeout" else 20}
    with site(tmp_path, studies(2), rules=rules, trick=trick) as (here, archive):
        here.scan()
        assert here.fetched() == dict.fromkeys(archive.studies, 3)
        assert here.reasons() == {("fetched", None): 2}
        assert here.report()["troubles"][counted] >= 1
        for path in here.plugin.spool.fetched.glob("*/*/*/*.dcm"):
            assert dcmread(path).SOPInstanceUID == path.stem


def test_a_study_that_always_fails_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    bad = study(1)[0].StudyInstanceUID
    trick = at_first(f"{bad}/series/", lambda request: request.answer(500), times=1000)
    with site(tmp_path, studies(4), rules={"max_attempts": 3}, trick=trick) as (here, archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 3, ("failed", "http_500"): 1}
        assert not any((here.plugin.spool.fetching / "1").iterdir())
        archive.trick = lambda request: None
        assert index.retry(here.plugin.database, 1) == 1
        here.scan()
        assert here.reasons() == {("fetched", None): 4}


@pytest.mark.parametrize("status", [502, 503, 504, 403])
def test_a_study_for_which_the_pacs_never_has_time_is_given_up_once_others_came(tmp_path: Path, status: int) -> None:
    bad = study(1)[0].StudyInstanceUID
    trick = at_first(f"{bad}/series/", lambda request: request.answer(status, Retry_After="0"), times=1000)
    rules = {"max_attempts": 2, "parallel": 1, "first_retry_seconds": 0.2}
    later = [dataset for number in range(2, 8) for dataset in study(number)]
    with site(tmp_path, study(0) + study(1) + later, rules=rules, trick=trick) as (here, archive):
        order = [study(n)[0].StudyInstanceUID for n in range(8)]
        scan = scans.open_scan(here.plugin.database, ALL, Wishes())
        index.plan(here.plugin.database, scan.id, [(uid, 3) for uid in order])
        here.scan()
        assert here.reasons() == {("fetched", None): 7, ("failed", f"http_{status}"): 1}
        asked = [number for path, number in archive.asked.items() if f"{bad}/series/" in path]
        assert sum(asked) <= 4


def test_a_wait_of_no_seconds_is_as_long_as_the_first_of_ours(tmp_path: Path) -> None:
    trick = at_first("/series", lambda request: request.answer(429, Retry_After="0"), times=1000)
    rules = {"parallel": 1, "first_retry_seconds": 0.3, "longest_retry_seconds": 5}
    with site(tmp_path, studies(1), rules=rules, trick=trick) as (here, archive):
        scan, stop = scans.open_scan(here.plugin.database, ALL, Wishes()), threading.Event()
        threading.Timer(1.5, stop.set).start()
        with scans.open_source(here.plugin, here.plugin.settings.archive) as source:
            Run(here.plugin, here.plugin.settings.archive, scan, source, stop).run(lambda *_: None)
        assert sum(number for path, number in archive.asked.items() if path.endswith("/series")) <= 6


def test_an_index_that_is_away_for_a_while_ends_no_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, tries = index.plan, []

    def away(*arguments: Any) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise IndexUnavailable
        return plan(*arguments)

    monkeypatch.setattr(index, "plan", away)
    monkeypatch.setattr(scans, "AWAY_SECONDS", 0.05)
    with site(tmp_path, studies(2)) as (here, _archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 2}


def test_a_disk_that_fails_once_ends_no_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_over, tries = Staging._take_over, []

    def fails(staging: Staging) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(5, "Input/output error")
        take_over(staging)

    monkeypatch.setattr(Staging, "_take_over", fails)
    with site(tmp_path, studies(2)) as (here, _archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 2}


def test_a_pause_ends_a_listing_that_waits_for_the_pacs(tmp_path: Path) -> None:
    rules = {"first_retry_seconds": 3600, "longest_retry_seconds": 3600}
    with site(tmp_path, studies(2), rules=rules, trick=at_first("/studies", lambda r: r.answer(503))) as (here, _):
        scan = scans.open_scan(here.plugin.database, ALL, Wishes())
        threading.Timer(1, index.pause, (here.plugin.database, scan.id)).start()
        with scans.open_source(here.plugin, here.plugin.settings.archive) as source:
            end = Run(here.plugin, here.plugin.settings.archive, scan, source, threading.Event()).run(lambda *_: None)
        assert "paused" in end.why


def test_a_pause_ends_the_listing_too(tmp_path: Path) -> None:
    def trick(request: Request) -> None:
        if request.path.endswith("/studies"):
            if request.number == 2:
                index.pause(here.plugin.database, 1)
            request.sleep(0.3)

    with site(tmp_path, STUDIES, rules={"page": 2}, trick=trick) as (here, archive):
        scan = scans.open_scan(here.plugin.database, Selection(), Wishes())
        with scans.open_source(here.plugin, here.plugin.settings.archive) as source:
            end = Run(here.plugin, here.plugin.settings.archive, scan, source, threading.Event()).run(lambda *_: None)
        assert "paused" in end.why and archive.asked["/dicom-web/studies"] < 10


def test_a_study_that_vanished_and_one_that_vanishes_are_gone(tmp_path: Path) -> None:
    first, second = (study(n)[0].StudyInstanceUID for n in (0, 1))

    def trick(request: Request) -> None:
        if first in request.path:
            request.pacs.studies.pop(first, None)
        if second in request.path and request.path.count("/series/"):
            request.pacs.studies.pop(second, None)

    with site(tmp_path, studies(4), trick=trick) as (here, _archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 2, ("gone", "gone"): 2}


def test_a_study_of_which_an_instance_is_missing_for_good_is_not_analysed_in_part(tmp_path: Path) -> None:
    lost = study(1)[1].SOPInstanceUID

    def trick(request: Request) -> None:
        if lost in request.path:
            request.answer(404)
        elif study(1)[0].StudyInstanceUID in request.path and request.path.endswith(_all(request)[0].SeriesInstanceUID):
            request.multipart([dataset for dataset in _all(request) if lost != dataset.SOPInstanceUID])

    with site(tmp_path, studies(3), rules={"max_attempts": 2}, trick=trick) as (here, archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 2, ("failed", "incomplete"): 1}
        series_path = f"/dicom-web/studies/{study(1)[0].StudyInstanceUID}/series/{study(1)[0].SeriesInstanceUID}"
        assert archive.asked[series_path] == 1, "what is here already is not fetched again"


def of_a_private_class(datasets: list[Dataset]) -> list[Dataset]:
    """As the Siemens CSA Non-Image objects, which bear the modality of the images beside them."""
    for dataset in datasets:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    return datasets


@pytest.mark.parametrize("slices", [1, 3])
def test_an_object_of_a_class_that_we_do_not_take_holds_up_no_study(tmp_path: Path, slices: int) -> None:
    mixed, other = study(1), study(2)
    of_a_private_class(mixed[:slices])
    with site(tmp_path, mixed + other) as (here, _archive):
        here.scan()
        if slices == 1:
            assert here.reasons() == {("fetched", None): 2}
            assert here.fetched() == {mixed[0].StudyInstanceUID: 2, other[0].StudyInstanceUID: 3}
        else:
            assert here.reasons() == {("fetched", None): 1, ("skipped", "unsupported_class"): 1}
        assert here.report()["troubles"] == {"unsupported_class": slices}


def test_a_pacs_that_lets_nobody_in_ends_the_scan_with_a_clear_word(tmp_path: Path) -> None:
    with site(tmp_path, studies(3), trick=lambda request: request.answer(401)) as (here, archive):
        end = here.scan()
        assert end.exit_code == 2 and "401" in end.why and "section [archive]" in end.why and "resume" in end.why
    with site(tmp_path, studies(3), trick=at_first("/series", lambda r: r.answer(403), 100)) as (here, archive):
        assert here.scan().exit_code == 2
        archive.trick = lambda request: None
        here.scan()
        assert here.reasons() == {("fetched", None): 3}


def test_a_busy_pacs_is_left_alone_as_long_as_it_says(tmp_path: Path) -> None:
    from time import monotonic

    times: list[float] = []

    def trick(request: Request) -> None:
        if "/series" in request.path:
            times.append(monotonic())
            if len(times) == 1:
                request.answer(503, Retry_After="1")

    with site(tmp_path, studies(2), rules={"parallel": 1}, trick=trick) as (here, _archive):
        here.scan()
        assert here.reasons() == {("fetched", None): 2}
        assert times[1] - times[0] >= 1
    assert retry_after("120") == 120 and retry_after("soon") is None and retry_after(None) is None
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_pacs_that_is_not_there_ends_nothing_and_loses_nothing(tmp_path: Path) -> None:
    with site(tmp_path, studies(1)) as (here, _archive):
        rules = here.plugin.settings.archive.model_copy(update={"url": "http://127.0.0.1:9/dicom-web"})
        scan = scans.open_scan(here.plugin.database, ALL, Wishes())
        stop = threading.Event()
        threading.Timer(0.5, stop.set).start()
        with scans.open_source(here.plugin, rules) as source:
            end = Run(here.plugin, rules, scan, source, stop).run(lambda standing, why: None)
        assert end.exit_code == 3
        here.scan()
        assert here.reasons() == {("fetched", None): 1}


def test_a_scan_looks_ahead_only_so_far(tmp_path: Path) -> None:
    with site(tmp_path, studies(6), rules={"look_ahead": 2}) as (here, _):
        scan = scans.open_scan(here.plugin.database, ALL, Wishes())
        stop = threading.Event()

        def show(standing: index.Standing, why: str) -> None:
            if standing.counts.get(FetchState.FETCHED) == 2:
                stop.wait(0.6)  # time enough to begin another
                stop.set()

        with scans.open_source(here.plugin, here.plugin.settings.archive) as source:
            Run(here.plugin, here.plugin.settings.archive, scan, source, stop).run(show)
        assert here.reasons() == {("fetched", None): 2, ("planned", None): 4}


def test_what_another_scan_has_fetched_holds_up_none(tmp_path: Path) -> None:
    with site(tmp_path, studies(4), rules={"look_ahead": 2}) as (here, _):
        database = here.plugin.database
        paused = scans.open_scan(database, Selection(), Wishes())
        index.plan(database, paused.id, [(study(n)[0].StudyInstanceUID, 3) for n in (8, 9)])
        for _ in range(2):
            item = archive_fetch.claim(database, paused.id, owner="x-1", lease_seconds=60, look_ahead=2)
            assert item is not None and archive_fetch.end(database, item, "whole")
        index.pause(database, paused.id)
        other = scans.open_scan(database, ALL, Wishes())
        index.plan(database, other.id, [(study(0)[0].StudyInstanceUID, 3)])
        assert archive_fetch.claim(database, other.id, owner="x-1", lease_seconds=60, look_ahead=2) is not None


def test_a_pause_lets_no_study_begin_until_it_is_resumed(tmp_path: Path) -> None:
    with site(tmp_path, studies(3)) as (here, _archive):
        database = here.plugin.database
        scan = scans.open_scan(database, ALL, Wishes(), name="quiet")
        assert index.pause(database, scan.id) and not index.pause(database, scan.id)
        with scans.open_source(here.plugin, here.plugin.settings.archive) as source:
            end = Run(here.plugin, here.plugin.settings.archive, scan, source, threading.Event()).run(lambda *_: None)
        assert end.exit_code == 3 and "quiet is paused" in end.why and not here.fetched()
        assert index.resume(database, scan.id)
        here.scan()
        assert here.reasons() == {("fetched", None): 3}


# ---- killed ------------------------------------------------------------------------------------------------


def test_what_a_killed_scan_had_of_a_study_is_taken_over(tmp_path: Path) -> None:
    with site(tmp_path, studies(1)) as (here, archive):
        (uid,) = archive.studies
        (series_uid,) = archive.studies[uid]
        scan = scans.open_scan(here.plugin.database, ALL, Wishes())
        index.plan(here.plugin.database, scan.id, [(uid, 3)])
        old = archive_fetch.claim(here.plugin.database, scan.id, owner="x-1", lease_seconds=0, look_ahead=9)
        assert old is not None
        left = here.plugin.spool.fetching / str(scan.id) / f"{uid}.{old.token}" / series_uid
        left.mkdir(parents=True)
        for dataset in archive.studies[uid][series_uid][:2]:
            dataset.save_as(left / f"{dataset.SOPInstanceUID}.dcm", enforce_file_format=True)
        here.scan()
        assert here.fetched() == {uid: 3}
        assert not archive.asked[f"/dicom-web/studies/{uid}/series/{series_uid}"]
        assert not archive_fetch.end(here.plugin.database, old, "whole"), "the old claim is worth nothing any more"


def test_a_study_that_waits_for_a_clock_that_was_set_back_does_not_wait_long(tmp_path: Path) -> None:
    with site(tmp_path, studies(1)) as (here, archive):
        database, (uid,) = here.plugin.database, archive.studies
        scan = scans.open_scan(database, ALL, Wishes())
        index.plan(database, scan.id, [(uid, 3)])
        taken = archive_fetch.claim(database, scan.id, owner="x-1", lease_seconds=7200, look_ahead=9)
        assert taken is not None and brought_back(database) == 1 and brought_back(database) == 0
        archive_fetch.put_back(database, taken, reason="http_503", wait_seconds=7200, is_to_blame=False)
        assert brought_back(database) == 1 and brought_back(database) == 0
        with database.read() as session:
            assert session.query(ArchiveStudy).one().next_try_at <= time.time() + 600


def brought_back(database: Database) -> int:
    return future.bring_back(
        database, lease_seconds=30, longest_wait_seconds=60, fetch_lease_seconds=30, longest_fetch_wait_seconds=600
    )


def test_a_kill_between_the_handing_over_and_its_note_fetches_nothing_twice(tmp_path: Path) -> None:
    with site(tmp_path, studies(2)) as (here, archive):
        here.scan()
        with here.plugin.database.write() as session:
            for row in session.query(ArchiveStudy):
                row.state, row.lease_owner, row.lease_until = "fetching", "gone-1/x", 0.0
        before = sum(archive.asked.values())
        here.scan()
        assert sum(archive.asked.values()) == before
        assert here.reasons() == {("fetched", None): 2}


def test_a_fetched_study_is_indexed_as_the_scans_and_settles_when_it_is_all_there(tmp_path: Path) -> None:
    with site(tmp_path, studies(1)) as (here, archive):
        here.scan()
        scheduler = Scheduler(here.plugin.settings, here.plugin.spool, here.plugin.database, lambda queue: None)
        (uid,) = archive.studies
        assert here.plugin.spool.open_studies(cap_seconds=60).studies == {uid}
        for _ in range(3):  # indexed, its empty folder gone, settled
            scheduler.tick()
        assert here.plugin.spool.open_studies(cap_seconds=60).studies == frozenset()
        (found,) = overview.overview(here.plugin.database)["studies"]
        assert (found["priority"], [s["state"] for s in found["series"]]) == (80, ["ready"])
        assert not list(here.plugin.spool.fetched.glob("*/*"))


def test_an_urgent_study_goes_before_all_that_was_fetched_and_holds_it_up_while_it_arrives(tmp_path: Path) -> None:
    with site(tmp_path, studies(2), rules={"look_ahead": 2}) as (here, _):
        here.scan()
        plugin = here.plugin
        scheduler = Scheduler(plugin.settings, plugin.spool, plugin.database, lambda queue: None)
        for _ in range(3):
            scheduler.tick()
        assert len(leases.claimable(plugin.database, "prepare", max_attempts=3)) == 2
        for dataset in study(50):
            plugin.spool.accept(part10(dataset))
        scheduler.tick()
        assert leases.claimable(plugin.database, "prepare", max_attempts=3) == [], "an urgent study is just arriving"
        settling.settle_series(plugin.database, quiet_seconds=0, open_studies=OpenStudies(frozenset(), frozenset()))
        claim = leases.claim(plugin.database, "prepare", owner="me", lease_seconds=30, max_attempts=3)
        assert claim is not None
        view = overview.series_view(plugin.database, claim.id)
        assert view.study_instance_uid == study(50)[0].StudyInstanceUID


def test_a_study_that_someone_sends_is_no_longer_the_scans(tmp_path: Path) -> None:
    with site(tmp_path, studies(2)) as (here, archive):
        here.scan()
        plugin = here.plugin
        scheduler = Scheduler(plugin.settings, plugin.spool, plugin.database, lambda queue: None)
        scheduler.tick()
        first, second = archive.studies
        for dataset in next(iter(archive.studies[first].values())):
            plugin.spool.accept(part10(dataset))
        scheduler.tick()
        found = {row["study_instance_uid"]: row for row in overview.overview(plugin.database)["studies"]}
        assert (found[first]["priority"], found[second]["priority"]) == (20, 80)
        ids = {uid: overview.study_id(plugin.database, uid) for uid in (first, second)}
        with plugin.database.write() as session:
            assert index.origin(session, ids[first]) is None
            assert index.origin(session, ids[second]) is not None
            for row in session.scalars(select(Study)):
                row.state = "refused"
            for row in session.scalars(select(Series)):
                row.state = "refused"
        assert retention.release(plugin.database, ids[first], "instances") is None
        assert retention.release(plugin.database, ids[second], "instances") is not None
        folder = plugin.spool.instances / second  # and there the scan is killed
        assert list(folder.rglob("*.dcm"))
        here.scan()
        assert not list(folder.rglob("*.dcm")) and retention.unfinished(plugin.database) == []


def test_a_scan_runs_on_postgresql_too(tmp_path: Path, new_database: str) -> None:
    bad = study(1)[0].StudyInstanceUID
    trick = at_first(f"{bad}/series/", lambda request: request.answer(500))
    with pacs(studies(3), trick=trick) as archive:
        here = Site(tmp_path, archive.url, database=new_database, look_ahead=100)
        here.scan()
        assert here.reasons() == {("fetched", None): 3} and here.report()["troubles"] == {"http_500": 1}
        scheduler = Scheduler(here.plugin.settings, here.plugin.spool, here.plugin.database, lambda queue: None)
        for _ in range(3):
            scheduler.tick()
        assert len(leases.claimable(here.plugin.database, "prepare", max_attempts=3)) == 3
        assert leases.claim(here.plugin.database, "prepare", owner="me", lease_seconds=30, max_attempts=3)
        assert archive_fetch.done(here.plugin.database, 1, frozenset) == []
        assert not index.finish(here.plugin.database, 1)
        here.plugin.database.close()


# ---- pace --------------------------------------------------------------------------------------------------

MONDAY = datetime(2026, 11, 23)


@pytest.mark.parametrize(
    ("now", "hours", "until"),
    [
        ("23 08:00", ["07:00-19:00"], "23 19:00"),
        ("23 19:00", ["07:00-19:00"], None),
        ("23 06:59", ["07:00-19:00"], None),
        ("28 08:00", ["Mon-Fri 07:00-19:00"], None),
        ("28 08:00", ["Mon-Fri 07:00-19:00", "Sat 08:00-12:00"], "28 12:00"),
        ("24 02:00", ["22:00-06:00"], "24 06:00"),
        ("23 23:00", ["22:00-06:00", "06:00-07:30"], "24 07:30"),
        ("29 01:00", ["Sat 22:00-06:00"], "29 06:00"),
        ("29 23:00", ["Sat 22:00-06:00"], None),
        ("23 23:59", ["20:00-24:00"], "24 00:00"),
        ("29 12:00", ["Sat-Mon 00:00-24:00"], "24 00:00"),
    ],
)
def test_working_hours_are_kept(now: str, hours: list[str], until: str | None) -> None:
    at = datetime.strptime(f"2026 11 {now}", "%Y %m %d %H:%M")
    found = closed_until(at, hours)
    if until == "24 00:00" and now.startswith("29"):
        assert found == datetime(2026, 12, 1)
    else:
        assert found == (None if until is None else datetime.strptime(f"2026 11 {until}", "%Y %m %d %H:%M"))


@pytest.mark.parametrize("wrong", ["7-19", "Mon 7:00-19:00", "25:00-26:00", "Mon-Fry 07:00-19:00"])
def test_hours_that_are_none_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="hours are written"):
        Settings(archive={"not_during": [wrong]})


def test_bytes_and_studies_come_no_faster_than_allowed() -> None:
    from time import monotonic

    stop = threading.Event()
    pace = Pace(hours=(), studies_per_hour=36000, bytes_per_second=1e6, stop=stop)
    began = monotonic()
    pace.took(100_000)
    pace.took(100_000)
    assert 0.2 <= monotonic() - began < 2
    pace.begun()
    pace.begun()
    assert not pace.may_begin() and "studies an hour" in pace.why
    pace.leave_alone(30)
    assert not pace.may_begin() and "left alone" in pace.why
    stop.set()
    with pytest.raises(Stopped):
        pace.took(100_000)


# ---- reports -----------------------------------------------------------------------------------------------


def test_a_report_names_no_patient_and_comes_as_csv_too(tmp_path: Path) -> None:
    with site(tmp_path, studies(2)) as (here, _archive):
        here.scan()
        found = here.report()
        reports.write_csv(found, tmp_path / "r.csv")
        lines = (tmp_path / "r.csv").read_text().splitlines()
        assert len(lines) == 3 and lines[0].startswith("study_instance_uid,state,reason")
        assert "Phantom" not in str(found) and found["instances"] == 6
        assert reports.page(found).renderables


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    from rich.console import Console

    with site(tmp_path, studies(5)) as (here, archive):
        plugin = here.plugin
        with (tmp_path / "out").open("w") as out, (tmp_path / "err").open("w") as err:
            shown = Console(record=True, width=100, file=out)
            rules, stop = plugin.settings.archive, threading.Event()
            shown.print(reports.estimate(plugin, rules, ALL, console=Console(file=err), stop=stop))
        text = shown.export_text()
        assert "15" in text and "nothing was analysed here yet" in text
        assert index.scans(plugin.database) == [] and not here.fetched()
        assert not any("/series" in path for path in archive.asked)


def test_the_same_selection_goes_on_and_another_begins_anew(tmp_path: Path) -> None:
    with site(tmp_path, []) as (here, _archive):
        database = here.plugin.database
        first = scans.open_scan(database, ALL, Wishes())
        assert scans.open_scan(database, ALL, Wishes(store=True)).id == first.id
        assert scans.open_scan(database, Selection(), Wishes()).name == "scan-2"
        with pytest.raises(ValueError, match="take another --name"):
            scans.open_scan(database, Selection(modality="MR"), Wishes(), name="scan-1")
        with pytest.raises(ValueError, match="letters, digits"):
            scans.open_scan(database, ALL, Wishes(), name="a b")


def test_without_an_address_the_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"section \[archive\]"):
        _ = Settings().archive.way
    assert Settings(archive={"host": "h", "ae_title": "A"}).archive.way == "move"
    assert intake.Intake.__dataclass_fields__["scan_id"].default is None
