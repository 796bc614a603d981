"""Series are prepared in a process of their own, so that a poisonous one crashes, bloats or hangs that process only.

A worker has one such child, started when it is first needed and kept for series after series. It is replaced when it
dies, takes longer than its time, or reaches its memory limit. Jobs go to it pickled; its answers are JSON, since what
comes from a process that reads hostile files is hostile too.
"""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pydicom

from hlip_core.errors import Refused
from hlip_core.headers import MALFORMED
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan
from plugin.preparation import Job, prepare_series

CHILD = (sys.executable, "-P", "-m", "plugin.sandbox")
ANSWER_BYTES = 1 << 20
READY = b"ready"
START_SECONDS = 60
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "BLOSC_NTHREADS"), "1")
"""Threads reserve address space, which counts against the limit, and save no time on one series."""
GIVE_BACK = dict.fromkeys(("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(1 << 20))
"""Bytes. Left alone, glibc raises both with the arrays that it sees, and the child keeps what one series took."""


class Died(Exception):
    """The child crashed or ran out of time; the text says how. It may be the series or the machine: try again."""


def cause_of(error: BaseException) -> str:
    """Type and place of an exception, without its text, which may quote a header."""
    place, trace = "", error.__traceback__
    while trace is not None:
        place = f"{trace.tb_frame.f_globals.get('__name__', '?')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(error).__name__} at {place}"


# ---- the worker's side ---------------------------------------------------------------------------------------


@dataclass
class _Child:
    process: subprocess.Popen
    connection: Connection
    has_served: bool = False

    def wait_until_ready(self) -> None:
        """Raises Died."""
        try:
            if self.connection.poll(START_SECONDS) and self.connection.recv_bytes(len(READY)) == READY:
                return
        except (EOFError, OSError):
            pass
        self.process.kill()
        raise Died("the child process did not start")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _start(command: Sequence[str], memory_bytes: int) -> _Child:
    ours, theirs = Pipe()
    with theirs:
        # the settings' secrets are not for a process that may be taken over
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HLIP_")}
        process = subprocess.Popen(
            [*command, str(theirs.fileno()), str(memory_bytes)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=kept | ONE_THREAD | GIVE_BACK,
        )
    return _Child(process, ours)


class Sandbox:
    """Prepares series in a child process, one at a time.

    Args:
        memory_gigabytes: what a series may take beyond the child's own size (Linux only); 0: no limit.
        timeout_seconds: by the wall clock; 0: no limit.
        command: the child's, for tests; given the number of its connection and the memory limit in bytes.
    """

    def __init__(
        self, *, memory_gigabytes: float = 0, timeout_seconds: float = 0, command: Sequence[str] = CHILD
    ) -> None:
        self._memory_gigabytes = memory_gigabytes
        self._timeout_seconds = timeout_seconds
        self._command = command
        self._lock = threading.Lock()
        self._child: _Child | None = None
        self._finalizer: weakref.finalize | None = None

    def prepare(self, job: Job) -> tuple[str, ...]:
        """Prepare a series, see `prepare_series`; the scan's notes.

        Raises:
            Refused: with the reason why this series is not analysed.
            Died: the child crashed, ran out of time, or failed in a way that no rule foresaw.
            OSError: the disk failed, not the series.
        """
        with self._lock:
            was_used = self._running().has_served
            answer = self._ask(job)
            if was_used and answer.get("outcome") == "no memory":  # it may have been the series before: a new child
                answer = self._ask(job)
        match answer:
            case {"outcome": "prepared", "notes": notes}:
                return tuple(map(str, notes))
            case {"outcome": "refused", "reason": reason, "detail": detail}:
                raise Refused(Reason(reason), str(detail))
            case {"outcome": "no memory"}:
                raise Refused(Reason.TOO_LARGE, f"needs more than {self._memory_gigabytes:g} GB of memory")
            case {"outcome": "disk", "errno": int(number)}:
                raise OSError(number, os.strerror(number))
            case {"cause": cause}:
                raise Died(str(cause))
        raise Died("the answer is not one")

    def start(self) -> None:
        """Start the child now, so that the first series does not wait for it. Raises Died."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the child; the next series starts another."""
        if self._finalizer is not None:
            self._finalizer()
        self._child = None

    def _running(self) -> _Child:
        if self._child is None or self._child.process.poll() is not None:
            self.close()
            self._child = _start(self._command, int(self._memory_gigabytes * 1e9))
            self._finalizer = weakref.finalize(self, self._child.end)
            self._child.wait_until_ready()
        return self._child

    def _ask(self, job: Job) -> dict[str, Any]:
        child = self._running()
        child.has_served = True
        try:
            child.connection.send(job)
            if not child.connection.poll(self._timeout_seconds or None):
                raise Died(f"took longer than {self._timeout_seconds:g} s")
            answer = dict(json.loads(child.connection.recv_bytes(ANSWER_BYTES)))
        except (EOFError, OSError, ValueError, TypeError):
            how = _how_it_died(child)
            self.close()
            raise Died(how) from None
        except BaseException:  # out of time, or Ctrl-C: else the next series would be given this one's answer
            self.close()
            raise
        if answer.get("outcome") in ("no memory", "disk"):  # what it holds now, it may never give back
            self.close()
        return answer


def _how_it_died(child: _Child) -> str:
    try:
        code = child.process.wait(1)
    except subprocess.TimeoutExpired:
        return "the answer is not one"
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"died of {name}"


# ---- the child's side ----------------------------------------------------------------------------------------


def serve(connection: Connection, prepare: Callable[[Job], PreparedScan] = prepare_series) -> None:
    """The child's life: a job in, an answer out, until the worker hangs up."""
    connection.send_bytes(READY)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send_bytes(json.dumps(_answer(job, prepare)).encode())


def _answer(job: Job, prepare: Callable[[Job], PreparedScan]) -> dict[str, Any]:
    try:
        return {"outcome": "prepared", "notes": prepare(job).notes}
    except Refused as refusal:
        return {"outcome": "refused", "reason": str(refusal.reason), "detail": refusal.detail}
    except MemoryError:
        return {"outcome": "no memory"}
    except (RuntimeError, *MALFORMED) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return {"outcome": "no memory"}
        if isinstance(error, OSError) and error.errno is not None:
            return {"outcome": "disk", "errno": error.errno}
        return {"outcome": "failed", "cause": cause_of(error)}


def confine(memory_bytes: int) -> None:
    """Take from this process what it does not need.

    No output (libraries print what they read), no core dump (it would hold the patient's images), no more memory
    than `memory_bytes` on top of what it has. The worker ends it; signals meant for the worker's group do not.
    """
    from plugin.roles import die_with_parent

    die_with_parent(signal.SIGKILL)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        if memory_bytes:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + memory_bytes
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        Path("/proc/self/oom_score_adj").write_text("500")  # when the machine has no memory left, this one goes first


def main(prepare: Callable[[Job], PreparedScan] = prepare_series) -> None:
    """Arguments: the number of the connection to the worker, and the memory limit in bytes."""
    number, memory_bytes = map(int, sys.argv[1:])
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    with Connection(number) as connection:
        confine(memory_bytes)
        serve(connection, prepare)


if __name__ == "__main__":
    main()
