"""Messages that are no plain store, and broken rules: each is answered or aborted by the book, and leaves nothing."""

import re
import time
import zlib
from collections.abc import Iterator

import pytest
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from associations import (
    ABORT,
    ASSOCIATE_RJ,
    CT_EXPLICIT,
    P_DATA,
    PROVIDER,
    RELEASE_RP,
    USER,
    RawPeer,
    aborted,
    associate_rq,
    command,
    pdu,
    pdv,
)
from peers import wait_until
from plugin.dimse import Peer, echo
from plugin.listener import Listener, listening
from plugin.settings import ListenerSettings
from plugin.spool import Spool
from plugin.wire import ARENA
from store_messages import DATA_SET, MESSAGE, STORE, associated, data_set_of, encoded, fragmented, kept, stored


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return Spool(tmp_path_factory.mktemp("association") / "data")


@pytest.fixture(scope="module")
def listener(spool: Spool) -> Iterator[Listener]:
    with listening(ListenerSettings(port=0), spool) as running:
        yield running


@pytest.fixture
def peer(listener: Listener, spool: Spool) -> Iterator[RawPeer]:
    with associated(listener.port, spool) as raw:
        yield raw


# ---- other messages --------------------------------------------------------------------------------------


def test_verification_is_answered_on_any_context(peer: RawPeer) -> None:
    request = command(AffectedSOPClassUID=Verification, CommandField=0x0030, MessageID=7, CommandDataSetType=0x0101)
    peer.send(pdu(P_DATA, pdv(1, request, command=True, last=True)))
    answer = peer.response()
    assert (answer[0x0100], answer[0x0120], answer[0x0900]) == (b"\x30\x80", b"\x07\x00", b"\x00\x00")


def test_an_echo_is_answered_while_others_send(listener: Listener, peer: RawPeer) -> None:
    peer.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
    began = time.monotonic()
    assert echo(Peer("127.0.0.1", listener.port, "HLIP"))
    assert time.monotonic() - began < 2


def test_a_cancel_is_not_answered_and_disturbs_nothing(peer: RawPeer, spool: Spool) -> None:
    cancel = command(CommandField=0x0FFF, MessageIDBeingRespondedTo=1, CommandDataSetType=0x0101)
    peer.send(pdu(P_DATA, pdv(1, cancel, command=True, last=True)))
    assert stored(peer, spool, MESSAGE) == DATA_SET


def test_another_service_is_an_unrecognized_operation(peer: RawPeer, spool: Spool) -> None:
    for data_set_type, rest in ((0x0101, b""), (0x0000, pdv(1, b"\x08\x00", last=True))):
        find = command(CommandField=0x0020, MessageID=3, CommandDataSetType=data_set_type, Priority=0)
        peer.send(pdu(P_DATA, pdv(1, find, command=True, last=True) + rest))
        answer = peer.response()
        assert (answer[0x0100], answer[0x0900]) == (b"\x20\x80", b"\x11\x02")
    assert stored(peer, spool, MESSAGE) == DATA_SET


def test_a_store_without_data_set_is_refused(peer: RawPeer, spool: Spool) -> None:
    empty = command(
        AffectedSOPClassUID=CTImageStorage, CommandField=1, MessageID=3, Priority=0, CommandDataSetType=0x0101,
        AffectedSOPInstanceUID="1.2.3",
    )  # fmt: skip
    peer.send(pdu(P_DATA, pdv(1, empty, command=True, last=True)))
    assert peer.status() == 0xC000
    assert kept(spool) == []


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (encoded(SOPInstanceUID="1.2.4.2"), 0xA900),
        (encoded(SOPClassUID="1.2.840.10008.5.1.4.1.1.4"), 0xA900),
        (encoded().replace(b"1.2.1", b"../x\0"), 0xA900),
        (b"", 0xA900),
        (b"\xff" * 100, 0xC000),
    ],
    ids=["another instance", "another class", "a path", "nothing", "nonsense"],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    peer: RawPeer, spool: Spool, content: bytes, status: int
) -> None:
    peer.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True) + pdv(1, content, last=True)))
    assert peer.status() == status
    assert kept(spool) == []
    assert stored(peer, spool, MESSAGE) == DATA_SET


def test_a_large_instance_with_a_strange_header_is_read_by_the_full_parser(peer: RawPeer, spool: Spool) -> None:
    content = encoded(pixels=2 * ARENA)
    at = content.index(b"\x08\x00\x60\x00")  # Modality, put where ascending order forbids it
    content = content[:at] + content[at + 10 :]
    pixels = content.index(b"\xe0\x7f\x10\x00")
    strange = content[:pixels] + b"\x08\x00\x60\x00CS\x02\x00CT" + content[pixels:]
    first = b"\x08\x00\x70\x00XX\x02\x00ab"  # a VR that does not exist
    strange = strange[:at] + first + strange[at:]
    peer.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
    peer.send(*(pdu(P_DATA, piece) for piece in fragmented(1, strange, command=False, size=60_000)))
    assert peer.status() == 0x0000
    assert data_set_of(kept(spool)[0]) == strange


def test_a_deflate_bomb_takes_neither_time_nor_memory(listener: Listener, spool: Spool, peer: RawPeer) -> None:
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    bomb = b"".join(deflater.compress(bytes(1 << 20)) for _ in range(200)) + deflater.flush()
    with RawPeer(listener.port) as raw:
        raw.associate((CTImageStorage, DeflatedExplicitVRLittleEndian))
        began = time.monotonic()
        raw.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
        raw.send(*(pdu(P_DATA, piece) for piece in fragmented(1, bomb, command=False, size=100_000)))
        assert raw.status() == 0xC000
        assert time.monotonic() - began < 5
    assert kept(spool) == []


# ---- broken rules ----------------------------------------------------------------------------------------


HEADER_ONLY = pdu(P_DATA, b"")[:2]


BROKEN = {
    "an unknown PDU type": (pdu(9, b"1234"), (PROVIDER, 1)),
    "a second request for an association": (associate_rq([CT_EXPLICIT]), (PROVIDER, 2)),
    "a release response": (pdu(RELEASE_RP, bytes(4)), (PROVIDER, 2)),
    "a PDU of four gigabytes": (HEADER_ONLY + b"\xff\xff\xff\xff", (PROVIDER, 6)),
    "a PDU just over our maximum": (HEADER_ONLY + (131072 + 100).to_bytes(4, "big"), (PROVIDER, 6)),
    "a release of a megabyte": (b"\x05\x00\x00\x10\x00\x00", (PROVIDER, 6)),
    "a fragment longer than its PDU": (pdu(P_DATA, b"\x00\x00\x01\x00\x01\x03" + STORE), (PROVIDER, 6)),
    "a fragment without its header": (pdu(P_DATA, b"\x00\x00\x00\x01\x01\x03"), (PROVIDER, 6)),
    "a fragment of no length": (pdu(P_DATA, bytes(6)), (PROVIDER, 6)),
    "bytes after the last fragment": (pdu(P_DATA, pdv(1, b"1") + b"\x00\x00"), (PROVIDER, 5)),
    "a context that was not accepted": (pdu(P_DATA, pdv(3, STORE, command=True, last=True)), (PROVIDER, 6)),
    "a data set before its command set": (pdu(P_DATA, pdv(1, DATA_SET)), (PROVIDER, 5)),
    "a command set instead of a data set": (
        pdu(P_DATA, pdv(1, STORE, command=True, last=True) * 2), (PROVIDER, 5)
    ),
    "a command set that is none": (pdu(P_DATA, pdv(1, b"nonsense, really", command=True, last=True)), (USER, 0)),
    "a command set without end": (pdu(P_DATA, pdv(1, bytes(70_000), command=True)), (USER, 0)),
    "a response": (
        pdu(P_DATA, pdv(1, command(CommandField=0x8001, MessageIDBeingRespondedTo=1, CommandDataSetType=0x0101),
                        command=True, last=True)), (USER, 0)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_an_abort_by_the_book(peer: RawPeer, spool: Spool, listener: Listener, name: str) -> None:
    stream, expected = BROKEN[name]
    peer.send(stream)
    assert aborted(peer) == expected
    assert kept(spool) == []
    assert echo(Peer("127.0.0.1", listener.port, "HLIP"))


def test_contexts_are_not_mixed_in_a_message(listener: Listener, spool: Spool) -> None:
    with RawPeer(listener.port) as raw:
        raw.associate(CT_EXPLICIT, (CTImageStorage, ImplicitVRLittleEndian))
        raw.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True) + pdv(3, DATA_SET, last=True)))
        assert aborted(raw) == (PROVIDER, 5)


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1\r\n\r\n", pdu(P_DATA, pdv(1, STORE)), pdu(1, b"x" * 80), b"\x16\x03\x01"]
)
def test_what_is_no_request_for_an_association_is_aborted(listener: Listener, first: bytes) -> None:
    with RawPeer(listener.port) as raw:
        raw.send(first)
        if first == b"\x16\x03\x01":  # half a header
            raw.close()
        else:
            assert raw.receive()[0] == ABORT
    assert echo(Peer("127.0.0.1", listener.port, "HLIP"))


def test_another_version_of_the_protocol_is_rejected(listener: Listener) -> None:
    request = bytearray(associate_rq([CT_EXPLICIT]))
    request[6:8] = b"\x00\x02"
    with RawPeer(listener.port) as raw:
        raw.send(bytes(request))
        kind, content = raw.receive()
        assert (kind, tuple(content[1:])) == (ASSOCIATE_RJ, (1, 2, 2))


def test_a_release_in_the_middle_of_a_message_is_answered_and_leaves_nothing(peer: RawPeer, spool: Spool) -> None:
    peer.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True) + pdv(1, DATA_SET)))
    peer.release()
    assert kept(spool) == []


@pytest.mark.parametrize("end", ["abort", "close", "reset"])
def test_an_end_at_any_byte_leaves_nothing(listener: Listener, spool: Spool, peer: RawPeer, end: str) -> None:
    content = encoded(pixels=ARENA + 200_000)  # some of it is on the disk before its end
    pieces = fragmented(1, content, command=False, size=100_000)
    message = pdu(P_DATA, pdv(1, STORE, command=True, last=True)) + b"".join(pdu(P_DATA, piece) for piece in pieces)
    cuts = [*range(0, 12), 100, len(message) // 2, len(message) - 70_000, len(message) - 1]
    if end == "abort":  # a PDU itself, so between two
        cuts = [match.start() for match in re.finditer(rb"\x04\x00\x00[\x00\x01]..\x00[\x00\x01]..\x01", message)]
        assert len(cuts) == 1 + len(pieces)
    for cut in cuts:
        with RawPeer(listener.port) as raw:
            raw.associate()
            raw.send(message[:cut])
            if end == "abort":
                raw.send(pdu(ABORT, bytes(4)))
            elif end == "reset":
                raw.socket.setsockopt(1, 13, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # SO_LINGER, 0 s
    peer.release()
    wait_until(lambda: not list(spool.associations.iterdir()), "all marks to go")
    assert kept(spool) == []
