"""The audit trail: messages by the schema of PS3.15 section A.5.1, and a receiver that may be away or hostile."""

import base64
import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from pydantic import ValidationError
from pydicom import dcmread

from certificates import Authority
from peers import free_port, orthanc, storescu, wait_until
from plugin import audit_message, tls
from plugin.alerts import MAX_PEERS
from plugin.audit import Trail, waiting_in
from plugin.audit_message import Actor, Node, Source, StudyObjects
from plugin.bootstrap import Plugin
from plugin.listener import listening
from plugin.retention import Retention
from plugin.settings import AuditSettings, ListenerSettings, Settings
from plugin.spool import Spool
from road import head_ct, road, tiny_bundle
from studies import head_series
from web import web

CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.33"
SOURCE = Source("hlip", "City Hospital", "HLIP")
STUDY = StudyObjects("1.2.3", {CT: 40, SR: 1})
PEER = Node("CT1", "10.1.2.3")
WHO = Actor("Grète <Müller>\n", "reading-room-1")

MESSAGES: dict[str, Callable[[], bytes]] = {
    "start": lambda: audit_message.application_activity(SOURCE, is_start=True),
    "stop": lambda: audit_message.application_activity(SOURCE, is_start=False),
    "received": lambda: audit_message.instances_transferred(SOURCE, [STUDY], sender=PEER),
    "sent": lambda: audit_message.instances_transferred(SOURCE, [STUDY], receiver=PEER, patient_id="4711"),
    "refused": lambda: audit_message.instances_transferred(SOURCE, [STUDY], receiver=PEER, outcome="4"),
    "alert": lambda: audit_message.security_alert(SOURCE, PEER, "calling AE title not recognized"),
    "deleted": lambda: audit_message.study_deleted(SOURCE, STUDY),
    "viewed": lambda: audit_message.study_accessed(SOURCE, WHO, STUDY, patient_id="4711"),
    "withdrawn": lambda: audit_message.study_accessed(SOURCE, WHO, STUDY, act="withdraw", outcome="4"),
    "searched": lambda: audit_message.searched(SOURCE, WHO, "acute subdural hematoma"),
    "signed out": lambda: audit_message.user_authentication(SOURCE, WHO, is_login=False),
    "user changed": lambda: audit_message.user_changed(SOURCE, WHO, "grace", "added as viewer"),
}

# The schema of PS3.15 section A.5.1 for the elements that we use: attributes that must and may be there, and children
# in their order with "?" for at most one, "*" for any number, "+" for one or more.
CODED = ({"csd-code", "codeSystemName", "originalText"}, {"displayName"}, ())
SCHEMA: dict[str, tuple[set[str], set[str], tuple[str, ...]]] = {
    "AuditMessage": (set(), set(), ("EventIdentification", "ActiveParticipant+", "AuditSourceIdentification",
                                    "ParticipantObjectIdentification*")),
    "EventIdentification": ({"EventDateTime", "EventOutcomeIndicator"}, {"EventActionCode"},
                            ("EventID", "EventTypeCode*", "EventOutcomeDescription?")),
    "EventID": CODED, "EventTypeCode": CODED, "RoleIDCode": CODED, "ParticipantObjectIDTypeCode": CODED,
    "ActiveParticipant": ({"UserID", "UserIsRequestor"}, {"AlternativeUserID", "UserName", "NetworkAccessPointID",
                                                          "NetworkAccessPointTypeCode"}, ("RoleIDCode*",)),
    "AuditSourceIdentification": ({"AuditSourceID"}, {"AuditEnterpriseSiteID"}, ("AuditSourceTypeCode*",)),
    "AuditSourceTypeCode": ({"csd-code"}, {"codeSystemName", "originalText"}, ()),
    "ParticipantObjectIdentification": (
        {"ParticipantObjectID"}, {"ParticipantObjectTypeCode", "ParticipantObjectTypeCodeRole"},
        ("ParticipantObjectIDTypeCode", "ParticipantObjectName", "ParticipantObjectDetail*",
         "ParticipantObjectDescription*")),
    "ParticipantObjectName": (set(), set(), ()),
    "ParticipantObjectDetail": ({"type", "value"}, set(), ()),
    "ParticipantObjectDescription": (set(), set(), ("SOPClass*",)),
    "SOPClass": ({"NumberOfInstances"}, {"UID"}, ()),
}  # fmt: skip
VALUES = {
    "EventActionCode": "[CRUDE]", "EventOutcomeIndicator": "0|4|8|12", "UserIsRequestor": "true|false",
    "NetworkAccessPointTypeCode": "[1-5]", "ParticipantObjectTypeCode": "[1-4]", "NumberOfInstances": r"\d+",
    "ParticipantObjectTypeCodeRole": r"\d{1,2}",
    "EventDateTime": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?[+-]\d\d:\d\d",
}  # fmt: skip


def check(element: ET.Element) -> None:
    """Hold an element and all below it against the schema."""
    must, may, children = SCHEMA[element.tag]
    assert must <= set(element.attrib) <= must | may, element.tag
    for name, value in element.attrib.items():
        assert value and re.fullmatch(VALUES.get(name, ".*"), value), (name, value)
    order = "".join(f"({name.rstrip('?*+')},){name[len(name.rstrip('?*+')) :]}" for name in children)
    assert re.fullmatch(order, "".join(f"{child.tag}," for child in element)), element.tag
    for child in element:
        check(child)


def parsed(line: bytes) -> ET.Element:
    """The audit message in a syslog message, whose header must be as RFC 5424 and PS3.15 section A.6 say."""
    header, mark, content = line.partition(b"\xef\xbb\xbf")
    at = rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+[+-]\d\d:\d\d"
    assert mark and re.fullmatch(rb"<8[45]>1 " + at + rb" \S{1,255} hlip \d+ DICOM\+RFC3881 - ", header)
    assert b"\n" not in content
    message = ET.fromstring(content)
    check(message)
    return message


def event(message: ET.Element) -> str:
    identification = message.find("EventIdentification")
    assert identification is not None
    return " ".join(code.attrib["originalText"] for code in identification)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_message_is_as_the_schema_says(name: str) -> None:
    check(ET.fromstring(MESSAGES[name]()))


def test_a_transfer_names_both_ends_and_the_study() -> None:
    message = ET.fromstring(MESSAGES["received"]())
    roles = {p[0].attrib["originalText"]: p.attrib for p in message.findall("ActiveParticipant")}
    sender, receiver = roles["Source Role ID"], roles["Destination Role ID"]
    assert (sender["UserID"], sender["NetworkAccessPointID"], sender["UserIsRequestor"]) == ("CT1", "10.1.2.3", "true")
    assert receiver["AlternativeUserID"] == "AETITLES=HLIP"
    (study,) = message.findall("ParticipantObjectIdentification")
    assert study.attrib["ParticipantObjectID"] == "1.2.3"
    assert {c.attrib["UID"]: c.attrib["NumberOfInstances"] for c in study.iter("SOPClass")} == {CT: "40", SR: "1"}


def test_what_a_hostile_peer_says_stays_text() -> None:
    """In particular it makes no line of its own, no element, and no XML that cannot be read."""
    evil = Node('A"><X/>\r\n<85>1 \x1b[2J\0é', "10.0.0.1")
    content = audit_message.security_alert(SOURCE, evil, "cause\n<Y/>\0")
    message = ET.fromstring(content)
    check(message)
    assert b"\n" not in content and b"\x1b" not in content
    peer = message.findall("ActiveParticipant")[1]
    assert peer.attrib["UserID"] == 'A"><X/>??<85>1 ?[2J??'
    detail = message.find(".//ParticipantObjectDetail")
    assert detail is not None and base64.b64decode(detail.attrib["value"]) == b"cause?<Y/>?"


def test_a_query_is_told_whole_and_in_any_script() -> None:
    asked = f"CT 60-69 {'.' * 3000} Einblutung   bei\n\tMüller \x1b"
    detail = ET.fromstring(audit_message.searched(SOURCE, WHO, asked)).find(".//ParticipantObjectDetail")
    assert detail is not None
    told = base64.b64decode(detail.attrib["value"]).decode()
    assert told == f"CT 60-69 {'.' * 3000} Einblutung bei Müller ?"


# ---- where they go -------------------------------------------------------------------------------------------


def trail(folder: Path, **settings: object) -> Trail:
    return Trail(AuditSettings(**settings), folder / "audit", ae_title="HLIP")  # type: ignore[arg-type]


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


# ---- the road ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names_patients", [False, True])
def test_results_that_were_sent_are_in_the_trail_and_the_patient_only_if_asked(
    tmp_path: Path, names_patients: bool
) -> None:
    from peers import dcmsend

    file = tmp_path / "audit.log"
    with (
        orthanc(tmp_path / "pacs") as pacs,
        road(
            tmp_path,
            destinations=[{"name": "pacs", "url": pacs.dicomweb}],
            model={"bundle": str(tiny_bundle())},
            audit={"file": str(file), "patient_ids": names_patients},
        ) as plugin,
    ):
        dcmsend(plugin.port, head_ct(tmp_path, PatientID="CANARY-1", PatientName="Canary^Jane")[0].parent)
        study = plugin.settled(instances=12)["studies"][0]
    messages = [parsed(line) for line in file.read_bytes().splitlines()]
    sent = [m for m in messages if any(p.attrib["UserID"] == "pacs" for p in m.findall("ActiveParticipant"))]
    assert len(sent) == 1
    objects = [o.attrib["ParticipantObjectID"] for o in sent[0].findall("ParticipantObjectIdentification")]
    assert objects == [study["study_instance_uid"], *(["CANARY-1"] if names_patients else [])]
    assert b"Jane" not in file.read_bytes()


def test_the_listener_tells_what_it_received_and_whom_it_turned_away(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    authority = Authority(tmp_path / "ca", "hospital")
    ours, theirs = authority.issue("hlip"), authority.issue("modality")
    settings = ListenerSettings(
        port=0, calling_ae_titles=("CT1",), tls_ca=str(authority.certificate), **ours.settings
    )  # fmt: skip
    spool = Spool(tmp_path / "data")
    context = tls.server_context(settings, require_certificate=True)
    secure = ("+tls", str(theirs.key), str(theirs.certificate), "+cf", str(authority.certificate))
    paths = [*head_ct(tmp_path, name="a"), *head_ct(tmp_path, name="b", slices=3)]
    with listening(settings, spool, ssl_context=context, audit=trail(tmp_path, file=str(file))) as listener:
        storescu(listener.port, paths, *secure, "-aet", "CT1")
        storescu(listener.port, paths, *secure, "-aet", "EVIL")
        storescu(listener.port, paths, "-aet", "CT1")
        wait_until(lambda: len(file.read_bytes().splitlines()) == 4, "the four messages")
    messages = [parsed(line) for line in file.read_bytes().splitlines()]
    received = {
        next(iter(m.findall("ParticipantObjectIdentification"))).attrib["ParticipantObjectID"]: [
            s.attrib["NumberOfInstances"] for s in m.iter("SOPClass")
        ]
        for m in messages[:2]
    }
    studies = {dcmread(path).StudyInstanceUID: 0 for path in paths}
    assert list(received.values()) == [["12"], ["3"]] and set(received) == set(studies)
    peers = [m.findall("ActiveParticipant")[1].attrib for m in messages[2:]]
    assert [p["UserID"] for p in peers] == ["EVIL", "unknown"]
    assert {p["NetworkAccessPointID"] for p in peers} == {"127.0.0.1"}
    details = [m.find(".//ParticipantObjectDetail").attrib["value"] for m in messages[2:]]  # type: ignore[union-attr]
    said = [base64.b64decode(value).decode() for value in details]
    assert said[0] == "calling AE title not recognized" and said[1].startswith("TLS: ")


def test_stow_tells_what_it_stored_and_who_had_no_token(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    images = head_series(3)
    with web(tmp_path, audit={"file": str(file)}, stow_token="a token of the tests") as server:
        assert server.store(images).status_code == 401
        assert server.store(images, Authorization="Bearer a token of the tests").status_code == 200
    turned_away, stored = (parsed(line) for line in file.read_bytes().splitlines())
    assert turned_away.find("EventIdentification/EventID").attrib["csd-code"] == "110113"  # type: ignore[union-attr]
    assert stored.find("ParticipantObjectIdentification").attrib["ParticipantObjectID"] == images[0].StudyInstanceUID  # type: ignore[union-attr]
    assert [row.attrib["NumberOfInstances"] for row in stored.iter("SOPClass")] == ["3"]


def test_what_is_removed_for_good_is_in_the_trail(tmp_path: Path) -> None:
    file = tmp_path / "audit.log"
    plugin = Plugin(Settings(spool={"folder": tmp_path / "data"}, audit={"file": str(file)}))
    plugin.database.upgrade()
    old = plugin.spool.conflicting / "1.2.3"
    old.mkdir(parents=True)
    (old / "1.dcm").write_bytes(b"other content")
    rules = Retention({"conflicting": 1e-9}, plugin.spool, plugin.database, audit=plugin.audit)
    assert [going.study_instance_uid for going in rules.run(frozenset)] == ["1.2.3"]
    (message,) = (parsed(line) for line in file.read_bytes().splitlines())
    assert message.find("EventIdentification/EventID").attrib["csd-code"] == "110105"  # type: ignore[union-attr]
    assert message.find("ParticipantObjectIdentification").attrib["ParticipantObjectID"] == "1.2.3"  # type: ignore[union-attr]
