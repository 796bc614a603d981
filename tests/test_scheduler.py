"""The scheduler: whatever a cut leaves behind, the next tick makes good."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from peers import wait_until
from plugin.arrival import read_arrival
from plugin.bootstrap import Plugin
from plugin.index import intake, overview
from plugin.index.database import Database
from plugin.index.intake import Fate, Intake, NotTaken
from plugin.scheduler import BATCH, RING_AGAIN_SECONDS, Scheduler
from road import head_ct, settings


class Bell:
    def __init__(self) -> None:
        self.rung: list[str] = []

    def __call__(self, queue: str) -> None:
        self.rung.append(queue)


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Plugin]:
    made = Plugin(settings(tmp_path, settle={"series_quiet_seconds": 0, "study_quiet_seconds": 0}))
    made.database.upgrade()
    yield made
    made.database.close()


def scheduler(plugin: Plugin, bell: Bell | None = None) -> Scheduler:
    return Scheduler(plugin.settings, plugin.spool, plugin.database, bell or Bell())


def accept(plugin: Plugin, paths: list[Path]) -> list[Path]:
    return [plugin.spool.accept(path.read_bytes()) for path in paths]


def placed(plugin: Plugin) -> int:
    return len(list(plugin.spool.instances.rglob("*.dcm")))


def test_arrivals_are_indexed_and_moved_to_their_places(plugin: Plugin, tmp_path: Path) -> None:
    paths = head_ct(tmp_path)
    accept(plugin, paths)
    scheduler(plugin).tick()
    assert overview.overview(plugin.database)["instances"] == placed(plugin) == len(paths)
    assert plugin.spool.arrivals(1) == []


def test_a_cut_between_index_and_move_loses_nothing(plugin: Plugin, tmp_path: Path) -> None:
    arrivals = [read_arrival(path) for path in accept(plugin, head_ct(tmp_path))]
    intake.add_instances(plugin.database, [Intake(arrival, 20) for arrival in arrivals])
    scheduler(plugin).tick()
    assert placed(plugin) == 12 and plugin.spool.arrivals(1) == []


def test_repeats_within_one_batch_are_kept_once(plugin: Plugin, tmp_path: Path) -> None:
    paths = head_ct(tmp_path)
    accept(plugin, [*paths, *paths])
    scheduler(plugin).tick()
    assert placed(plugin) == 12 and len(list(plugin.spool)) == 12


def test_other_content_under_a_known_uid_is_kept_aside(plugin: Plugin, tmp_path: Path) -> None:
    accept(plugin, head_ct(tmp_path / "1"))
    accept(plugin, head_ct(tmp_path / "2", SeriesDescription="Other"))
    scheduler(plugin).tick()
    assert placed(plugin) == 12
    assert len(list(plugin.spool.conflicting.rglob("*.dcm"))) == 12


def test_an_arrival_that_cannot_be_read_does_not_stop_the_others(plugin: Plugin, tmp_path: Path) -> None:
    plugin.spool.accept(b"not DICOM at all")
    accept(plugin, head_ct(tmp_path))
    scheduler(plugin).tick()
    assert placed(plugin) == 12
    assert len(list((plugin.spool.conflicting / "unreadable").iterdir())) == 1


def test_a_large_arrival_is_taken_in_batches_before_anything_settles(plugin: Plugin, tmp_path: Path) -> None:
    accept(plugin, head_ct(tmp_path, slices=BATCH + 10))
    rounds = scheduler(plugin)
    assert rounds.tick() is True
    assert overview.overview(plugin.database)["series_by_state"] == {"receiving": 1}
    assert rounds.tick() is False
    assert overview.overview(plugin.database)["instances"] == BATCH + 10


def test_arrivals_wait_for_others_only_while_others_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.scheduler.LOOK_SECONDS", 600.0)
    plugin = Plugin(settings(tmp_path, settle={"tick_seconds": 600.0}))
    plugin.database.upgrade()
    stop = threading.Event()
    running = threading.Thread(target=scheduler(plugin).run, args=(stop,))
    running.start()
    try:
        for path in head_ct(tmp_path, slices=3):  # the first look is over when the first of them is placed
            accept(plugin, [path])
            wait_until(lambda: not plugin.spool.num_arrivals(), "the arrival to be indexed")
    finally:
        stop.set()
        running.join()
    assert placed(plugin) == 3
    plugin.database.close()


def test_a_folder_that_cannot_be_looked_into_is_looked_into_again(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.scheduler.AWAY_SECONDS", 0.05)
    look, failed = plugin.spool.num_arrivals, threading.Event()

    def fails_once() -> int:
        if not failed.is_set():
            failed.set()
            raise OSError(24, "Too many open files")
        return look()

    monkeypatch.setattr(plugin.spool, "num_arrivals", fails_once)
    stop = threading.Event()
    running = threading.Thread(target=scheduler(plugin).run, args=(stop,))
    running.start()
    try:
        assert failed.wait(30)
        accept(plugin, head_ct(tmp_path))
        wait_until(lambda: placed(plugin) == 12, "the arrivals to be indexed")
    finally:
        stop.set()
        running.join()


def test_one_that_the_database_does_not_take_is_set_aside_alone(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = accept(plugin, head_ct(tmp_path))[3]
    add = intake.add_instances

    def takes_all_but_one(database: Database, batch: Sequence[Intake]) -> list[Fate]:
        if any(item.arrival.path == wrong for item in batch):
            raise NotTaken("out of range")
        return add(database, batch)

    monkeypatch.setattr(intake, "add_instances", takes_all_but_one)
    scheduler(plugin).tick()
    assert placed(plugin) == 11 and plugin.spool.arrivals(1) == []
    assert len(list(plugin.spool.conflicting.rglob("*.dcm"))) == 1


def test_what_a_study_gets_while_it_is_looked_at_is_waited_for(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arrivals are listed; the last of the study comes, and its association ends; then it is judged."""
    paths = head_ct(tmp_path)
    accept(plugin, paths[:6])
    arrival = read_arrival(paths[0])
    series = {
        "study_instance_uid": arrival.study_instance_uid,
        "series_instance_uid": arrival.series_instance_uid,
    }
    plugin.spool.mark_series("a", **series)
    listed = plugin.spool.arrivals

    def then_the_rest_comes(limit: int) -> list[Path]:
        found = listed(limit)
        accept(plugin, paths[6:])
        plugin.spool.close_association("a")
        return found

    monkeypatch.setattr(plugin.spool, "arrivals", then_the_rest_comes)
    scheduler(plugin).tick()
    assert placed(plugin) == 6
    assert overview.overview(plugin.database)["series_by_state"] == {"receiving": 1}
    monkeypatch.undo()
    scheduler(plugin).tick()
    assert overview.overview(plugin.database)["series_by_state"] == {"ready": 1}


def test_work_is_announced_once_and_again_when_no_one_took_it(
    plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(plugin, head_ct(tmp_path))
    bell = Bell()
    rounds = scheduler(plugin, bell)
    for _ in range(3):
        rounds.tick()
    assert bell.rung == ["prepare"]
    monkeypatch.setattr("plugin.scheduler.RING_AGAIN_SECONDS", 0.0)
    rounds.tick()
    assert bell.rung == ["prepare", "prepare"]
    assert RING_AGAIN_SECONDS > 0


def test_work_that_could_not_be_announced_is_announced_at_the_next_tick(plugin: Plugin, tmp_path: Path) -> None:
    accept(plugin, head_ct(tmp_path))
    rung: list[str] = []
    rounds = Scheduler(plugin.settings, plugin.spool, plugin.database, lambda queue: bool(rung.append(queue)))
    for _ in range(3):
        rounds.tick()
    assert rung == ["prepare"] * 3


def test_a_disk_that_fails_is_waited_for(plugin: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept(plugin, head_ct(tmp_path))

    def fails(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("plugin.scheduler.read_arrival", fails)
    with pytest.raises(OSError, match="Input/output"):
        scheduler(plugin).tick()
    monkeypatch.undo()
    scheduler(plugin).tick()
    assert placed(plugin) == 12
