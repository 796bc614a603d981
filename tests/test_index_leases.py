"""Work is claimed from the index for a time, the most urgent first; what fails waits, and is taken up anew."""

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import update

from indexes import KINDS, add, arrivals, claim, empty_database, prepared, report, reported, settle, shift, states
from plugin.index import future, leases, outcomes, overview
from plugin.index.database import Database
from plugin.index.tables import Series, Study


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with empty_database(request, tmp_path) as made:
        yield made


def test_the_most_urgent_item_is_claimed_first(database: Database, tmp_path: Path) -> None:
    for name, priority in (("archive", 80), ("triage", 10), ("routine", 50)):
        add(database, arrivals(tmp_path, name=name, slices=8), priority)
    settle(database)

    def claimed() -> list[int]:
        order = []
        while (item := claim(database, "prepare")) is not None:
            uid = overview.series_view(database, item.id).study_instance_uid
            order += [s["priority"] for s in overview.overview(database, study_uids=[uid])["studies"]]
        return order

    assert claimed() == [10, 50]
    with database.write() as session:  # a minute later nobody urgent is arriving any more
        session.execute(update(Study).values(last_image_at=Study.last_image_at - 61))
    assert claimed() == [80]


def test_an_item_is_claimed_once(database: Database, tmp_path: Path) -> None:
    for name in "abcdefgh":
        add(database, arrivals(tmp_path, name=name, slices=8))
    settle(database)
    taken: list[int] = []

    def take() -> None:
        while (item := claim(database, "prepare")) is not None:
            taken.append(item.id)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == len(set(taken)) == 8


def test_a_lost_lease_is_claimed_again_and_its_first_owner_may_not_write(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    settle(database)
    first = claim(database, "prepare", lease_seconds=30)
    assert first is not None
    assert claim(database, "prepare") is None
    shift(database, Series, "lease_until", seconds=-31)
    second = claim(database, "prepare")
    assert second is not None and (second.id, second.attempts) == (first.id, 2)
    assert not leases.renew(database, first, 30)
    assert not outcomes.series_refused(database, first, reason="geometry", detail="", seconds=0)
    assert outcomes.series_prepared(database, second, notes=[], seconds=0)
    assert states(database)[0] == {"prepared": 1}


def test_a_lease_is_renewed_while_the_work_goes_on(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    settle(database)
    item = claim(database, "prepare", lease_seconds=0.5)
    assert item is not None
    with leases.kept_alive(partial(leases.renew, database, item, 0.5), 0.5):
        time.sleep(1.0)
        assert claim(database, "prepare") is None


def test_new_images_take_the_study_back_from_its_worker(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path, number=2))
    prepared(database)
    item = claim(database, "analyse")
    assert item is not None
    add(database, arrivals(tmp_path, number=3))
    assert states(database)[1] == {"receiving": 1}
    published: list[int] = []
    assert not report(database, item, publish=lambda: published.append(1))
    assert not published


def test_what_fails_waits_and_is_given_up_in_the_end(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    settle(database)
    for attempt in (1, 2, 3):
        item = claim(database, "prepare")
        assert item is not None and item.attempts == attempt
        leases.put_back(database, item, detail="ValueError at somewhere:1", wait_seconds=0)
    assert claim(database, "prepare") is None
    assert leases.give_up(database, max_attempts=3) == 1
    (study,) = overview.overview(database)["studies"]
    assert [(s["state"], s["reason"], s["detail"]) for s in study["series"]] == [
        ("refused", "crashed", "ValueError at somewhere:1")
    ]
    assert outcomes.retry(database).series == 1
    assert claim(database, "prepare") is not None


def test_an_item_put_back_is_not_due_at_once(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    settle(database)
    item = claim(database, "prepare")
    assert item is not None
    leases.put_back(database, item, detail="", wait_seconds=60)
    assert claim(database, "prepare") is None
    assert leases.claimable(database, "prepare", max_attempts=3) == []


def test_naming_a_study_takes_it_up_anew(database: Database, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add(database, arrivals(tmp_path, name=name))
    prepared(database)
    reported(database)
    (chosen, _) = sorted(overview.overview(database)["studies"], key=lambda s: s["state"] != "reported")
    taken = outcomes.retry(database, study_instance_uid=chosen["study_instance_uid"])
    assert (taken.series, taken.studies) == (1, 1)
    assert states(database) == ({"prepared": 1, "ready": 1}, {"ready": 1, "receiving": 1})


def test_what_waits_for_a_clock_that_was_set_back_does_not_wait_long(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    assert _brought_back(database) == 0
    shift(database, Series, "last_image_at")
    shift(database, Study, "last_image_at")
    settle(database)
    assert states(database)[0] == {"receiving": 1}
    assert _brought_back(database) == 2
    settle(database)
    assert states(database)[0] == {"ready": 1}
    assert claim(database, "prepare") is not None
    shift(database, Series, "lease_until")
    assert _brought_back(database) == 1
    taken = claim(database, "prepare", lease_seconds=-1)
    assert taken is None  # the lease that stands is one of a usual length
    shift(database, Series, "lease_until", seconds=-31)
    taken = claim(database, "prepare")
    assert taken is not None
    leases.put_back(database, taken, detail="", wait_seconds=3600)
    assert _brought_back(database) == 1


def _brought_back(database: Database) -> int:
    return future.bring_back(
        database, lease_seconds=30, longest_wait_seconds=60, fetch_lease_seconds=30, longest_fetch_wait_seconds=600
    )
