"""Receivers of signals: what is an acknowledgement, who is told again, and settings that cannot be meant."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from certificates import Authority
from peers import free_port
from plugin.delivery import NotNow, Refused
from plugin.index import signals
from plugin.settings import Settings, SignalReceiver
from plugin.signals import mllp
from plugin.signals.example import EXAMPLE
from plugin.signals.message import Message
from plugin.signals.rest import signature
from plugin.signals.switchboard import Switchboard
from receivers import SECRET, Receiver, receiving, row

KINDS = {"hl7": "mllp", "fhir": "http", "webhook": "http"}


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
