"""The processes that a site runs: listener, scheduler, workers, web; or all of them under one supervisor."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from plugin.bootstrap import Plugin

log = structlog.get_logger("hlip.roles")

ROLES: dict[str, tuple[str, ...]] = {
    "listen": ("listen",),
    "schedule": ("schedule",),
    "prepare": ("work", "--queue", "prepare"),
    "analyse": ("work", "--queue", "analyse"),
    "deliver": ("work", "--queue", "deliver"),
    "web": ("web",),
}
"""What `hlip serve` starts, a process each, with the arguments of `hlip`."""

RESTART_SECONDS = (0.5, 1, 2, 5, 10, 30)
STOP_SECONDS = 15
SCHEMA_WAIT_SECONDS = 60


def until_stopped() -> threading.Event:
    """An event that SIGTERM or SIGINT sets."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop


def wait_for(stop: threading.Event) -> None:
    """Until it is set. The kernel may give a signal to any thread; Python's main one then sees it within a second."""
    while not stop.wait(1.0):
        pass


def listen(plugin: Plugin) -> None:
    from plugin.listener import listening

    stop = until_stopped()
    with (
        plugin.audit.running(),
        listening(
            plugin.settings.listener,
            plugin.spool,
            services=plugin.services,
            ssl_context=plugin.ssl_context,
            audit=plugin.audit,
        ),
    ):
        wait_for(stop)


def schedule(plugin: Plugin) -> None:
    from plugin.scheduler import Scheduler
    from plugin.tasks import Bell, celery_app

    stop = until_stopped()
    plugin.database.upgrade()
    log.info("scheduling", index=plugin.database.engine.dialect.name)
    with plugin.audit.forwarding(), plugin.audit.running(), plugin.reporting_commitment():
        Scheduler(plugin.settings, plugin.spool, plugin.database, Bell(celery_app(plugin)), plugin.audit).run(stop)


def web(plugin: Plugin) -> None:
    from plugin.web.app import create_app
    from plugin.web.server import serving

    stop = until_stopped()
    with serving(create_app(plugin), plugin.settings.web):
        wait_for(stop)


def work(plugin: Plugin, queues: Sequence[str]) -> None:
    """Raises TimeoutError where no scheduler has brought the index to this version."""
    from plugin.tasks import run_worker

    deadline = time.monotonic() + SCHEMA_WAIT_SECONDS
    while not plugin.database.is_current():
        if time.monotonic() > deadline:
            raise TimeoutError("the index is not of this version: start `hlip schedule` (or `hlip serve`) first")
        time.sleep(0.5)
    if {"prepare", "analyse"} & set(queues):
        log.info("model", name=plugin.bundle.name, status=plugin.bundle.status)
    if "prepare" in queues:
        plugin.sandbox.start()
    if "analyse" in queues:
        plugin.bundle.model(plugin.device)  # now, so that the first study does not wait for it
    if "deliver" in queues:
        plugin.check_certificates()
    with plugin.audit.running():
        run_worker(plugin, tuple(queues))


@dataclass
class _Child:
    role: str
    process: subprocess.Popen
    started: float
    quick_deaths: int = 0
    restart_at: float = 0.0


class Supervisor:
    """Keeps one process a role alive: one that dies is started again, the sooner the longer it lived."""

    def __init__(self, plugin: Plugin, config: Path | None) -> None:
        self._plugin = plugin
        self._config = config
        self._children: list[_Child] = []

    def run(self) -> None:
        stop = until_stopped()
        self._plugin.check_certificates()
        self._plugin.database.upgrade()
        self._children = [_Child(role, self._start(role), time.monotonic()) for role in ROLES]
        try:
            while not stop.wait(0.25):
                for child in self._children:
                    self._look_after(child)
        finally:
            self._stop()

    def _start(self, role: str) -> subprocess.Popen:
        config = ("--config", str(self._config)) if self._config else ()
        return subprocess.Popen([sys.executable, "-P", "-m", "plugin", *ROLES[role], *config])

    def _look_after(self, child: _Child) -> None:
        if child.process.poll() is None:
            return
        now = time.monotonic()
        if not child.restart_at:
            child.quick_deaths = 0 if now - child.started > 60 else child.quick_deaths + 1
            wait = RESTART_SECONDS[min(child.quick_deaths, len(RESTART_SECONDS) - 1)]
            child.restart_at = now + wait
            log.error("died", role=child.role, exit_code=child.process.returncode, restart_seconds=wait)
        elif now >= child.restart_at:
            child.process, child.started, child.restart_at = self._start(child.role), now, 0.0
            log.warning("restarted", role=child.role, pid=child.process.pid)

    def _stop(self) -> None:
        for child in self._children:
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for child in self._children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Ask the kernel to end this process by a signal when the one that started it dies, however it dies (Linux)."""
    if sys.platform == "linux":
        import ctypes

        parent = os.getppid()
        ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os.kill(os.getpid(), number)
