"""Syslog: the message (RFC 5424), and its way over TLS (RFC 5425), TCP (RFC 6587, octets counted) or UDP (RFC 5426).

The format is that of PS3.15 sections A.6 and A.7. No syslog transport confirms a message: after a batch we look
whether the receiver has hung up, and send it again if so. A message may come twice; one may get lost with a receiver
that dies without a word.
"""

import os
import select
import socket
import ssl
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Literal

Transport = Literal["tls", "tcp", "udp"]

SECURITY = 10  # facility
NOTICE, WARNING = 5, 4  # severities
MESSAGE_ID = "DICOM+RFC3881"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
HANG_UP_SECONDS = 0.3
"""So long a receiver that does not want us may take to say so: with TLS 1.3 a refused certificate is told late."""


def message(content: bytes, *, severity: int, app_name: str = "hlip") -> bytes:
    """An RFC 5424 message of now, in one line."""
    at = datetime.now().astimezone().isoformat(timespec="milliseconds")
    host = "".join(c for c in socket.gethostname() if "!" <= c <= "~")[:255] or "-"
    header = f"<{SECURITY * 8 + severity}>1 {at} {host} {app_name} {os.getpid()} {MESSAGE_ID} - "
    return header.encode() + BYTE_ORDER_MARK + content


class Connection:
    """To a syslog receiver; connected when there is something to send. Every method raises OSError.

    Args:
        context: for the transport ``tls``.
    """

    def __init__(
        self, host: str, port: int, transport: Transport, *, context: ssl.SSLContext | None, timeout_seconds: float
    ) -> None:
        self._address = (host, port)
        self._transport = transport
        self._context = context
        self._timeout = timeout_seconds
        self._socket: socket.socket | None = None

    def send(self, messages: Sequence[bytes]) -> None:
        """All of them, or an exception: then send all again."""
        if not messages:
            return
        try:
            if self._socket is None or self._has_hung_up():
                self.close()
                self._socket = self._connected()
            for content in messages:
                self._socket.sendall(content if self._transport == "udp" else b"%d %b" % (len(content), content))
            if self._transport != "udp":
                time.sleep(HANG_UP_SECONDS)
                if self._has_hung_up():
                    raise ConnectionResetError("the receiver hung up")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self) -> socket.socket:
        if self._transport == "udp":
            family, kind, protocol, _, address = socket.getaddrinfo(*self._address, type=socket.SOCK_DGRAM)[0]
            datagrams = socket.socket(family, kind, protocol)
            datagrams.connect(address)
            return datagrams
        stream = socket.create_connection(self._address, self._timeout)
        if self._context is None:
            return stream
        try:
            return self._context.wrap_socket(stream, server_hostname=self._address[0])
        except OSError:
            stream.close()
            raise

    def _has_hung_up(self) -> bool:
        """A receiver never says anything, so what there is to read is the end, or TLS's own records."""
        connection = self._socket
        assert connection is not None
        if self._transport == "udp" or not select.select([connection], [], [], 0)[0]:
            return False
        connection.settimeout(0)
        try:
            return not connection.recv(4096)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        finally:
            connection.settimeout(self._timeout)
