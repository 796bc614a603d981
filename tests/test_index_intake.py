"""What arrives becomes studies and series of the index, once, and these settle when nothing more comes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import false, select, update

from indexes import KINDS, NOBODY, add, arrivals, claim, empty_database, prepared, settle, states
from plugin.index import intake, outcomes, overview, settling
from plugin.index.database import Database, IndexUnavailable, clock
from plugin.index.intake import Fate
from plugin.index.tables import Instance, Series, Study
from plugin.spool import OpenStudies


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with empty_database(request, tmp_path) as made:
        yield made


def test_a_batch_becomes_a_study_with_its_series(database: Database, tmp_path: Path) -> None:
    fates = add(database, arrivals(tmp_path, number=2) + arrivals(tmp_path, number=3))
    assert set(fates) == {Fate.PLACE}
    (study,) = overview.overview(database)["studies"]
    assert (study["state"], study["priority"]) == ("receiving", 20)
    assert [(s["series_number"], s["instances"], s["state"]) for s in study["series"]] == [
        (2, 12, "receiving"), (3, 12, "receiving"),
    ]  # fmt: skip


def test_an_instance_may_be_larger_than_two_gibibytes(database: Database, tmp_path: Path) -> None:
    assert add(database, [replace(arrivals(tmp_path)[0], size=3 << 30)]) == [Fate.PLACE]
    with database.read() as session:
        assert session.scalar(select(Instance.size)) == 3 << 30


def test_a_value_that_the_database_does_not_take_is_told(database: Database, tmp_path: Path) -> None:
    if database.engine.dialect.name == "sqlite":
        pytest.skip("SQLite takes what it is given")
    with pytest.raises(intake.NotTaken):
        add(database, [replace(arrivals(tmp_path)[0], size=1 << 63)])


def test_a_scheduler_that_another_one_overtook_tries_again(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = arrivals(tmp_path)
    add(database, batch[:6])
    with monkeypatch.context() as patch:  # it looked just before the other one wrote
        patch.setattr(intake, "_STUDIES", select(Study).where(false()))
        with pytest.raises(IndexUnavailable):
            add(database, batch)
    assert add(database, batch) == [Fate.DROP] * 6 + [Fate.PLACE] * 6


def test_the_same_instance_again_is_dropped(database: Database, tmp_path: Path) -> None:
    batch = arrivals(tmp_path)
    add(database, batch)
    prepared(database)
    assert set(add(database, batch)) == {Fate.DROP}
    assert states(database) == ({"prepared": 1}, {"ready": 1})


def test_other_content_under_a_known_uid_is_set_aside(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path / "1"))
    others = arrivals(tmp_path / "2", SeriesDescription="Other")
    assert set(add(database, others)) == {Fate.SET_ASIDE}
    (study,) = overview.overview(database)["studies"]
    assert (study["conflicting_instances"], study["series"][0]["instances"]) == (12, 12)


def test_a_study_settles_after_its_series_and_not_while_it_is_sent(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    (study,) = overview.overview(database)["studies"]
    series_uid = study["series"][0]["series_instance_uid"]
    sending = OpenStudies(frozenset({study["study_instance_uid"]}), frozenset({series_uid}))
    settle(database, sending)
    assert states(database) == ({"receiving": 1}, {"receiving": 1})
    next_series = OpenStudies(sending.studies, frozenset({"1.2.3"}))
    settle(database, next_series)
    assert states(database) == ({"ready": 1}, {"receiving": 1})
    item = claim(database, "prepare")
    assert item is not None
    settle(database)
    assert states(database)[1] == {"receiving": 1}
    outcomes.series_prepared(database, item, notes=[], seconds=0)
    settle(database, next_series)
    assert states(database)[1] == {"receiving": 1}
    settle(database)
    assert states(database) == ({"prepared": 1}, {"ready": 1})


def test_the_quiet_time_is_waited_for(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    assert settling.settle_series(database, quiet_seconds=60, open_studies=NOBODY) == 0
    assert settling.settle_series(database, quiet_seconds=0, open_studies=NOBODY) == 1


def test_times_and_leases_do_not_depend_on_this_hosts_clock(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    with database.write() as session:
        session.execute(update(Series).values(last_image_at=clock() + 3600))
    assert settling.settle_series(database, quiet_seconds=0, open_studies=NOBODY) == 0
