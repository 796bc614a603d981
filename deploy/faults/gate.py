"""Gates: proxies in front of a server that can be closed, slow, or let half of something through."""

import random
import socket
import socketserver
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler
from typing import Any

PIECE = 4096
RESET = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST
ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00"  # A-ABORT by the service user (PS3.8 section 9.3.8)
P_DATA = 4
PDU_HEAD = 6
CUTS = ("reset", "close", "abort")


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RD)  # wakes whoever reads from it
    connection.close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, port: int, handler: type[socketserver.BaseRequestHandler], gate: Any) -> None:
        self.gate = gate
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is what this is for."""


class _Closable:
    """A server on a port of its own that can be closed for a while."""

    def __init__(self, handler: type[socketserver.BaseRequestHandler]) -> None:
        self._handler = handler
        self._server: _Server | None = None
        self.port = 0
        self.open()

    def open(self) -> None:
        if self._server is None:
            self._server = _Server(self.port, self._handler, self)
            self.port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        """Connections are refused from now on, and those that are open break."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            for connection in list(server.connections):
                _reset(connection)


# ---- DICOM: cut in the middle of an instance ---------------------------------------------------------------------


class CuttingGate(_Closable):
    """Lets associations through to a port, and cuts those for which there is a cut left.

    `cuts` holds (after how many bytes from the sender, how): "reset" and "close" wherever that is, "abort" by an
    A-ABORT after the PDU that is under way.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.cuts: deque[tuple[int, str]] = deque()
        self.made: list[str] = []
        super().__init__(_Association)

    def plan(self, rng: random.Random, count: int, *, most_bytes: int, how: Sequence[str] = CUTS) -> None:
        """Cut the next associations, `count` of them, each somewhere in its first `most_bytes`."""
        self.cuts.extend((rng.randrange(PDU_HEAD, most_bytes), rng.choice(how)) for _ in range(count))


class _Association(socketserver.BaseRequestHandler):
    """One connection of a sender."""

    def handle(self) -> None:
        gate: CuttingGate = self.server.gate  # type: ignore[attr-defined]
        with suppress(OSError), socket.create_connection(("127.0.0.1", gate.target_port), timeout=30) as target:
            threading.Thread(target=_pass_back, args=(target, self.request), daemon=True).start()
            cut = gate.cuts.popleft() if gate.cuts else None
            if cut is None:
                _pass_back(self.request, target)
            elif self._cut(target, *cut):
                gate.made.append(cut[1])

    def _cut(self, target: socket.socket, after: int, how: str) -> bool:
        """Pass on so many bytes, or for an abort until the end of a PDU behind them, then end it.

        False where the sender was done before.
        """
        passed, pdu_left, head = 0, 0, b""
        while passed < after or (how == "abort" and (pdu_left or head)):
            size = min(PIECE, after - passed) if passed < after else pdu_left or PDU_HEAD - len(head)
            size = min(size, pdu_left or PDU_HEAD - len(head))
            piece = self.request.recv(size)
            if not piece:
                return False
            target.sendall(piece)
            passed += len(piece)
            if pdu_left:
                pdu_left -= len(piece)
            elif len(head := head + piece) == PDU_HEAD:
                pdu_left, head = int.from_bytes(head[2:], "big"), b""
        if how == "abort":
            target.sendall(ABORT)
        if how == "reset":
            _reset(target)
        else:
            target.shutdown(socket.SHUT_RDWR)  # else it stays open for as long as the other thread reads from it
        _reset(self.request)
        return True


def _pass_back(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
        target.shutdown(socket.SHUT_WR)


# ---- HTTP: a destination that misbehaves ------------------------------------------------------------------------


class HttpGate(_Closable):
    """Lets requests through to a DICOMweb server; `tricks` holds what is played on the next POSTs, one each.

    A trick is a key of TRICKS. `bytes_per_second` slows the answers down, all of them.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.tricks: deque[str] = deque()
        self.played: list[str] = []
        self.bytes_per_second = 0
        super().__init__(_Request)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def reset(self) -> None:
        """As new."""
        self.tricks.clear()
        self.played.clear()
        self.bytes_per_second = 0
        self.open()


class _Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nobody asked."""

    def do_GET(self) -> None:
        self._serve(self._body())

    do_DELETE = do_GET  # noqa: N815 (as http.server wants it)

    def do_POST(self) -> None:
        gate: HttpGate = self.server.gate  # type: ignore[attr-defined]
        body = self._body()
        try:
            trick = gate.tricks.popleft()
        except IndexError:
            self._serve(body)
            return
        gate.played.append(trick)
        TRICKS[trick](self, body)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _sent_headers(self, body: bytes) -> dict[str, str]:
        hop = {"connection", "transfer-encoding", "content-length", "host"}
        kept = {name: value for name, value in self.headers.items() if name.lower() not in hop}
        return kept | ({"Content-Length": str(len(body))} if body else {})

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server answers; 502 where it does not."""
        target = HTTPConnection("127.0.0.1", self.server.gate.target_port, timeout=60)  # type: ignore[attr-defined]
        try:
            target.request(self.command, self.path, body or None, self._sent_headers(body))
            answer: HTTPResponse = target.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        except (OSError, HTTPException):
            return 502, [], b""
        finally:
            target.close()

    def _serve(self, body: bytes) -> None:
        self._answer(*self._ask(body))

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, *, share: float = 1.0) -> None:
        """With less than the whole `share` the connection ends in the middle of it."""
        hop = {"connection", "transfer-encoding", "content-length", "keep-alive", "server", "date"}
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in hop:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self._trickle(content[: int(len(content) * share)])
        if share < 1:
            self._hang_up()

    def _trickle(self, content: bytes) -> None:
        speed = self.server.gate.bytes_per_second  # type: ignore[attr-defined]
        size = max(1, speed // 10) if speed else len(content) or 1
        for at in range(0, len(content), size):
            self.wfile.write(content[at : at + size])
            self.wfile.flush()
            if speed:
                time.sleep(0.1)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        _reset(self.connection)

    # ---- the tricks --------------------------------------------------------------------------------------------

    def _refuse_500(self, body: bytes) -> None:
        self._answer(500, [], b"")

    def _refuse_503(self, body: bytes) -> None:
        self._answer(503, [("Retry-After", "1")], b"busy")

    def _store_and_say_500(self, body: bytes) -> None:
        self._ask(body)
        self._answer(500, [], b"")

    def _store_and_say_nothing(self, body: bytes) -> None:
        self._ask(body)
        self._hang_up()

    def _half_request(self, body: bytes) -> None:
        """The server sees half of the multipart, and the sender a connection that breaks."""
        head = f"{self.command} {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self._sent_headers(body).items())
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.server.gate.target_port)) as target:  # type: ignore[attr-defined]
            target.sendall(f"{head}\r\n".encode() + body[: len(body) // 2])
        self._hang_up()

    def _half_answer(self, body: bytes) -> None:
        self._answer(*self._ask(body), share=0.5)

    def _empty_answer(self, body: bytes) -> None:
        """200, and nothing in it: the object is confirmed by no one."""
        self._answer(200, [], b"")


TRICKS: dict[str, Callable[[_Request, bytes], None]] = {
    "500": _Request._refuse_500,
    "503": _Request._refuse_503,
    "stored, but 500": _Request._store_and_say_500,
    "stored, but no answer": _Request._store_and_say_nothing,
    "half of the request": _Request._half_request,
    "half of the answer": _Request._half_answer,
    "an empty answer": _Request._empty_answer,
}
ERRORS = ("500", "503", "stored, but 500")
HALVES = ("half of the request", "half of the answer", "stored, but no answer", "an empty answer")
