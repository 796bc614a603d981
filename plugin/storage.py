"""The storage service: from a C-STORE request and its encoded data set to a durable file and a status.

An instance is written as it came, fsynced and renamed before 0x0000 is answered. No database, no broker and no
decoding of pixels stand on this path.
"""

import io
import os
import struct
import time
from collections import Counter
from contextlib import suppress
from typing import BinaryIO

import structlog
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from hlip_core.files import BoundedFile
from plugin import elements, metrics
from plugin.arrival import Identity, find_identity, read_elements
from plugin.incoming import Bytes, Incoming
from plugin.spool import Spool, UnsafeUid, new_digest
from plugin.transit import Transit

log = structlog.get_logger("hlip.listener")

# PS3.4 Table B.2-1, C-STORE response status values
SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000

_INSTANCES = {outcome: metrics.INSTANCES.labels("dimse", outcome) for outcome in ("kept", "refused")}
_BYTES = metrics.BYTES.labels("dimse")

AHEAD_SECONDS = 5.0
PIECE = 250_000
"""Bytes that go to the disk at once; while it takes them, the next come from the network."""
MOST_FRAGMENTS = 4096


class Sender:
    """An open association: what it sends, what was kept of it, and the file that its next instance goes to.

    Args:
        name: of the association, unique in the spool.
    """

    def __init__(self, spool: Spool, name: str) -> None:
        self._spool = spool
        self.transit = Transit(spool, name)
        self._kept: Counter[tuple[str, str]] = Counter()
        self._ahead: tuple[Incoming, float] | None = None
        self.transit.open()

    def open_ahead(self) -> None:
        """Create the next instance's file while the peer prepares to send it: it may wait for the disk's journal."""
        if self._ahead is None:
            incoming = self._spool.begin()
            with suppress(OSError):  # then there is none, and the instance itself asks again
                incoming.open()
                self._ahead = incoming, time.monotonic()

    def begin(self) -> Incoming:
        """A file for an instance. One that was opened long ago is left behind: it may have been swept away."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            incoming, opened = ahead
            if time.monotonic() - opened < AHEAD_SECONDS:
                return incoming
            incoming.discard()
        return self._spool.begin()

    def count(self, identity: Identity) -> None:
        self._kept[identity.study_instance_uid, identity.sop_class_uid] += 1

    @property
    def kept(self) -> dict[str, dict[str, int]]:
        """How many instances were kept, by study and SOP class."""
        kept: dict[str, dict[str, int]] = {}
        for (study_uid, sop_class_uid), count in self._kept.items():
            kept.setdefault(study_uid, {})[sop_class_uid] = count
        return kept

    def close(self) -> None:
        if self._ahead is not None:
            self._ahead[0].discard()
        self.transit.close()


def preamble(*, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str) -> bytes:
    """What stands before the data set in a Part 10 file (PS3.10 section 7.1), to the byte as pynetdicom writes it."""
    values = (
        (0x0002, b"UI", sop_class_uid),
        (0x0003, b"UI", sop_instance_uid),
        (0x0010, b"UI", transfer_syntax_uid),
        (0x0012, b"UI", PYNETDICOM_IMPLEMENTATION_UID),
        (0x0013, b"SH", PYNETDICOM_IMPLEMENTATION_VERSION),
    )
    meta = b"\x02\x00\x01\x00OB\x00\x00\x02\x00\x00\x00\x00\x01"
    for number, vr, text in values:
        value = text.encode("ascii", "replace")
        value += (b"\0" if vr == b"UI" else b" ") * (len(value) % 2)
        meta += struct.pack("<HH2sH", 2, number, vr, len(value)) + value
    return b"\0" * 128 + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(meta)) + meta


class Storage:
    """What a listener does with instances.

    Args:
        max_object_bytes: a longer data set is refused with 0xA700.
    """

    def __init__(self, spool: Spool, *, max_object_bytes: int) -> None:
        self.spool = spool
        self.max_object_bytes = max_object_bytes

    def receive(
        self, sender: Sender, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> "Receiving":
        """Begin an instance: add the fragments of its data set, then finish."""
        return Receiving(self, sender, sop_class_uid, sop_instance_uid, transfer_syntax_uid)


class Receiving:
    """One instance, from the request to the status of the response.

    Fragments are kept as they are until there is a piece for the disk, so nothing is copied on the way.
    """

    def __init__(
        self, storage: Storage, sender: Sender, sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str
    ) -> None:
        self._storage = storage
        self._sender = sender
        self._requested = (sop_class_uid, sop_instance_uid)
        self._syntax = transfer_syntax_uid
        self._fragments: list[Bytes] = []
        self._head = b""
        self._incoming: Incoming | None = None
        self._status: int | None = None
        self._pending = 0
        self._digest = new_digest()
        self.size = 0

    def add(self, fragment: Bytes) -> None:
        """A fragment of the data set; it must not change before the next `flush` or `finish`."""
        self.size += len(fragment)
        if self._status is None and self.size > self._storage.max_object_bytes:
            self._refuse(OUT_OF_RESOURCES, "the object is longer than listener.max_object_gigabytes")
        if self._status is None:
            self._fragments.append(fragment)
            self._pending += len(fragment)
            if self._pending >= PIECE or len(self._fragments) >= MOST_FRAGMENTS:
                self.flush()

    def flush(self) -> None:
        """Write what was added so far; the memory of its fragments may be used again."""
        if self._fragments and self._status is None:
            self._head = self._head or self._beginning()
            try:
                self._write()
                if self._incoming is not None:
                    self._incoming.start_writeback()
            except OSError as error:
                self._refuse(OUT_OF_RESOURCES, os.strerror(error.errno or 0))
        self._fragments.clear()
        self._pending = 0

    def _write(self) -> None:
        if not self._storage.spool.has_room():
            self._refuse(OUT_OF_RESOURCES, "the spool's disk is nearly full")
            return
        for fragment in self._fragments:
            self._digest.update(fragment)
        if self._incoming is None:
            self._incoming = self._sender.begin()
            self._fragments.insert(0, self._preamble())
        self._incoming.write(self._fragments)
        self._fragments.clear()

    def _preamble(self) -> bytes:
        sop_class_uid, sop_instance_uid = self._requested
        return preamble(
            sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid, transfer_syntax_uid=self._syntax
        )  # fmt: skip

    def finish(self) -> int:
        """Keep the instance; a refusal leaves nothing behind."""
        if self._status is None:
            try:
                self._keep()
            except UnsafeUid as error:
                self._refuse(DOES_NOT_MATCH_SOP_CLASS, str(error))
            except OSError as error:
                if error.errno is None:  # not the system's: pydicom's on a broken header
                    self._refuse(CANNOT_UNDERSTAND, type(error).__name__)
                else:
                    self._refuse(OUT_OF_RESOURCES, os.strerror(error.errno))
            except Exception as error:  # the association's border: a header that pydicom cannot read
                self._refuse(CANNOT_UNDERSTAND, type(error).__name__)
        self._fragments.clear()
        _INSTANCES["kept" if self._status is None else "refused"].inc()
        if self._status is None:
            _BYTES.inc(self.size)
        return SUCCESS if self._status is None else self._status

    def discard(self) -> None:
        """The association ended in the middle of it."""
        self._fragments.clear()
        if self._incoming is not None:
            self._incoming.discard()

    def _keep(self) -> None:
        identity = self._identity()
        if (identity.sop_class_uid, identity.sop_instance_uid) != self._requested:
            self._refuse(DOES_NOT_MATCH_SOP_CLASS, "the dataset's SOP UIDs are not the request's")
            return
        self._sender.transit.note(identity)
        self._write()
        if self._status is None:
            assert self._incoming is not None
            self._incoming.keep(self._digest.hexdigest())
            self._sender.count(identity)

    def _identity(self) -> Identity:
        """By a walk where the header is usual, else by pydicom; raises what that raises."""
        head = self._head or self._beginning()
        identity = find_identity(head, self._syntax, whole=len(head) == self.size)
        if identity is not None:
            return identity
        with self._source() as source:
            return Identity.from_elements(read_elements(source).found)

    def _source(self) -> BinaryIO:
        """The instance as a Part 10 file."""
        if self._incoming is None:
            return io.BytesIO(b"".join((self._preamble(), *self._fragments)))
        self._write()
        return BoundedFile(self._incoming.path)

    def _beginning(self) -> bytes:
        """The first bytes of the data set, as many as the walk looks at."""
        parts, left = [], elements.WINDOW
        for fragment in self._fragments:
            parts.append(fragment[:left])
            left -= len(parts[-1])
            if left <= 0:
                break
        return b"".join(parts)

    def _refuse(self, status: int, cause: str) -> None:
        say = log.error if status == OUT_OF_RESOURCES else log.warning
        say("refused", status=f"0x{status:04X}", cause=cause)
        self._status = status
        self.discard()
