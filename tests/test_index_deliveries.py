"""From a report to the deliveries of its results, and what becomes of them when it is superseded or withdrawn."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, update

from indexes import KINDS, add, arrivals, claim, empty_database, prepared, report, reported, shift
from plugin.index import leases, outcomes, overview, withdrawal
from plugin.index.database import Database, clock
from plugin.index.leases import Claim
from plugin.index.tables import Delivery, Result, Revision, Study
from plugin.index.withdrawal import NewNote, NewResult
from plugin.lifecycle import DeliveryState


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with empty_database(request, tmp_path) as made:
        yield made


def test_a_report_fills_the_outbox_and_the_timeline(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    prepared(database)
    reported(database)
    (study,) = overview.overview(database, findings=True)["studies"]
    assert (study["state"], study["revision"]) == ("reported", 1)
    assert study["revisions"][0]["findings"] == [{"label": "x"}]
    assert [e["stage"] for e in study["timeline"]] == ["first image", "prepared", "settled", "analysed"]
    item = claim(database, "deliver")
    assert item is not None
    errand = outcomes.errand(database, item, tmp_path)
    assert (errand.path, errand.destination, errand.action) == (tmp_path / "results/1.dcm", "pacs", "store")
    assert outcomes.delivered(database, item, action="store", seconds=0.1)
    assert overview.overview(database)["deliveries_by_state"] == {"delivered": 1}


def test_results_that_could_not_be_published_are_not_in_the_index(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    prepared(database)
    item = claim(database, "analyse")
    assert item is not None

    def disk_full() -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        report(database, item, publish=disk_full)
    (study,) = overview.overview(database)["studies"]
    assert (study["state"], study["revisions"]) == ("analysing", [])


def test_a_new_revision_supersedes_the_old_one_and_what_waits_of_it(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path, number=2))
    prepared(database)
    reported(database, 1)
    add(database, arrivals(tmp_path, number=3))
    prepared(database)
    reported(database, 2)
    seen = overview.overview(database)
    (study,) = seen["studies"]
    assert [(r["number"], r["current"]) for r in study["revisions"]] == [(1, False), (2, True)]
    assert seen["deliveries_by_state"] == {"obsolete": 1, "waiting": 1}


def test_held_results_go_out_only_when_let(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    prepared(database)
    reported(database, hold=True)
    assert claim(database, "deliver") is None
    assert outcomes.let_out_held(database) == 1
    assert claim(database, "deliver") is not None


def test_a_refused_delivery_is_sent_again_only_by_hand(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    prepared(database)
    reported(database)
    item = claim(database, "deliver")
    assert item is not None
    outcomes.delivery_refused(database, item, detail="HTTP 415", seconds=0.1)
    assert claim(database, "deliver") is None
    assert outcomes.retry(database).deliveries == 1
    assert claim(database, "deliver") is not None


def outbox(database: Database, *rows: tuple[str, int]) -> None:
    """A result for each destination, of a study of this priority, in this order."""
    with database.write() as session:
        for n, (destination, priority) in enumerate(rows):
            study = Study(study_instance_uid=f"1.9.{n}", state="reported", priority=priority, revision=1, conflicts=0)
            session.add(study)
            session.flush()
            revision = Revision(
                study_id=study.id, number=1, inputs_digest="i", content_digest="c", bundle_digest="b",
                preprocessing="p", created_at=1.0,
            )  # fmt: skip
            uid = f"1.9.{n}.1"
            result = Result(sop_class_uid="1.2", sop_instance_uid=uid, series_instance_uid="1.3", path=uid)
            result.deliveries = [Delivery(destination=destination, state=DeliveryState.WAITING)]
            revision.results = [result]
            session.add(revision)
            session.flush()


def next_destination(database: Database, tmp_path: Path) -> tuple[Claim, str]:
    item = claim(database, "deliver")
    assert item is not None
    return item, outcomes.errand(database, item, tmp_path).destination


def test_destinations_that_fail_do_not_keep_what_is_new_from_another(database: Database, tmp_path: Path) -> None:
    outbox(database, *[("dead", 10)] * 5)
    for _ in range(8):
        item, _ = next_destination(database, tmp_path)
        leases.put_back(database, item, detail="HTTP 503", wait_seconds=0)
    with database.write() as session:
        session.execute(update(Study).values(study_instance_uid="9" + Study.study_instance_uid))
        session.execute(update(Result).values(sop_instance_uid="9" + Result.sop_instance_uid))
    outbox(database, ("good", 50), ("good", 80))
    assert next_destination(database, tmp_path)[1] == "good"
    seen = [next_destination(database, tmp_path)[1] for _ in range(6)]
    assert seen == ["dead"] * 5 + ["good"], "the archive comes after what is urgent, tried or not"


def test_one_silence_puts_off_all_that_waits_for_the_peer(database: Database, tmp_path: Path) -> None:
    outbox(database, *[("dead", 10)] * 5, ("good", 50))
    item, destination = next_destination(database, tmp_path)
    assert destination == "dead"
    leases.put_off(database, item, wait_seconds=900)
    leases.put_back(database, item, detail="ConnectTimeout", wait_seconds=900)
    assert next_destination(database, tmp_path)[1] == "good"
    assert claim(database, "deliver") is None
    shift(database, Delivery, "next_try_at", seconds=-leases.LONGEST_PUT_OFF_SECONDS)
    assert [next_destination(database, tmp_path)[1] for _ in range(4)] == ["dead"] * 4
    assert claim(database, "deliver") is None, "the first waits its own time"


def test_those_that_wait_for_a_silent_peer_are_tried_in_turn(database: Database, tmp_path: Path) -> None:
    outbox(database, *[("dead", 10)] * 3)
    seen = []
    for _ in range(6):
        item, _ = next_destination(database, tmp_path)
        leases.put_off(database, item, wait_seconds=10)
        leases.put_back(database, item, detail="ConnectTimeout", wait_seconds=10)
        shift(database, Delivery, "next_try_at", seconds=-11)
        seen.append(item.attempts)
    assert seen == [1, 1, 1, 2, 2, 2]


# ---- superseded or withdrawn while it is sent -----------------------------------------------------------------


def withdrawn(database: Database, *, number: int = 1, delete_at: tuple[str, ...] = ()) -> list[str]:
    """Withdraw the one study's revision; the destinations that are told."""
    with database.read() as session:
        rejects = frozenset(session.scalars(select(Result.sop_instance_uid).where(~Result.is_note)))
        study_uid = session.scalars(select(Study.study_instance_uid)).one()
    note = NewNote(
        NewResult("1.2", f"1.8.{number}", "1.3", "Note", "note.dcm"), rejects, frozenset(delete_at), sending_seconds=60
    )
    return withdrawal.withdraw(database, study_uid, note, number=number, reason="quality", publish=lambda: None)


def deliveries(database: Database) -> list[tuple[str, str]]:
    with database.read() as session:
        return [(row.action, row.state) for row in session.scalars(select(Delivery).order_by(Delivery.id))]


def test_what_is_withdrawn_while_it_is_sent_is_not_sent_again(database: Database, tmp_path: Path) -> None:
    outbox(database, ("pacs", 20))
    sending = claim(database, "deliver")
    assert sending is not None
    assert withdrawn(database) == ["pacs"]
    assert claim(database, "deliver") is None, "the note waits for what it rejects"
    leases.put_back(database, sending, detail="ReadTimeout", wait_seconds=0)
    assert deliveries(database) == [("store", "obsolete"), ("store", "waiting")]
    note = claim(database, "deliver")
    assert note is not None and note.id != sending.id
    assert outcomes.delivered(database, note, action="store", seconds=0.1)
    assert claim(database, "deliver") is None


def test_what_is_withdrawn_while_its_worker_is_killed_is_not_sent_again(database: Database, tmp_path: Path) -> None:
    outbox(database, ("pacs", 20))
    sending = claim(database, "deliver")
    assert withdrawn(database) == ["pacs"]
    assert leases.drop_past(database) == 0, "it may still go on"
    shift(database, Delivery, "lease_until", seconds=-31)
    assert claim(database, "deliver") is None
    assert leases.drop_past(database) == 1
    note = claim(database, "deliver")
    assert sending is not None and note is not None and note.id != sending.id


def test_what_arrives_while_it_is_withdrawn_is_followed_by_its_note(database: Database, tmp_path: Path) -> None:
    outbox(database, ("pacs", 20))
    sending = claim(database, "deliver")
    assert sending is not None
    withdrawn(database)
    assert outcomes.delivered(database, sending, action="store", seconds=0.1)
    assert deliveries(database) == [("store", "delivered"), ("store", "waiting")]
    assert claim(database, "deliver") is not None


def test_a_deletion_waits_for_what_is_being_sent(database: Database, tmp_path: Path) -> None:
    outbox(database, ("pacs", 20))
    assert claim(database, "deliver", lease_seconds=30) is not None
    withdrawn(database, delete_at=("pacs",))
    assert deliveries(database) == [("delete", "waiting"), ("store", "waiting")]
    shift(database, Delivery, "next_try_at", seconds=-85)
    assert claim(database, "deliver") is None
    shift(database, Delivery, "next_try_at", seconds=-10)
    assert claim(database, "deliver") is not None


@pytest.mark.parametrize(
    ("tries", "refused", "told"), [(0, False, False), (1, False, True), (1, True, False), (2, True, True)]
)
def test_a_note_goes_where_an_object_may_have_arrived(
    database: Database, tmp_path: Path, tries: int, refused: bool, told: bool
) -> None:
    outbox(database, ("pacs", 20))
    for attempt in range(tries):
        item = claim(database, "deliver")
        assert item is not None
        if refused and attempt == tries - 1:
            outcomes.delivery_refused(database, item, detail="HTTP 415", seconds=0.1)
        else:
            leases.put_back(database, item, detail="ReadTimeout", wait_seconds=0)
    if not refused:
        outcomes.retry(database)
    assert withdrawn(database) == (["pacs"] if told else [])


def test_what_a_person_had_sent_again_may_still_have_arrived(database: Database, tmp_path: Path) -> None:
    outbox(database, ("pacs", 20))
    item = claim(database, "deliver")
    assert item is not None
    leases.put_back(database, item, detail="ReadTimeout", wait_seconds=0)
    again = claim(database, "deliver")
    assert again is not None
    outcomes.delivery_refused(database, again, detail="HTTP 415", seconds=0.1)
    assert outcomes.retry(database).deliveries == 1
    assert withdrawn(database, delete_at=("pacs",)) == ["pacs"]
    assert deliveries(database)[0] == ("delete", "waiting")


def test_a_claim_that_is_just_being_written_is_seen_by_a_withdrawal(database: Database, tmp_path: Path) -> None:
    outbox(database, ("pacs", 20))
    told: list[list[str]] = []
    thread = threading.Thread(target=lambda: told.append(withdrawn(database)))
    with database.write() as session:
        session.execute(
            update(Delivery).values(state="sending", attempts=1, lease_owner="me", lease_until=clock() + 30)
        )
        thread.start()
        time.sleep(1.0)
    thread.join(30)
    assert told == [["pacs"]]
    assert deliveries(database) == [("store", "sending"), ("store", "waiting")]
