"""The listener against real senders: what it takes, how it refuses, what it leaves on disk."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread, examples
from pydicom.uid import (
    AllTransferSyntaxes,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
)
from pynetdicom import AE, build_context
from pynetdicom.sop_class import CTImageStorage, Verification  # type: ignore[attr-defined]

from peers import dcmsend, needs, storescu, wait_until
from plugin.dimse import Peer, PeerUnavailable, echo, send
from plugin.listener import Listener, listening
from plugin.settings import ListenerSettings
from plugin.sop_classes import ACCEPTED, CONTENT, OTHER_IMAGES
from plugin.spool import Spool
from road import head_ct
from series import head, series


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "data")


@pytest.fixture
def listener(spool: Spool) -> Iterator[Listener]:
    with listening(ListenerSettings(port=0), spool) as running:
        yield running


def peer(listener: Listener, **kwargs: object) -> Peer:
    return Peer(host="127.0.0.1", port=listener.port, ae_title="HLIP", **kwargs)  # type: ignore[arg-type]


def c_store(listener: Listener, dataset: Dataset, syntax: str = ExplicitVRLittleEndian, **request: str) -> int:
    """Send one data set; with `request` other UIDs stand in the command than in the data set."""
    ae = AE()
    ae.add_requested_context(CTImageStorage, syntax)
    association = ae.associate("127.0.0.1", listener.port, ae_title="HLIP")
    assert association.is_established
    original = {keyword: dataset.get(keyword) for keyword in request}
    try:
        status = association.send_c_store(dataset)
    finally:
        association.release()
    assert original == {keyword: dataset.get(keyword) for keyword in request}
    return int(status.Status)


def ct(**elements: object) -> Dataset:
    return series(head(1), **elements)[0]


def test_echo_is_answered(listener: Listener) -> None:
    assert echo(peer(listener))


def test_dcmtk_is_echoed_too(listener: Listener) -> None:
    import subprocess

    command = [needs("echoscu", "dcmtk"), "-aec", "HLIP", "127.0.0.1", str(listener.port)]
    assert subprocess.run(command, check=False).returncode == 0


def test_what_is_acknowledged_lies_in_incoming_as_it_came(listener: Listener, spool: Spool, tmp_path: Path) -> None:
    paths = head_ct(tmp_path)
    assert [status for _, status in send(paths, peer(listener))] == [0x0000] * 12
    kept = {dcmread(p).SOPInstanceUID: dcmread(p) for p in spool.arrivals(100)}
    for path in paths:
        sent = dcmread(path)
        assert kept[sent.SOPInstanceUID] == sent


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_the_sender_chooses_the_encoding(listener: Listener, spool: Spool, syntax: str) -> None:
    dataset = ct()
    dataset.file_meta.TransferSyntaxUID = syntax
    assert c_store(listener, dataset, syntax) == 0x0000
    assert dcmread(spool.arrivals(1)[0]).file_meta.TransferSyntaxUID == syntax


def test_compressed_images_are_kept_compressed(listener: Listener, spool: Spool, shared: Path) -> None:
    folder = shared / "data/ct/wg04_ct2_head_toshiba_7encodings"
    paths = sorted(path for path in folder.iterdir() if path.is_file())
    assert {status for _, status in send(paths, peer(listener))} == {0x0000}
    kept = {dcmread(p).file_meta.TransferSyntaxUID for p in spool.arrivals(100)}
    assert kept == {dcmread(p).file_meta.TransferSyntaxUID for p in paths}
    assert kept >= {JPEGLSLossless, JPEG2000Lossless}


def test_every_storage_class_and_transfer_syntax_is_negotiated(listener: Listener) -> None:
    assert len(set(ACCEPTED)) == len(ACCEPTED) and set(ACCEPTED) >= CONTENT | OTHER_IMAGES
    for syntax in AllTransferSyntaxes:
        ae = AE()
        ae.requested_contexts = [build_context(uid, syntax) for uid in ACCEPTED]
        association = ae.associate("127.0.0.1", listener.port, ae_title="HLIP")
        assert association.is_established
        assert len(association.accepted_contexts) == len(ACCEPTED), syntax
        association.release()


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_an_unsafe_uid_is_refused_and_leaves_nothing(listener: Listener, spool: Spool) -> None:
    for uid in ("../../../tmp/x", "1.2/../../3", ""):
        dataset = ct()
        dataset.StudyInstanceUID = uid
        assert c_store(listener, dataset) == 0xA900
    assert list(spool) == []


def test_a_header_that_cannot_be_read_is_refused(listener: Listener, spool: Spool, tmp_path: Path) -> None:
    from io import BytesIO

    from pynetdicom.dimse_primitives import C_STORE

    ae = AE()
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", listener.port, ae_title="HLIP")
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = CTImageStorage, "1.2.3"
    request.DataSet = BytesIO(b"\x08\x00\x16\x00UI\xff\xff" + b"\x99" * 40)
    context = association.accepted_contexts[0]
    association._reactor_checkpoint.clear()  # as pynetdicom's own send_c_store does: we read the answer
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    assert answer is not None and answer.Status in (0xA900, 0xC000)
    assert echo(peer(listener))
    association.abort()
    assert list(spool) == []


def test_a_full_disk_is_out_of_resources_and_passes(spool: Spool, tmp_path: Path) -> None:
    full = Spool(spool.folder, min_free_gigabytes=1e9)
    with listening(ListenerSettings(port=0), full) as running:
        assert c_store(running, ct()) == 0xA700
        assert echo(peer(running))
    assert list(spool) == []
    with listening(ListenerSettings(port=0), spool) as running:
        assert c_store(running, ct()) == 0x0000


def test_an_open_association_is_marked_and_the_mark_goes_with_it(listener: Listener, spool: Spool) -> None:
    ae = AE()
    ae.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    association = ae.associate("127.0.0.1", listener.port, ae_title="HLIP")
    dataset = ct()
    association.send_c_store(dataset)
    now_open = spool.open_studies(cap_seconds=60)
    assert now_open.studies == {dataset.StudyInstanceUID}
    assert now_open.series == {dataset.SeriesInstanceUID}
    association.abort()
    wait_until(lambda: not spool.open_studies(cap_seconds=60).studies, "the mark to go")


def test_only_named_senders_may_send(spool: Spool, tmp_path: Path) -> None:
    only_ct1 = ListenerSettings(port=0, calling_ae_titles=("CT1",), check_called_ae_title=True)
    with listening(only_ct1, spool) as running:
        assert echo(peer(running, calling_ae_title="CT1"))
        assert not echo(peer(running, calling_ae_title="EVIL"))
        wrong = Peer(host="127.0.0.1", port=running.port, ae_title="OTHER", calling_ae_title="CT1")
        assert not echo(wrong)
        with pytest.raises(PeerUnavailable):
            list(send(head_ct(tmp_path), peer(running, calling_ae_title="EVIL")))


def test_associations_over_the_limit_are_rejected(spool: Spool) -> None:
    with listening(ListenerSettings(port=0, max_associations=2), spool) as running:
        ae = AE()
        ae.add_requested_context(Verification)
        held = [ae.associate("127.0.0.1", running.port, ae_title="HLIP") for _ in range(2)]
        assert all(association.is_established for association in held)
        assert not echo(peer(running))
        for association in held:
            association.release()
        wait_until(lambda: echo(peer(running)), "a place")


def test_dcmtk_senders_side_by_side_lose_nothing(listener: Listener, spool: Spool, tmp_path: Path) -> None:
    import threading

    folders = [head_ct(tmp_path, name=name, slices=20)[0].parent for name in "abcd"]
    threads = [threading.Thread(target=dcmsend, args=(listener.port, folder)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({dcmread(p).SOPInstanceUID for p in spool.arrivals(1000)}) == 80


def test_no_name_of_a_patient_is_logged(
    listener: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    storescu(listener.port, head_ct(tmp_path, PatientName="Canary^Jane", PatientID="CANARY-1"))
    dataset = ct(PatientName="Canary^Jane", PatientID="CANARY-1")
    dataset.StudyInstanceUID = ""
    c_store(listener, dataset)
    captured = capsys.readouterr()
    assert "canary" not in (captured.out + captured.err + caplog.text).lower()


def test_an_image_of_another_kind_is_taken_too(listener: Listener, spool: Spool) -> None:
    mr = examples.get_path("mr")
    assert [status for _, status in send([Path(mr)], peer(listener))] == [0x0000]
    assert dcmread(spool.arrivals(1)[0]).Modality == "MR"
