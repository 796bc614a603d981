"""HL7 v2 over MLLP: one connection a message, which is taken only when the receiver says so."""

import asyncio
import re
from contextlib import suppress
from ssl import SSLContext
from urllib.parse import urlsplit

from hl7.mllp import InvalidBlockError, open_hl7_connection

from plugin import tls
from plugin.delivery import Away, NotNow, Refused
from plugin.settings import SignalReceiver
from plugin.signals.message import Message

TAKEN = frozenset({"AA", "CA"})
REFUSED = frozenset({"AE", "AR", "CE", "CR"})
"""HL7 table 0008, acknowledgment code."""

LONGEST_ANSWER = 1 << 16
CLOSE_SECONDS = 2.0


class MllpReceiver:
    """An HL7 v2 receiver at ``mllp://host:port``, or over TLS at ``mllps://host:port``. Raises plugin.tls.TlsError."""

    def __init__(self, settings: SignalReceiver, *, timeout_seconds: float) -> None:
        where = urlsplit(settings.address)
        self._host, self._port = where.hostname, where.port
        self._timeout = timeout_seconds
        self._tls: SSLContext | None = None
        if settings.is_tls:
            self._tls = tls.client_context(settings, check_hostname=settings.tls_check_hostname)

    def send(self, message: Message) -> None:
        """Hand over one message. Raises NotNow or Refused."""
        try:
            answer = asyncio.run(self._exchange(message.text.encode()))
        except OSError as error:
            raise Away(type(error).__name__) from None
        except (EOFError, ValueError, InvalidBlockError) as error:
            raise NotNow(type(error).__name__) from None
        judge(answer.decode("utf-8", "replace"), message.control_id)

    async def _exchange(self, content: bytes) -> bytes:
        async with asyncio.timeout(self._timeout):
            secured = {"ssl": self._tls} if self._tls else {}
            reader, writer = await open_hl7_connection(self._host, self._port, limit=LONGEST_ANSWER, **secured)
            try:
                writer.writeblock(content)
                await writer.drain()
                return await reader.readblock()
            finally:
                writer.close()
                with suppress(OSError):
                    await asyncio.wait_for(writer.wait_closed(), CLOSE_SECONDS)


def judge(answer: str, control_id: str) -> None:
    """What an acknowledgement says of our message: its MSA-1, and where there is one, the code in ERR-3.

    Raises NotNow or Refused. The receiver's texts are not repeated: they may quote the message.
    """
    segments = [line for line in re.split(r"[\r\n]+", answer) if line]
    if not segments or not re.match(r"MSH[^A-Za-z0-9\s]", segments[0]):
        raise NotNow("the answer is not HL7")
    separator = segments[0][3]
    fields = next((row.split(separator) for row in segments if row.startswith(f"MSA{separator}")), [])
    if len(fields) < 3 or fields[2].strip() != control_id:
        raise NotNow("the answer is not to this message")
    code = fields[1].strip()
    if code in REFUSED:
        raise Refused(f"{code}{_error_code(segments, separator)}")
    if code not in TAKEN:
        raise NotNow("the answer does not say what became of the message")


def _error_code(segments: list[str], separator: str) -> str:
    """ERR-3.1, as far as it is a code."""
    fields = next((row.split(separator) for row in segments if row.startswith(f"ERR{separator}")), [])
    found = re.match(r"[0-9A-Za-z]{1,10}", fields[3]) if len(fields) > 3 else None
    return f", error {found.group()}" if found else ""
