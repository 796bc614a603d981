"""Retention: what is delivered and old goes, once and for good; what anything waits for stays, whatever its age."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from plugin import retention as rules
from plugin.index import leases, outcomes
from plugin.index import retention as index
from plugin.index.database import clock
from plugin.index.tables import Base, Delivery, Study
from plugin.lifecycle import DeliveryState
from plugin.retention import Retention
from plugin.settings import RetentionSettings
from road import head_ct
from road_by_hand import AT_ONCE, POSITIVE, SENT, Site, sites


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Makes sites, on SQLite."""
    with sites(tmp_path) as make:
        yield make


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
