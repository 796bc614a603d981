"""The HTTP server under the application: uvicorn in a thread, with limits on what a slow or strange client may hold."""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h11
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from plugin.settings import WebSettings
from plugin.web.guard import DICOMWEB

log = structlog.get_logger("hlip.web")

PATIENCE_SECONDS = {"head": 10.0, "body": 20.0}
"""A connection whose next request has begun, or which never had one, must show a whole head within this time, and then
the whole body. The page's bodies are small."""

READ_SECONDS = 60.0
"""An answer of which nothing more is read for so long is given up, with its connection."""

KEEP_ALIVE_SECONDS = 15
EVENTS = "/events"
MAX_CONNECTIONS = 512
STOP_SECONDS = 10


class _ImpatientProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on clients that are slow with a request's head or body, or do not read the answer."""

    _awaited = ""
    """What the client is being slow with, as long as `_deadline` runs: a key of `PATIENCE_SECONDS`."""
    _deadline: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch("head")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch("head" if self.conn.their_state is h11.IDLE else self._body())

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch(self._body())

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch("")
        self._read()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """A stream of news never ends by itself: it is told that its listener is gone, so that the server can stop."""
        super().shutdown()
        if self.cycle is not None and not self.cycle.response_complete and self.scope["path"] == EVENTS:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    # ---- what comes ------------------------------------------------------------------------------------

    def _body(self) -> str:
        """ "body", where the rest of one is waited for; STOW-RS, until it has answered, has limits of its own."""
        is_due = self.conn.their_state is h11.SEND_BODY
        is_stored = is_due and self.scope["path"].startswith(DICOMWEB) and not self.cycle.response_complete
        return "body" if is_due and not is_stored else ""

    def _watch(self, awaited: str) -> None:
        if self.transport.is_closing():
            self._wait_for_reader()
        if awaited != self._awaited:
            if self._deadline is not None:
                self._deadline.cancel()
            self._awaited = awaited
            self._deadline = self.loop.call_later(PATIENCE_SECONDS[awaited], self._hang_up) if awaited else None

    def _hang_up(self) -> None:
        self.transport.abort()

    # ---- what goes -------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._read()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._wait_for_reader()

    def _wait_for_reader(self) -> None:
        """A transport that was closed stays, too, until what was written is read."""
        if self._unread is None:
            self._unread = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def _read(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None


class WebServer:
    """An application that answers in the background.

    Args:
        settings: where; port 0 takes a free one (see `port`).
    """

    def __init__(self, app: ASGIApp, settings: WebSettings) -> None:
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # its texts may quote what was sent
        self._settings = settings
        self.port = settings.port
        config = uvicorn.Config(
            app,
            http=_ImpatientProtocol,
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises OSError where the address cannot be bound, RuntimeError where the application does not start."""
        listening = self._bound()
        self.port = listening.getsockname()[1]
        arguments: dict[str, Any] = {"sockets": [listening]}
        self._thread = threading.Thread(target=self._server.run, kwargs=arguments, name="web")
        self._thread.start()
        while not self._server.started:
            if not self._thread.is_alive():
                raise RuntimeError("the web application did not start")
            time.sleep(0.01)
        log.info("serving", host=self._settings.host, port=self.port)

    def stop(self) -> None:
        """Finish what is open, for a while, and close the port."""
        if self._thread is not None:
            self._server.should_exit = True
            self._thread.join()

    def _bound(self) -> socket.socket:
        host, port = self._settings.host, self._settings.port
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listening = socket.create_server((host, port), family=family, backlog=256)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(error.errno, f"the web server cannot listen on {host}:{port}: {why}") from error
        # connections inherit it; without it the second half of an answer waits 40 ms for the first to be confirmed
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening


@contextmanager
def serving(app: ASGIApp, settings: WebSettings) -> Iterator[WebServer]:
    """A started server, stopped at the end."""
    server = WebServer(app, settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
