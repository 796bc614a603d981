"""A connected socket as a stream of protocol data units (PS3.8 section 9.3), received into one arena.

Blocking, one thread each; plain sockets and TLS alike. A slice of the arena stays valid until `rewind`, so what a
PDU carries can go from here to a file without being copied.
"""

import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ASSOCIATE_RQ, ASSOCIATE_AC, ASSOCIATE_RJ, P_DATA_TF, RELEASE_RQ, RELEASE_RP, ABORT = range(1, 8)

# Reasons of an A-ABORT by the service provider (PS3.8 Table 9-26)
NOT_SPECIFIED, UNRECOGNIZED_PDU, UNEXPECTED_PDU = 0, 1, 2
UNEXPECTED_PARAMETER, INVALID_PARAMETER_VALUE = 5, 6

ARENA = 1 << 20
LONGEST_REQUEST = 1 << 19
"""128 presentation contexts with every transfer syntax there is take half of it."""
GRACE = 64
"""Some senders count the PDU's own headers out of the maximum length."""
LINGER_SECONDS = 2.0

_HEADER = struct.Struct(">BxL")
_TIMEVAL = struct.Struct("@ll")
_QUICK_ACK = getattr(socket, "TCP_QUICKACK", None)


class ProtocolError(Exception):
    """The peer broke the upper layer protocol; `reason` goes into the A-ABORT."""

    def __init__(self, reason: int) -> None:
        super().__init__(f"reason {reason}")
        self.reason = reason


class Stopped(OSError):
    """We are asked to end it."""


def pdu(kind: int, content: bytes) -> bytes:
    return _HEADER.pack(kind, len(content)) + content


def _limit_silence(sock: socket.socket, seconds: float | None) -> None:
    """Let it wait so long for the peer, and no longer.

    Of a plain socket the kernel sees to it: Python's own way asks before each call whether it would have to wait.
    """
    if seconds is None or isinstance(sock, ssl.SSLSocket):
        sock.settimeout(seconds)
        return
    sock.settimeout(None)
    limit = _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6))
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, limit)


@contextmanager
def _silence() -> Iterator[None]:
    """What a socket says when the kernel's limit is over, in Python's word for it."""
    try:
        yield
    except BlockingIOError:
        raise TimeoutError("the peer was silent") from None


class Wire:
    """A connected socket, plain or TLS.

    Args:
        timeout_seconds: how long a peer may be silent, or take for one PDU; None: for ever.
        stopping: when it is set, and the socket shut for reading, what waits for a PDU raises Stopped.
    """

    def __init__(
        self, sock: socket.socket, *, max_pdu_length: int, timeout_seconds: float | None, stopping: threading.Event
    ) -> None:
        self.socket = sock
        self._stopping = stopping
        self._timeout = timeout_seconds
        _limit_silence(sock, timeout_seconds)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        longest = max_pdu_length + GRACE
        self._longest = dict.fromkeys((ASSOCIATE_AC, ASSOCIATE_RJ, RELEASE_RQ, RELEASE_RP, ABORT), 1 << 12)
        self._longest |= {P_DATA_TF: longest, ASSOCIATE_RQ: LONGEST_REQUEST}
        self._room = _HEADER.size + max(self._longest.values())
        self._arena = memoryview(bytearray(ARENA + self._room))
        self._begin = self._end = 0

    @property
    def has_room(self) -> bool:
        """Whether the longest PDU fits behind what is still needed; if not, `rewind` first."""
        return self._begin + self._room <= len(self._arena)

    @property
    def is_drained(self) -> bool:
        """Whether everything that was received has been handed out."""
        return self._begin == self._end

    def rewind(self) -> None:
        """Begin the arena anew: all slices handed out so far become invalid."""
        left = self._end - self._begin
        if left:
            self._arena[:left] = bytes(self._arena[self._begin : self._end])
        self._begin, self._end = 0, left

    def next_pdu(self) -> tuple[int, memoryview]:
        """Wait for a PDU: its type, and what follows its length.

        Raises:
            ProtocolError: an unknown type, or longer than its type may be.
            TimeoutError: the peer was silent, or too slow.
            Stopped: we are asked to end it.
            OSError: the connection is gone.
        """
        if self.is_drained:
            self._receive()
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        self._fill(_HEADER.size, deadline)
        kind, length = _HEADER.unpack_from(self._arena, self._begin)
        if kind not in self._longest:
            raise ProtocolError(UNRECOGNIZED_PDU)
        if length > self._longest[kind]:
            raise ProtocolError(INVALID_PARAMETER_VALUE)
        self._fill(_HEADER.size + length, deadline)
        content = self._begin + _HEADER.size
        self._begin = content + length
        return kind, self._arena[content : self._begin]

    def _fill(self, length: int, deadline: float | None) -> None:
        while self._end - self._begin < length:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError("the peer took too long for a PDU")
            self._receive()

    def _receive(self) -> None:
        if _QUICK_ACK is not None:  # it does not last: the kernel falls back to delayed acknowledgement
            self.socket.setsockopt(socket.IPPROTO_TCP, _QUICK_ACK, 1)
        with _silence():
            received = self.socket.recv_into(self._arena[self._end :])
        if not received:
            raise Stopped if self._stopping.is_set() else ConnectionResetError("the peer closed the connection")
        self._end += received

    def send(self, content: bytes) -> None:
        """One call, so that nothing of it waits for an acknowledgement. Raises OSError."""
        with _silence():
            self.socket.sendall(content)

    def abort(self, *, source: int, reason: int = NOT_SPECIFIED) -> None:
        """Send an A-ABORT (PS3.8 section 9.3.8), if the peer still takes it, and wait for its end."""
        with suppress(OSError):
            self.send(pdu(ABORT, bytes((0, 0, source, reason))))
            self.linger()

    def linger(self) -> None:
        """After our last word let the peer hang up first, for a moment: closing on unread data would destroy it."""
        end = time.monotonic() + LINGER_SECONDS
        with suppress(OSError):
            while (left := end - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not self.socket.recv_into(self._arena):
                    return
