"""The fast loop: the same files and answers as pynetdicom's, whatever way a message is cut."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.uid import AllTransferSyntaxes, CTImageStorage, ImplicitVRLittleEndian
from pynetdicom import AE, build_context, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from associations import CT_EXPLICIT, P_DATA, Context, RawPeer, pdu, pdv, pynetdicom_scp, store_rq
from peers import wait_until
from plugin.handover import Service
from plugin.listener import Listener, listening
from plugin.settings import ListenerSettings
from plugin.spool import Spool
from plugin.wire import ARENA
from store_messages import (
    DATA_SET,
    MESSAGE,
    SOP_INSTANCE_UID,
    STORE,
    associated,
    data_set_of,
    encoded,
    fragmented,
    kept,
    stored,
)


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
