"""Command sets: what a DIMSE message asks, and what is answered (PS3.7 section 6.3.1 and Annex E)."""

import struct
from dataclasses import dataclass

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
IS_RESPONSE = 0x8000
NO_DATA_SET = 0x0101
UNRECOGNIZED_OPERATION = 0x0211  # PS3.7 section C.5.25: a status that refuses any other service

AFFECTED_SOP_CLASS_UID, REQUESTED_SOP_CLASS_UID = 0x0002, 0x0003
COMMAND_FIELD, MESSAGE_ID, MESSAGE_ID_BEING_RESPONDED_TO = 0x0100, 0x0110, 0x0120
COMMAND_DATA_SET_TYPE, STATUS = 0x0800, 0x0900
AFFECTED_SOP_INSTANCE_UID, REQUESTED_SOP_INSTANCE_UID = 0x1000, 0x1001

_HEADER = struct.Struct("<HHL")


class NotACommand(ValueError):
    """A command set that breaks the rules."""


@dataclass(frozen=True)
class Request:
    """A request's command set, as far as a storage SCP reads it."""

    field: int
    message_id: int
    has_data_set: bool
    sop_class_uid: str
    sop_instance_uid: str

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "Request":
        """Raises NotACommand."""
        elements = _elements(encoded)
        field = _number(elements, COMMAND_FIELD)
        names_another = field == C_CANCEL_RQ or field & IS_RESPONSE
        return cls(
            field=field,
            message_id=_number(elements, MESSAGE_ID_BEING_RESPONDED_TO if names_another else MESSAGE_ID),
            has_data_set=_number(elements, COMMAND_DATA_SET_TYPE) != NO_DATA_SET,
            sop_class_uid=_uid(elements, AFFECTED_SOP_CLASS_UID),
            sop_instance_uid=_uid(elements, AFFECTED_SOP_INSTANCE_UID),
        )

    def response(self, status: int) -> bytes:
        """The command set of the answer: the request's identifiers, no data set."""
        elements = [
            (AFFECTED_SOP_CLASS_UID, _padded(self.sop_class_uid)),
            (COMMAND_FIELD, _us(self.field | IS_RESPONSE)),
            (MESSAGE_ID_BEING_RESPONDED_TO, _us(self.message_id)),
            (COMMAND_DATA_SET_TYPE, _us(NO_DATA_SET)),
            (STATUS, _us(status)),
            (AFFECTED_SOP_INSTANCE_UID, _padded(self.sop_instance_uid)),
        ]
        body = b"".join(_HEADER.pack(0, tag, len(value)) + value for tag, value in elements if value)
        return _HEADER.pack(0, 0, 4) + struct.pack("<L", len(body)) + body


def _elements(encoded: bytes) -> dict[int, bytes]:
    """The elements of group 0000, Implicit VR Little Endian, by their number."""
    elements: dict[int, bytes] = {}
    at = 0
    while at < len(encoded):
        if at + _HEADER.size > len(encoded):
            raise NotACommand("cut off")
        group, number, length = _HEADER.unpack_from(encoded, at)
        at += _HEADER.size
        if group or at + length > len(encoded):
            raise NotACommand("not an element of group 0000" if group else "cut off")
        elements[number] = encoded[at : at + length]
        at += length
    return elements


def _number(elements: dict[int, bytes], number: int) -> int:
    value = elements.get(number, b"")
    if len(value) != 2:
        raise NotACommand(f"(0000,{number:04X}) is missing or is not a number")
    return int.from_bytes(value, "little")


def _uid(elements: dict[int, bytes], number: int) -> str:
    return elements.get(number, b"").decode("ascii", "replace").rstrip("\0 ")


def _us(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _padded(uid: str) -> bytes:
    value = uid.encode("ascii", "replace")
    return value + b"\0" * (len(value) % 2)
