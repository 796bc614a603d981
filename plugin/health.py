"""Whether a role lives, and whether it is ready; with its metrics, on a port of its own.

    /healthz   200: the process answers
    /readyz    200, or 503; either way what was looked at, and what is wrong with it
    /metrics   what Prometheus reads

The web role answers the same at its own address.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import structlog

from hlip_core.errors import HlipError
from plugin.site_metrics import CONTENT_TYPE, Page

if TYPE_CHECKING:
    from plugin.bootstrap import Plugin

log = structlog.get_logger("hlip.health")

CHECK_SECONDS = 3.0
KEPT_SECONDS = 1.0
"""For so long an answer is given again: whoever asks often looks no more often."""
HANDLER_SECONDS = 10.0
OK = "ok"


class NotReady(Exception):
    """Something that a role needs is missing; the text says what, and names no secret."""


def _disk(plugin: "Plugin") -> None:
    if not plugin.spool.has_room():
        raise NotReady("the data folder's disk is nearly full: C-STORE is refused")


def _room_for_work(plugin: "Plugin") -> None:
    if not plugin.spool.room_for_work.is_enough():
        raise NotReady("the data folder's disk is nearly full: work waits")


def _database(plugin: "Plugin") -> None:
    if not plugin.database.is_current():
        raise NotReady("the index is not of this version: `hlip schedule` brings it there")


def _broker(plugin: "Plugin") -> None:
    if plugin.settings.broker.is_embedded:
        if not os.access(plugin.spool.broker, os.W_OK):
            raise NotReady("the folder of messages cannot be written")
        return
    from plugin.tasks import reach_broker

    reach_broker(plugin, seconds=CHECK_SECONDS)


def _bundle(plugin: "Plugin") -> None:
    _ = plugin.bundle


CHECKS: dict[str, Callable[["Plugin"], None]] = {
    "disk": _disk,
    "room for work": _room_for_work,
    "database": _database,
    "broker": _broker,
    "bundle": _bundle,
}

NEEDS: dict[str, tuple[str, ...]] = {
    "listen": ("disk",),
    "schedule": ("database", "broker"),
    "prepare": ("database", "broker", "room for work", "bundle"),
    "analyse": ("database", "broker", "room for work", "bundle"),
    "deliver": ("database", "broker"),
    "signal": ("database", "broker"),
    "web": ("disk", "database"),
}
"""What each role, or worker's queue, cannot do without."""


class Health:
    """Of a process that has one or more roles (a worker: its queues)."""

    def __init__(self, plugin: "Plugin", roles: Sequence[str]) -> None:
        self._plugin = plugin
        self._names = list(dict.fromkeys(name for role in roles for name in NEEDS[role]))
        self._threads = ThreadPoolExecutor(len(CHECKS), thread_name_prefix="readyz")
        self._page = Page(plugin, roles[0])
        self._lock = threading.Lock()
        self._found: tuple[float, dict[str, str]] = (-KEPT_SECONDS, {})

    def metrics(self) -> bytes:
        return self._page.text()

    def readiness(self) -> dict[str, str]:
        """What was looked at, and "ok" or what is wrong with it. One look at a time."""
        with self._lock:
            if time.monotonic() - self._found[0] >= KEPT_SECONDS:
                found = self._look()
                self._found = (time.monotonic(), found)
            return self._found[1]

    def _look(self) -> dict[str, str]:
        looks = {name: self._threads.submit(CHECKS[name], self._plugin) for name in self._names}
        found = {}
        for name, look in looks.items():
            try:
                look.result(CHECK_SECONDS)
                found[name] = OK
            except (NotReady, HlipError) as missing:
                found[name] = str(missing)
            except TimeoutError:
                found[name] = f"no answer within {CHECK_SECONDS:g} s"
            except (OSError, ValueError) as error:  # texts of others may name an account
                found[name] = type(error).__name__
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def answer(self, path: str) -> tuple[int, str, bytes]:
        """Status, content type and body of a GET."""
        if path == "/metrics":
            return HTTPStatus.OK, CONTENT_TYPE, self.metrics()
        if path == "/healthz":
            return HTTPStatus.OK, "application/json", _body("ok")
        if path == "/readyz":
            found = self.readiness()
            is_ready = all(said == OK for said in found.values())
            status = HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE
            return status, "application/json", _body("ready" if is_ready else "not ready", **found)
        return HTTPStatus.NOT_FOUND, "application/json", _body("not found")


def _body(status: str, **checks: str) -> bytes:
    return json.dumps({"status": status, **({"checks": checks} if checks else {})}).encode()


class _Handler(BaseHTTPRequestHandler):
    """GET of three paths; a client that is slow is cut off."""

    timeout = HANDLER_SECONDS
    server: "_Server"

    def do_GET(self) -> None:
        status, content_type, body = self.server.health.answer(self.path.split("?", 1)[0])
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "hlip"

    def log_message(self, *_: object) -> None:
        """A scrape every few seconds is no news."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    health: Health

    def handle_error(self, request: object, client_address: object) -> None:
        log.warning("health request failed")


@contextmanager
def answering(plugin: "Plugin", roles: Sequence[str]) -> Iterator[int]:
    """Answer in the background of the block, where the settings give one of the roles a port; yields it, or 0.

    Raises OSError where the address cannot be bound.
    """
    settings = plugin.settings.metrics
    port = next((port for role in roles if (port := settings.port(role))), 0)
    if not port:
        yield 0
        return
    server = _Server((settings.host, port), _Handler)
    server.health = Health(plugin, roles)
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    log.info("answering", paths=["/metrics", "/healthz", "/readyz"], host=settings.host, port=port)
    try:
        yield port
    finally:
        server.shutdown()
        server.server_close()
        server.health.close()
        thread.join()
