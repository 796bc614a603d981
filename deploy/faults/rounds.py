"""One round: real processes, real senders, a real PACS; something goes wrong; the books are checked."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from plugin.index.database import Database, IndexUnavailable
from plugin.index.leases import QUEUES
from plugin.index.tables import Study
from plugin.lifecycle import STUDY_DONE
from plugin.spool import Spool

from . import material
from .books import Books, check, is_quiet
from .gate import CuttingGate
from .senders import Ledger, Sending, send_all
from .stack import Stack
from .world import STACKS, World, is_possible

if TYPE_CHECKING:
    from .kinds import Kind

PATIENCE_SECONDS = 90.0
"""A round that is not quiet so long after its fault has failed."""


@dataclass
class Record:
    """What is written down of a round."""

    kind: str
    number: int
    seed: int
    stack: str
    fault: list[str]
    """What was done, in words."""
    books: Books
    recovery_seconds: float
    """From the end of the fault until all was quiet and everything in its place."""
    seconds: float
    """The whole round, with the start of the processes."""
    died: dict[str, int]
    """Roles that ended by themselves, and were started again."""
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))
    """How busy the machine was, with other work too."""
    at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S"))

    @property
    def ok(self) -> bool:
        return self.books.balance

    def row(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


class Round:
    """A round under way: what a fault may do, and what it needs to know.

    Args:
        world: what rounds share.
        rng: decides everything that chance decides.
        folder: of this round alone.
    """

    def __init__(self, world: World, kind: Kind, rng: random.Random, folder: Path) -> None:
        self.world, self.kind, self.rng, self.folder = world, kind, rng, folder
        self.stack_name = rng.choice([name for name in kind.stacks if is_possible(name)])
        self.fault: list[str] = []
        self.ledger = Ledger()
        heads = [study for study in world.studies if study.is_head]
        others = [study for study in world.studies if not study.is_head]
        self.studies = rng.sample(heads, rng.choice((1, 2))) + rng.sample(others, rng.choice((0, 0, 1)))
        self.stack = Stack(folder, self._variables(), world.nursery if kind.is_born else None)
        self.database = Database(self.stack.index_url, lock=folder / "lock")
        self.gates: dict[str, CuttingGate] = {}
        self.send_by_gate = False
        self._senders: list[threading.Thread] = []
        self._stop = threading.Event()

    def _variables(self) -> dict[str, str]:
        servers = STACKS[self.stack_name]
        self.world.wipe(("orthanc", *servers))
        variables = {
            "HLIP_MODEL__BUNDLE": str(self.world.bundle),
            "HLIP_DESTINATIONS": json.dumps([{"name": "pacs", "url": self.world.gate.url}]),
        }
        for name in servers:
            section = "INDEX" if name == "postgresql" else "BROKER"
            variables[f"HLIP_{section}__URL"] = self.world.server(name).url
        return {**variables, **self.kind.variables}

    @cached_property
    def spool(self) -> Spool:
        return Spool(self.stack.data, min_free_gigabytes=0)

    # ---- what a fault may do ---------------------------------------------------------------------------

    def did(self, what: str) -> None:
        self.fault.append(what)

    def sleep(self, seconds: float) -> None:
        """Let it go on for a while."""
        self.wait(lambda: False, seconds)

    def wait(self, condition: Callable[[], bool], seconds: float, *, every: float = 0.02) -> bool:
        """Until something holds; False after so many seconds. Our processes are looked after meanwhile."""
        end = time.monotonic() + seconds
        while not (holds := self._asked(condition)) and (left := end - time.monotonic()) > 0:
            self.stack.look_after()
            time.sleep(min(every, left))
        return holds

    @staticmethod
    def _asked(condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except (IndexUnavailable, OSError):  # the index, or its disk, is away
            return False

    def is_busy(self, queue: str) -> bool:
        """Whether a worker of that queue is at it right now."""
        table, busy = QUEUES[queue].table, QUEUES[queue].busy
        with self.database.read() as session:
            return session.scalar(select(table.id).where(table.state == busy).limit(1)) is not None

    def is_done(self, study: material.Study) -> bool:
        """Whether a study is reported or refused."""
        try:
            with self.database.read() as session:
                state = session.scalar(select(Study.state).where(Study.study_instance_uid == study.uid))
            return state in STUDY_DONE
        except IndexUnavailable:
            return False

    def is_all_sent(self) -> bool:
        """Everything was sent and acknowledged."""
        return not any(sender.is_alive() for sender in self._senders)

    def is_over(self) -> bool:
        """Everything was sent, and all work that follows from it is done."""
        if not self.is_all_sent():
            return False
        return is_quiet(self.database, self.spool) and all(self.is_done(study) for study in self.studies)

    # ---- from the start to the books -------------------------------------------------------------------

    def run(self, number: int, seed: int) -> Record:
        began = time.monotonic()
        try:
            self.kind.before(self)
            self.stack.start()
            self.stack.wait_for_senders()
            if not self.wait(self.database.is_current, 120):
                raise TimeoutError("no scheduler made the index")
            self._send()
            self._await_moment()
            self.kind.fault(self)
            over = time.monotonic()
            quiet = self._await_quiet()
            recovery = time.monotonic() - over
            books = self._check(quiet)
            late = self.stack.stop(patience=self.world.patience)
            books.wrong("in_progress", len(late), f"roles that SIGTERM does not end: {', '.join(late)}")
            return Record(
                self.kind.name, number, seed, self.stack_name, self.fault, books,
                recovery_seconds=round(recovery, 2), seconds=round(time.monotonic() - began, 2),
                died=dict(self.stack.died),
            )  # fmt: skip
        finally:
            self._stop.set()
            self.stack.stop()
            for sender in self._senders:
                sender.join()
            self.database.close()

    def _send(self) -> None:
        for number, sending in enumerate(self.kind.sending(self)):
            port = self.stack.port if sending.way == "dcmsend" else self.stack.web_port
            if self.send_by_gate:
                if sending.way not in self.gates:
                    raise ValueError(f"the fault has no gate for {sending.way}")
                port = self.gates[sending.way].port
            log = self.folder / f"sender-{number}.log"
            rng = random.Random(self.rng.random())
            arguments = (sending, port, self.ledger, log, rng, self._stop)
            self._senders.append(threading.Thread(target=send_all, args=arguments, daemon=True))
        for sender in self._senders:
            sender.start()

    def _await_moment(self) -> None:
        """A random one while things are sent, or at any time, or when a worker of a queue is busy."""
        moment = self.kind.moment
        if moment in QUEUES:
            if not self.wait(lambda: self.is_busy(moment), 60 * self.world.patience, every=0.005):
                self.did(f"(no {moment} worker was ever seen busy)")
            self.sleep(self.rng.uniform(0, 0.15))
        else:
            self.sleep(self.rng.uniform(0, {"at once": 0.0, "sending": 1.5, "any time": 4.0}[moment]))

    def _await_quiet(self) -> bool:
        """Twice, since between two looks something may just have come."""
        seconds = PATIENCE_SECONDS * self.world.patience
        return self.wait(lambda: self.is_over() and self.is_over(), seconds, every=0.1)

    def _check(self, quiet: bool) -> Books:
        if not quiet:
            self._stop.set()
            for sender in self._senders:
                sender.join(30)
        self.stack.look_after()
        books = check(self.ledger, self.studies, self.database, self.spool, self.world.orthanc)
        books.wrong(
            "in_progress", int(not quiet), f"round not quiet after {PATIENCE_SECONDS * self.world.patience:g} s"
        )
        return books


@contextmanager
def _disk(folder: Path, kind: Kind) -> Iterator[None]:
    """The data folder; on a small disk of its own where the kind wants one."""
    data = folder / "data"
    data.mkdir(parents=True)
    if not kind.disk_megabytes:
        yield
        return
    options = f"size={kind.disk_megabytes}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "hlip-faults", str(data)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(data)], check=True)


def run_round(world: World, kind: Kind, number: int, *, seed: int) -> Record:
    """One round. Its folder stays where the books do not balance.

    Raises what keeps a round from being one: a server or a process that does not start.
    """
    folder = world.folder / "rounds" / f"{kind.name}-{number}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    with ExitStack() as stack:
        stack.enter_context(_disk(folder, kind))
        world.gate.reset()
        rng = random.Random(f"{kind.name} {number} {seed}")
        running = Round(world, kind, rng, folder)
        for gate in kind.gates:
            port = running.stack.port if gate == "dcmsend" else running.stack.web_port
            running.gates[gate] = CuttingGate(port)
            stack.enter_context(closing(running.gates[gate]))
            running.send_by_gate = True
        record = running.run(number, seed)
        if not record.ok:
            (folder / "record.json").write_text(json.dumps(record.row(), indent=1) + "\n")
            if kind.disk_megabytes:
                shutil.copytree(folder / "data", folder / "data-kept", ignore_dangling_symlinks=True)
    if record.ok:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def usual(running: Round) -> list[Sending]:
    """Each study by a sender of its own, in a few associations or requests."""
    rng = running.rng
    return [
        Sending(study.items, rng.choice(running.kind.ways), rng.choice((1, 2, 3, 4)))
        for study in running.studies
    ]  # fmt: skip
