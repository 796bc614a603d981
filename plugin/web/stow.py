"""STOW-RS (PS3.18 section 10.5): instances by HTTP POST, streamed into the spool.

The body is never held as a whole; 200 means that every instance of it lies on the disk, fsynced.
"""

import asyncio
import hmac
import os
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import structlog
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from plugin.audit import Trail
from plugin.audit_message import Node, StudyObjects
from plugin.settings import WebSettings
from plugin.spool import Spool, UnsafeUid, check_uid
from plugin.web import store_response
from plugin.web.multipart import Headers, MultipartError, MultipartReader, check_boundary, media_type
from plugin.web.origin import address_of
from plugin.web.store_response import CANNOT_UNDERSTAND, Outcome
from plugin.web.transfer import Transfer

log = structlog.get_logger("hlip.stow")

THREADS = 8
RETRY_AFTER = {"Retry-After": "30"}
CLOSE = {"Connection": "close"}
"""The rest of the body is not waited for."""

SLOWEST_BYTES_PER_SECOND = 1024
MAX_PARTS = 20_000
"""In one request: an empty part is ten bytes of it, and hundreds here until the answer is given."""


class _Gone(Exception):
    """The client hung up."""


@dataclass(frozen=True)
class _Wanted:
    """What a request asks for, once its head was found good."""

    study_instance_uid: str
    boundary: bytes


class Stow:
    """The store service.

    Args:
        settings: limits, timeout and token.
        spool: where instances are kept.
        prefix: of the names under which the spool knows open requests.
        audit: told what was received, and who had no token.
    """

    def __init__(self, settings: WebSettings, spool: Spool, *, prefix: str, audit: Trail) -> None:
        self._settings = settings
        self._audit = audit
        self._spool = spool
        self._prefix = prefix
        self._max_bytes = int(settings.max_request_gigabytes * 1e9)
        self._open = 0
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="stow")

    def start(self) -> None:
        """Once the port is ours: forget the requests that were open when a process of the same name was killed."""
        self._spool.close_all_associations(self._prefix)

    def close(self) -> None:
        """Wait for what is being written."""
        self._threads.shutdown()
        self._spool.close_all_associations(self._prefix)

    async def store(self, request: Request) -> Response:
        """Answer one POST."""
        await self._check_token(request)
        wanted = self._check(request)
        self._open += 1
        transfer = Transfer(
            self._spool,
            association=f"{self._prefix}{os.getpid()}-{uuid.uuid4().hex}",
            study_instance_uid=wanted.study_instance_uid,
            max_instance_bytes=int(self._settings.max_instance_megabytes * 1e6),
            threads=self._threads,
        )
        try:
            outcomes = await self._take(request, transfer, wanted)
        finally:
            self._open -= 1
        await self._tell(request, outcomes)
        return _answer(request, outcomes)

    async def _tell(self, request: Request, outcomes: list[Outcome]) -> None:
        """The audit trail, of what was stored."""
        kept: dict[str, Counter[str]] = {}
        for outcome in outcomes:
            if outcome.is_stored:
                kept.setdefault(outcome.study_instance_uid, Counter())[outcome.sop_class_uid] += 1
        if kept and self._audit.is_on:
            studies = [StudyObjects(uid, classes) for uid, classes in kept.items()]
            received = partial(self._audit.received, self._sender(request), studies)
            await asyncio.get_running_loop().run_in_executor(self._threads, received)

    def _sender(self, request: Request) -> Node:
        return Node("STOW-RS", address_of(request, self._settings))

    # ---- the head of a request -------------------------------------------------------------------------

    def _check(self, request: Request) -> _Wanted:
        """Raises HTTPException with the status that the head deserves."""
        try:
            study = request.path_params.get("study")
            study_instance_uid = "" if study is None else check_uid(study, "StudyInstanceUID")
        except UnsafeUid as error:
            raise HTTPException(400, str(error)) from None
        boundary = _boundary(request)
        length = request.headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_bytes:
            raise HTTPException(413, f"more than {self._max_bytes} bytes in one request", CLOSE)
        if self._open >= self._settings.max_requests:
            raise HTTPException(503, "too many requests at once", RETRY_AFTER)
        if not self._spool.has_room():
            log.error("refused", status=503, cause="the spool's disk is nearly full")
            raise HTTPException(503, "out of resources", RETRY_AFTER)
        return _Wanted(study_instance_uid, boundary)

    async def _check_token(self, request: Request) -> None:
        """Raises HTTPException 401."""
        token = self._settings.stow_token.get_secret_value()
        if not token:
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_equal = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not is_equal:
            await run_in_threadpool(self._audit.turned_away, self._sender(request), "STOW-RS without the token")
            raise HTTPException(401, "a token is needed", {"WWW-Authenticate": "Bearer"})

    # ---- the body --------------------------------------------------------------------------------------

    async def _take(self, request: Request, transfer: Transfer, wanted: _Wanted) -> list[Outcome]:
        """What became of each part; of a body that breaks off, what was whole in it, and one failure.

        Raises HTTPException where the body breaks a limit.
        """
        broken: list[Outcome] = []
        try:
            await self._read(request, transfer, MultipartReader(wanted.boundary))
        except (MultipartError, _Gone) as error:
            log.warning("request broken off", cause=str(error) or "the client hung up")
            broken = [Outcome(CANNOT_UNDERSTAND)]
        finally:
            outcomes = await transfer.finish()
        if broken and not any(outcome.is_stored for outcome in outcomes):
            raise HTTPException(400, "the body is not a whole multipart/related body")
        return outcomes + broken

    async def _read(self, request: Request, transfer: Transfer, reader: MultipartReader) -> None:
        num_parts = 0
        async for piece in self._pieces(request):
            for event in reader.feed(piece):
                if isinstance(event, memoryview):
                    if (writing := transfer.add(event)) is not None:
                        await writing
                elif isinstance(event, Headers):
                    num_parts += 1
                    if num_parts > MAX_PARTS:
                        raise HTTPException(413, f"more than {MAX_PARTS} parts in one request", CLOSE)
                    transfer.begin(event.content_type)
                else:
                    await transfer.end()
        for event in reader.close():
            if not isinstance(event, memoryview | Headers):
                await transfer.end()

    async def _pieces(self, request: Request) -> AsyncIterator[bytes]:
        """The body as it comes. Raises HTTPException for one that is too long or too slow, _Gone."""
        start, total, patience = time.monotonic(), 0, self._settings.timeout_seconds or None
        while True:
            try:
                async with asyncio.timeout(patience):
                    message = await request.receive()
            except TimeoutError:
                raise HTTPException(408, "nothing came for too long", CLOSE) from None
            if message["type"] == "http.disconnect":
                raise _Gone
            total += len(message["body"])
            if total > self._max_bytes:
                raise HTTPException(413, f"more than {self._max_bytes} bytes in one request", CLOSE)
            if patience and total < (time.monotonic() - start - patience) * SLOWEST_BYTES_PER_SECOND:
                raise HTTPException(408, "too slow", CLOSE)
            yield message["body"]
            if not message["more_body"]:
                return


def _boundary(request: Request) -> bytes:
    """Raises HTTPException for a body that is not what STOW-RS of DICOM files is made of (PS3.18 section 10.5.2)."""
    try:
        name, parameters = media_type(request.headers.get("content-type", ""))
        if name != "multipart/related" or parameters.get("type", "application/dicom").lower() != "application/dicom":
            raise HTTPException(415, 'send multipart/related; type="application/dicom"')
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise HTTPException(415, "send it without Content-Encoding")
        return check_boundary(parameters.get("boundary"))
    except MultipartError as error:
        raise HTTPException(400, str(error)) from None


def _answer(request: Request, outcomes: list[Outcome]) -> Response:
    status = store_response.status_code(outcomes)
    media = store_response.preferred(request.headers.get("accept", ""))
    return Response(
        store_response.encoded(outcomes, media),
        status,
        media_type=media,
        headers=RETRY_AFTER if status == 503 else None,
    )
