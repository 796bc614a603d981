"""After retention: the same study again, a late image or series, a second look, and files that no one knows of."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread
from sqlalchemy import select

from plugin import orphans, screens, withdrawal
from plugin.index import outcomes, overview
from plugin.index import retention as index
from plugin.index.tables import Removal, Study
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
