"""The outbox's three answers, told by real services: taken, refused for good, not now."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydicom import dcmread

from peers import free_port, orthanc
from plugin import delivery
from plugin.delivery import Away, NotNow, Outbox, Refused
from plugin.listener import listening
from plugin.settings import ListenerSettings, Settings
from plugin.spool import Spool
from road import head_ct


def outbox(**destination: object) -> Outbox:
    settings = Settings(
        destinations=[{"name": "pacs", **destination}],  # type: ignore[arg-type]
        delivery={"timeout_seconds": 2},  # type: ignore[arg-type]
    )
    return Outbox.from_settings(settings)


@contextmanager
def answering(
    status: int,
    body: bytes = b"",
    content_type: str = "application/dicom+json",
    *,
    found: tuple[int, bytes] = (404, b""),
) -> Iterator[str]:
    """A service that gives one answer to every POST and DELETE, and `found` to every GET; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen.append(dict(self.headers))
            self.answer(status, body)

        def do_GET(self) -> None:
            asked.append(self.path)
            self.answer(*found)

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    seen: list[dict[str, str]] = []
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = seen  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    answering.seen, answering.asked = seen, asked  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def instance(tmp_path: Path) -> Path:
    return head_ct(tmp_path, slices=1)[0]


def test_stow_into_orthanc_is_confirmed(tmp_path: Path, instance: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs:
        box = outbox(url=pacs.dicomweb)
        box.store("pacs", instance)
        box.store("pacs", instance)
        assert len(pacs.get("/instances")) == 1


def test_c_store_into_a_storage_scp_is_confirmed(tmp_path: Path, instance: Path) -> None:
    spool = Spool(tmp_path / "data")
    with listening(ListenerSettings(port=0, ae_title="SCP"), spool) as scp:
        outbox(host="127.0.0.1", port=scp.port, ae_title="SCP").store("pacs", instance)
    assert dcmread(spool.arrivals(1)[0]) == dcmread(instance)


@pytest.mark.parametrize("status", [401, 403, 408, 429, 500, 502, 503])
def test_what_time_or_a_person_mends_is_tried_again(instance: Path, status: int) -> None:
    with answering(status) as url, pytest.raises(NotNow, match=str(status)):
        outbox(url=url).store("pacs", instance)


@pytest.mark.parametrize("status", [400, 413, 415])
def test_what_will_never_be_taken_is_refused(instance: Path, status: int) -> None:
    with answering(status) as url, pytest.raises(Refused, match=str(status)):
        outbox(url=url).store("pacs", instance)


@pytest.mark.parametrize(
    ("reason", "outcome"), [(0xA700, NotNow), (0x0110, NotNow), (0xA900, Refused), (0xC000, Refused), (0x0122, Refused)]
)
def test_a_failed_instance_in_the_response_is_no_success(instance: Path, reason: int, outcome: type) -> None:
    for status in (202, 409):
        with answering(status, failed(instance, reason)) as url, pytest.raises(outcome):
            outbox(url=url).store("pacs", instance)


def failed(instance: Path, reason: int) -> bytes:
    """The body of a response that did not store the instance."""
    uid = dcmread(instance).SOPInstanceUID
    item = {"00081155": {"vr": "UI", "Value": [uid]}, "00081197": {"vr": "US", "Value": [reason]}}
    return json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()


FAILED_XML = b"""<NativeDicomModel><DicomAttribute keyword="FailedSOPSequence" tag="00081198" vr="SQ"><Item number="1">
<DicomAttribute keyword="FailureReason" tag="00081197" vr="US"><Value number="1">%d</Value></DicomAttribute>
</Item></DicomAttribute></NativeDicomModel>"""


@pytest.mark.parametrize(("reason", "outcome"), [(0xA700, NotNow), (0xC000, Refused)])
def test_the_reason_of_a_409_may_be_written_in_xml(instance: Path, reason: int, outcome: type) -> None:
    with answering(409, FAILED_XML % reason, "application/dicom+xml; charset=utf-8") as url, pytest.raises(outcome):
        outbox(url=url).store("pacs", instance)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"conflict", b"<html>conflict</html>", b'{"00081198":7}'])
def test_a_409_without_a_reason_is_tried_again(instance: Path, body: bytes) -> None:
    for content_type in ("application/dicom+json", "application/dicom+xml", "text/html"):
        with answering(409, body, content_type) as url, pytest.raises(NotNow):
            outbox(url=url).store("pacs", instance)


@pytest.mark.parametrize("reason", [0x0111, 0xB00E])
def test_what_is_there_already_is_stored(tmp_path: Path, instance: Path, reason: int) -> None:
    for status in (202, 409):
        with answering(status, failed(instance, reason)) as url:
            outbox(url=url).store("pacs", instance)
    other = head_ct(tmp_path / "other", number=3, slices=1)[0]
    with answering(409, failed(other, reason)) as url, pytest.raises(Refused):
        outbox(url=url).store("pacs", instance)


@pytest.mark.parametrize("body", [b"", b"{}", b"<html>welcome</html>", b'{"00081199":{"vr":"SQ"}}'])
def test_an_answer_that_does_not_confirm_is_no_success(instance: Path, body: bytes) -> None:
    with answering(200, body) as url, pytest.raises(NotNow):
        outbox(url=url).store("pacs", instance)


@pytest.mark.parametrize("status", [200, 204])
def test_a_deletion_by_dicomweb_is_done_where_the_service_says_so(instance: Path, status: int) -> None:
    with answering(status) as url:
        outbox(url=url, delete_withdrawn="dicomweb").delete("pacs", instance)


@pytest.mark.parametrize("status", [404, 410])
@pytest.mark.parametrize("found", [(204, b""), (200, b"[]")])
def test_a_deletion_of_what_is_not_there_is_done(instance: Path, status: int, found: tuple[int, bytes]) -> None:
    with answering(status, found=found) as url:
        outbox(url=url, delete_withdrawn="dicomweb").delete("pacs", instance)
        assert dcmread(instance).SOPInstanceUID in answering.asked[0]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "found", [(404, b""), (400, b""), (200, b""), (200, b"<html>"), (200, b'[{"x":{}}]'), (503, b"")]
)
def test_a_404_alone_proves_no_deletion(instance: Path, found: tuple[int, bytes]) -> None:
    with answering(404, found=found) as url, pytest.raises(NotNow):
        outbox(url=url, delete_withdrawn="dicomweb").delete("pacs", instance)


@pytest.mark.parametrize(("status", "outcome"), [(403, NotNow), (503, NotNow), (405, Refused), (501, NotNow)])
def test_a_deletion_that_is_not_done_is_tried_again_or_refused(instance: Path, status: int, outcome: type) -> None:
    with answering(status) as url, pytest.raises(outcome, match=str(status)):
        outbox(url=url, delete_withdrawn="dicomweb").delete("pacs", instance)


def test_nothing_is_deleted_that_the_settings_do_not_let(instance: Path) -> None:
    with pytest.raises(NotNow, match="delete_withdrawn"):
        outbox(url="http://127.0.0.1/dicom-web").delete("pacs", instance)


def test_orthanc_deletes_the_instance_once_and_is_content_the_second_time(tmp_path: Path, instance: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs:
        box = outbox(url=pacs.dicomweb, delete_withdrawn="orthanc")
        box.store("pacs", instance)
        box.delete("pacs", instance)
        box.delete("pacs", instance)
        assert pacs.get("/instances") == []


def test_a_peer_that_is_away_is_tried_again(instance: Path) -> None:
    with pytest.raises(Away):
        outbox(url=f"http://127.0.0.1:{free_port()}/dicom-web").store("pacs", instance)
    with pytest.raises(Away):
        outbox(host="127.0.0.1", port=free_port(), ae_title="SCP").store("pacs", instance)


def test_a_destination_that_left_the_settings_waits_for_its_return(instance: Path) -> None:
    with pytest.raises(NotNow):
        outbox(url="http://127.0.0.1/dicom-web").store("old", instance)


def test_credentials_are_sent(instance: Path) -> None:
    with answering(401) as url:
        with pytest.raises(NotNow):
            outbox(url=url, token="secret").store("pacs", instance)
        assert answering.seen[0]["Authorization"] == "Bearer secret"  # type: ignore[attr-defined]


def test_an_scp_that_is_full_is_tried_again_and_one_that_will_not_is_not(tmp_path: Path, instance: Path) -> None:
    full = Spool(tmp_path / "full", min_free_gigabytes=1e9)
    with listening(ListenerSettings(port=0, ae_title="SCP"), full) as scp, pytest.raises(NotNow, match="A700"):
        outbox(host="127.0.0.1", port=scp.port, ae_title="SCP").store("pacs", instance)
    with pytest.raises(Refused):
        delivery._judge_failure_reason(0xA900)
