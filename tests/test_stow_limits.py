"""STOW-RS at its limits: full disks, too much at once, senders that hang, and strangers that may not or should not."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from pydicom.uid import generate_uid

from peers import wait_until
from plugin.settings import Settings, load_settings
from plugin.web.server import PATIENCE_SECONDS
from plugin.web.store_response import TOO_LARGE
from studies import encoded
from web import Web, images, kept, left_clean, multipart, reasons, stored, web


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with web(tmp_path_factory.mktemp("web")) as server:
        yield server


@pytest.fixture
def server(running: Web) -> Iterator[Web]:
    """The running server, with nothing in its spool, and nothing half-written after the test."""
    with left_clean(running):
        yield running


# ---- limits ------------------------------------------------------------------------------------------


def test_a_nearly_full_disk_is_503_and_passes(tmp_path: Path) -> None:
    with web(tmp_path, min_free_gigabytes=1e9) as full:
        answer = full.store(images(1))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
        assert kept(full) == []
    with web(tmp_path) as server:
        assert server.store(images(1)).status_code == 200


def test_a_disk_that_fills_up_in_between_fails_the_instance(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, True, False, False])
    monkeypatch.setattr(server.spool, "has_room", lambda: next(answers))
    one, two = images(2)
    answer = server.store([one, two])
    assert (answer.status_code, reasons(answer)) == (202, [0xA700])


def test_too_large_instances_and_requests_are_413(tmp_path: Path) -> None:
    with web(tmp_path, max_instance_megabytes=0.01, max_request_gigabytes=0.0002) as server:
        answer = server.store(images(2))
        assert (answer.status_code, reasons(answer)) == (413, [TOO_LARGE] * 2)
        small = images(1, name="b")[0]
        small.PixelData = b"\0\0"
        answer = server.store([small, images(1)[0]])
        assert (answer.status_code, reasons(answer)) == (202, [TOO_LARGE])
        assert server.raw(server.head(300_000)).startswith(b"HTTP/1.1 413")
        assert server.raw(server.head(-1)).startswith(b"HTTP/1.1 400")
        chunked = server.head(0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        assert server.raw(chunked, b"40000\r\n" + bytes(0x40000) + b"\r\n").startswith(b"HTTP/1.1 413")
        assert len(kept(server)) == 1


def test_giant_request_heads_are_refused(server: Web) -> None:
    assert server.raw(server.head(0, "X: " + "x" * 200_000)).startswith(b"HTTP/1.1 4")


def test_more_requests_than_allowed_are_told_to_come_again(tmp_path: Path) -> None:
    with web(tmp_path, max_requests=1) as server:
        body = multipart(images(2))

        def while_another_asks() -> Iterator[bytes]:
            yield body[:1000]
            wait_until(lambda: server.store(images(1)).status_code == 503, "the first request to count")
            assert server.store(images(1)).headers["Retry-After"] == "30"
            yield body[1000:]

        assert server.post(while_another_asks()).status_code == 200


def test_silent_and_slow_senders_are_cut_off(tmp_path: Path) -> None:
    with web(tmp_path, timeout_seconds=0.3) as server:
        start = time.monotonic()
        assert server.raw(server.head(10_000), multipart(images(1))[:500]).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start < 5
        wait_until(lambda: not any(server.spool.associations.iterdir()), "the request to be closed")
        assert list(server.spool.incoming.iterdir()) == []


def test_a_head_that_never_ends_is_hung_up_on(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATIENCE_SECONDS, "head", 0.3)
    assert server.raw() == b""
    assert server.raw(b"POST /dicom-web/studies HTTP/1.1\r\n") == b""


def test_a_body_that_never_ends_is_hung_up_on(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PATIENCE_SECONDS, "body", 0.3)
    rest = b"Host: 127.0.0.1\r\nContent-Length: 60000\r\n\r\nx"
    form = b"Content-Type: application/x-www-form-urlencoded\r\n"
    assert server.raw(b"POST /sign-in HTTP/1.1\r\n" + form + rest) == b""
    assert server.raw(b"GET /healthz HTTP/1.1\r\n" + rest).startswith(b"HTTP/1.1 200")
    assert server.raw(b"POST /dicom-web/studies HTTP/1.1\r\n" + rest).startswith(b"HTTP/1.1 415")
    slow = iter([multipart(images(1))[:500], b"", multipart(images(1))[500:]])
    assert server.post(piece for piece in slow if piece or not time.sleep(1)).status_code == 200


def test_an_answer_that_is_not_read_is_given_up(server: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plugin.web.server.READ_SECONDS", 0.5)
    asked, came = 400, 0
    with socket.socket() as greedy:
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        greedy.settimeout(10)
        greedy.connect(("127.0.0.1", server.port))
        greedy.sendall(b"GET /static/htmx.min.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * asked)
        time.sleep(2)
        with suppress(ConnectionResetError):
            while more := greedy.recv(65536):
                came += len(more)
    assert came < asked * 40_000


def test_hanging_up_in_the_middle_keeps_what_was_whole(server: Web) -> None:
    one, two = images(2)
    body = multipart([one, two])
    server.raw(server.head(len(body)), body[: len(body) - 500], hang_up=True)
    wait_until(lambda: kept(server), "the first instance")
    assert kept(server) == [encoded(one)]


def test_expect_continue_is_answered_before_the_body(server: Web) -> None:
    body = multipart(images(1))
    answer = server.raw(server.head(len(body), "Expect: 100-continue", "Connection: close"), body)
    assert answer.startswith(b"HTTP/1.1 100") and b"HTTP/1.1 200" in answer


# ---- who may -----------------------------------------------------------------------------------------


def test_a_token_is_asked_for_where_one_is_set(tmp_path: Path) -> None:
    with web(tmp_path, stow_token="a-long-enough-secret") as server:
        assert server.store(images(1)).status_code == 401
        right = "Bearer a-long-enough-secret"
        for wrong in ("Bearer wrong", right.replace("Bearer", "Basic"), "Bearer", right + "2", "Bearer \xe4"):
            answer = server.store(images(1), Authorization=wrong)
            assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert kept(server) == []
        assert server.store(images(1), Authorization=right).status_code == 200
        assert server.store(images(1), Authorization=right.lower(), Host="hlip.example").status_code == 200


def test_without_a_token_only_this_machine_is_served(server: Web) -> None:
    assert server.store(images(1), Host="rebound.example").status_code == 400
    assert server.store(images(1), Host="localhost:8080").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "hlip.example"])
def test_an_open_address_without_a_token_is_refused_in_clear_words(tmp_path: Path, host: str) -> None:
    file = tmp_path / "hlip.toml"
    file.write_text(f"[web]\nhost = '{host}'\n")
    with pytest.raises(ValueError, match=r"set web\.stow_token"):
        load_settings(file)
    assert Settings(web={"host": host, "stow": False}).web.host == host
    assert "long-enough" not in repr(Settings(web={"host": host, "stow_token": "a-long-enough-secret"}))


def test_a_short_token_is_refused() -> None:
    with pytest.raises(ValueError, match="too easy to guess"):
        Settings(web={"stow_token": "1234"})


# ---- strangers ---------------------------------------------------------------------------------------


def test_files_that_no_one_should_send_do_no_harm(server: Web, shared: Path) -> None:
    paths = [path for path in (shared / "data/nasty").rglob("*") if path.is_file()]
    for start in range(0, len(paths), 50):
        answer = server.store([path.read_bytes() for path in paths[start : start + 50]])
        assert answer.status_code in (200, 202, 409)
        assert len(stored(answer)) + len(reasons(answer)) == len(paths[start : start + 50])
    folder = server.spool.folder
    assert [path for path in folder.parent.rglob("*") if folder not in (path, *path.parents)] == []
    assert requests.get(f"http://127.0.0.1:{server.port}/healthz", timeout=10).json() == {"status": "ok"}


def test_no_name_of_a_patient_is_logged(server: Web, capfd: pytest.CaptureFixture[str]) -> None:
    named = images(2, PatientName="Canary^Jane", PatientID="CANARY-1")
    named[1].StudyInstanceUID = generate_uid()
    named[1].SOPInstanceUID = ""
    server.store(named)
    server.store([encoded(named[0])[:600], encoded(named[0])[:-3] + b"CANARY"])
    captured = capfd.readouterr()
    assert "canary" not in (captured.out + captured.err).lower()
