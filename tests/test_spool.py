"""The spool: what is acknowledged stays, whole; nothing from outside becomes a path."""

import os
import time
from pathlib import Path

import pytest

from plugin.spool import Spool, UnsafeUid, check_uid, dataset_digest, write_durably
from series import head, series, write


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "data")


@pytest.mark.parametrize(
    "value", ["", None, "../../etc/passwd", "1.2/3", ".1", "1.", "1..2", "1.2\n3", "a.b", "1" * 65, "1.2;DROP", "１.２"]
)
def test_what_is_no_uid_never_becomes_a_path(value: str | None) -> None:
    with pytest.raises(UnsafeUid) as caught:
        check_uid(value, "StudyInstanceUID")
    assert "StudyInstanceUID" in str(caught.value)
    assert not value or value not in str(caught.value)


def test_padding_of_a_uid_is_taken_off() -> None:
    assert check_uid("1.2.840\0") == "1.2.840"


def test_an_accepted_instance_lies_whole_in_incoming(spool: Spool) -> None:
    path = spool.accept(b"content")
    assert path.parent == spool.incoming and path.read_bytes() == b"content"
    assert spool.arrivals(10) == [path]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(tmp_path / "x.dcm", b"content")
    assert list(tmp_path.iterdir()) == []


def test_arrivals_come_oldest_first(spool: Spool) -> None:
    paths = [spool.accept(bytes([i])) for i in range(5)]
    assert spool.arrivals(3) == paths[:3]


def test_an_open_association_keeps_its_study_and_its_latest_series_open(spool: Spool) -> None:
    spool.open_association("a")
    spool.mark_series("a", study_instance_uid="1.1", series_instance_uid="1.1.1")
    spool.mark_series("a", study_instance_uid="1.1", series_instance_uid="1.1.2")
    now_open = spool.open_studies(cap_seconds=60)
    assert (now_open.studies, now_open.series) == ({"1.1"}, {"1.1.2"})
    spool.close_association("a")
    assert not spool.open_studies(cap_seconds=60).studies


def test_a_silent_association_does_not_hold_a_study_for_ever(spool: Spool) -> None:
    spool.open_association("a")
    spool.mark_series("a", study_instance_uid="1.1", series_instance_uid="1.1.1")
    long_ago = time.time() - 100
    os.utime(spool.associations / "a" / "1.1", (long_ago, long_ago))
    assert spool.open_studies(cap_seconds=120).studies
    assert not spool.open_studies(cap_seconds=60).studies
    spool.touch_study("a", study_instance_uid="1.1", series_instance_uid="1.1.1")
    assert spool.open_studies(cap_seconds=60).studies


def test_an_association_whose_markers_were_removed_has_them_again(spool: Spool) -> None:
    for note in (spool.mark_series, spool.touch_study):
        spool.close_association("a")
        note("a", study_instance_uid="1.1", series_instance_uid="1.1.1")
        assert spool.open_studies(cap_seconds=60).series == {"1.1.1"}


def test_what_a_late_fetch_left_in_a_fetched_study_holds_nothing_open(spool: Spool) -> None:
    study = spool.fetched / "1" / "1.2"
    (study / "1.2.1").mkdir(parents=True)
    (study / "00000000000000000001-a.dcm").write_bytes(b"late")
    assert spool.open_studies(cap_seconds=60).studies
    assert spool.fetched_arrivals(10) == []
    assert not spool.open_studies(cap_seconds=60).studies


def test_markers_of_a_killed_listener_go_when_it_comes_back(spool: Spool) -> None:
    for name in ("host-11112-1-x", "host-104-1-x"):
        spool.open_association(name)
    spool.close_all_associations("host-11112-")
    assert [path.name for path in spool.associations.iterdir()] == ["host-104-1-x"]


def test_the_digest_is_of_the_dataset_alone(tmp_path: Path) -> None:
    first, second = series(head(2), SeriesNumber=1)[0], series(head(2), SeriesNumber=1)[0]
    second.file_meta.SourceApplicationEntityTitle = "OTHER"
    digests = {dataset_digest(write([dataset], tmp_path / str(i))[0]) for i, dataset in enumerate((first, second))}
    assert len(digests) == 1
    third = series(head(2), SeriesNumber=2)[0]
    assert dataset_digest(write([third], tmp_path / "other")[0]) not in digests


def test_results_are_published_whole_and_again(spool: Spool) -> None:
    for content in (b"first", b"second"):
        staged = spool.stage_results("1.1", {"a.dcm": content})
        assert staged.name.startswith(".")
        spool.publish_results(staged, "1.1", 1)
    folder = spool.results_folder("1.1", 1)
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("a.dcm", b"second")]
    assert list(folder.parent.iterdir()) == [folder]


def test_the_installation_keeps_its_uid(spool: Spool) -> None:
    assert spool.installation_uid() == Spool(spool.folder).installation_uid() == check_uid(spool.installation_uid())


def test_only_its_owner_may_read_the_spool(spool: Spool) -> None:
    for folder in (spool.folder, spool.incoming, spool.instances, spool.results):
        assert folder.stat().st_mode & 0o077 == 0
