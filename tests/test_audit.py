"""Where audit messages go: a file, and a syslog receiver that may be away or hostile."""

import base64
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pydantic import ValidationError

from audit_messages import CT, PEER, STUDY, WHO, event, parsed, trail
from certificates import Authority
from peers import free_port, wait_until
from plugin.alerts import MAX_PEERS
from plugin.audit import waiting_in
from plugin.audit_message import Node, StudyObjects
from plugin.settings import AuditSettings


def test_without_settings_nothing_is_kept(tmp_path: Path) -> None:
    with trail(tmp_path).running():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_file_has_a_line_for_each_event_and_is_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    audit = trail(tmp_path, file=str(file))
    with audit.running():
        audit.received(PEER, [STUDY, StudyObjects("1.2.4", {CT: 1})])
        audit.turned_away(PEER, "calling AE title not recognized")
    events = [event(parsed(line)) for line in file.read_bytes().splitlines()]
    assert events == ["Application Activity Application Start", "DICOM Instances Transferred",
                      "DICOM Instances Transferred", "Security Alert Node Authentication",
                      "Application Activity Application Stop"]  # fmt: skip
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with trail(tmp_path, file=str(tmp_path / "nowhere" / "audit.log")).running():
        pass
    assert "an audit message is lost" in "".join(capsys.readouterr())


def test_where_one_sink_fails_the_other_has_the_message(tmp_path: Path) -> None:
    audit = trail(tmp_path, file=str(tmp_path / "nowhere" / "audit.log"), syslog_host="127.0.0.1")
    assert audit.accessed(WHO, STUDY)
    assert waiting(tmp_path) == 1


@pytest.mark.parametrize("fails", [False, True])
def test_a_message_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    file = tmp_path / "audit.log"
    audit = trail(tmp_path, file=str(file), syslog_host="127.0.0.1")
    audit.deleted(STUDY)
    before, write, written = file.read_bytes(), os.write, [0]

    def short(handle: int, content: bytes) -> int:
        written[0] += 1
        if fails and written[0] % 2 == 0:
            raise OSError(28, "full")
        return write(handle, bytes(content[:100]))

    monkeypatch.setattr("plugin.audit.os.write", short)
    audit.deleted(STUDY)
    monkeypatch.undo()
    files = list((tmp_path / "audit").iterdir())
    assert len(files) == waiting(tmp_path) == (1 if fails else 2)
    assert len(file.read_bytes().splitlines()) == (1 if fails else 2) and file.read_bytes().startswith(before)
    for line in (*file.read_bytes().splitlines(), *(path.read_bytes() for path in files)):
        parsed(line)


def test_who_is_turned_away_again_and_again_is_told_once_in_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, now = tmp_path / "audit.log", [1000.0]
    monkeypatch.setattr("plugin.alerts.time.monotonic", lambda: now[0])
    audit = trail(tmp_path, file=str(file))

    def told() -> list[str]:
        messages = [ET.fromstring(line.partition(b"\xef\xbb\xbf")[2]) for line in file.read_bytes().splitlines()]
        details = [detail.attrib["value"] for m in messages for detail in m.iter("ParticipantObjectDetail")]
        return [base64.b64decode(value).decode() for value in details]

    with audit.running():
        for _ in range(50):
            audit.turned_away(PEER, "no token")
        audit.turned_away(PEER, "TLS")
        assert told() == ["no token", "TLS"]
        now[0] += 61
        audit.turned_away(PEER, "no token")
        assert told() == ["no token", "TLS", "no token (49 more)"]
        for number in range(1000):
            audit.turned_away(Node("", f"10.0.{number // 250}.{number % 250}"), "no token")
        assert len(told()) <= 3 + MAX_PEERS + 1
    assert [text for text in told() if "more" in text][1:] == ["no token (1 more)", "no token (900 more)"]


def test_of_very_many_messages_a_batch_is_taken_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.audit.BATCH", 2)
    assert waiting_in(tmp_path / "nowhere") == []
    for name in ("3", "1", ".0", "2"):
        (tmp_path / f"{name}{'' if name == '.0' else '.syslog'}").touch()
    assert [path.name for path in waiting_in(tmp_path)] == ["1.syslog", "2.syslog"]


@contextmanager
def receiver(port: int, context: ssl.SSLContext | None = None) -> Iterator[list[bytes]]:
    """A syslog receiver that counts octets (RFC 5425 section 4.3); yields the messages that came so far."""
    got: list[bytes] = []
    server = socket.create_server(("127.0.0.1", port))
    open_: list[socket.socket] = []

    def read(connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while number := b"".join(iter(lambda: stream.read(1).strip(), b"")):
                got.append(stream.read(int(number)))

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            open_.append(connection)
            try:
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                    open_[-1] = connection
                read(connection)
            except OSError:
                connection.close()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield got
    finally:
        for connection in open_:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
            connection.close()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def waiting(folder: Path) -> int:
    return len(list((folder / "audit").glob("*.syslog")))


def test_messages_wait_for_a_receiver_that_is_away_and_all_come_in_order(tmp_path: Path) -> None:
    port = free_port()
    audit = trail(tmp_path, syslog_host="127.0.0.1", syslog_port=port, syslog_transport="tcp")
    with audit.forwarding():
        started = time.monotonic()
        for number in range(150):
            audit.received(PEER, [StudyObjects(f"1.2.{number}", {CT: 1})])
        assert time.monotonic() - started < 5, "a receiver that is away holds nothing up"
        with receiver(port) as got:
            wait_until(lambda: len(got) == 150 and waiting(tmp_path) == 0, "all messages")
        audit.deleted(STUDY)
        with receiver(port) as again:
            wait_until(lambda: again, "the message after the receiver was away again")
    uids = [parsed(m).find("ParticipantObjectIdentification").attrib["ParticipantObjectID"] for m in got]  # type: ignore[union-attr]
    assert uids == [f"1.2.{number}" for number in range(150)]
    assert event(parsed(again[0])) == "DICOM Study Deleted"


def test_over_tls_a_stranger_gets_nothing_and_what_he_refused_is_sent_to_the_right_one(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path / "ca", "hospital"), Authority(tmp_path / "evil", "stranger")
    ours, theirs, evil = authority.issue("hlip"), authority.issue("repository"), stranger.issue("repository")
    port = free_port()
    audit = trail(
        tmp_path, syslog_host="127.0.0.1", syslog_port=port, tls_ca=str(authority.certificate), **ours.settings
    )
    audit.turned_away(PEER, "no certificate")
    impostor = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    impostor.load_cert_chain(evil.certificate, evil.key)
    choosy = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=stranger.certificate)
    choosy.load_cert_chain(theirs.certificate, theirs.key)
    choosy.verify_mode = ssl.CERT_REQUIRED
    right = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    right.load_cert_chain(theirs.certificate, theirs.key)
    right.verify_mode = ssl.CERT_REQUIRED
    for wrong in (impostor, choosy):  # of the second we learn only after the handshake, with TLS 1.3
        with receiver(port, wrong) as got, audit.forwarding():
            time.sleep(1)
        assert got == [] and waiting(tmp_path) == 1
    with receiver(port, right) as got, audit.forwarding():
        wait_until(lambda: got and not waiting(tmp_path), "the message")
    assert event(parsed(got[0])) == "Security Alert Node Authentication"


def test_by_udp_a_datagram_is_a_message(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(20)
        audit = trail(tmp_path, syslog_host="127.0.0.1", syslog_port=server.getsockname()[1], syslog_transport="udp")
        with audit.forwarding():
            audit.turned_away(PEER, "called AE title not recognized")
            assert event(parsed(server.recv(65536))) == "Security Alert Node Authentication"


def test_certificates_without_tls_are_refused() -> None:
    with pytest.raises(ValidationError, match="TLS is set up but not used"):
        AuditSettings(syslog_host="h", syslog_transport="tcp", tls_ca="ca.pem")
