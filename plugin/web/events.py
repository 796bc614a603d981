"""What changes, as server-sent events: one reader of the index for all browsers that listen.

A listener holds no queue: it is told that something is new, and what it has not been told yet is one flag. So a
browser that is slow costs no memory, and fifty browsers cost one small query a second. Without any there is none.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING

import structlog
from fastapi import APIRouter, HTTPException, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from plugin.index import worklist
from plugin.index.database import IndexUnavailable
from plugin.index.worklist import Glance
from plugin.spool import UnsafeUid, check_uid
from plugin.web.access import Viewer, is_still_signed_in

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin

log = structlog.get_logger("hlip.web")

LOOK_SECONDS = 1.0
ALIVE_SECONDS = 15.0
"""A stream says at least this often that it lives, so that browsers and proxies keep it."""

MAX_LISTENERS = 300
RETRY_MILLISECONDS = 2000

router = APIRouter()


class Listener:
    """One open stream: of the worklist, or of one study."""

    def __init__(self, study_instance_uid: str) -> None:
        self.study_instance_uid = study_instance_uid
        self.news = asyncio.Event()


class Watch:
    """Looks at the index while anyone listens, and tells the listeners that are concerned."""

    def __init__(self, plugin: "Plugin") -> None:
        self._plugin = plugin
        self._listeners: set[Listener] = set()
        self._wanted = asyncio.Event()
        self.version = 0
        """Counts what changed; what was rendered of one version is good for all browsers until the next."""
        self.looks = 0
        """How often the index was read, for benchmarks and tests."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    @property
    def is_full(self) -> bool:
        return len(self._listeners) >= MAX_LISTENERS

    @contextmanager
    def listening(self, study_instance_uid: str = "") -> Iterator[Listener]:
        """A listener, told of its study alone where one is named, else of all."""
        listener = Listener(study_instance_uid)
        self._listeners.add(listener)
        self._wanted.set()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            if not self._listeners:
                self._wanted.clear()

    def tell(self, changed: frozenset[str]) -> None:
        """These studies are not what they were. To be called in the event loop's thread."""
        self.version += 1
        for listener in self._listeners:
            if not listener.study_instance_uid or listener.study_instance_uid in changed:
                listener.news.set()

    async def _run(self) -> None:
        seen: Glance | None = None
        while True:
            await self._wanted.wait()
            try:
                now = await run_in_threadpool(worklist.glance, self._plugin.database, seen)
            except IndexUnavailable:
                log.warning("the index is away", role="web")
            else:
                self.looks += 1
                if seen is not None and (changed := now.changed_since(seen)):
                    self.tell(changed)
                seen = now
            await asyncio.sleep(LOOK_SECONDS)


class Stream(Response):
    """The answer that never ends by itself: ``text/event-stream`` (HTML standard, section 9.2)."""

    media_type = "text/event-stream"
    charset = "utf-8"

    def __init__(self, request: Request, watch: Watch, study_instance_uid: str) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request = request
        self._watch = watch
        self._study_instance_uid = study_instance_uid

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._write(send, f"retry: {RETRY_MILLISECONDS}\n\n")
        gone = asyncio.create_task(_until_gone(receive))
        try:
            with self._watch.listening(self._study_instance_uid) as listener:
                checked = time.monotonic()
                while not gone.done():
                    news = asyncio.create_task(listener.news.wait())
                    await asyncio.wait({gone, news}, timeout=ALIVE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    if time.monotonic() - checked > ALIVE_SECONDS - 1:
                        checked = time.monotonic()
                        if not await self._may_go_on():
                            break
                    await self._write(send, self._told(listener))
        finally:
            gone.cancel()
        with suppress(OSError):
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _may_go_on(self) -> bool:
        """Asked once in a while: a session that ended ends its streams then."""
        try:
            return await is_still_signed_in(self._request)
        except IndexUnavailable:
            return True

    def _told(self, listener: Listener) -> str:
        if not listener.news.is_set():
            return ": still here\n\n"
        listener.news.clear()
        return f"event: changed\ndata: {self._watch.version}\n\n"

    @staticmethod
    async def _write(send: Send, text: str) -> None:
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get("/events")
async def events(request: Request, person: Viewer, study: str = "") -> Response:
    """News of all studies, or of one. Each says only that something is new; the browser then asks for it."""
    watch: Watch = request.app.state.watch
    if watch.is_full:
        raise HTTPException(503, "too many browsers listen: this one is not told of news")
    try:
        return Stream(request, watch, check_uid(study) if study else "")
    except UnsafeUid:
        raise HTTPException(404, "there is no such study") from None
