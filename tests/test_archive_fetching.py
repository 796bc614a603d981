"""Fetching from an archive: whatever a PACS does, a study comes whole, or ends with a reason and holds up no other."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread

from archive_site import ALL, STUDIES, site, studies, study
from hostile_pacs import Request, all_of, at_first
from plugin.archive import scan as scans
from plugin.archive.dicomweb import retry_after
from plugin.archive.scan import Run, Wishes
from plugin.archive.selection import Selection
from plugin.archive.staging import Staging
from plugin.index import archive as index
from plugin.index import archive_fetch
from plugin.index.database import IndexUnavailable
from plugin.lifecycle import FetchState

WADO = "/series/"
MENDED: dict[str, tuple[Callable[[Request], None], str]] = {
    "truncated": (lambda r: r.multipart(all_of(r), cut=2500), "truncated"),
    "cut in the middle of the first part": (lambda r: r.multipart(all_of(r), cut=300), "truncated"),
    "a part is missing": (lambda r: r.multipart(all_of(r)[1:]), "asked_again"),
    "repeated parts": (lambda r: r.multipart([*all_of(r), *all_of(r)]), "repeated"),
    "parts of another study": (lambda r: r.multipart([*study(99), *all_of(r)]), "other_study"),
    "not multipart": (lambda r: r.answer(200, b"<html>", Content_Type="text/html"), "no_multipart"),
    "500": (lambda r: r.answer(500), "http_500"),
    "503": (lambda r: r.answer(503), "http_503"),
    "429": (lambda r: r.answer(429, Retry_After="0"), "http_429"),
    "too slow": (lambda r: r.sleep(4), "timeout"),
}


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
        elif study(1)[0].StudyInstanceUID in request.path and request.path.endswith(
            all_of(request)[0].SeriesInstanceUID
        ):
            request.multipart([dataset for dataset in all_of(request) if lost != dataset.SOPInstanceUID])

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
