"""Reports in files of HL7 v2 messages: ORU^R01, the text of its OBX segments.

What links a message to a study: the Study Instance UID in an OBX (113014), ZDS-1 or IPC-3; else a number that is an
accession number: IPC-1, OBR-18, OBR-3, OBR-2 (IHE Radiology; sites differ, so each is tried).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hl7

from hlip_core.sentences import section_of

from .cleaning import Identities
from .reports import Report

__all__ = ["read_messages"]

LARGEST = 64 * 2**20  # bytes of a file that is read
TEXT_TYPES = frozenset({"TX", "FT", "ST"})
GONE = frozenset({"X", "D", "W"})  # OBX-11: not available, deleted, wrong
SUFFIXES = {"IMP": "IMPRESSION", "GDT": "FINDINGS", "ADT": "ADDENDUM", "REC": "RECOMMENDATION", "ANT": "FINDINGS"}
STUDY_UID = re.compile(r"113014|study ?instance ?uid", re.IGNORECASE)
RANK = {"C": 2, "F": 2, "A": 2, "R": 1, "P": 0}  # OBR-25; a final or corrected report replaces a preliminary one
NAMES = {"PID": (5, 6, 9), "PV1": (7, 8, 9, 17), "OBR": (10, 16, 28, 32, 33, 34, 35), "ORC": (10, 11, 12),
         "NK1": (2,), "OBX": (16,)}  # fmt: skip
NUMBERS = {"PID": (2, 3, 4, 7, 13, 14, 18, 19, 20), "PV1": (19, 50), "OBR": (2, 3, 17, 18, 19), "ORC": (2, 3, 14),
           "NK1": (5,), "IPC": (1, 2)}  # fmt: skip
PLACES = {"PID": (11, 23), "ORC": (21, 22), "NK1": (4,), "MSH": (4, 6), "OBX": (23, 24)}
BREAK = re.compile(r"\\\.(?:br|sp|ce)[+\d]*\\")
FORMATTING = re.compile(r"\\(?:\.[a-z]{2}[+-]?\d*|[HN])\\", re.IGNORECASE)


@dataclass
class _Order:
    """One OBR and the OBX segments that follow it."""

    obr: hl7.Segment
    lines: list[str] = field(default_factory=list)
    study_instance_uid: str = ""


def read_messages(path: Path) -> tuple[list[Report], int]:
    """The reports in a file, and how many messages of it could not be read or are no ORU."""
    reports: list[Report] = []
    unread = 0
    for raw in _split(_decode(path)):
        try:
            found = list(_reports(hl7.parse(raw)))
        except (hl7.HL7Exception, LookupError, ValueError, TypeError, AttributeError):
            found = []
        reports += found
        unread += not found
    return reports, unread


def _decode(path: Path) -> str:
    with path.open("rb") as file:
        content = file.read(LARGEST)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _split(content: str) -> Iterator[str]:
    """Single messages with CR between their segments, without the framing of MLLP and of batches."""
    lines = [line.strip("\x0b\x1c \t") for line in re.split(r"[\r\n]+", content)]
    message: list[str] = []
    for line in lines:
        if line.startswith("MSH") and message:
            yield "\r".join(message) + "\r"
            message = []
        if line.startswith("MSH") or (message and not re.match(r"(?:FHS|BHS|BTS|FTS)\W", line) and line):
            message.append(line)
    if message:
        yield "\r".join(message) + "\r"


def _field(segment: hl7.Segment, number: int) -> str:
    """A field as it stands in the message, repetitions and components included."""
    return str(segment[number]).strip() if number < len(segment) else ""


def _first(segment: hl7.Segment, number: int) -> str:
    """The first component of the first repetition."""
    return re.split(r"[~^&]", _field(segment, number), maxsplit=1)[0].strip()


def _reports(message: hl7.Message) -> Iterator[Report]:
    header = message[0]
    if not _field(header, 9).upper().startswith("ORU"):
        return
    orders, shared_uid, accessions = _orders(message)
    identities = _identities(message)
    whole = "\n".join(line for order in orders for line in order.lines)
    for order in orders:
        written = "\n".join(order.lines) or whole
        uid = order.study_instance_uid or shared_uid
        numbers = tuple(dict.fromkeys([*accessions, *(_first(order.obr, n) for n in (18, 3, 2))]))
        if written.strip() and (uid or any(numbers)):
            yield Report(
                study_instance_uid=uid,
                accession_numbers=tuple(number for number in numbers if number),
                text=written,
                origin="hl7",
                identities=identities,
                version=(RANK.get(_first(order.obr, 25).upper(), 1), _first(header, 7)),
            )


def _orders(message: hl7.Message) -> tuple[list[_Order], str, list[str]]:
    """The orders, a Study Instance UID that holds for all, and accession numbers that do."""
    orders: list[_Order] = []
    shared_uid, accessions = "", []
    section = ""
    for segment in message:
        name = _field(segment, 0)
        if name == "OBR":
            orders.append(_Order(segment))
            section = ""
        elif name == "OBX" and orders:
            section = _read_obx(message, segment, orders[-1], section)
        elif name == "ZDS":
            shared_uid = _first(segment, 1)
        elif name == "IPC":
            shared_uid = _first(segment, 3) or shared_uid
            accessions.append(_first(segment, 1))
    return orders, shared_uid, accessions


def _read_obx(message: hl7.Message, segment: hl7.Segment, order: _Order, section: str) -> str:
    """Adds the text of an OBX to its order; returns the heading that it stands under."""
    identifier = _field(segment, 3)
    if STUDY_UID.search(identifier):
        order.study_instance_uid = _first(segment, 5)
        return section
    if _field(segment, 2).upper() not in TEXT_TYPES or _first(segment, 11).upper() in GONE:
        return section
    heading = _heading(identifier)
    if heading and heading != section:
        order.lines.append(f"\n{heading}:")
    for repetition in _field(segment, 5).split("~"):
        broken = FORMATTING.sub(" ", BREAK.sub("\n", repetition))
        order.lines += [message.unescape(line) if "\\" in line else line for line in broken.split("\n")]
    return heading or section


def _heading(identifier: str) -> str:
    suffix = re.search(r"&([A-Z]{3})\b", identifier)
    if suffix and suffix[1] in SUFFIXES:
        return SUFFIXES[suffix[1]]
    known = (section_of(part) for part in re.split(r"[\^&]", identifier))
    return next((name.upper() for name in known if name), "")


def _identities(message: hl7.Message) -> Identities:
    found = {}
    for kind, table in (("names", NAMES), ("numbers", NUMBERS), ("places", PLACES)):
        found[kind] = frozenset(_values(message, table, whole=kind == "names"))
    return Identities(**found)


def _values(message: hl7.Message, table: dict[str, tuple[int, ...]], *, whole: bool) -> Iterator[str]:
    """The repetitions of the fields (names keep their components together), or each of their components."""
    for segment in message:
        for number in table.get(_field(segment, 0), ()):
            for repetition in _field(segment, number).split("~"):
                parts = [repetition.replace("&", "^")] if whole else re.split(r"[\^&]", repetition)
                yield from (part.strip() for part in parts if part.strip())
