"""The index: intake, settling, claims, outcomes; on SQLite, and on PostgreSQL where it is installed."""

import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import false, select, text, update
from sqlalchemy.exc import ProgrammingError

from peers import free_port
from plugin.arrival import Arrival, read_arrival
from plugin.index import future, intake, leases, outcomes, overview, settling, withdrawal
from plugin.index.database import Database, IndexUnavailable, clock
from plugin.index.intake import Fate, Intake
from plugin.index.leases import Claim
from plugin.index.tables import Base, Delivery, Instance, Result, Revision, Series, Study
from plugin.index.withdrawal import NewNote, NewResult
from plugin.lifecycle import DeliveryState
from plugin.spool import OpenStudies
from road import head_ct

NOBODY = OpenStudies(frozenset(), frozenset())


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'index.sqlite'}"
    else:
        url = request.getfixturevalue("postgresql")
    made = Database(url, lock=tmp_path / "lock")
    made.upgrade()
    with made.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    yield made
    made.close()


def arrivals(folder: Path, **kwargs: object) -> list[Arrival]:
    return [read_arrival(path) for path in head_ct(folder, **kwargs)]  # type: ignore[arg-type]


def add(database: Database, batch: list[Arrival], priority: int = 20) -> list[Fate]:
    return intake.add_instances(database, [Intake(arrival, priority) for arrival in batch])


def claim(database: Database, queue: str, *, owner: str = "me", lease_seconds: float = 30) -> Claim | None:
    return leases.claim(database, queue, owner=owner, lease_seconds=lease_seconds, max_attempts=3)


def states(database: Database) -> tuple[dict, dict]:
    seen = overview.overview(database)
    return seen["series_by_state"], seen["studies_by_state"]


def settle(database: Database, open_studies: OpenStudies = NOBODY) -> None:
    settling.settle_series(database, quiet_seconds=0, open_studies=open_studies)
    settling.settle_studies(database, quiet_seconds=0, open_studies=open_studies)


def prepared(database: Database) -> None:
    """Every series of the index, as if its work was done."""
    settle(database)
    while (item := claim(database, "prepare")) is not None:
        assert outcomes.series_prepared(database, item, notes=["a note"], seconds=0.1)
    settle(database)


def test_the_schema_is_what_the_tables_say(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    assert database.is_current()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Base.metadata) == []


def test_the_databases_clock_tells_the_time(database: Database) -> None:
    with database.read() as session:
        assert session.scalar(select(clock())) == pytest.approx(time.time(), abs=2)


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


def test_no_error_of_the_database_quotes_a_value(database: Database) -> None:
    canary = "^".join(["Quillfeather", "Zebulona"])  # not in the lines that a traceback quotes
    with pytest.raises((IndexUnavailable, ProgrammingError)) as wrong, database.write() as session:
        session.execute(text("SELECT :name FROM nowhere"), {"name": canary})
    assert canary not in "".join(traceback.format_exception(wrong.value))


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
    _shift(database, Series, "lease_until", seconds=-31)
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
    with leases.kept_alive(database, item, 0.5):
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


def report(database: Database, item: Claim, *, number: int = 1, publish=lambda: None, hold: bool = False) -> bool:  # type: ignore[no-untyped-def]
    result = outcomes.NewResult("1.2", f"1.2.{item.id}.{number}", "1.3", "Summary", f"results/{number}.dcm")
    revision = outcomes.NewRevision(
        number=number, inputs_digest=f"{number}", content_digest="c", bundle_digest="b", preprocessing="p",
        created_at=1.0, findings=[{"label": "x"}], results=[result],
    )  # fmt: skip
    return outcomes.study_reported(
        database, item, revision, destinations=["pacs"], hold=hold, seconds=1.0, publish=publish
    )


def reported(database: Database, number: int = 1, *, hold: bool = False) -> None:
    item = claim(database, "analyse")
    assert item is not None and report(database, item, number=number, hold=hold)


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
    _shift(database, Delivery, "next_try_at", seconds=-leases.LONGEST_PUT_OFF_SECONDS)
    assert [next_destination(database, tmp_path)[1] for _ in range(4)] == ["dead"] * 4
    assert claim(database, "deliver") is None, "the first waits its own time"


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
    _shift(database, Delivery, "lease_until", seconds=-31)
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
    _shift(database, Delivery, "next_try_at", seconds=-85)
    assert claim(database, "deliver") is None
    _shift(database, Delivery, "next_try_at", seconds=-10)
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


def test_those_that_wait_for_a_silent_peer_are_tried_in_turn(database: Database, tmp_path: Path) -> None:
    outbox(database, *[("dead", 10)] * 3)
    seen = []
    for _ in range(6):
        item, _ = next_destination(database, tmp_path)
        leases.put_off(database, item, wait_seconds=10)
        leases.put_back(database, item, detail="ConnectTimeout", wait_seconds=10)
        _shift(database, Delivery, "next_try_at", seconds=-11)
        seen.append(item.attempts)
    assert seen == [1, 1, 1, 2, 2, 2]


def test_naming_a_study_takes_it_up_anew(database: Database, tmp_path: Path) -> None:
    for name in ("a", "b"):
        add(database, arrivals(tmp_path, name=name))
    prepared(database)
    reported(database)
    (chosen, _) = sorted(overview.overview(database)["studies"], key=lambda s: s["state"] != "reported")
    taken = outcomes.retry(database, study_instance_uid=chosen["study_instance_uid"])
    assert (taken.series, taken.studies) == (1, 1)
    assert states(database) == ({"prepared": 1, "ready": 1}, {"ready": 1, "receiving": 1})


def test_the_overview_names_no_patient(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path, PatientName="Canary^Jane", PatientID="CANARY-1", AccessionNumber="CANARY-2"))
    with database.read() as session:
        assert session.scalar(select(Study.patient_name)) == "Canary^Jane"
    assert "canary" not in str(overview.overview(database, findings=True)).lower()


def test_a_database_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    away = Database(f"postgresql+psycopg://hlip@127.0.0.1:{free_port()}/x", lock=tmp_path / "lock")
    with pytest.raises(IndexUnavailable), away.read() as session:
        session.scalar(select(clock()))
    away.close()


def test_times_and_leases_do_not_depend_on_this_hosts_clock(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    with database.write() as session:
        session.execute(update(Series).values(last_image_at=clock() + 3600))
    assert settling.settle_series(database, quiet_seconds=0, open_studies=NOBODY) == 0


def test_what_waits_for_a_clock_that_was_set_back_does_not_wait_long(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path))
    assert _brought_back(database) == 0
    _shift(database, Series, "last_image_at")
    _shift(database, Study, "last_image_at")
    settle(database)
    assert states(database)[0] == {"receiving": 1}
    assert _brought_back(database) == 2
    settle(database)
    assert states(database)[0] == {"ready": 1}
    assert claim(database, "prepare") is not None
    _shift(database, Series, "lease_until")
    assert _brought_back(database) == 1
    taken = claim(database, "prepare", lease_seconds=-1)
    assert taken is None  # the lease that stands is one of a usual length
    _shift(database, Series, "lease_until", seconds=-31)
    taken = claim(database, "prepare")
    assert taken is not None
    leases.put_back(database, taken, detail="", wait_seconds=3600)
    assert _brought_back(database) == 1


def _brought_back(database: Database) -> int:
    return future.bring_back(
        database, lease_seconds=30, longest_wait_seconds=60, fetch_lease_seconds=30, longest_fetch_wait_seconds=600
    )


def _shift(database: Database, table: type[Series | Study | Delivery], column: str, *, seconds: float = 3600) -> None:
    with database.write() as session:
        session.execute(update(table).values({column: getattr(table, column) + seconds}))
