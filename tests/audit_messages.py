"""Audit messages held against the schema of PS3.15 section A.5.1, and who and what they are about in tests."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

from plugin.audit import Trail
from plugin.audit_message import Actor, Node, Source, StudyObjects
from plugin.settings import AuditSettings

CT, SR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.88.33"
SOURCE = Source("hlip", "City Hospital", "HLIP")
STUDY = StudyObjects("1.2.3", {CT: 40, SR: 1})
PEER = Node("CT1", "10.1.2.3")
WHO = Actor("Grète <Müller>\n", "reading-room-1")
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


def trail(folder: Path, **settings: object) -> Trail:
    return Trail(AuditSettings(**settings), folder / "audit", ae_title="HLIP")  # type: ignore[arg-type]
