"""The fast loop: the same files and answers as pynetdicom's, whatever way a message is cut; order in all disorder."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import (
    AllTransferSyntaxes,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from structlog.testing import capture_logs

from associations import (
    ABORT,
    ASSOCIATE_RJ,
    CT_EXPLICIT,
    P_DATA,
    RELEASE_RP,
    Context,
    RawPeer,
    associate_rq,
    command,
    pdu,
    pdv,
    pynetdicom_scp,
    store_rq,
)
from peers import free_port, is_open, needs, wait_until
from plugin.dimse import Peer, echo
from plugin.handover import Service
from plugin.listener import Listener, listening
from plugin.settings import ListenerSettings
from plugin.spool import Spool, dataset_digest, digest_by_name
from plugin.storage import Sender, Storage
from plugin.wire import ARENA

PROVIDER, USER = 2, 0
SOP_INSTANCE_UID = "1.2.4.1"


def encoded(syntax: str = ExplicitVRLittleEndian, *, pixels: int = 64, **elements: object) -> bytes:
    """A small CT image's data set as it goes over the wire."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, SOP_INSTANCE_UID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.1", "1.2.2"
    dataset.PatientName, dataset.Modality, dataset.SeriesNumber = "Phantom", "CT", 2
    dataset.ReferencedImageSequence = [Dataset()]
    dataset.ReferencedImageSequence[0].ReferencedSOPInstanceUID = "1.2.9"
    dataset.PixelData = bytes(range(256)) * (pixels // 256) + bytes(pixels % 256)
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    target = DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    write_dataset(target, dataset)
    content = target.getvalue()
    if syntax == DeflatedExplicitVRLittleEndian:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        content = deflater.compress(content) + deflater.flush()
        content += b"\0" * (len(content) % 2)
    return content


STORE = store_rq(CTImageStorage, SOP_INSTANCE_UID)
DATA_SET = encoded()
MESSAGE = pdu(P_DATA, pdv(1, STORE, command=True, last=True)) + pdu(P_DATA, pdv(1, DATA_SET, last=True))


def fragmented(context_id: int, content: bytes, *, command: bool, size: int) -> list[bytes]:
    return [
        pdv(context_id, content[at : at + size], command=command, last=at + size >= len(content))
        for at in range(0, len(content), size)
    ]


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Spool:
    return Spool(tmp_path_factory.mktemp("association") / "data")


@pytest.fixture(scope="module")
def listener(spool: Spool) -> Iterator[Listener]:
    with listening(ListenerSettings(port=0), spool) as running:
        yield running


@pytest.fixture
def peer(listener: Listener, spool: Spool) -> Iterator[RawPeer]:
    """An association for CT images, with an empty spool."""
    for path in spool.incoming.iterdir():
        path.unlink(missing_ok=True)
    with RawPeer(listener.port) as raw:
        raw.associate()
        yield raw


def kept(spool: Spool) -> list[bytes]:
    """What was acknowledged, oldest first, each named by its digest; nothing half-written lies beside it, but for the
    empty file of what comes next in an open association.
    """
    paths = spool.arrivals(10_000)
    for path in set(spool.incoming.iterdir()) - set(paths):
        with suppress(FileNotFoundError):
            assert path.stat().st_size == 0
    assert [digest_by_name(path) for path in paths] == [dataset_digest(path) for path in paths]
    return [path.read_bytes() for path in paths]


def data_set_of(part10: bytes) -> bytes:
    return part10[144 + int.from_bytes(part10[140:144], "little") :]


def aborted(peer: RawPeer) -> tuple[int, int]:
    """Source and reason of the A-ABORT that comes next."""
    kind, content = peer.receive()
    assert kind == ABORT
    peer.close()
    return content[2], content[3]


# ---- the same as pynetdicom ------------------------------------------------------------------------------

SYNTAXES: list[Context] = [(CTImageStorage, syntax) for syntax in AllTransferSyntaxes]


def store_in_every_syntax(port: int, extra: tuple[Context, ...] = ()) -> None:
    for contexts in (SYNTAXES[:20], SYNTAXES[20:]):
        with RawPeer(port) as raw:
            raw.associate(*contexts, *extra)
            for number, (_, syntax) in enumerate(contexts):
                context_id, content = 2 * number + 1, encoded(syntax, pixels=300 + 2 * number)
                raw.send(pdu(P_DATA, pdv(context_id, STORE, command=True, last=True)))
                for piece in fragmented(context_id, content, command=False, size=100 + number):
                    raw.send(pdu(P_DATA, piece))
                assert raw.status() == 0x0000, syntax
            raw.release()


def test_every_transfer_syntax_gives_the_same_file_as_pynetdicom(
    listener: Listener, spool: Spool, peer: RawPeer
) -> None:
    slow: list[bytes] = []
    with pynetdicom_scp(SYNTAXES, slow) as port:
        store_in_every_syntax(port)
    store_in_every_syntax(listener.port)
    assert kept(spool) == slow and len(slow) == len(SYNTAXES)


def test_an_association_handed_over_gives_the_same_files_too(tmp_path: Path) -> None:
    slow: list[bytes] = []
    with pynetdicom_scp(SYNTAXES, slow) as port:
        store_in_every_syntax(port)
    spool, commitment = Spool(tmp_path), build_context(StorageCommitmentPushModel)
    with listening(
        ListenerSettings(port=0), spool, services=[Service([commitment], [], frozenset({"RAW"}))]
    ) as running:
        store_in_every_syntax(running.port, ((StorageCommitmentPushModel, ImplicitVRLittleEndian),))
    assert kept(spool) == slow


def test_a_service_is_served_by_its_handlers(tmp_path: Path) -> None:
    asked = []

    def on_n_action(event: evt.Event) -> tuple[int, None]:
        asked.append(event.request.ActionTypeID)
        return 0x0000, None

    spool = Spool(tmp_path)
    contexts, handlers = [build_context(StorageCommitmentPushModel)], [(evt.EVT_N_ACTION, on_n_action)]
    service = Service(contexts, handlers, frozenset({"CT1"}))
    with listening(ListenerSettings(port=0), spool, services=[service]) as running:
        ae = AE(ae_title="CT1")
        ae.requested_contexts = [build_context(uid) for uid in (StorageCommitmentPushModel, Verification)]
        association = ae.associate("127.0.0.1", running.port, ae_title="HLIP")
        information = Dataset()
        information.TransactionUID = "1.2.3"
        status, _ = association.send_n_action(information, 1, StorageCommitmentPushModel, "1.2.840.10008.1.20.1.1")
        assert status.Status == association.send_c_echo().Status == 0x0000
        assert len(list(spool.associations.iterdir())) == 1
        association.release()
        wait_until(lambda: not list(spool.associations.iterdir()), "the mark to go")
    assert asked == [1]


def test_the_answer_is_pynetdicoms_answer(peer: RawPeer) -> None:
    with pynetdicom_scp([CT_EXPLICIT], []) as port, RawPeer(port) as slow:
        accepted = slow.associate()
        slow.send(MESSAGE)
        answer = slow.receive()
        slow.release()
    peer.send(MESSAGE)
    assert peer.receive() == answer
    with RawPeer(peer.socket.getpeername()[1]) as again:
        fast = again.associate()
    length = b"\x51\x00\x00\x04"  # the maximum length is ours to say
    assert re.sub(length + b".{4}", b"", fast, flags=re.DOTALL) == re.sub(
        length + b".{4}", b"", accepted, flags=re.DOTALL
    )


# ---- any legal cut ---------------------------------------------------------------------------------------


def stored(peer: RawPeer, spool: Spool, stream: bytes) -> bytes:
    peer.send(stream)
    assert peer.status() == 0x0000
    return data_set_of(kept(spool)[-1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 4096])
def test_fragments_of_any_size_are_put_together(peer: RawPeer, spool: Spool, size: int) -> None:
    pieces = fragmented(1, STORE, command=True, size=size) + fragmented(1, DATA_SET, command=False, size=size)
    assert stored(peer, spool, b"".join(pdu(P_DATA, piece) for piece in pieces)) == DATA_SET


def test_all_fragments_may_come_in_one_pdu(peer: RawPeer, spool: Spool) -> None:
    pieces = fragmented(1, STORE, command=True, size=5) + fragmented(1, DATA_SET, command=False, size=5)
    assert stored(peer, spool, pdu(P_DATA, b"".join(pieces))) == DATA_SET


def test_the_stream_may_be_cut_at_every_byte(peer: RawPeer, spool: Spool) -> None:
    for byte in MESSAGE:
        peer.send(bytes([byte]))
    assert peer.status() == 0x0000
    assert data_set_of(kept(spool)[0]) == DATA_SET


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_into_fragments_pdus_and_segments_gives_the_same_bytes(
    peer: RawPeer, spool: Spool, data: st.DataObject
) -> None:
    sizes = st.integers(1, 200)
    fragments = []
    for content, is_command in ((STORE, True), (DATA_SET, False)):
        at = 0
        while at < len(content):
            piece = content[at : at + data.draw(sizes)]
            at += len(piece)
            fragments.append(pdv(1, piece, command=is_command, last=at >= len(content)))
    stream, at = b"", 0
    while at < len(fragments):
        together = fragments[at : at + data.draw(st.integers(1, 6))]
        at += len(together)
        stream += pdu(P_DATA, b"".join(together))
    cut = data.draw(st.integers(0, len(stream)))
    peer.send(stream[:cut])
    assert stored(peer, spool, stream[cut:]) == DATA_SET


def test_an_empty_last_fragment_ends_a_data_set(peer: RawPeer, spool: Spool) -> None:
    stream = pdu(P_DATA, pdv(1, STORE, command=True, last=True) + pdv(1, DATA_SET) + pdv(1, b"", last=True))
    assert stored(peer, spool, stream) == DATA_SET


@pytest.mark.parametrize("fragment", [1000, 131072 - 6])
def test_an_instance_larger_than_the_arena_is_kept_whole(peer: RawPeer, spool: Spool, fragment: int) -> None:
    content = encoded(pixels=3 * ARENA + 2)
    pieces = fragmented(1, content, command=False, size=fragment)
    peer.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)), *(pdu(P_DATA, piece) for piece in pieces))
    assert peer.status() == 0x0000
    assert data_set_of(kept(spool)[0]) == content


def test_requests_that_do_not_wait_are_answered_in_their_order(peer: RawPeer, spool: Spool) -> None:
    stream = b""
    for message_id in range(1, 31):
        request = store_rq(CTImageStorage, SOP_INSTANCE_UID, message_id=message_id)
        stream += pdu(P_DATA, pdv(1, request, command=True, last=True) + pdv(1, DATA_SET, last=True))
    peer.send(stream)
    assert [int.from_bytes(peer.response()[0x0120], "little") for _ in range(30)] == list(range(1, 31))
    assert [data_set_of(each) for each in kept(spool)] == [DATA_SET] * 30


def test_an_answer_is_cut_to_what_the_peer_takes(listener: Listener) -> None:
    with RawPeer(listener.port) as raw:
        raw.associate(max_pdu_length=24)
        raw.send(MESSAGE)
        kind, content = raw.receive()
        assert kind == P_DATA and len(content) == 24
        assert raw.status() == 0x0000 if content[5] & 2 else raw.receive()[0] == P_DATA


# ---- other messages --------------------------------------------------------------------------------------


def test_verification_is_answered_on_any_context(peer: RawPeer) -> None:
    request = command(AffectedSOPClassUID=Verification, CommandField=0x0030, MessageID=7, CommandDataSetType=0x0101)
    peer.send(pdu(P_DATA, pdv(1, request, command=True, last=True)))
    answer = peer.response()
    assert (answer[0x0100], answer[0x0120], answer[0x0900]) == (b"\x30\x80", b"\x07\x00", b"\x00\x00")


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


# ---- limits ----------------------------------------------------------------------------------------------


def test_silent_and_slow_peers_are_cut_off(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with listening(ListenerSettings(port=0, network_timeout_seconds=0.3), spool) as running:
        silent = {
            "before": b"",
            "within the header": MESSAGE[:3],
            "within a PDU": MESSAGE[:-5],
            "within": MESSAGE[:120],
        }
        peers = {name: RawPeer(running.port) for name in ("mute", *silent)}
        for name, stream in silent.items():
            peers[name].associate()
            peers[name].send(stream)
        for raw in peers.values():
            assert aborted(raw)[0] == USER
        with RawPeer(running.port) as slow:  # each PDU comes in time, the message never
            slow.associate()
            slow.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
            with pytest.raises(OSError):
                for _ in range(100):
                    slow.send(pdu(P_DATA, pdv(1, b"x")))
                    time.sleep(0.05)
        wait_until(lambda: not list(spool.associations.iterdir()), "all marks to go")
        assert kept(spool) == []


def test_an_object_over_the_limit_is_refused_and_the_next_is_taken(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with (
        listening(ListenerSettings(port=0, max_object_gigabytes=0.002), spool) as running,
        RawPeer(running.port) as raw,
    ):
        raw.associate()
        content = encoded(pixels=4_000_000)
        raw.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
        raw.send(*(pdu(P_DATA, piece) for piece in fragmented(1, content, command=False, size=100_000)))
        assert raw.status() == 0xA700
        assert kept(spool) == []
        assert stored(raw, spool, MESSAGE) == DATA_SET


def test_an_object_over_the_limit_is_refused_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    storage = Storage(spool, max_object_bytes=100)
    uids = {"sop_class_uid": CTImageStorage, "sop_instance_uid": SOP_INSTANCE_UID}
    receiving = storage.receive(Sender(spool, "a"), **uids, transfer_syntax_uid=ExplicitVRLittleEndian)
    with capture_logs() as said:
        for _ in range(1000):
            receiving.add(b"x")
        assert receiving.finish() == 0xA700
    assert len(said) == 1


def test_a_second_listener_on_the_port_leaves_the_first_one_alone(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with listening(ListenerSettings(port=0), spool) as running, RawPeer(running.port) as raw:
        raw.associate()
        stored(raw, spool, MESSAGE)
        with pytest.raises(OSError, match="in use"):
            Listener(ListenerSettings(port=running.port), spool).start()
        assert spool.open_studies(cap_seconds=60).series == {"1.2.2"}


def test_a_disk_that_is_nearly_full_refuses_until_there_is_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    usual = spool.room.min_free_bytes
    with listening(ListenerSettings(port=0), spool) as running, RawPeer(running.port) as raw:
        raw.associate()
        for free, status in ((1 << 60, 0xA700), (usual, 0x0000), (1 << 60, 0xA700), (usual, 0x0000)):
            spool.room.min_free_bytes = free
            raw.send(MESSAGE)
            assert raw.status() == status
            assert echo(Peer("127.0.0.1", running.port, "HLIP"))
        assert len(kept(spool)) == 2


def test_a_disk_that_fills_in_the_middle_refuses_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    spool = Spool(tmp_path)
    content = encoded(pixels=2 * ARENA)
    pieces = fragmented(1, content, command=False, size=100_000)
    message = pdu(P_DATA, pdv(1, STORE, command=True, last=True)) + b"".join(pdu(P_DATA, piece) for piece in pieces)
    with listening(ListenerSettings(port=0), spool) as running, RawPeer(running.port) as raw:
        raw.associate()
        for call in ("writev", "fsync", "rename"):
            with monkeypatch.context() as patch:
                patch.setattr(os, call, full)
                raw.send(message)
                assert raw.status() == 0xA700
        assert kept(spool) == []
        raw.send(message)
        assert raw.status() == 0x0000
        assert data_set_of(kept(spool)[0]) == content


def test_a_peer_is_told_that_there_are_too_many_and_idle_connections_have_a_limit(tmp_path: Path) -> None:
    with listening(ListenerSettings(port=0, max_associations=1), Spool(tmp_path)) as running:
        with RawPeer(running.port) as first, RawPeer(running.port) as second:
            first.associate()
            second.send(associate_rq([CT_EXPLICIT]))
            kind, content = second.receive()
            assert (kind, tuple(content[1:])) == (ASSOCIATE_RJ, (2, 3, 2))
            first.release()
        many = [RawPeer(running.port) for _ in range(40)]
        assert sum(self_closed(raw) for raw in many) >= 20
        for raw in many:
            raw.close()
        wait_until(lambda: echo(Peer("127.0.0.1", running.port, "HLIP")), "a place")


def self_closed(raw: RawPeer) -> bool:
    raw.socket.settimeout(0.1)
    try:
        return raw.socket.recv(1) == b""
    except TimeoutError:
        return False


def test_an_echo_is_answered_while_others_send(listener: Listener, peer: RawPeer) -> None:
    peer.send(pdu(P_DATA, pdv(1, STORE, command=True, last=True)))
    began = time.monotonic()
    assert echo(Peer("127.0.0.1", listener.port, "HLIP"))
    assert time.monotonic() - began < 2


def test_stopping_aborts_what_is_open(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with listening(ListenerSettings(port=0), spool) as running:
        raw, waiting = RawPeer(running.port), RawPeer(running.port)
        raw.associate()
        raw.send(MESSAGE)
        assert raw.status() == 0x0000
        stopper = threading.Thread(target=running.stop)
        stopper.start()
        assert raw.receive()[0] == ABORT
        raw.close()
        waiting.close()
        stopper.join(20)
        assert not stopper.is_alive() and not list(spool.associations.iterdir())
    assert len(kept(spool)) == 1


def test_what_a_killed_listener_left_half_written_is_swept_away(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for name, age in (("old", 7200), ("new", 1)):
        half = spool.incoming / f".{name}.dcm.part"
        half.write_bytes(b"half")
        os.utime(half, (time.time() - age,) * 2)
    with listening(ListenerSettings(port=0), spool):
        assert [path.name for path in spool.incoming.iterdir()] == [".new.dcm.part"]


# ---- what the kernel saw ---------------------------------------------------------------------------------


def test_the_order_of_system_calls_is_write_fsync_rename_fsync_answer(tmp_path: Path) -> None:
    strace, port, trace = needs("strace", "strace"), free_port(), tmp_path / "trace"
    environment = os.environ | {"HLIP_SPOOL__FOLDER": str(tmp_path / "data"), "HLIP_LISTENER__PORT": str(port)}
    calls = "trace=openat,writev,fsync,rename,renameat,renameat2,sendto"
    process = subprocess.Popen(
        [strace, "-f", "-y", "-s", "0", "-e", calls, "-o", trace, sys.executable, "-m", "plugin", "listen"],
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(lambda: is_open(port) or process.poll() is not None, "the listener", 60)
        if process.poll() is not None and b"ptrace" in process.communicate()[1].lower():
            pytest.skip("strace may not trace here")
        with RawPeer(port, timeout=60) as raw:
            raw.associate()
            for _ in range(2):
                raw.send(MESSAGE)
                assert raw.status() == 0x0000
            raw.release()
    finally:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGTERM)
        process.communicate(timeout=60)
    seen = [_named(line) for line in trace.read_text().splitlines()]
    begin = seen.index("write the file")
    steps = [step for step in seen[begin:] if step]
    once = ["write the file", "fsync the file", "rename", "fsync the folder", "answer"]
    assert steps[:10] == once * 2


def _named(line: str) -> str | None:
    """What a line of strace says of the road of an instance."""
    patterns = {
        r"writev\(\d+<.*/incoming/\..*\.part>": "write the file",
        r"fsync\(\d+<.*/incoming/\..*\.part>": "fsync the file",
        r"rename(at2?)?\(.*\.part.*\.dcm": "rename",
        r"fsync\(\d+<.*/incoming>": "fsync the folder",
        r"sendto\(": "answer",
    }
    return next(
        (name for pattern, name in patterns.items() if re.search(pattern, line) and "resumed" not in line), None
    )
