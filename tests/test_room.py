"""A disk that fills up: it refuses, workers wait, no study is blamed, and all goes on once there is room again."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin import room, screens
from plugin.work import work_once
from road import head_ct
from road_by_hand import Site


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
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, queue: str
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
