"""The outbox of signals: a finding is told at least once, in order, and corrected when it no longer holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugin.index import signals
from plugin.index.database import Database
from plugin.index.signal_table import Signal
from plugin.index.tables import Base, Revision, Study
from plugin.lifecycle import DeliveryState
from plugin.signals.facts import facts, offer
from receivers import row
from reports import ICH, report, score


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path / 'index.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql")
    made = Database(url, lock=tmp_path / "lock")
    made.upgrade()
    with made.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
        session.add(Study(id=1, study_instance_uid="1.2.3", state="reported", priority=20, revision=0, conflicts=0))
    yield made
    made.close()


def revise(
    database: Database, number: int, *positive: str, always: bool = False, hold: bool = False, withdraw: bool = False,
    receivers: tuple[str, ...] = ("ris",), study: int = 1,
) -> None:  # fmt: skip
    """A revision with these positives, or the withdrawal of the one before."""
    with database.write() as session:
        if withdraw:
            signals.withdraw(session, session.query(Revision).filter_by(number=number).one())
            return
        revision = Revision(
            study_id=study, number=number, inputs_digest="i", content_digest="c", bundle_digest="b", preprocessing="p",
            findings=[], created_at=1.0,
        )  # fmt: skip
        session.add(revision)
        session.flush()
        signals.offer(session, revision, [signals.Offer(
            receiver=name, identity=f"{study}.{number}", positive=positive, always=always, hold=hold,
            content={"findings": []},
        ) for name in receivers])  # fmt: skip


def said(database: Database) -> list[tuple[str, str, list[str], list[str]]]:
    with database.read() as session:
        rows = session.query(Signal).order_by(Signal.id).all()
        return [(row.status, row.state, row.positive, row.retracted) for row in rows]


def take(database: Database) -> Any:
    from plugin.index import leases

    return leases.claim(database, "signal", owner="me", lease_seconds=30, max_attempts=3)


def deliver(database: Database) -> None:
    claim = take(database)
    assert claim is not None and signals.delivered(database, claim, seconds=0.1)


def test_a_positive_is_told_once_and_its_end_is_told_too(database: Database) -> None:
    revise(database, 1, "ich")
    deliver(database)
    revise(database, 2, "ich")
    revise(database, 3)
    deliver(database)
    revise(database, 4)
    assert said(database) == [("new", "delivered", ["ich"], []), ("corrected", "delivered", [], ["ich"])]
    assert take(database) is None


def test_nothing_is_told_of_what_was_not_found_unless_asked(database: Database) -> None:
    revise(database, 1)
    assert said(database) == []
    revise(database, 2, always=True)
    assert said(database) == [("new", "waiting", [], [])]


def test_what_no_one_was_told_yet_gives_way_to_what_holds_now(database: Database) -> None:
    revise(database, 1, "ich")
    revise(database, 2, "ich", "shift")
    revise(database, 3)
    assert [row[1] for row in said(database)] == ["obsolete", "obsolete"]
    assert take(database) is None


def test_a_positive_whose_answer_got_lost_is_corrected_when_it_is_gone(database: Database) -> None:
    from plugin.index import leases

    revise(database, 1, "ich")
    leases.put_back(database, take(database), detail="HTTP 500", wait_seconds=0)
    revise(database, 2)
    assert said(database) == [("new", "obsolete", ["ich"], []), ("corrected", "waiting", [], ["ich"])]
    revise(database, 3, "ich")
    assert said(database)[-1] == ("corrected", "waiting", ["ich"], []), "nobody knows whether it came"


@pytest.mark.parametrize("withdraw", [False, True])
def test_what_a_correction_that_never_came_took_back_is_taken_back_by_the_next(
    database: Database, withdraw: bool
) -> None:
    from plugin.index import leases

    revise(database, 1, "ich")
    deliver(database)
    revise(database, 2, "shift")
    leases.put_back(database, take(database), detail="HTTP 500", wait_seconds=0)
    if withdraw:
        revise(database, 2, withdraw=True)
        assert said(database)[-1] == ("withdrawn", "waiting", [], ["ich", "shift"])
        return
    revise(database, 3, "fracture")
    assert said(database)[1:] == [
        ("corrected", "obsolete", ["shift"], ["ich"]),
        ("corrected", "waiting", ["fracture"], ["ich", "shift"]),
    ]
    deliver(database)
    revise(database, 4)
    assert said(database)[-1] == ("corrected", "waiting", [], ["fracture"]), "what came is not said again"


def test_a_positive_that_waits_after_an_outage_is_still_sent_when_it_stands(database: Database) -> None:
    from plugin.index import leases

    revise(database, 1, "ich")
    leases.put_back(database, take(database), detail="HTTP 500", wait_seconds=0)
    revise(database, 2, "ich")
    assert said(database) == [("new", "waiting", ["ich"], [])]


def test_signals_of_a_study_go_in_order(database: Database) -> None:
    from plugin.index import leases

    revise(database, 1, "ich")
    first = take(database)
    revise(database, 2)
    assert take(database) is None, "the correction waits for what it corrects"
    leases.put_back(database, first, detail="reset", wait_seconds=0)
    deliver(database)
    deliver(database)
    assert [row[:2] for row in said(database)] == [("new", "delivered"), ("corrected", "delivered")]


def test_a_receiver_that_is_silent_keeps_no_one_elses_signal_waiting(database: Database) -> None:
    from plugin.index import leases

    with database.write() as session:
        session.add(Study(id=2, study_instance_uid="1.2.4", state="reported", priority=20, revision=0, conflicts=0))
    revise(database, 1, "ich", receivers=("dead", "good"))
    revise(database, 1, "ich", receivers=("dead", "good"), study=2)
    silent, told = 0, []
    while (claim := take(database)) is not None:
        receiver = signals.errand(database, claim).receiver
        if receiver == "good":
            told.append(signals.delivered(database, claim, seconds=0.1))
            continue
        silent += 1
        leases.put_off(database, claim, wait_seconds=60)
        leases.put_back(database, claim, detail="TimeoutError", wait_seconds=60)
    assert (silent, told) == (1, [True, True])


def test_withdrawn_results_are_withdrawn_at_the_receiver(database: Database) -> None:
    revise(database, 1, "ich")
    revise(database, 1, withdraw=True)
    assert [row[:2] for row in said(database)] == [("new", "obsolete")], "nobody was told"
    revise(database, 2, "ich")
    deliver(database)
    for _ in range(2):
        revise(database, 2, withdraw=True)
    assert said(database)[2:] == [("withdrawn", "waiting", [], ["ich"])]
    deliver(database)
    revise(database, 3, "ich")
    assert said(database)[3:] == [("corrected", "waiting", ["ich"], [])]


def test_what_is_refused_stays_until_a_person_looks(database: Database) -> None:
    from plugin.index import outcomes

    revise(database, 1, "ich")
    claim = take(database)
    assert signals.refused(database, claim, detail="AE", seconds=0.1)
    assert take(database) is None
    assert outcomes.retry(database).signals == 1
    deliver(database)
    assert outcomes.retry(database).signals == 0


def test_held_signals_go_out_only_when_let(database: Database) -> None:
    revise(database, 1, "ich", hold=True)
    assert take(database) is None
    assert signals.let_out_held(database, ["other"]) == 0
    assert signals.let_out_held(database, ["ris"]) == 1
    assert take(database) is not None


def test_a_key_follows_from_what_is_said() -> None:
    card = report(score(ICH))
    one, same = (offer(row("hl7"), card, facts(card, results=[]), hold=False).identity for _ in range(2))
    newer = report(score(ICH), revision=2)
    assert one == same != offer(row("hl7"), newer, facts(newer, results=[]), hold=False).identity


def test_a_states_words_are_those_of_a_delivery() -> None:
    assert {DeliveryState.WAITING, DeliveryState.HELD} == signals.UNTRIED
