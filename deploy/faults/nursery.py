"""Roles with their libraries loaded: a round's processes are born by fork, for a tenth of the processor's time.

Every one is a process of its own all the same, and what is started again after a fault is started from nothing. Run as
a program this is the mother: a JSON line in, with what to run and where; the number of the new process out.
"""

import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOADED = (
    "celery.apps.worker", "celery.concurrency.solo", "celery.fixups.django", "celery.worker.consumer",
    "kombu.transport.pyamqp", "kombu.transport.redis", "plugin.audit", "plugin.cli", "plugin.listener",
    "plugin.scheduler", "plugin.tasks", "plugin.web.app", "plugin.web.server", "psycopg", "hlip_core.model",
    "hlip_core.relevance", "hlip_core.zero_shot", "timm", "torch",
)  # fmt: skip
"""What the roles would load at their start or with their first piece of work. What is not there is left out."""


class Born:
    """A process of the mother's, with as much of `subprocess.Popen` as is needed."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self._handle = -1

    def poll(self) -> int | None:
        """None while it lives; its exit code is the mother's."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        if (code := self._ended(timeout)) is None:
            raise subprocess.TimeoutExpired("role", timeout or 0)
        return code

    def _ended(self, seconds: float | None) -> int | None:
        if self._handle < 0:
            return 0
        if not select.select([self._handle], [], [], seconds)[0]:
            return None
        os.close(self._handle)
        self._handle = -1
        return 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Nursery:
    """The mother, from our side."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HLIP_")}
        self._mother = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def start(self, arguments: Sequence[str], environment: dict[str, str], log: Path) -> Born:
        """`hlip` with such arguments. Raises OSError where the mother is gone."""
        assert self._mother.stdin and self._mother.stdout
        order = {"arguments": list(arguments), "environment": environment, "log": str(log)}
        self._mother.stdin.write(json.dumps(order) + "\n")
        self._mother.stdin.flush()
        answer = self._mother.stdout.readline()
        if not answer:
            raise OSError("the process that starts the roles has ended")
        return Born(int(answer))

    def close(self) -> None:
        assert self._mother.stdin and self._mother.stdout
        self._mother.kill()
        self._mother.wait()
        self._mother.stdin.close()
        self._mother.stdout.close()


# ---- the mother's side -------------------------------------------------------------------------------------------


def _bear(order: dict[str, Any]) -> int:
    """The number of a new process, which never returns from here."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), log, log)):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(Path(order["log"]).parent)
        sys.argv = ["hlip", *order["arguments"]]
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", 1), open(2, "w", 1)  # noqa: SIM115
        importlib.import_module("plugin.cli").main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    finally:
        os._exit(code)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel buries them
    for name in LOADED:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    for line in sys.stdin:
        print(_bear(json.loads(line)), flush=True)


if __name__ == "__main__":
    main()
