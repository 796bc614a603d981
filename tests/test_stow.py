"""STOW-RS in, with real clients and hand-made requests: what is taken, what is refused, and what is answered."""

import time
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from peers import wait_until
from plugin.web.store_response import OTHER_STUDY
from studies import encoded
from web import BOUNDARY, TYPE, Web, images, kept, left_clean, multipart, reasons, stored, web


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture
def server(running: Web) -> Iterator[Web]:
    """The running server, with nothing in its spool, and nothing half-written after the test."""
    with left_clean(running):
        yield running


# ---- what is taken -----------------------------------------------------------------------------------


def test_what_is_answered_200_lies_in_incoming_as_it_came(server: Web) -> None:
    sent = images(12)
    answer = server.store(sent)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "application/dicom+json"
    assert stored(answer) == [image.SOPInstanceUID for image in sent]
    assert sorted(kept(server)) == sorted(encoded(image) for image in sent)


def test_dicomweb_client_stores(server: Web) -> None:
    sent = [dcmread(BytesIO(encoded(image))) for image in images(4)]
    client = DICOMwebClient(server.dicomweb)
    answer = client.store_instances(sent)
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [i.SOPInstanceUID for i in sent]
    assert "FailedSOPSequence" not in answer and not answer.RetrieveURL
    client.store_instances(sent[:1], study_instance_uid=sent[0].StudyInstanceUID)
    assert len(kept(server)) == 5


def test_our_own_delivery_is_understood(server: Web, tmp_path: Path) -> None:
    from plugin.delivery import DicomwebDestination
    from plugin.settings import Destination
    from series import write

    path = write(images(1), tmp_path)[0]
    DicomwebDestination(Destination(name="self", url=server.dicomweb), timeout_seconds=10).store(path)
    assert kept(server) == [path.read_bytes()]


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless]
)
def test_the_sender_chooses_the_encoding(server: Web, syntax: str) -> None:
    image = images(1)[0]
    if syntax == RLELossless:
        image.compress(RLELossless)
    elif syntax == ExplicitVRBigEndian:
        pytest.importorskip("numpy")
        image.PixelData = bytes(image.pixel_array.astype(">i2").tobytes())
    image.file_meta.TransferSyntaxUID = syntax
    content = _written(image, syntax)
    assert server.store([content]).status_code == 200
    assert kept(server) == [content]
    assert dcmread(server.spool.arrivals(1)[0]).SOPInstanceUID == image.SOPInstanceUID


def _written(image: Dataset, syntax: str) -> bytes:
    buffer = BytesIO()
    plain = syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian)
    more = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
    dcmwrite(buffer, image, enforce_file_format=True, **(more if plain else {}))
    return buffer.getvalue()


def test_a_large_instance_goes_to_the_disk_as_it_comes(server: Web) -> None:
    image = images(1)[0]
    image.add_new(0x00091010, "UN", b"")
    image.add_new(0x7FE00010, "OW", bytes(20 << 20))
    content = encoded(image)
    half = len(content) // 2
    body = multipart([content])

    def slowly() -> Iterator[bytes]:
        yield body[:half]
        wait_until(lambda: any(server.spool.incoming.glob(".*.part")), "the file")
        assert kept(server) == []
        yield body[half:]

    assert server.post(slowly()).status_code == 200
    assert kept(server) == [content]


def test_odd_pieces_and_preambles_change_nothing(server: Web) -> None:
    sent = images(3)
    body = b"a preamble\r\n" + multipart(sent) + b"an epilogue"
    answer = server.post(body[at : at + 997] for at in range(0, len(body), 997))
    assert answer.status_code == 200 and len(kept(server)) == 3


def test_the_answer_comes_as_xml_for_who_prefers_it(server: Web) -> None:
    answer = server.store(images(2), Accept="application/dicom+json;q=0.5, application/dicom+xml")
    assert answer.headers["Content-Type"] == "application/dicom+xml"
    root = ElementTree.fromstring(answer.content)
    assert [a.get("keyword") for a in root] == ["RetrieveURL", "ReferencedSOPSequence"]
    assert [v.text for v in root.iterfind("*[@tag='00081199']/Item/*[@tag='00081155']/Value")] == [
        image.SOPInstanceUID for image in images(2)
    ]


def test_a_request_of_one_instance_leaves_no_mark(server: Web) -> None:
    body = multipart(images(1))

    def in_two() -> Iterator[bytes]:
        yield body[:-3]
        time.sleep(0.2)
        assert list(server.spool.associations.iterdir()) == []
        yield body[-3:]

    assert server.post(in_two()).status_code == 200


def test_a_request_counts_as_an_open_association_until_it_ends(server: Web) -> None:
    first, second = images(2)
    body = multipart([first, second])

    def in_two() -> Iterator[bytes]:
        yield body[: len(body) // 2 + 100]
        wait_until(lambda: server.spool.open_studies(cap_seconds=60).studies, "the mark")
        assert server.spool.open_studies(cap_seconds=60).studies == {first.StudyInstanceUID}
        assert server.spool.open_studies(cap_seconds=60).series == {first.SeriesInstanceUID}
        yield body[len(body) // 2 + 100 :]

    assert server.post(in_two()).status_code == 200
    wait_until(lambda: not server.spool.open_studies(cap_seconds=60).studies, "the mark to go")


# ---- what is refused ---------------------------------------------------------------------------------


def test_some_stored_and_some_not_is_202_with_reasons(server: Web) -> None:
    good, other = images(1)[0], images(1, name="b")[0]
    answer = server.store([good, b"no DICOM at all", other], study=good.StudyInstanceUID)
    assert answer.status_code == 202
    assert stored(answer) == [good.SOPInstanceUID]
    assert answer.json()["00081198"]["Value"][0]["00081155"]["Value"] == [other.SOPInstanceUID]
    assert reasons(answer) == [OTHER_STUDY, 0xC000]
    assert kept(server) == [encoded(good)]


def test_another_study_than_the_address_says_is_a_conflict(server: Web) -> None:
    answer = server.store(images(2), study="1.2.3")
    assert (answer.status_code, reasons(answer), kept(server)) == (409, [OTHER_STUDY] * 2, [])


@pytest.mark.parametrize(
    ("element", "value", "reason"),
    [
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.9999", 0x0122),
        ("StudyInstanceUID", "../../../tmp/x", 0xA900),
        ("SeriesInstanceUID", "", 0xA900),
        ("SOPInstanceUID", "1.2." + "3" * 70, 0xA900),
    ],
)
@pytest.mark.filterwarnings("ignore:.*VR UI")
def test_an_instance_that_cannot_be_kept_is_a_conflict(server: Web, element: str, value: str, reason: int) -> None:
    image = images(1)[0]
    setattr(image, element, value)
    answer = server.store([image])
    assert (answer.status_code, reasons(answer), kept(server)) == (409, [reason], [])


def test_an_unknown_transfer_syntax_is_a_conflict(server: Web) -> None:
    image = images(1)[0]
    content = encoded(image).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")
    answer = server.store([content])
    assert (answer.status_code, reasons(answer)) == (409, [0xC122])


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:140] + b"\xff\xff\0\0" + content[144:],
        lambda content: content[:140] + bytes([content[140] - 2]) + content[141:],
        lambda content: content[132:],
        lambda content: content[:200],
        lambda content: b"",
    ],
)  # fmt: skip
def test_a_broken_head_is_not_understood(server: Web, damage: object) -> None:
    answer = server.store([damage(encoded(images(1)[0]))])  # type: ignore[operator]
    assert (answer.status_code, reasons(answer), kept(server)) == (409, [0xC000], [])


def test_a_deflated_bomb_is_not_inflated(server: Web) -> None:
    squeezed = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(200)) + squeezed.flush()
    image = images(1)[0]
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    content = encoded(image)
    meta = content[: 144 + int.from_bytes(content[140:144], "little")]
    assert reasons(server.store([meta + bomb])) == [0xC000]


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/dicom", 415),
        ("multipart/form-data; boundary=x", 415),
        ('multipart/related; type="application/dicom+json"; boundary=x', 415),
        ("", 415),
        ('multipart/related; type="application/dicom"', 400),
        ('multipart/related; type="application/dicom"; boundary=""', 400),
        (f"multipart/related; boundary={'x' * 80}", 400),
        (TYPE.replace(BOUNDARY, "another"), 400),
    ],
)
def test_wrong_content_types_are_told(server: Web, content_type: str, status: int) -> None:
    assert server.store(images(1), content_type=content_type).status_code == status
    assert kept(server) == []


def test_parts_of_another_type_are_not_taken(server: Web) -> None:
    nested = multipart([multipart(images(1)).replace(BOUNDARY.encode(), b"inner")], part_type="multipart/related")
    assert server.post(nested).status_code == 415
    assert server.post(multipart(images(1), part_type="image/jpeg")).status_code == 415
    assert kept(server) == []


def test_an_encoded_body_is_not_taken(server: Web) -> None:
    assert server.store(images(1), Content_Encoding="gzip").status_code == 415


@pytest.mark.parametrize("body", [b"", b"\r\n", b"nonsense", f"--{BOUNDARY}--".encode(), f"--{BOUNDARY}\r\n".encode()])
def test_a_body_without_parts_is_bad(server: Web, body: bytes) -> None:
    assert server.post(body).status_code == 400


def test_a_body_that_is_cut_off_is_never_answered_200(server: Web) -> None:
    one, two = images(2)
    end = len(multipart([one])) - len(f"--{BOUNDARY}--\r\n")
    whole = multipart([one, two])
    for cut in (end - 3, end + 2):
        assert server.post(whole[:cut]).status_code == 400
    for cut in (end + len(BOUNDARY) + 30, end + 3000, len(whole) - 5):
        answer = server.post(whole[:cut])
        assert (answer.status_code, stored(answer), reasons(answer)) == (202, [one.SOPInstanceUID], [0xC000])


def test_giant_part_headers_are_refused(server: Web) -> None:
    body = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\nX: {'x' * 100_000}\r\n\r\n".encode()
    assert server.post(body + multipart(images(1))).status_code == 400


@pytest.mark.parametrize("study", ["1.2/3", "..", "%2e%2e%2fx", "1.2%2f3", "1.2.x", "9" * 65, "a b", "1..2"])
def test_a_study_that_is_no_uid_leads_nowhere(server: Web, study: str) -> None:
    url = f"/dicom-web/studies/{study}".replace(" ", "%20")
    head = server.head(0, "Connection: close").replace(b"/dicom-web/studies", url.encode())
    assert server.raw(head)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 404")


def test_only_post_is_answered(server: Web) -> None:
    assert requests.get(f"{server.dicomweb}/studies", timeout=10).status_code == 405
