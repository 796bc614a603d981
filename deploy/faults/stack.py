"""Our own processes, a role each, as a service manager would keep them: one that ends is started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from plugin.roles import ROLES

from .nursery import Born, Nursery
from .servers import descendants, free_port, is_open, kill, wait_until

RESTART_SECONDS = 0.5
STOP_SECONDS = 60.0

QUICK = {
    "HLIP_SETTLE__SERIES_QUIET_SECONDS": "0.5",
    "HLIP_SETTLE__STUDY_QUIET_SECONDS": "1.0",
    "HLIP_SETTLE__TICK_SECONDS": "0.1",
    "HLIP_WORKERS__LEASE_SECONDS": "2",
    "HLIP_DELIVERY__FIRST_RETRY_SECONDS": "0.3",
    "HLIP_DELIVERY__LONGEST_RETRY_SECONDS": "2",
    "HLIP_DELIVERY__TIMEOUT_SECONDS": "3",
    "HLIP_DELIVERY__SEND_RESULTS_OF_UNTRAINED_OR_PHANTOM_MODELS": "true",
    "HLIP_THRESHOLDS": json.dumps({"intracranial_hemorrhage": -1.0}),
    "HLIP_MODEL__THREADS": "1",
    "HLIP_MODEL__DEVICE": "cpu",
    "HLIP_SPOOL__MIN_FREE_GIGABYTES": "0.05",
    "HLIP_SPOOL__WORKER_MIN_FREE_GIGABYTES": "0.02",
}
"""Waits that a site would not set so small; everything else is as it comes. One finding is always positive."""


class Stack:
    """The roles on one data folder.

    Processes must be started by one and the same thread: they end when the thread that started them does.

    Args:
        folder: where `data/` lies, and a log each role.
        variables: settings on top of `QUICK`.
        nursery: bears the processes of the first start. Without one, and whenever they start again, they start from
            nothing, as at a site.
    """

    def __init__(self, folder: Path, variables: dict[str, str], nursery: Nursery | None = None) -> None:
        self.folder = folder
        self._nursery = nursery
        self.data = folder / "data"
        self.port, self.web_port = free_port(), free_port()
        ours = {
            "HLIP_SPOOL__FOLDER": str(self.data),
            "HLIP_LISTENER__PORT": str(self.port),
            "HLIP_WEB__PORT": str(self.web_port),
        }
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HLIP_")}
        self.environment = {**clean, **QUICK, **ours, **variables}
        self.died: Counter[str] = Counter()
        self._processes: dict[str, subprocess.Popen | Born] = {}
        self._ended: dict[str, float] = {}
        self._away: set[str] = set()

    @property
    def index_url(self) -> str:
        return self.environment.get("HLIP_INDEX__URL", f"sqlite:///{self.data / 'index.sqlite'}")

    def start(self, *roles: str) -> None:
        """Start roles, all without any."""
        for role in roles or ROLES:
            self._away.discard(role)
            self._ended.pop(role, None)
            is_first = role not in self._processes
            self._processes[role] = self._born(role) if is_first and self._nursery else self._started(role)

    def _born(self, role: str) -> Born:
        assert self._nursery is not None
        return self._nursery.start(ROLES[role], self.environment, self.folder / f"{role}.log")

    def _started(self, role: str) -> subprocess.Popen:
        with (self.folder / f"{role}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "plugin", *ROLES[role]],
                env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip

    def wait_for_senders(self) -> None:
        """Until senders may come. Raises TimeoutError."""
        wait_until(lambda: is_open(self.port) and is_open(self.web_port), "the listener and the web server")

    def kill(self, *roles: str) -> None:
        """As by kill -9, all at once; they stay away until they are started."""
        self._away.update(roles or ROLES)
        for role in roles or ROLES:
            self._processes[role].kill()
        for role in roles or ROLES:
            self._processes[role].wait()

    def kill_children(self, role: str) -> int:
        """As by kill -9 of what a role has started. How many."""
        _, *children = descendants(self._processes[role].pid)
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return len(children)

    def look_after(self) -> None:
        """Start what has ended by itself; counted in `died`."""
        now = time.monotonic()
        for role, process in self._processes.items():
            if role in self._away or process.poll() is None:
                continue
            if role not in self._ended:
                self._ended[role] = now
                self.died[role] += 1
            elif now - self._ended[role] >= RESTART_SECONDS:
                self.start(role)

    def stop(self, *, patience: float = 1.0) -> list[str]:
        """Stop all by SIGTERM; the roles that did not end by it in time."""
        running = {role: process for role, process in self._processes.items() if process.poll() is None}
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        deadline, late = time.monotonic() + STOP_SECONDS * patience, []
        for role, process in running.items():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                late.append(role)
                kill(process)
        self._processes.clear()
        return late
