"""Retention: what is delivered and old goes, once and for good; what anything waits for stays, whatever its age."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import select, update

from hlip_core.bundle import Bundle, load_bundle
from plugin import orphans, room, screens, withdrawal
from plugin import retention as rules
from plugin.bootstrap import Plugin, configure
from plugin.index import leases, outcomes, overview
from plugin.index import retention as index
from plugin.index.database import clock
from plugin.index.tables import Base, Delivery, Removal, Study
from plugin.lifecycle import DeliveryState
from plugin.retention import Retention
from plugin.scheduler import Scheduler
from plugin.settings import RetentionSettings
from plugin.work import work_once
from road import head_ct, sandbox, settings, tiny_bundle

AT_ONCE = 1e-7
"""Days: ten milliseconds."""
SENT = {"destinations": [{"name": "pacs", "url": "http://127.0.0.1:9/none"}]}
POSITIVE = {"thresholds": {"intracranial_hemorrhage": -1.0}, "results": {"key_images": False}}


@cache
def tiny() -> Bundle:
    return load_bundle(tiny_bundle())


class Site:
    """A plugin without a listener, moved on by hand; what is to be delivered is delivered when told so."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        quick = {"settle": {"series_quiet_seconds": 0, "study_quiet_seconds": 0}, "retention": {"instances_days": 0}}
        self.folder = folder
        self.plugin = Plugin(settings(folder, model={"bundle": str(tiny_bundle())}, **quick, **sections))
        configure(self.plugin.settings.log)
        self.plugin.sandbox, self.plugin.bundle = sandbox(), tiny()  # once for all: they know no site
        self.database, self.spool = self.plugin.database, self.plugin.spool
        self.database.upgrade()
        with self.database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
        self.scheduler = Scheduler(self.plugin.settings, self.spool, self.database, lambda queue: None)

    def close(self) -> None:
        self.database.close()

    def receive(self, *paths: Path) -> None:
        for path in paths:
            self.spool.accept(path.read_bytes())
        self.scheduler.tick()

    def work(self) -> None:
        """Prepare and analyse all there is."""
        for _ in range(3):
            self.scheduler.tick()
            while work_once(self.plugin, "prepare") or work_once(self.plugin, "analyse"):
                pass

    def deliver(self) -> None:
        while (claim := self.claim("deliver")) is not None:
            assert outcomes.delivered(self.database, claim, action="store", seconds=0.1)

    def claim(self, queue: str) -> leases.Claim | None:
        return leases.claim(self.database, queue, owner="me", lease_seconds=30, max_attempts=3)

    def report(self, *paths: Path) -> None:
        """A study, from its images to its delivered results."""
        self.receive(*paths)
        self.work()
        self.deliver()

    def rules(self, *kinds: str) -> Retention:
        time.sleep(0.02)
        return Retention(dict.fromkeys(kinds or rules.KINDS, AT_ONCE), self.spool, self.database)

    def clean(self, *kinds: str) -> dict[str, int]:
        """Files removed by kind."""
        gone = [going for going in self.rules(*kinds).run(frozenset)]
        return {kind: sum(g.files for g in gone if g.kind == kind) for kind in sorted({g.kind for g in gone})}

    def study(self) -> dict[str, Any]:
        (study,) = overview.overview(self.database, findings=True)["studies"]
        return study

    def reasons(self) -> dict[int, str]:
        return {s["series_number"]: s["reason"] or s["state"] for s in self.study()["series"]}

    def files(self, kind: str) -> int:
        return sum(path.is_file() for path in (self.spool / kind).rglob("*"))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites, on SQLite."""
    made: list[Site] = []

    def make(**sections: Any) -> Site:
        made.append(Site(tmp_path, **sections))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest, site: Callable[..., Site]) -> Callable[..., Site]:
    """Makes sites, on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return site
    url = request.getfixturevalue("postgresql")
    return lambda **sections: site(index={"url": url}, **sections)


# ---- what goes -------------------------------------------------------------------------------------------


def test_a_delivered_study_goes_kind_by_kind_and_the_index_says_so(either: Callable[..., Site], tmp_path: Path) -> None:
    here = either(**SENT, **POSITIVE)
    here.report(*head_ct(tmp_path))
    before = here.study()
    assert here.clean("instances") == {"instances": 12}
    assert (here.files("instances"), here.files("prepared"), here.files("results")) == (0, 3, 2)  # with where it looked
    assert here.clean() == {"prepared": 3, "results": 2}
    assert here.files("prepared") == here.files("results") == 0
    assert all((here.spool / kind).is_dir() and not any((here.spool / kind).iterdir()) for kind in rules.KINDS)
    after = here.study()
    assert [(r["kind"], r["files"]) for r in after["removals"]] == [("instances", 12), ("prepared", 3), ("results", 2)]
    assert all(r["bytes"] > 1000 and abs(r["at"] - time.time()) < 60 for r in after["removals"])
    assert after["revisions"][0]["findings"] == before["revisions"][0]["findings"]
    assert here.clean() == {}


def test_a_plan_says_what_goes_and_removes_nothing(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    here.report(*head_ct(tmp_path))
    planned = list(here.rules().plan())
    assert [(row.kind, row.files) for row in planned] == [("prepared", 2), ("instances", 12), ("results", 1)]
    assert (here.files("instances"), here.study()["removals"]) == (12, [])
    assert [(row.kind, row.files, row.bytes) for row in here.rules().run(frozenset)] == [
        (row.kind, row.files, row.bytes) for row in planned
    ]


def test_what_is_not_old_enough_stays(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    here.report(*head_ct(tmp_path))
    assert list(Retention(dict.fromkeys(rules.KINDS, 1.0), here.spool, here.database).plan()) == []
    never = RetentionSettings(instances_days=0, prepared_days=0)
    assert Retention.from_settings(never, here.spool, here.database).days == {"conflicting": 90, "results": 365}


def test_a_study_that_is_being_sent_is_left_alone(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    here.report(*head_ct(tmp_path))
    sending = frozenset({here.study()["study_instance_uid"]})
    assert list(here.rules().run(lambda: sending)) == []


def test_set_aside_and_unreadable_arrivals_have_a_rule_of_their_own(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site()
    here.receive(*head_ct(tmp_path / "1"))
    here.receive(*head_ct(tmp_path / "2", SeriesDescription="Other"))
    here.spool.accept(b"not DICOM at all")
    here.scheduler.tick()
    assert here.files("conflicting") == 13
    assert here.clean("conflicting") == {"conflicting": 13}
    assert here.files("conflicting") == 0 and here.files("instances") == 12
    assert [r["kind"] for r in here.study()["removals"]] == ["conflicting"]


def test_the_scheduler_removes_a_study_at_a_time_by_itself(
    site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = site(**SENT)
    for name in ("a", "b"):
        here.report(*head_ct(tmp_path, name=name))
    here.scheduler.retention = here.rules("instances")
    here.scheduler.tick()
    here.scheduler.tick()
    assert here.files("instances") == 12
    monkeypatch.setattr("plugin.retention.time.monotonic", lambda now=time.monotonic: now() + rules.PAUSE_SECONDS)
    here.scheduler.tick()
    assert here.files("instances") == 0


# ---- what stays ------------------------------------------------------------------------------------------


def kept(here: Site) -> set[str]:
    assert list(here.rules("instances", "prepared", "results").run(frozenset)) == []
    return set(here.rules("instances").kept()["instances"])


def delivery(here: Site, state: DeliveryState) -> None:
    with here.database.write() as session:
        session.execute(update(Delivery).values(state=state))


def test_nothing_goes_before_it_is_analysed_and_confirmed(either: Callable[..., Site], tmp_path: Path) -> None:
    here = either(**SENT)
    here.receive(*head_ct(tmp_path))
    assert kept(here) == {"in progress"}
    here.scheduler.tick()
    assert here.claim("prepare") is not None
    assert kept(here) == {"in progress"}
    with here.database.write() as session:
        session.execute(update(Base.metadata.tables["series"]).values(lease_until=0.0))
    here.work()
    assert here.study()["state"] == "reported"
    assert kept(here) == {"not confirmed yet"}
    claim = here.claim("deliver")
    assert claim is not None and kept(here) == {"not confirmed yet"}
    outcomes.delivered(here.database, claim, action="store", seconds=0.1)
    assert here.clean("instances") == {"instances": 12}


@pytest.mark.parametrize(
    ("state", "why"), [(DeliveryState.REFUSED, "refused by a destination"), (DeliveryState.HELD, "held back")]
)
def test_what_no_destination_has_stays_until_an_operator_knows(
    either: Callable[..., Site], tmp_path: Path, state: DeliveryState, why: str
) -> None:
    here = either(**SENT)
    here.receive(*head_ct(tmp_path))
    here.work()
    delivery(here, state)
    assert kept(here) == {why}
    assert index.acknowledge(here.database, here.study()["study_instance_uid"])
    assert here.clean() == {"instances": 12, "prepared": 2, "results": 1}
    retried = outcomes.retry(here.database)
    assert (retried.deliveries, outcomes.let_out_held(here.database)) == (0, 0)


def test_results_that_were_sent_nowhere_stay(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site()
    here.report(*head_ct(tmp_path))
    assert kept(here) == {"no destination was set"}


def test_what_was_given_up_stays(site: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.work.FAILED_WAIT_SECONDS", 0.0)
    here = site(**SENT)
    here.receive(*head_ct(tmp_path))
    here.scheduler.tick()
    for _ in range(3):
        claim = here.claim("prepare")
        assert claim is not None
        leases.put_back(here.database, claim, detail="", wait_seconds=0)
    here.scheduler.tick()
    here.work()
    here.deliver()
    assert here.reasons() == {2: "crashed"}
    assert kept(here) == {"analysis given up"}
    index.acknowledge(here.database, here.study()["study_instance_uid"])
    assert here.clean("instances") == {"instances": 12}


def test_what_happens_after_an_acknowledgement_voids_it(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    here.receive(*head_ct(tmp_path))
    here.work()
    index.acknowledge(here.database, here.study()["study_instance_uid"])
    claim = here.claim("deliver")
    assert claim is not None
    time.sleep(0.01)
    outcomes.delivery_refused(here.database, claim, detail="HTTP 415", seconds=0.1)
    assert kept(here) == {"refused by a destination"}


def test_what_was_committed_to_a_sender_stays_for_good(either: Callable[..., Site], tmp_path: Path) -> None:
    here = either(**SENT)
    here.report(*head_ct(tmp_path))
    with here.database.write() as session:
        session.execute(update(Study).values(committed_at=clock()))
    assert kept(here) == {"committed to a sender"}
    index.acknowledge(here.database, here.study()["study_instance_uid"])
    assert kept(here) == {"committed to a sender"}


def test_a_study_without_results_goes_when_it_was_judged(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    here.report(*head_ct(tmp_path, BodyPartExamined="CHEST"))
    assert here.study()["state"] == "refused"
    assert here.clean() == {"instances": 12, "prepared": 1}


# ---- kills -----------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("files", [0, 5, 12])
def test_a_kill_between_the_mark_and_the_last_file_is_made_good(
    either: Callable[..., Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    here = either(**SENT)
    here.report(*head_ct(tmp_path))
    unlink, calls = Path.unlink, []

    def dies(path: Path, missing_ok: bool = False) -> None:
        if len(calls) == files:
            raise Killed
        calls.append(path)
        unlink(path, missing_ok=missing_ok)

    removal = here.rules("instances")
    if files < 12:
        monkeypatch.setattr(Path, "unlink", dies)
        with pytest.raises(Killed):
            list(removal.run(frozenset))
        monkeypatch.undo()
    else:  # the files are gone, and the end is not written down
        monkeypatch.setattr(index, "sweep", lambda database, job, remove: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            list(removal.run(frozenset))
        monkeypatch.undo()
        shutil.rmtree(here.spool.instances)
        here.spool.instances.mkdir()
    assert [job.kind for job in index.unfinished(here.database)] == ["instances"]
    assert Retention({}, here.spool, here.database).step(frozenset)  # by the scheduler, whatever its rules are by now
    assert here.files("instances") == 0 and index.unfinished(here.database) == []
    assert [r["files"] for r in here.study()["removals"]] == [12 - files]


def test_what_comes_back_before_its_file_is_swept_is_not_swept(either: Callable[..., Site], tmp_path: Path) -> None:
    here = either(**SENT)
    paths = head_ct(tmp_path)
    here.report(*paths)
    (item,) = index.due(here.database, "instances", days=AT_ONCE) or [None]
    assert item is not None
    job = index.mark(here.database, item, days=AT_ONCE)
    assert job is not None
    here.receive(*paths[:3])
    (swept,) = Retention({}, here.spool, here.database).run(frozenset)
    assert swept.files == 9
    assert here.files("instances") == 3
    assert index.unfinished(here.database) == []


def test_a_study_that_is_not_due_any_more_is_not_marked(either: Callable[..., Site], tmp_path: Path) -> None:
    here = either(**SENT)
    here.report(*head_ct(tmp_path))
    time.sleep(0.02)
    (item,) = index.due(here.database, "instances", days=AT_ONCE)
    here.receive(*head_ct(tmp_path, number=3))
    assert index.mark(here.database, item, days=AT_ONCE) is None


# ---- what comes after ------------------------------------------------------------------------------------


def test_the_same_study_again_is_kept_again_and_starts_nothing(either: Callable[..., Site], tmp_path: Path) -> None:
    here = either(**SENT)
    paths = head_ct(tmp_path)
    here.report(*paths)
    said = here.study()["revisions"]
    here.clean()
    here.receive(*paths)
    assert here.files("instances") == 12 and here.spool.arrivals(1) == []
    here.work()
    after = here.study()["revisions"]
    assert [r["number"] for r in after] == [r["number"] for r in said] == [1]
    assert here.clean() == {"instances": 12}


def test_a_late_series_is_reported_with_the_prepared_scans_of_what_is_gone(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    here = site(**SENT, **POSITIVE)
    here.report(*head_ct(tmp_path, number=2))
    here.clean("instances")
    here.report(*head_ct(tmp_path, number=3, slices=20))
    assert here.reasons() == {2: "prepared", 3: "prepared"}
    new = here.study()["revisions"][1]
    summary = dcmread(here.spool / new["results"][0]["path"])
    assert summary.CompletionFlag == "COMPLETE"
    assert len(here.study()["revisions"][0]["rejection_notes"]) == 1


def test_a_late_image_of_a_series_that_is_gone_leaves_what_was_said(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT, **POSITIVE)
    paths = head_ct(tmp_path, slices=14)
    here.report(*paths[:12])
    here.clean("instances")
    here.report(paths[12])
    study = here.study()
    assert (study["state"], study["reason"], here.reasons()) == ("refused", "removed", {2: "removed"})
    assert [(r["number"], r["current"], r["rejection_notes"]) for r in study["revisions"]] == [(1, True, [])]
    assert "12 of 13" in study["series"][0]["detail"]
    here.report(*paths)  # the whole series again, and one more
    study = here.study()
    assert (study["state"], here.reasons()) == ("reported", {2: "prepared"})
    assert [(r["number"], r["current"]) for r in study["revisions"]] == [(1, False), (2, True)]
    assert len(study["revisions"][0]["rejection_notes"]) == 1


def rejected(here: Site, note: dict[str, Any]) -> set[str]:
    evidence = dcmread(here.spool / note["path"]).CurrentRequestedProcedureEvidenceSequence
    return {
        row.ReferencedSOPInstanceUID
        for study in evidence
        for series in study.ReferencedSeriesSequence
        for row in series.ReferencedSOPSequence
    }


def findings(revision: dict[str, Any]) -> set[str]:
    return {r["sop_instance_uid"] for r in revision["results"] if "summary" not in r["description"]}


def test_a_late_series_of_a_study_that_is_gone_is_partial_and_takes_nothing_back(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    here = site(**SENT, **POSITIVE)
    early, late = head_ct(tmp_path, number=2), head_ct(tmp_path, number=3)
    here.report(*early)
    here.clean("instances", "prepared")
    here.report(*late)
    assert here.reasons() == {2: "removed", 3: "prepared"}
    first, second = here.study()["revisions"]
    summary = dcmread(here.spool / second["results"][0]["path"])
    assert summary.CompletionFlag == "PARTIAL"
    assert b"no longer kept here" in (here.spool / second["results"][0]["path"]).read_bytes()
    (evidence,) = summary.CurrentRequestedProcedureEvidenceSequence
    assert len(evidence.ReferencedSeriesSequence) == 1
    assert (first["current"], first["rejection_notes"], second["current"]) == (False, [], True)
    here.report(*early)  # sent again: all is here, and both earlier findings are taken back
    first, second, third = here.study()["revisions"]
    assert here.reasons() == {2: "prepared", 3: "prepared"}
    assert dcmread(here.spool / third["results"][0]["path"]).CompletionFlag == "COMPLETE"
    (note,) = second["rejection_notes"]
    assert rejected(here, note) == findings(first) | findings(second)
    here.report(*head_ct(tmp_path, number=4))
    third = here.study()["revisions"][2]
    assert rejected(here, third["rejection_notes"][0]) == findings(third)


def test_taking_a_study_up_again_uses_what_is_there(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    paths = head_ct(tmp_path)
    here.report(*paths)
    uid = here.study()["study_instance_uid"]
    here.clean("instances")
    taken = outcomes.retry(here.database, study_instance_uid=uid)
    assert (taken.series, taken.studies) == (0, 1)
    here.work()
    assert (here.reasons(), len(here.study()["revisions"])) == ({2: "prepared"}, 1)
    here.clean("prepared")
    outcomes.retry(here.database, study_instance_uid=uid)
    here.work()
    assert (here.study()["state"], here.study()["reason"]) == ("refused", "removed")
    here.receive(*paths)
    here.work()
    assert (here.study()["state"], len(here.study()["revisions"])) == ("reported", 1)


def test_a_scan_that_is_gone_is_prepared_again_while_its_images_are_here(
    site: Callable[..., Site], tmp_path: Path
) -> None:
    here = site(**SENT)
    here.report(*head_ct(tmp_path, number=2))
    here.clean("prepared")
    here.report(*head_ct(tmp_path, number=3))
    assert here.reasons() == {2: "prepared", 3: "prepared"}
    assert dcmread(here.spool / here.study()["revisions"][1]["results"][0]["path"]).CompletionFlag == "COMPLETE"


def test_results_that_are_gone_are_said_to_be(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    here.report(*head_ct(tmp_path))
    here.clean("results")
    study = here.study()
    with pytest.raises(ValueError, match="no longer kept"):
        withdrawal.withdraw(here.plugin, study["study_instance_uid"], reason="quality")
    page = screens.status_page(screens.read_status(here.plugin, study_uids=(), limit=5))
    assert any("results removed" in str(line) for line in page.renderables)


# ---- what no one knows of --------------------------------------------------------------------------------


def test_orphans_are_indexed_again_or_go(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site(**SENT)
    here.report(*head_ct(tmp_path))
    here.clean("instances")
    stray = here.spool.instance_path("1.2", "1.2.3", "1.2.3.4")
    left_over = here.spool.instance_path(*("1.2.9",) * 3)
    for path, source in ((stray, head_ct(tmp_path, name="b")[0]), (left_over, head_ct(tmp_path, name="c")[0])):
        path.parent.mkdir(parents=True)
        shutil.copy(source, path)
    with here.database.write() as session:
        study = session.scalars(select(Study)).one()
        assert session.scalars(select(Removal)).one().study_id == study.id
    things = {
        here.spool.incoming / ".x.dcm.part": b"half",
        here.spool.prepared / "1.2" / "1.2.3.b2nd": b"scan",
        here.spool.results / "1.2" / "r1" / "a.dcm": b"result",
        here.spool.results / "1.2" / ".staged" / "a.dcm": b"result",
    }
    for path, content in things.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (here.spool.instances / "1.5").mkdir()
    assert list(orphans.find(here.spool, here.database)) == []
    for orphan in list(orphans.find(here.spool, here.database, min_age_seconds=0)):
        orphans.settle(here.spool, here.database, orphan)
    assert not any(path.exists() for path in things)
    assert (here.files("instances"), here.files("prepared"), here.files("results")) == (0, 2, 1)
    assert len(here.spool.arrivals(9)) == 2
    here.scheduler.tick()
    assert len(overview.overview(here.database)["studies"]) == 3


def test_what_comes_back_after_it_was_found_to_be_left_over_stays(either: Callable[..., Site], tmp_path: Path) -> None:
    here = either(**SENT)
    paths = head_ct(tmp_path)
    here.report(*paths)
    (item,) = index.due(here.database, "instances", days=AT_ONCE)
    assert index.mark(here.database, item, days=AT_ONCE) is not None
    found = list(orphans.find(here.spool, here.database, min_age_seconds=0))
    assert [orphan.what for orphan in found].count(orphans.LEFT_OVER) == len(paths)
    here.receive(paths[0])
    for orphan in found:
        orphans.settle(here.spool, here.database, orphan)
    assert here.files("instances") == 1


# ---- room ------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB; the test is skipped where it may not be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if done.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    filler = folder / "filler"
    free = shutil.disk_usage(folder).free
    with filler.open("ab") as file:
        file.write(bytes(max(0, free - leave)))
    time.sleep(room.ASK_SECONDS)
    return filler


def test_a_full_disk_refuses_and_recovers_only_with_some_room_more(small_disk: Path, tmp_path: Path) -> None:
    here = Site(small_disk, spool={"min_free_gigabytes": 0.008, "worker_min_free_gigabytes": 0.004})
    spool = here.spool
    assert spool.has_room() and spool.room_for_work.is_enough()
    filler = fill(small_disk, leave=7_000_000)
    assert not spool.has_room() and spool.room_for_work.is_enough()
    state = screens.read_disk(here.plugin)
    assert (state["c_store"]["state"], state["workers"]["state"]) == ("stopped", "ok")
    os.truncate(filler, filler.stat().st_size - 2_000_000)
    assert not spool.has_room(), "between the marks it stays as it was"
    assert screens.read_disk(here.plugin)["c_store"]["state"] == "recovering"
    os.truncate(filler, filler.stat().st_size - 2_000_000)
    assert spool.has_room()
    fill(small_disk, leave=3_000_000)
    assert not spool.room_for_work.is_enough()
    page = screens.status_page(screens.read_status(here.plugin, study_uids=(), limit=5))
    said = "\n".join(str(line) for line in page.renderables)
    assert "refused with 0xA700" in said and "prepare and analyse wait" in said
    filler.unlink()
    here.close()


def test_workers_wait_while_the_disk_is_nearly_full(small_disk: Path, tmp_path: Path) -> None:
    here = Site(small_disk, spool={"min_free_gigabytes": 0, "worker_min_free_gigabytes": 0.004})
    here.receive(*head_ct(tmp_path))
    here.scheduler.tick()
    filler = fill(small_disk, leave=3_000_000)
    assert not work_once(here.plugin, "prepare")
    assert here.reasons() == {2: "ready"}
    filler.unlink()
    here.work()
    assert here.study()["state"] == "reported"
    here.close()


@pytest.mark.parametrize("queue", ["prepare", "analyse"])
def test_a_disk_that_is_full_blames_no_study(
    small_disk: Path, tmp_path: Path, site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, queue: str
) -> None:
    """The index lies on another disk here, as a database server's does."""
    monkeypatch.setattr("plugin.work.MACHINE_WAIT_SECONDS", 0.0)
    index_url = f"sqlite:///{tmp_path / 'index.sqlite'}"
    here = Site(small_disk, spool={"worker_min_free_gigabytes": 0}, index={"url": index_url})
    here.receive(*head_ct(tmp_path))
    here.scheduler.tick()
    if queue == "analyse":
        while work_once(here.plugin, "prepare"):
            pass
        here.scheduler.tick()
    before = {path for path in small_disk.rglob("*") if path.is_file()}
    filler = fill(small_disk, leave=0)
    for _ in range(4):
        assert work_once(here.plugin, queue)
        here.scheduler.tick()
    assert {path for path in small_disk.rglob("*") if path.is_file()} - before == {filler}
    filler.unlink()
    here.work()
    assert (here.study()["state"], here.reasons()) == ("reported", {2: "prepared"})
    here.close()


# ---- hlip clean ------------------------------------------------------------------------------------------


def hlip_clean(here: Site, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "HLIP_SPOOL__FOLDER": str(here.spool.folder), "HLIP_SETTLE__ASSOCIATION_CAP_SECONDS": "0",
        "COLUMNS": "120",
    }  # fmt: skip
    command = [Path(sys.executable).parent / "hlip", "clean", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_command_shows_what_goes_and_why_something_stays(site: Callable[..., Site], tmp_path: Path) -> None:
    here = site()
    here.report(*head_ct(tmp_path))
    uid = here.study()["study_instance_uid"]
    shown = hlip_clean(here, "--dry-run", "--older-than", "0")
    assert shown.returncode == 0, shown.stderr
    assert "Would go" in shown.stdout and "kept: instances of 1 studies, no destination was set" in shown.stdout
    assert "1 studies acknowledged" in hlip_clean(here, "--acknowledge", uid).stdout
    assert hlip_clean(here, "--acknowledge", "1.2.3").returncode == 1
    removed = hlip_clean(here, "--older-than", "0").stdout
    row = next(line for line in removed.splitlines() if "instances" in line)
    assert [cell.strip() for cell in row.split("│")[3:5]] == ["1", "12"], removed
    assert here.files("instances") == here.files("prepared") == here.files("results") == 0
    assert "Orphans" in hlip_clean(here, "--orphans", "--dry-run").stdout
