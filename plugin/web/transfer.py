"""Instances on their way from a request into the spool, with the listener's promise: on disk before it is answered.

Parts come in on the event loop; checking, writing and fsync are done by threads, a few instances at a time, so that
one is received while another is written. A large one goes to its file as it comes.
"""

import asyncio
import io
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import structlog
from pydicom.uid import AllTransferSyntaxes

from hlip_core.files import BoundedFile
from hlip_core.headers import MALFORMED
from plugin import metrics
from plugin.arrival import Identity, find_identity, read_elements
from plugin.elements import WINDOW
from plugin.incoming import Incoming
from plugin.part10 import Meta, read_meta
from plugin.sop_classes import ACCEPTED
from plugin.spool import Spool, UnsafeUid
from plugin.transit import Transit
from plugin.web.store_response import (
    CANNOT_UNDERSTAND,
    DOES_NOT_MATCH_SOP_CLASS,
    NOT_DICOM,
    OTHER_STUDY,
    OUT_OF_RESOURCES,
    SOP_CLASS_NOT_SUPPORTED,
    STORED,
    TOO_LARGE,
    TRANSFER_SYNTAX_NOT_SUPPORTED,
    Outcome,
)

log = structlog.get_logger("hlip.stow")

SPILL_BYTES = 2 << 20
"""More than this of one instance does not wait in memory."""

MAX_PIECES = 256
"""More of them than this become one, since each costs memory of its own."""

AT_ONCE = 4
"""Instances of one request that may be with the threads."""

DICOM_TYPES = ("application/dicom", "")  # a part without a type is what the request's type parameter says


class Part:
    """One part of a request: what came of it and is not written yet, and the file for the rest."""

    def __init__(self, incoming: Incoming, reason: int) -> None:
        self.incoming = incoming
        self.reason = reason
        self.size = 0
        self.waiting = 0
        self.head = b""
        self._pieces: list[memoryview] = []

    def add(self, piece: memoryview) -> None:
        if len(self._pieces) >= MAX_PIECES:
            self._pieces = [memoryview(b"".join(self._pieces))]
        self._pieces.append(piece)
        self.waiting += len(piece)

    def refuse(self, reason: int) -> None:
        self.reason, self.waiting = reason, 0
        self._pieces.clear()

    def look(self) -> None:
        """Keep the beginning for the check."""
        if len(self.head) < WINDOW:
            self.head = b"".join([self.head, *self._pieces])[:WINDOW]

    def write(self) -> None:
        """Raises OSError."""
        self.look()
        self.incoming.write(self._pieces)
        self.refuse(self.reason)

    def source(self) -> BinaryIO:
        """The instance as a file. Raises OSError."""
        if not self.incoming.size:
            return io.BytesIO(b"".join(self._pieces))
        self.write()
        return BoundedFile(self.incoming.path)


class Transfer:
    """One request's instances.

    Args:
        spool: where they are kept.
        association: the name under which the spool knows that they are being sent.
        study_instance_uid: the only study that they may be of; "" for any.
        max_instance_bytes: a larger one is refused.
        threads: where the work is done.
    """

    def __init__(
        self, spool: Spool, *, association: str, study_instance_uid: str, max_instance_bytes: int,
        threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        self._spool = spool
        self._study_instance_uid = study_instance_uid
        self._max_instance_bytes = max_instance_bytes
        self._threads = threads
        self._part: Part | None = None
        self._kept: list[asyncio.Future[Outcome]] = []
        self._pending: deque[asyncio.Future[Outcome]] = deque()
        self._marks = _Marks(spool, association)

    # ---- on the event loop -----------------------------------------------------------------------------

    def begin(self, content_type: str) -> None:
        """A part begins."""
        reason = STORED if content_type in DICOM_TYPES else NOT_DICOM
        try:
            self._marks.another()
        except OSError as error:
            reason = _reason(error)
        self._part = Part(self._spool.begin(), reason)

    def add(self, piece: memoryview) -> Coroutine[Any, Any, None] | None:
        """A piece of it; what comes back is to be awaited before the next one."""
        part = self._part
        assert part is not None
        part.size += len(piece)
        if part.reason != STORED:
            return None
        if part.size > self._max_instance_bytes:
            part.refuse(TOO_LARGE)
            return None
        part.add(piece)
        return self._run(self._spill, part) if part.waiting > SPILL_BYTES else None

    async def end(self) -> None:
        """The part is whole."""
        part, self._part = self._part, None
        assert part is not None
        future = asyncio.get_running_loop().run_in_executor(self._threads, self._keep, part)
        self._kept.append(future)
        self._pending.append(future)
        while len(self._pending) > AT_ONCE:
            await self._pending.popleft()

    async def finish(self) -> list[Outcome]:
        """What became of the whole parts, in their order. A part that is cut off leaves nothing."""
        part, self._part = self._part, None
        try:
            if part is not None:
                await self._run(part.incoming.discard)
            return list(await asyncio.gather(*self._kept))
        finally:
            self._marks.close()

    def _run(self, work: Callable[..., None], *arguments: object) -> Coroutine[Any, Any, None]:
        async def run() -> None:
            await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

        return run()

    # ---- in a thread -----------------------------------------------------------------------------------

    def _spill(self, part: Part) -> None:
        try:
            if self._spool.has_room():
                part.write()
                return
        except OSError as error:
            _reason(error)
        part.refuse(OUT_OF_RESOURCES)

    def _keep(self, part: Part) -> Outcome:
        """Check and keep one instance; whatever else it may be, it is refused."""
        try:
            outcome = self._checked_and_kept(part)
        except UnsafeUid as error:
            log.warning("refused", reason="0xA900", cause=str(error))
            outcome = Outcome(DOES_NOT_MATCH_SOP_CLASS)
        except MALFORMED as error:
            outcome = Outcome(_reason(error))
        finally:
            part.incoming.discard()
        metrics.INSTANCES.labels("stow", "kept" if outcome.is_stored else "refused").inc()
        if outcome.is_stored:
            metrics.BYTES.labels("stow").inc(part.size)
        else:
            log.warning("refused", reason=f"0x{outcome.reason:04X}", bytes=part.size)
        return outcome

    def _checked_and_kept(self, part: Part) -> Outcome:
        if part.reason != STORED:
            return Outcome(part.reason)
        if not self._spool.has_room():
            return Outcome(OUT_OF_RESOURCES)
        part.look()
        identity, reason = self._checked(part)
        if identity is None:
            return Outcome(reason)
        outcome = Outcome(reason, identity.sop_class_uid, identity.sop_instance_uid, identity.study_instance_uid)
        if outcome.is_stored:
            self._marks.mark(identity)
            part.write()
            part.incoming.keep()
        return outcome

    def _checked(self, part: Part) -> tuple[Identity | None, int]:
        """What an instance is, and why it is not taken. Raises MALFORMED and UnsafeUid."""
        meta = read_meta(part.head)
        if meta.transfer_syntax_uid not in AllTransferSyntaxes:
            return None, TRANSFER_SYNTAX_NOT_SUPPORTED
        identity = _identity(part, meta)
        if self._study_instance_uid not in ("", identity.study_instance_uid):
            return identity, OTHER_STUDY
        if identity.sop_class_uid not in ACCEPTED:
            return identity, SOP_CLASS_NOT_SUPPORTED
        return identity, STORED


class _Marks:
    """What the spool is told about the studies of a request, as of an open association.

    Nothing while it is of one part: with the instance, the request is over too.
    """

    def __init__(self, spool: Spool, association: str) -> None:
        self._transit = Transit(spool, association)
        self._num_parts = 0
        self._first: Identity | None = None
        self._lock = threading.Lock()

    def another(self) -> None:
        """A part begins."""
        with self._lock:
            self._num_parts += 1
            if self._num_parts == 2:
                self._transit.open()
                if self._first is not None:
                    self._transit.note(self._first)

    def mark(self, identity: Identity) -> None:
        with self._lock:
            if self._num_parts > 1:
                self._transit.note(identity)
            else:
                self._first = identity

    def close(self) -> None:
        if self._num_parts > 1:
            self._transit.close()


def _identity(part: Part, meta: Meta) -> Identity:
    """By a walk where the header is usual, else by pydicom. Raises MALFORMED and UnsafeUid."""
    found = find_identity(part.head[meta.end :], meta.transfer_syntax_uid, whole=False)
    if found is not None:
        return found
    with part.source() as source:
        return Identity.from_elements(read_elements(source).found)


def _reason(error: Exception) -> int:
    """The failure reason for what an instance's content, or the disk, brought about."""
    if isinstance(error, OSError) and error.errno is not None:
        log.error("refused", reason="0xA700", cause=os.strerror(error.errno))
        return OUT_OF_RESOURCES
    return CANNOT_UNDERSTAND
