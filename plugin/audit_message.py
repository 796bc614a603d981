"""Audit messages: who did what with which study (PS3.15 section A.5), as XML by the schema of section A.5.1.

They name studies, AE titles and addresses; a patient only where the caller gives a PatientID.
"""

import base64
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Literal
from xml.etree import ElementTree as ET

Outcome = Literal["0", "4", "8", "12"]
"""EventOutcomeIndicator: success, minor failure, serious failure, major failure."""
SUCCESS: Outcome = "0"
MINOR_FAILURE: Outcome = "4"
Action = Literal["C", "R", "U", "D", "E"]


@dataclass(frozen=True)
class Code:
    value: str
    meaning: str
    scheme: str = "DCM"


# PS3.16 CID 400 and 401, Audit Event ID and Audit Event Type Code
APPLICATION_ACTIVITY = Code("110100", "Application Activity")
INSTANCES_ACCESSED = Code("110103", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED = Code("110104", "DICOM Instances Transferred")
STUDY_DELETED = Code("110105", "DICOM Study Deleted")
QUERY = Code("110112", "Query")
SECURITY_ALERT = Code("110113", "Security Alert")
USER_AUTHENTICATION = Code("110114", "User Authentication")
APPLICATION_START = Code("110120", "Application Start")
APPLICATION_STOP = Code("110121", "Application Stop")
LOGIN = Code("110122", "Login")
LOGOUT = Code("110123", "Logout")
NODE_AUTHENTICATION = Code("110126", "Node Authentication")
USER_ATTRIBUTES_CHANGED = Code("110137", "User Security Attributes Changed")
# CID 402, Audit Active Participant Role ID Code
APPLICATION = Code("110150", "Application")
DESTINATION_ROLE = Code("110152", "Destination Role ID")
SOURCE_ROLE = Code("110153", "Source Role ID")
# CID 404, Audit Participant Object ID Type Code
STUDY_INSTANCE_UID = Code("110180", "Study Instance UID")
NODE_ID = Code("110182", "Node ID")
PATIENT_NUMBER = Code("2", "Patient Number", scheme="RFC-3881")
# what a person does with results: no code of the standard's
ACTS = {
    act: Code(act, meaning, scheme="99HLIP")
    for act, meaning in {
        "withdraw": "Withdraw results",
        "reissue": "Analyse anew and issue again",
        "retry": "Take up again",
        "assess": "Assess findings",
    }.items()
}
SEARCH = Code("search", "Search in words", scheme="99HLIP")
USER = Code("user", "User of the page", scheme="99HLIP")

APPLICATION_SERVER = "4"  # AuditSourceTypeCode
PERSON, SYSTEM_OBJECT = "1", "2"  # ParticipantObjectTypeCode
PATIENT, REPORT, SECURITY_USER, SECURITY_RESOURCE = "1", "3", "11", "13"  # ParticipantObjectTypeCodeRole
QUERY_ROLE = "24"
MAX_QUERY = 4096
MACHINE_NAME, IP_ADDRESS = "1", "2"  # NetworkAccessPointTypeCode


def printable(text: str, limit: int = 64) -> str:
    """What another machine said, for a log or a message: printable ASCII, bounded; anything else becomes "?"."""
    return "".join(c if " " <= c <= "~" else "?" for c in text.strip()[:limit])


@dataclass(frozen=True)
class Node:
    """A DICOM node that takes part: a peer by AE title or name, and its IP address or host name."""

    name: str
    address: str = ""


@dataclass(frozen=True)
class Actor:
    """A person who acts, by the name of their sign-in, and the address that their browser came from."""

    name: str
    address: str = ""


@dataclass(frozen=True)
class Source:
    """Who reports: the names that the settings give us, and our AE title."""

    source_id: str
    enterprise_site_id: str
    ae_title: str


@dataclass(frozen=True)
class StudyObjects:
    """What was moved or removed of one study: how many instances of each SOP class."""

    study_instance_uid: str
    instances: Mapping[str, int]


# ---- messages ------------------------------------------------------------------------------------------------


def application_activity(source: Source, *, is_start: bool) -> bytes:
    """PS3.15 Table A.5.3.1-1."""
    message = _message(APPLICATION_ACTIVITY, "E", SUCCESS, APPLICATION_START if is_start else APPLICATION_STOP)
    _ourselves(message, source, APPLICATION, is_requestor=False)
    return _finished(message, source)


def instances_transferred(
    source: Source,
    objects: Sequence[StudyObjects],
    *,
    sender: Node | None = None,
    receiver: Node | None = None,
    outcome: Outcome = SUCCESS,
    patient_id: str | None = None,
) -> bytes:
    """PS3.15 Table A.5.3.7-1. The one of `sender` and `receiver` that is None are we; the sender asked for it."""
    message = _message(INSTANCES_TRANSFERRED, "C", outcome)
    for node, role in ((sender, SOURCE_ROLE), (receiver, DESTINATION_ROLE)):
        is_requestor = role is SOURCE_ROLE
        if node is None:
            _ourselves(message, source, role, is_requestor=is_requestor)
        else:
            _peer(message, node, role, is_requestor=is_requestor)
    return _finished(message, source, objects, patient_id)


def study_deleted(source: Source, objects: StudyObjects) -> bytes:
    """PS3.15 Table A.5.3.8-1."""
    message = _message(STUDY_DELETED, "D", SUCCESS)
    _ourselves(message, source, APPLICATION, is_requestor=True)
    return _finished(message, source, [objects])


def security_alert(source: Source, peer: Node, description: str) -> bytes:
    """PS3.15 Table A.5.3.11-1: a peer that was not let in, and why."""
    message = _message(SECURITY_ALERT, "E", MINOR_FAILURE, NODE_AUTHENTICATION)
    _ourselves(message, source, APPLICATION, is_requestor=False)
    _peer(message, peer, SOURCE_ROLE, is_requestor=True)
    _source(message, source)
    detail = _encoded_text(description)
    alert = _object(message, peer.address or peer.name, NODE_ID, SYSTEM_OBJECT, SECURITY_RESOURCE)
    ET.SubElement(alert, "ParticipantObjectDetail", {"type": "Alert Description", "value": detail})
    return _encoded(message)


def study_accessed(
    source: Source,
    actor: Actor,
    objects: StudyObjects,
    *,
    act: str = "",
    outcome: Outcome = SUCCESS,
    patient_id: str | None = None,
) -> bytes:
    """PS3.15 Table A.5.3.6-1: a person saw a study, or did one of `ACTS` with what we say of it."""
    action: Action = "U" if act else "R"
    message = _message(INSTANCES_ACCESSED, action, outcome, ACTS[act] if act else None)
    _person(message, actor)
    _ourselves(message, source, APPLICATION, is_requestor=False)
    return _finished(message, source, [objects], patient_id)


def searched(source: Source, actor: Actor, text: str) -> bytes:
    """PS3.15 Table A.5.3.10-1: a person searched the archive in words of their own."""
    message = _message(QUERY, "E", SUCCESS)
    _person(message, actor)
    _ourselves(message, source, APPLICATION, is_requestor=False)
    _source(message, source)
    query = _object(message, "archive", SEARCH, SYSTEM_OBJECT, QUERY_ROLE)
    ET.SubElement(query, "ParticipantObjectDetail", {"type": "Query", "value": _encoded_query(text)})
    return _encoded(message)


def user_authentication(source: Source, actor: Actor, *, is_login: bool = True, outcome: Outcome = SUCCESS) -> bytes:
    """PS3.15 Table A.5.3.12-1: signed in or out, or tried to."""
    message = _message(USER_AUTHENTICATION, "E", outcome, LOGIN if is_login else LOGOUT)
    _person(message, actor)
    _ourselves(message, source, APPLICATION, is_requestor=False)
    _source(message, source)
    return _encoded(message)


def user_changed(source: Source, actor: Actor, user: str, description: str) -> bytes:
    """PS3.15 Table A.5.3.11-1: who may sign in was changed, by `actor` at this machine."""
    message = _message(SECURITY_ALERT, "E", SUCCESS, USER_ATTRIBUTES_CHANGED)
    _person(message, actor)
    _ourselves(message, source, APPLICATION, is_requestor=False)
    _source(message, source)
    alert = _object(message, user, USER, SYSTEM_OBJECT, SECURITY_USER)
    ET.SubElement(alert, "ParticipantObjectDetail", {"type": "Alert Description", "value": _encoded_text(description)})
    return _encoded(message)


# ---- parts ---------------------------------------------------------------------------------------------------


def _message(event: Code, action: Action, outcome: Outcome, kind: Code | None = None) -> ET.Element:
    message = ET.Element("AuditMessage")
    identification = ET.SubElement(
        message,
        "EventIdentification",
        {
            "EventActionCode": action,
            "EventDateTime": datetime.now().astimezone().isoformat(timespec="milliseconds"),
            "EventOutcomeIndicator": outcome,
        },
    )
    _code(identification, "EventID", event)
    if kind is not None:
        _code(identification, "EventTypeCode", kind)
    return message


def _code(parent: ET.Element, name: str, code: Code) -> None:
    attributes = {"csd-code": code.value, "codeSystemName": code.scheme, "originalText": code.meaning}
    ET.SubElement(parent, name, attributes)


def _ourselves(message: ET.Element, source: Source, role: Code, *, is_requestor: bool) -> None:
    """This process: its number, and the AE title as section A.5.2.2 wants it."""
    attributes = {
        "UserID": str(os.getpid()),
        "AlternativeUserID": f"AETITLES={printable(source.ae_title, 16)}",
        "UserIsRequestor": str(is_requestor).lower(),
        "NetworkAccessPointID": printable(socket.gethostname(), 255),
        "NetworkAccessPointTypeCode": MACHINE_NAME,
    }
    _code(ET.SubElement(message, "ActiveParticipant", attributes), "RoleIDCode", role)


def _peer(message: ET.Element, node: Node, role: Code, *, is_requestor: bool) -> None:
    attributes = {
        "UserID": printable(node.name) or "unknown",
        "UserIsRequestor": str(is_requestor).lower(),
    }
    if node.address:
        attributes["NetworkAccessPointID"] = printable(node.address, 255)
        attributes["NetworkAccessPointTypeCode"] = IP_ADDRESS if _is_ip_address(node.address) else MACHINE_NAME
    _code(ET.SubElement(message, "ActiveParticipant", attributes), "RoleIDCode", role)


def _person(message: ET.Element, actor: Actor) -> None:
    name = "".join(c if c.isprintable() else "?" for c in actor.name.strip()[:64]) or "unknown"
    attributes = {"UserID": name, "UserIsRequestor": "true"}
    if actor.address:
        attributes["NetworkAccessPointID"] = printable(actor.address, 255)
        attributes["NetworkAccessPointTypeCode"] = IP_ADDRESS if _is_ip_address(actor.address) else MACHINE_NAME
    ET.SubElement(message, "ActiveParticipant", attributes)


def _encoded_text(text: str) -> str:
    return base64.b64encode(printable(text, 256).encode()).decode()


def _encoded_query(text: str) -> str:
    """In any script, whole, in one line; "?" for what is not to be seen."""
    shown = "".join(c if c.isprintable() else "?" for c in " ".join(text.split())[:MAX_QUERY])
    return base64.b64encode(shown.encode()).decode()


def _is_ip_address(text: str) -> bool:
    try:
        ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return True


def _source(message: ET.Element, source: Source) -> None:
    attributes = {"AuditSourceID": printable(source.source_id)}
    if source.enterprise_site_id:
        attributes["AuditEnterpriseSiteID"] = printable(source.enterprise_site_id)
    identification = ET.SubElement(message, "AuditSourceIdentification", attributes)
    ET.SubElement(identification, "AuditSourceTypeCode", {"csd-code": APPLICATION_SERVER})


def _object(message: ET.Element, identifier: str, kind: Code, type_code: str, role: str) -> ET.Element:
    """A participant object; the schema wants a name, for which the identifier stands again."""
    text = printable(identifier) or "unknown"
    attributes = {
        "ParticipantObjectID": text,
        "ParticipantObjectTypeCode": type_code,
        "ParticipantObjectTypeCodeRole": role,
    }
    element = ET.SubElement(message, "ParticipantObjectIdentification", attributes)
    _code(element, "ParticipantObjectIDTypeCode", kind)
    ET.SubElement(element, "ParticipantObjectName").text = text
    return element


def _finished(
    message: ET.Element, source: Source, objects: Sequence[StudyObjects] = (), patient_id: str | None = None
) -> bytes:
    _source(message, source)
    for moved in objects:
        study = _object(message, moved.study_instance_uid, STUDY_INSTANCE_UID, SYSTEM_OBJECT, REPORT)
        description = ET.SubElement(study, "ParticipantObjectDescription")
        for sop_class_uid, count in sorted(moved.instances.items()):
            attributes = {"UID": printable(sop_class_uid), "NumberOfInstances": str(count)}
            ET.SubElement(description, "SOPClass", attributes)
    if patient_id:
        _object(message, patient_id, PATIENT_NUMBER, PERSON, PATIENT)
    return _encoded(message)


def _encoded(message: ET.Element) -> bytes:
    return ET.tostring(message, encoding="UTF-8", xml_declaration=True).replace(b"\n", b"", 1)
