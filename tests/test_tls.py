"""TLS with real peers: dcmtk's sender and receiver, openssl's client, an HTTPS service; and who is turned away."""

import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from pydantic import ValidationError
from pydicom import dcmread

from certificates import Authority, Issued
from peers import free_port, is_open, needs, storescu, wait_until
from plugin import tls
from plugin.delivery import NotNow, Outbox, session
from plugin.listener import Listener, listening
from plugin.settings import Destination, ListenerSettings, Settings
from plugin.spool import Spool
from plugin.tls import TlsError
from road import head_ct


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "hospital")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def ours(authority: Authority) -> Issued:
    return authority.issue("hlip")


@pytest.fixture(scope="module")
def theirs(authority: Authority) -> Issued:
    return authority.issue("modality")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "data")


@pytest.fixture
def listener(spool: Spool, authority: Authority, ours: Issued) -> Iterator[Listener]:
    settings = ListenerSettings(port=0, tls_ca=str(authority.certificate), network_timeout_seconds=5, **ours.settings)
    context = tls.server_context(settings, require_certificate=settings.tls_require_certificate)
    with listening(settings, spool, ssl_context=context) as running:
        yield running


def dcmtk(own: Issued, authority: Authority) -> tuple[str, ...]:
    return ("+tls", str(own.key), str(own.certificate), "+cf", str(authority.certificate))


# ---- the listener --------------------------------------------------------------------------------------------


def test_dcmtk_sends_over_tls(
    listener: Listener, spool: Spool, authority: Authority, theirs: Issued, tmp_path: Path
) -> None:
    paths = head_ct(tmp_path)
    assert storescu(listener.port, paths, *dcmtk(theirs, authority)).returncode == 0
    sent = {dcmread(path).SOPInstanceUID for path in paths}
    assert {dcmread(path).SOPInstanceUID for path in spool.arrivals(100)} == sent


def test_a_plain_sender_and_strangers_are_turned_away(
    listener: Listener, spool: Spool, authority: Authority, stranger: Authority, theirs: Issued, tmp_path: Path
) -> None:
    paths = head_ct(tmp_path)[:1]
    assert storescu(listener.port, paths).returncode != 0
    of_stranger = stranger.issue("intruder")
    assert storescu(listener.port, paths, *dcmtk(of_stranger, authority)).returncode != 0
    assert storescu(listener.port, paths, "+tla", "+cf", str(authority.certificate)).returncode != 0, "no certificate"
    assert storescu(listener.port, paths, *dcmtk(theirs, stranger)).returncode != 0, "we are a stranger to them"
    assert list(spool) == []
    assert storescu(listener.port, paths, *dcmtk(theirs, authority)).returncode == 0


@pytest.mark.parametrize(
    ("offer", "is_taken"),
    [
        (("-tls1_1", "-cipher", "ALL:@SECLEVEL=0"), False),
        (("-tls1_2", "-cipher", "AES128-SHA256"), False),
        (("-tls1_2", "-cipher", "ECDHE-RSA-AES128-SHA256"), False),
        (("-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"), True),
        (("-tls1_3",), True),
    ],
)
def test_old_versions_and_weak_ciphers_are_refused(
    listener: Listener, authority: Authority, theirs: Issued, offer: tuple[str, ...], is_taken: bool
) -> None:
    own = ["-cert", str(theirs.certificate), "-key", str(theirs.key), "-CAfile", str(authority.certificate)]
    command = [needs("openssl", "openssl"), "s_client", "-connect", f"127.0.0.1:{listener.port}", *offer, *own]
    done = subprocess.run(command, input=b"", capture_output=True, check=False)
    assert (b"Verify return code: 0 (ok)" in done.stdout and done.returncode == 0) == is_taken, done.stderr
    if not is_taken:
        assert b"alert" in done.stderr


def test_a_silent_peer_in_the_handshake_holds_up_no_one(
    listener: Listener, authority: Authority, theirs: Issued, tmp_path: Path
) -> None:
    with socket.create_connection(("127.0.0.1", listener.port)):
        assert storescu(listener.port, head_ct(tmp_path)[:1], *dcmtk(theirs, authority)).returncode == 0


def test_without_required_certificates_any_sender_may_come(
    spool: Spool, authority: Authority, ours: Issued, tmp_path: Path
) -> None:
    settings = ListenerSettings(port=0, tls_require_certificate=False, **ours.settings)
    context = tls.server_context(settings, require_certificate=False)
    with listening(settings, spool, ssl_context=context) as running:
        anonymous = ("+tla", "+cf", str(authority.certificate))
        assert storescu(running.port, head_ct(tmp_path)[:1], *anonymous).returncode == 0


# ---- senders -------------------------------------------------------------------------------------------------


def store(**destination: object) -> None:
    """Store one instance at a destination. Raises NotNow or Refused."""
    path = destination.pop("path")
    settings = Settings(
        destinations=[{"name": "pacs", **destination}],  # type: ignore[list-item]
        delivery={"timeout_seconds": 5},  # type: ignore[arg-type]
    )
    Outbox.from_settings(settings).store("pacs", path)  # type: ignore[arg-type]


@contextmanager
def storescp(folder: Path, own: Issued, authority: Authority) -> Iterator[int]:
    """dcmtk's receiver, which wants a certificate of the authority; yields its port."""
    folder.mkdir()
    port = free_port()
    command = [needs("storescp", "dcmtk"), *dcmtk(own, authority), "-rc", "-od", str(folder), str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: is_open(port), "storescp")
        yield port
    finally:
        process.terminate()
        process.wait(10)


def test_results_go_to_a_storage_scp_over_tls_and_to_no_stranger(
    authority: Authority, stranger: Authority, ours: Issued, theirs: Issued, tmp_path: Path
) -> None:
    path = head_ct(tmp_path)[0]
    with storescp(tmp_path / "scp", theirs, authority) as port:
        peer = {"path": path, "host": "127.0.0.1", "port": port, "ae_title": "SCP", "tls": True}
        store(**peer, tls_ca=str(authority.certificate), **ours.settings)
        assert len(list((tmp_path / "scp").iterdir())) == 1
        with pytest.raises(NotNow, match="TLS"):
            store(**peer, tls_ca=str(stranger.certificate), **ours.settings)
        with pytest.raises(NotNow, match="TLS"):
            store(**peer, tls_ca=str(authority.certificate))
        with pytest.raises(NotNow, match="TLS"):
            store(**peer)
    assert len(list((tmp_path / "scp").iterdir())) == 1


def test_a_certificate_for_another_host_counts_only_where_the_settings_say_so(
    authority: Authority, ours: Issued, tmp_path: Path
) -> None:
    path, elsewhere = head_ct(tmp_path)[0], authority.issue("elsewhere", host="DNS:elsewhere.example")
    with storescp(tmp_path / "scp", elsewhere, authority) as port:
        peer = {"path": path, "host": "127.0.0.1", "port": port, "ae_title": "SCP", "tls": True,
                "tls_ca": str(authority.certificate), **ours.settings}  # fmt: skip
        with pytest.raises(NotNow):
            store(**peer)
        store(**peer, tls_check_hostname=False)


@contextmanager
def https(own: Issued, authority: Authority, uid: str) -> Iterator[str]:
    """A STOW-RS service that wants a certificate of the authority, and confirms `uid`."""
    stored = {"00081150": {"vr": "UI", "Value": ["1.2"]}, "00081155": {"vr": "UI", "Value": [uid]}}
    body = json.dumps({"00081199": {"vr": "SQ", "Value": [stored]}}).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A refused handshake is what the test is about."""

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority.certificate)
    context.load_cert_chain(own.certificate, own.key)
    context.verify_mode = ssl.CERT_REQUIRED
    server = Server(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_address[1]}/dicom-web"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_results_go_to_dicomweb_with_our_certificate_and_to_no_stranger(
    authority: Authority, stranger: Authority, ours: Issued, theirs: Issued, tmp_path: Path
) -> None:
    path = head_ct(tmp_path)[0]
    with https(theirs, authority, dcmread(path).SOPInstanceUID) as url:
        store(path=path, url=url, tls_ca=str(authority.certificate), **ours.settings)
        for refused in (
            {"tls_ca": str(stranger.certificate), **ours.settings},
            {"tls_ca": str(authority.certificate), **stranger.issue("hlip").settings},
            {"tls_ca": str(authority.certificate)},
            ours.settings,
            {},
        ):
            with pytest.raises(NotNow):
                store(path=path, url=url, **refused)


def test_only_the_authority_of_the_settings_is_trusted(
    authority: Authority, stranger: Authority, theirs: Issued, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A variable that points requests to another authority does not widen what the settings say."""
    path = head_ct(tmp_path)[0]
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.certificate))
    with https(theirs, authority, dcmread(path).SOPInstanceUID) as url, pytest.raises(NotNow):
        store(path=path, url=url, tls_ca=str(stranger.certificate), **theirs.settings)


def test_a_public_authority_is_the_systems_and_what_is_agreed_the_same(
    authority: Authority, ours: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any file in the settings."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ours.certificate, ours.key)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    statuses = []
    for ciphers in ("ECDHE+AESGCM", "AES256-SHA256"):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(f"{ciphers}:@SECLEVEL=0")
        with answering(context) as url, session(Destination(name="pacs", url=url), 5) as sending:
            try:
                statuses.append(sending.get(url).status_code)
            except requests.ConnectionError:
                statuses.append(0)
    assert statuses == [200, 0]


@contextmanager
def answering(context: ssl.SSLContext) -> Iterator[str]:
    """A server of HTTPS that says yes to everything; its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection, context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        yield f"https://127.0.0.1:{server.getsockname()[1]}/"
        thread.join()


# ---- the files -----------------------------------------------------------------------------------------------


def files(certificate: object = "", key: object = "", ca: object = "") -> SimpleNamespace:
    return SimpleNamespace(tls_certificate=str(certificate), tls_key=str(key), tls_ca=str(ca))


def test_a_file_that_cannot_be_used_is_named(
    authority: Authority, ours: Issued, theirs: Issued, tmp_path: Path
) -> None:
    letter, encrypted = tmp_path / "letter.txt", tmp_path / "encrypted.key"
    letter.write_text("Dear colleague")
    command = [needs("openssl", "openssl"), "pkcs8", "-topk8", "-in", ours.key, "-out", encrypted, "-passout", "pass:x"]
    subprocess.run(command, check=True)
    for bad, says in (
        (files(tmp_path / "none.pem"), r"tls_certificate: .*none\.pem cannot be read: No such file"),
        (files(ours.certificate, tmp_path / "none.key"), r"tls_key: .*none\.key cannot be read"),
        (files(ours.certificate, theirs.key), "is not the key of tls_certificate"),
        (files(letter, ours.key), "is not PEM"),
        (files(ours.certificate, encrypted), "encrypted"),
        (files(ours.certificate, ours.key, letter), r"tls_ca: .*letter\.txt is not PEM"),
        (files(ours.certificate, ours.key), "tls_ca must name"),
    ):
        with pytest.raises(TlsError, match=says):
            tls.server_context(bad, require_certificate=True)
    tls.server_context(files(ours.certificate, ours.key, authority.certificate), require_certificate=True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"tls_key": "a.key"},
        {"tls_ca": "ca.pem"},
        {"tls_certificate": "a.pem", "tls_key": "a.key"},
    ],
)
def test_half_a_set_up_of_the_listener_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="tls_"):
        ListenerSettings(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": "h", "ae_title": "A", "tls_ca": "ca.pem"},
        {"url": "http://h", "tls_ca": "ca.pem"},
        {"url": "http://h", "tls": True},
    ],
)
def test_certificates_that_would_not_be_used_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="TLS is set up but not used"):
        Destination(name="pacs", **wrong)
