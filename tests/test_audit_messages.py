"""Audit messages are as PS3.15 section A.5.1 says, whatever a peer or a person says."""

import base64
from collections.abc import Callable
from xml.etree import ElementTree as ET

import pytest

from audit_messages import CT, PEER, SOURCE, SR, STUDY, WHO, check
from plugin import audit_message
from plugin.audit_message import Node

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
