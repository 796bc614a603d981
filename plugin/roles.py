"""The processes that a site runs: listener, scheduler, workers, web; or all of them under one supervisor."""

import gc
import os
import signal
import socket
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

SIGNAL_ROLE: dict[str, tuple[str, ...]] = {"signal": ("work", "--queue", "signal")}
"""Also, where there are receivers of signals: a slow PACS is not to keep them waiting, nor they the PACS."""

RESTART_SECONDS = (0.5, 1, 2, 5, 10, 30)
STOP_SECONDS = 15
STOP_SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT))
SCHEMA_WAIT_SECONDS = 60


def until_stopped() -> threading.Event:
    """An event that SIGTERM or SIGINT sets.

    A thread sets it, not the handler: that runs in the middle of whatever the main thread does, be it a wait for this
    very event, whose lock it then waits for without end.
    """
    stop = threading.Event()
    heard, said = socket.socketpair()
    said.setblocking(False)
    signal.set_wakeup_fd(said.fileno(), warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    threading.Thread(target=_hear, args=(heard, said, stop), name="signals", daemon=True).start()
    return stop


def _hear(heard: socket.socket, said: socket.socket, stop: threading.Event) -> None:
    """Also keeps `said`, which Python writes the numbers of signals to, from being closed."""
    while not STOP_SIGNALS & set(heard.recv(1)):
        pass
    stop.set()


def listen(plugin: Plugin) -> None:
    from plugin.health import answering
    from plugin.listener import listening

    stop = until_stopped()
    with (
        answering(plugin, ("listen",)),
        plugin.audit.running(),
        listening(
            plugin.settings.listener,
            plugin.spool,
            services=plugin.services,
            ssl_context=plugin.ssl_context,
            audit=plugin.audit,
        ),
    ):
        stop.wait()


def schedule(plugin: Plugin) -> None:
    from plugin.health import answering
    from plugin.heartbeat import beating
    from plugin.scheduler import Scheduler
    from plugin.tasks import Bell, celery_app

    stop = until_stopped()
    plugin.database.upgrade()
    log.info("scheduling", index=plugin.database.engine.dialect.name)
    with (
        answering(plugin, ("schedule",)),
        plugin.audit.forwarding(),
        plugin.audit.running(),
        plugin.reporting_commitment(),
        beating(plugin, ("schedule",)),
    ):
        Scheduler(plugin.settings, plugin.spool, plugin.database, Bell(celery_app(plugin)), plugin.audit).run(stop)


def web(plugin: Plugin) -> None:
    from plugin.web.app import create_app
    from plugin.web.server import serving

    stop = until_stopped()
    with serving(create_app(plugin), plugin.settings.web):
        stop.wait()


def work(plugin: Plugin, queues: Sequence[str]) -> None:
    """Raises TimeoutError where no scheduler has brought the index to this version."""
    from plugin.health import answering
    from plugin.heartbeat import beating
    from plugin.tasks import run_worker

    with answering(plugin, queues):
        _make_ready(plugin, queues)
        gc.freeze()  # what was loaded stays: the collector need not look through it after every item, nor at the end
    with plugin.audit.running(), beating(plugin, queues):
        run_worker(plugin, tuple(queues))


def _make_ready(plugin: Plugin, queues: Sequence[str]) -> None:
    """Everything that the first item would else have to wait for, or fail of."""
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
        warn_of_zone(plugin)
        plugin.bundle.model(plugin.device)
    if "deliver" in queues:
        plugin.check_certificates()
    if "signal" in queues:
        plugin.check_signals()


def warn_of_zone(plugin: Plugin) -> None:
    """No hospital has its clocks at UTC without a name for it; containers have, and their results would say so."""
    if not plugin.settings.results.time_zone and time.tzname == ("UTC", "UTC"):
        log.warning("results say that the dates of the study are UTC: set results.time_zone to the zone of the site")


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
        self._roles = ROLES
        self._children: list[_Child] = []

    def run(self) -> None:
        stop = until_stopped()
        self._plugin.check_certificates()
        self._plugin.check_signals()
        self._plugin.database.upgrade()
        self._roles = ROLES | (SIGNAL_ROLE if self._plugin.settings.signals else {})
        self._children = [_Child(role, self._start(role), time.monotonic()) for role in self._roles]
        try:
            while not stop.wait(0.25):
                for child in self._children:
                    self._look_after(child)
        finally:
            self._stop()

    def _start(self, role: str) -> subprocess.Popen:
        config = ("--config", str(self._config)) if self._config else ()
        return subprocess.Popen([sys.executable, "-P", "-m", "plugin", *self._roles[role], *config])

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
