"""Signals: what was found reaches its receivers at least once, recognisably, corrected when it no longer holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hl7
import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from pydantic import ValidationError

from certificates import Authority
from peers import free_port
from plugin.delivery import NotNow, Refused
from plugin.index import signals
from plugin.index.database import Database
from plugin.index.signal_table import Signal
from plugin.index.tables import Base, Revision, Study
from plugin.lifecycle import DeliveryState
from plugin.settings import Settings, SignalReceiver
from plugin.signals import mllp
from plugin.signals.example import EXAMPLE
from plugin.signals.facts import facts, offer
from plugin.signals.message import Message, context
from plugin.signals.rest import signature
from plugin.signals.switchboard import Switchboard
from plugin.signals.template import MessageTemplate, TemplateFault, escape_hl7
from receivers import Receiver, receiving
from reports import FRACTURE, ICH, SHIFT, Card, report, score, source

SECRET = "a secret of the receiver and us"
KINDS = {"hl7": "mllp", "fhir": "http", "webhook": "http"}
ADDRESSES = {"hl7": "mllp://ris:2575", "fhir": "https://fhir/r4", "webhook": "https://hook/"}
HOSTILE = "O'Neil|PID|2^Me&Co~~\\X0D\\<script>alert(1)</script>^\"}]\u2028\x0b"


def row(kind: str, **changes: Any) -> SignalReceiver:
    return SignalReceiver(**{"name": kind, "kind": kind, "address": ADDRESSES[kind], "secret": SECRET} | changes)


def told(kind: str, *scores: Any, status: str = "new", retracted: tuple[str, ...] = (), **elements: Any) -> str:
    """The message of a report with these scores to a receiver of everything."""
    receiver = row(kind, findings="any", minimum_state="reported")
    made = report(*scores, source=source(**elements))
    content = facts(made, results=[("2.25.5", "2.25.6", "AI summary")])
    offered = offer(receiver, made, content, hold=False)
    errand = signals.SignalErrand(
        receiver=kind, study_instance_uid="2.25.1000", key="0123456789abcdef0123456789abcdef", status=status,
        corrects=None if status == "new" else "f" * 32, retracted=retracted, created_at=1.8e9, content=offered.content,
    )  # fmt: skip
    return MessageTemplate(kind).render(context(errand, receiver))


# ---- messages ----------------------------------------------------------------------------------------------

SCORES = {
    "positive": (score(ICH, probability=0.934, threshold=0.5), score(SHIFT, value=0.1)),
    "negative": (score(ICH, value=0.1), score(FRACTURE, threshold=None)),
}
CASES = [
    ("new", "positive", "Doe^Jane^^Dr^MD"),
    ("new", "negative", HOSTILE),
    ("corrected", "negative", ""),
    ("corrected", "positive", HOSTILE),
    ("withdrawn", "positive", HOSTILE),
]


@pytest.mark.parametrize(("status", "found", "name"), CASES)
def test_an_oru_is_valid_hl7_whatever_the_patient_is_called(status: str, found: str, name: str) -> None:
    text = told("hl7", *SCORES[found], status=status, PatientName=name, SpecificCharacterSet="ISO_IR 192")
    parsed = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)
    assert parsed.validate()
    kinds = [segment[:3] for segment in text.split("\r") if segment]
    assert set(kinds) == {"MSH", "PID", "OBR", "NTE", "TQ1", "OBX"} and kinds.count("PID") == 1


def test_what_a_receiver_reads_of_a_hostile_name_is_the_name() -> None:
    text = told("hl7", score(ICH), PatientName="a|b^c&d~e", PatientID="P|1^2")
    message = hl7.parse(text)
    assert message.extract_field("PID", 1, 5, 1, 1) == "a|b"
    assert message.extract_field("PID", 1, 5, 1, 2) == "c&d~e"
    assert message.extract_field("PID", 1, 3, 1, 1) == "P|1^2"
    assert escape_hl7("e\\f") == "e\\E\\f"
    assert escape_hl7("a\rPID|\x1c") == "a\\X0D\\PID\\F\\\\X1C\\"


def test_an_oru_says_what_was_found_by_which_model_and_that_it_is_research() -> None:
    text = told("hl7", *SCORES["positive"])
    message = hl7.parse(text)
    (first, certainty, absent) = [s for s in message.segments("OBX") if str(s(2)) in ("CWE", "NM")][:3]
    assert str(first(3)) == "1386000^Intracranial hemorrhage^SCT" and str(first(5)) == "52101004^Present^SCT"
    assert (str(first(8)), str(first(11))) == ("AA", "P")
    assert (str(certainty(5)), str(certainty(6))) == ("93.4", "%^percent^UCUM")
    assert str(absent(5)) == "272519000^Absent^SCT"
    assert str(message.segment("TQ1")(9)) == "S^STAT"
    assert str(message.segment("MSH")(10)) == "0123456789ABCDEF0123"
    card = Card()
    for said in ("not for diagnosis", card.digest, card.weights_digest, card.prompts_digest, card.name, "2.25.1000"):
        assert said in text


def test_a_correction_says_that_it_is_one() -> None:
    text = told("hl7", *SCORES["negative"], status="corrected", retracted=("intracranial_hemorrhage",))
    message = hl7.parse(text)
    assert str(message.segment("OBR")(25)) == "C"
    assert str(message.segments("OBX")[0](5)) == "272519000^Absent^SCT"
    assert {str(segment(11)) for segment in message.segments("OBX")} == {"C"}
    report_, observation, *_ = json.loads(
        told("fhir", *SCORES["negative"], status="corrected", retracted=("intracranial_hemorrhage",))
    )["entry"]
    assert report_["resource"]["status"] == observation["resource"]["status"] == "amended"
    assert "no longer holds" in json.dumps(observation)


@pytest.mark.parametrize(("status", "found", "name"), CASES)
def test_a_bundle_is_valid_fhir_whatever_the_patient_is_called(status: str, found: str, name: str) -> None:
    text = told("fhir", *SCORES[found], status=status, PatientName=name, AccessionNumber=name[:4], StudyDate="")
    bundle = Bundle.model_validate_json(text)
    assert [entry.resource.get_resource_type() for entry in bundle.entry] == ["DiagnosticReport", *["Observation"] * 2]
    assert "not for diagnosis" in bundle.entry[0].resource.conclusion
    assert Card().weights_digest in bundle.entry[0].resource.conclusion


def test_a_fhir_report_keeps_its_identifier_over_revisions_and_is_put_by_it() -> None:
    first, second = (json.loads(told("fhir", *scores)) for scores in SCORES.values())
    for one, other in zip(first["entry"][:2], second["entry"][:2], strict=True):
        assert one["resource"]["identifier"] == other["resource"]["identifier"]
        assert one["request"]["method"] == "PUT" and "?identifier=urn" in one["request"]["url"]


def test_a_webhook_is_json_with_everything() -> None:
    body = json.loads(told("webhook", *SCORES["positive"], PatientName=HOSTILE))
    assert body["urgency"] == "critical" and "not for diagnosis" in body["notice"]
    assert body["findings"][0]["probability"] == 0.934
    assert body["patient"]["name"]["family"].startswith("O'Neil|PID|2")


def test_the_model_of_no_patients_is_named_as_such() -> None:
    made = report(score(ICH), bundle=Card(status="phantom"))
    receiver = row("hl7")
    content = offer(receiver, made, facts(made, results=[]), hold=False).content
    errand = signals.SignalErrand(**{**vars(EXAMPLE), "content": content, "status": "new", "retracted": ()})
    text = MessageTemplate("hl7").render(context(errand, receiver))
    assert "PHANTOM MODEL" in text and hl7.parse(text).segment("MSH")(11)[0] == "T"


def test_a_sites_template_takes_the_place_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "own.hl7"
    file.write_text("MSH|^~\\&|OURS||||||ORU^R01|{{ control_id }}|P|2.3\n\n  ZAI|{{ patient.name.family }}\n")
    settings = Settings(signals=[{"name": "x", "kind": "hl7", "address": "mllp://h:1", "template": str(file)}])
    message = Switchboard.from_settings(settings).lines["x"].message(EXAMPLE)
    assert message.text == "MSH|^~\\&|OURS||||||ORU^R01|0123456789ABCDEF0123|P|2.3\rZAI|Doe\r"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("hl7", "PID|{{ patient.nane }}"),
        ("hl7", "PID|{{ patient"),
        ("webhook", '{"a": {{ nothing }}}'),
        ("webhook", '{"a": {{ patient.id }}'),
        ("webhook", "{{ ().__class__.__base__.__subclasses__() }}"),
    ],
)
def test_a_template_that_cannot_work_is_told_at_the_start(tmp_path: Path, kind: str, text: str) -> None:
    file = tmp_path / "own"
    file.write_text(text)
    settings = Settings(signals=[row(kind, template=str(file)).model_dump()])
    with pytest.raises(TemplateFault, match="own"):
        Switchboard.from_settings(settings)


# ---- answers -----------------------------------------------------------------------------------------------

ACK = "MSH|^~\\&|RIS\rMSA|{}|ID1\r"


@pytest.mark.parametrize("code", ["AA", "CA"])
def test_only_an_acknowledgement_of_our_message_is_one(code: str) -> None:
    mllp.judge(ACK.format(code), "ID1")
    with pytest.raises(NotNow, match="not to this message"):
        mllp.judge(ACK.format(code), "ID2")


@pytest.mark.parametrize("code", ["AE", "AR", "CE", "CR"])
def test_an_error_is_a_refusal_that_quotes_nothing(code: str) -> None:
    with pytest.raises(Refused, match=rf"^{code}, error 207$"):
        mllp.judge(ACK.format(code + "|Doe^Jane").replace("|ID1", "").replace("MSA|" + code, f"MSA|{code}|ID1")
                   + "ERR|||207^Doe Jane is unknown\r", "ID1")  # fmt: skip


@pytest.mark.parametrize("answer", ["", "hello", "MSH|", "MSH|^~\\&\r", ACK.format("??"), "MSHxMSAxAAxID1"])
def test_an_answer_that_says_nothing_is_no_acknowledgement(answer: str) -> None:
    with pytest.raises(NotNow):
        mllp.judge(answer, "ID1")


def line(receiver: Receiver, kind: str, **settings: Any) -> Switchboard:
    row_ = {"name": kind, "kind": kind, "address": receiver.address, "secret": SECRET, **settings}
    return Switchboard.from_settings(Settings(signals=[row_], delivery={"timeout_seconds": 2}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_that_is_away_slow_or_breaks_off_is_told_again_with_the_same_key(tmp_path: Path, kind: str) -> None:
    errand = signals.SignalErrand(**{**vars(EXAMPLE), "receiver": kind})
    with receiving(KINDS[kind], tmp_path, start=False) as receiver:
        board = line(receiver, kind)
        with pytest.raises(NotNow):
            board.send(errand)
        receiver.start()
        for mode in ("later", "cut", "silent"):
            receiver.behave(mode)
            with pytest.raises(NotNow):
                board.send(errand)
        receiver.behave("refuse")
        with pytest.raises(Refused):
            board.send(errand)
        receiver.behave("ok")
        board.send(errand)
        messages = receiver.received
    assert [message["mode"] for message in messages] == ["later", "cut", "silent", "refuse", "ok"]
    assert len({message.get("text") or message["body"] for message in messages}) == 1


def test_a_webhook_is_signed_over_its_time_and_body(tmp_path: Path) -> None:
    with receiving("http", tmp_path) as receiver:
        line(receiver, "webhook").send(signals.SignalErrand(**{**vars(EXAMPLE), "receiver": "webhook"}))
        (message,) = receiver.received
    headers = message["headers"]
    signed = signature(SECRET.encode(), headers["X-Hlip-Timestamp"], message["body"].encode())
    assert headers["X-Hlip-Signature"] == f"v1={signed}" and headers["Idempotency-Key"] == EXAMPLE.key


def test_mllp_over_tls_trusts_its_authority_only(tmp_path: Path) -> None:
    import asyncio
    import threading

    from hl7.mllp import start_hl7_server

    from plugin import tls

    authority, stranger = Authority(tmp_path / "a", "hospital"), Authority(tmp_path / "b", "stranger")
    issued = authority.issue("ris")
    server_tls = tls.server_context(row("hl7", address="mllps://h:1", **issued.settings), require_certificate=False)
    port, up, stop = free_port(), threading.Event(), threading.Event()

    async def answer(reader: Any, writer: Any) -> None:
        writer.writemessage((await reader.readmessage()).create_ack("AA"))
        await writer.drain()
        writer.close()

    async def serve() -> None:
        server = await start_hl7_server(answer, "127.0.0.1", port, encoding="utf-8", ssl=server_tls)
        async with server:
            up.set()
            await asyncio.to_thread(stop.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert up.wait(10)
        message = Message("ab" * 16, f"MSH|^~\\&|HLIP||||||ORU^R01|{'AB' * 10}|P|2.5.1\r")
        address = f"mllps://127.0.0.1:{port}"
        trusting = row("hl7", address=address, tls_ca=str(authority.certificate))
        mllp.MllpReceiver(trusting, timeout_seconds=5).send(message)
        with pytest.raises(NotNow, match="Cert"):
            other = row("hl7", address=address, tls_ca=str(stranger.certificate))
            mllp.MllpReceiver(other, timeout_seconds=5).send(message)
    finally:
        stop.set()
        thread.join()


# ---- the outbox --------------------------------------------------------------------------------------------


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


# ---- settings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "hl7", "address": "http://h/"},
        {"kind": "hl7", "address": "mllp://h"},
        {"kind": "hl7", "address": "mllp://h:99999999"},
        {"kind": "fhir", "address": "mllp://h:1"},
        {"kind": "fhir", "address": "http://h/", "tls_ca": "/ca.pem"},
        {"kind": "webhook", "address": "http://h/", "secret": "short"},
        {"kind": "pager", "address": "http://h/"},
    ],
)
def test_a_receiver_that_cannot_be_meant_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        SignalReceiver(name="x", **changes)


def test_two_receivers_have_two_names() -> None:
    same = {"name": "x", "kind": "hl7", "address": "mllp://h:1"}
    with pytest.raises(ValidationError, match="same name"):
        Settings(signals=[same, same])


def test_the_sample_file_explains_every_field_of_a_receiver() -> None:
    sample = (Path(__file__).parents[1] / "deploy" / "hlip.toml").read_text()
    block = sample[sample.index("[[signals]]") : sample.index("[retention]")]
    for name in SignalReceiver.model_fields:
        assert name in block, name


def test_a_states_words_are_those_of_a_delivery() -> None:
    assert {DeliveryState.WAITING, DeliveryState.HELD} == signals.UNTRIED
