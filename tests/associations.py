"""A DICOM peer down to the bytes, to say what no library would; and pynetdicom's own storage SCP to compare with."""

import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO

from pydicom import Dataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian
from pynetdicom import AE, PYNETDICOM_IMPLEMENTATION_UID, build_context, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dsutils import encode
from pynetdicom.events import Event
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import A_ASSOCIATE, ImplementationClassUIDNotification, MaximumLengthNotification

Context = tuple[str, str]
"""Abstract syntax, transfer syntax."""
CT_EXPLICIT: Context = (CTImageStorage, ExplicitVRLittleEndian)

ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA, RELEASE_RQ, RELEASE_RP, ABORT = 2, 3, 4, 5, 6, 7
PROVIDER, USER = 2, 0
"""Sources of an A-ABORT."""


def pdu(kind: int, content: bytes) -> bytes:
    return struct.pack(">BxL", kind, len(content)) + content


def pdv(context_id: int, fragment: bytes, *, command: bool = False, last: bool = False) -> bytes:
    return struct.pack(">LBB", len(fragment) + 2, context_id, command | last << 1) + fragment


def associate_rq(contexts: Sequence[Context], *, max_pdu_length: int = 16384, calling: str = "RAW") -> bytes:
    """An A-ASSOCIATE-RQ that proposes one context each, with the IDs 1, 3, 5 ..."""
    request = A_ASSOCIATE()
    request.application_context_name = "1.2.840.10008.3.1.1.1"
    request.calling_ae_title, request.called_ae_title = calling, "HLIP"
    proposed = [build_context(abstract, transfer) for abstract, transfer in contexts]
    for number, context in enumerate(proposed):
        context.context_id = 2 * number + 1
    request.presentation_context_definition_list = proposed
    length, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    length.maximum_length_received = max_pdu_length
    implementation.implementation_class_uid = UID(PYNETDICOM_IMPLEMENTATION_UID)
    request.user_information = [length, implementation]
    encoded = A_ASSOCIATE_RQ()
    encoded.from_primitive(request)
    return encoded.encode()


def store_rq(sop_class_uid: str, sop_instance_uid: str, *, message_id: int = 1) -> bytes:
    """The command set of a C-STORE-RQ, by pynetdicom."""
    primitive = C_STORE()
    primitive.MessageID, primitive.Priority = message_id, 2
    primitive.AffectedSOPClassUID, primitive.AffectedSOPInstanceUID = sop_class_uid, sop_instance_uid
    primitive.DataSet = BytesIO(b"x")
    message = C_STORE_RQ()
    message.primitive_to_message(primitive)
    encoded = encode(message.command_set, True, True)
    assert encoded is not None
    return encoded


def command(**elements: int | str) -> bytes:
    """Any command set, from its elements' keywords."""
    dataset = Dataset()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    body = encode(dataset, True, True)
    assert body is not None
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


class RawPeer:
    """A socket to a listener, and the PDUs on it."""

    def __init__(self, port: int, *, timeout: float = 10) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, *parts: bytes) -> None:
        self.socket.sendall(b"".join(parts))

    def receive(self) -> tuple[int, bytes]:
        """The next PDU: type and content. Raises EOFError at the end."""
        kind, length = struct.unpack(">BxL", self._exactly(6))
        return kind, self._exactly(length)

    def _exactly(self, length: int) -> bytes:
        content = b""
        while len(content) < length:
            piece = self.socket.recv(length - len(content))
            if not piece:
                raise EOFError
            content += piece
        return content

    def ended(self) -> bool:
        """Whether the other side hangs up, once it has said all."""
        try:
            while self.socket.recv(4096):
                pass
        except ConnectionResetError:
            pass
        return True

    def associate(self, *contexts: Context, max_pdu_length: int = 16384) -> bytes:
        self.send(associate_rq(contexts or (CT_EXPLICIT,), max_pdu_length=max_pdu_length))
        kind, content = self.receive()
        assert kind == ASSOCIATE_AC
        return content

    def response(self) -> dict[int, bytes]:
        """The next response's elements by number; its command set may come in pieces."""
        encoded = b""
        while True:
            kind, content = self.receive()
            assert kind == P_DATA, kind
            length, _, control = struct.unpack_from(">LBB", content)
            assert length == len(content) - 4 and control & 1
            encoded += content[6:]
            if control & 2:
                break
        elements, at = {}, 0
        while at < len(encoded):
            _, number, size = struct.unpack_from("<HHL", encoded, at)
            elements[number] = encoded[at + 8 : at + 8 + size]
            at += 8 + size
        return elements

    def status(self) -> int:
        return int.from_bytes(self.response()[0x0900], "little")

    def release(self) -> None:
        self.send(pdu(RELEASE_RQ, bytes(4)))
        assert self.receive()[0] == RELEASE_RP

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> "RawPeer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def aborted(peer: RawPeer) -> tuple[int, int]:
    """Source and reason of the A-ABORT that comes next."""
    kind, content = peer.receive()
    assert kind == ABORT
    peer.close()
    return content[2], content[3]


@contextmanager
def pynetdicom_scp(contexts: Iterable[Context], kept: list[bytes]) -> Iterator[int]:
    """The slow way that the fast one is held against: pynetdicom keeps each instance as it would write it."""

    def keep(event: Event) -> int:
        kept.append(event.encoded_dataset())
        return 0x0000

    ae = AE(ae_title="HLIP")
    syntaxes: dict[str, list[str]] = {}
    for abstract, transfer in contexts:
        syntaxes.setdefault(abstract, []).append(transfer)
    ae.supported_contexts = [build_context(abstract, transfers) for abstract, transfers in syntaxes.items()]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, keep)])
    try:
        yield server.socket.getsockname()[1]
    finally:
        server.shutdown()
