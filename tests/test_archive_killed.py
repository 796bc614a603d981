"""A scan that was killed fetches nothing twice; what it fetched is indexed, and comes after all that is urgent."""

import time
from pathlib import Path

from sqlalchemy import select

from archive_site import ALL, Site, site, studies, study
from hostile_pacs import at_first, pacs, part10
from plugin.archive import scan as scans
from plugin.archive.scan import Wishes
from plugin.index import archive as index
from plugin.index import archive_fetch, future, leases, overview, retention, settling
from plugin.index.archive_tables import ArchiveStudy
from plugin.index.database import Database
from plugin.index.tables import Series, Study
from plugin.scheduler import Scheduler
from plugin.spool import OpenStudies


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
