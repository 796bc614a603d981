"""The table of faults: what is done to the road, when, on what it runs then, and how studies are sent meanwhile."""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from .gate import ERRORS, HALVES
from .material import altered
from .rounds import Round, usual
from .senders import Sending
from .servers import SERVERS
from .world import RABBITMQ, REDIS, SQLITE, STACKS, is_possible

BOTH_WAYS = ("dcmsend", "dcmsend", "dcmsend", "stow")
ROLE_STACKS = (SQLITE, SQLITE, RABBITMQ, REDIS)
CLOCK = Path(__file__).parent / "clock.c"
CLOCK_STEPS = (-7200, -3600, -90, -15, 15, 90, 3600, 86400)
"""Seconds."""
SMALL_DISK_MEGABYTES = 32


def nothing(running: Round) -> None:
    """No fault."""


@dataclass(frozen=True)
class Kind:
    """A row of the table.

    moment: "at once", "sending" or "any time" (random), or a queue: while a worker of it is busy.
    before: done before our processes start. sending: who sends what. gates: ways of sending that go through a gate.
    missing: why it cannot be done here, empty where it can. long: an outage of minutes, only when asked for.
    """

    name: str
    says: str
    fault: Callable[[Round], None] = nothing
    moment: str = "any time"
    stacks: tuple[str, ...] = ROLE_STACKS
    before: Callable[[Round], None] = nothing
    sending: Callable[[Round], list[Sending]] = usual
    ways: tuple[str, ...] = BOTH_WAYS
    gates: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    disk_megabytes: int = 0
    missing: Callable[[], str] = lambda: ""
    long: bool = False
    is_born: bool = True

    def impossible(self) -> str:
        """Why no round of it can be run here; empty where one can."""
        reasons = [SERVERS["orthanc"].missing(), "" if shutil.which("dcmsend") else "no dcmsend (Debian: dcmtk)"]
        if not any(map(is_possible, self.stacks)):
            reasons += [SERVERS[name].missing() for stack in self.stacks for name in STACKS[stack]]
        return next(filter(None, [*reasons, self.missing()]), "")


# ---- kills -------------------------------------------------------------------------------------------------------


def kill_role(*roles: str) -> Callable[[Round], None]:
    """kill -9; the service manager starts it again after a while. None: all at once."""

    def fault(running: Round) -> None:
        running.stack.kill(*roles)
        running.did(f"killed {', '.join(roles) or 'everything'}")
        running.sleep(running.rng.uniform(0.1, 2.0))
        running.stack.start(*roles)

    return fault


def kill_server(name: str, shortest: float, longest: float) -> Callable[[Round], None]:
    """kill -9 of a server, and its return after so many seconds."""

    def fault(running: Round) -> None:
        server, away = running.world.server(name), running.rng.uniform(shortest, longest)
        server.kill()
        running.did(f"killed {server.name}, back after {away:.1f} s")
        running.sleep(away)
        server.start()

    return fault


def kill_sandbox(running: Round) -> None:
    """The child in which the prepare worker reads what came; as the kernel does when memory runs out."""
    if running.stack.kill_children("prepare"):
        running.did("killed the child of prepare")


# ---- the PACS ----------------------------------------------------------------------------------------------------


def close_pacs(shortest: float, longest: float) -> Callable[[Round], None]:
    """Connections are refused."""

    def fault(running: Round) -> None:
        away = running.rng.uniform(shortest, longest)
        running.world.gate.close()
        running.did(f"PACS refuses connections for {away:.1f} s")
        running.sleep(away)
        running.world.gate.open()

    return fault


def slow_pacs(running: Round) -> None:
    """Its answers trickle, for a while."""
    speed, seconds = running.rng.choice((20, 60, 200, 1000)), running.rng.uniform(3, 8)
    running.world.gate.bytes_per_second = speed
    running.did(f"PACS answers with {speed} bytes/s for {seconds:.1f} s")
    running.sleep(seconds)
    running.world.gate.bytes_per_second = 0


def tricky_pacs(tricks: tuple[str, ...]) -> Callable[[Round], None]:
    """The next deliveries meet one trick each."""

    def fault(running: Round) -> None:
        chosen = running.rng.choices(tricks, k=running.rng.randint(2, 6))
        running.world.gate.tricks.extend(chosen)
        running.wait(lambda: not running.world.gate.tricks, 60 * running.world.patience)
        running.did(f"PACS: {'; '.join(running.world.gate.played)}")

    return fault


# ---- the disk ----------------------------------------------------------------------------------------------------


def fill_disk(leave_bytes: int) -> Callable[[Round], None]:
    """Something else takes all of the disk but so many bytes, and gives it back after a while."""

    def fault(running: Round) -> None:
        ballast, seconds = running.stack.data / "ballast", running.rng.uniform(2, 6)
        end = time.monotonic() + seconds
        with ballast.open("wb", buffering=0) as file:
            while time.monotonic() < end:  # what others remove is taken too
                size = shutil.disk_usage(running.stack.data).free - leave_bytes
                with suppress(OSError):
                    if size > 0:
                        os.posix_fallocate(file.fileno(), file.seek(0, os.SEEK_END), size)
                running.sleep(0.05)
        ballast.unlink()
        running.did(f"{leave_bytes} bytes left on the disk for {seconds:.1f} s")

    return fault


def no_small_disk() -> str:
    """Mounting needs rights that not everyone has."""
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "hlip-faults", folder]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            return "a small tmpfs cannot be mounted here (root can)"
        subprocess.run(["umount", folder], check=True)
    return ""


# ---- the network, and senders with habits ------------------------------------------------------------------------


def cut_senders(running: Round) -> None:
    """Associations and requests that break off in the middle of an instance."""
    count = running.rng.randint(2, 6)
    running.gates["dcmsend"].plan(running.rng, count, most_bytes=200_000)
    running.gates["stow"].plan(running.rng, 1, most_bytes=200_000, how=("reset", "close"))
    running.wait(running.is_all_sent, 60 * running.world.patience)
    made = [how for gate in running.gates.values() for how in gate.made]
    running.did(f"cut {len(made)} senders: {', '.join(made)}")


def twice(running: Round) -> list[Sending]:
    """Each study by two senders at once, and again when it is done."""
    sendings = []
    for study in running.studies:
        sendings += [Sending(study.items, way, 2) for way in ("dcmsend", running.rng.choice(BOTH_WAYS))]
        sendings.append(Sending(study.items, "dcmsend", 1, starts=lambda study=study: running.is_done(study)))
    running.did("each study sent twice at once, and again later")
    return sendings


def twice_different(running: Round) -> list[Sending]:
    """Beside each study, some of its instances with other pixels; at the same time, and when it is done."""
    sendings = []
    for number, study in enumerate(running.studies):
        some = running.rng.sample(study.items, max(1, len(study.items) // 3))
        others = tuple(altered(some, running.folder / f"altered-{number}"))
        sendings.append(Sending(study.items, "dcmsend", 2))
        sendings.append(Sending(others, running.rng.choice(BOTH_WAYS), 1))
        sendings.append(Sending(others, "dcmsend", 1, starts=lambda study=study: running.is_done(study)))
    running.did("a third of the instances also with other content, at once and again later")
    return sendings


def out_of_order(running: Round) -> list[Sending]:
    """All instances of all studies in one heap, shuffled, by two senders."""
    heap = list(chain.from_iterable(study.items for study in running.studies))
    running.rng.shuffle(heap)
    running.did("instances of all studies in random order")
    return [Sending(tuple(heap[::2]), "dcmsend", 5), Sending(tuple(heap[1::2]), "dcmsend", 3)]


def late(running: Round) -> list[Sending]:
    """The last series, or the last slices of the only one, come when the study is done."""
    sendings = []
    for study in running.studies:
        *early, last = study.series
        if not early:
            early, last = [last[:-5]], last[-5:]
        sendings.append(Sending(tuple(chain.from_iterable(early)), "dcmsend", 1))
        sendings.append(Sending(tuple(last), "dcmsend", 1, starts=lambda study=study: running.is_done(study)))
    running.did("the last series of each study, or its last slices, after its report")
    return sendings


# ---- the clock ---------------------------------------------------------------------------------------------------


def start_clock(running: Round) -> None:
    """Our processes' time of day is off by the number in a file from now on."""
    clock, library = running.folder / "clock", running.folder / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(CLOCK)], check=True)
    clock.write_bytes(struct.pack("q", 0))
    running.stack.environment |= {"LD_PRELOAD": str(library), "FAULTS_CLOCK": str(clock)}


def step_clock(running: Round) -> None:
    """The time of day jumps, for all our processes at once."""
    step = running.rng.choice(CLOCK_STEPS)
    with (running.folder / "clock").open("r+b") as file:
        file.write(struct.pack("q", step))
    running.did(f"clock stepped by {step:+d} s")


def no_clock() -> str:
    is_possible = sys.platform == "linux" and shutil.which("cc")
    return "" if is_possible else "the clock of some processes alone needs Linux and a C compiler (Debian: gcc)"


KINDS: tuple[Kind, ...] = (
    Kind("nothing", "no fault: how long it takes anyway"),
    Kind("kill-listener", "kill -9 of `hlip listen` while senders send", kill_role("listen"), "sending"),
    Kind("kill-scheduler", "kill -9 of `hlip schedule`", kill_role("schedule")),
    Kind("kill-prepare", "kill -9 of the prepare worker while it works", kill_role("prepare"), "prepare"),
    Kind("kill-sandbox", "kill -9 of the child in which a series is prepared", kill_sandbox, "prepare"),
    Kind("kill-analyse", "kill -9 of the analyse worker while it works", kill_role("analyse"), "analyse"),
    Kind("kill-deliver", "kill -9 of the deliver worker while it works", kill_role("deliver"), "deliver"),
    Kind("kill-web", "kill -9 of `hlip web` while STOW-RS is under way", kill_role("web"), "sending", ways=("stow",)),
    Kind("kill-everything", "kill -9 of all roles at once; SQLite, embedded broker", kill_role(), stacks=(SQLITE,)),
    Kind("kill-postgresql", "kill -9 of PostgreSQL, back after 1-5 s", kill_server("postgresql", 1, 5),
         stacks=(RABBITMQ, REDIS)),
    Kind("kill-rabbitmq", "kill -9 of RabbitMQ, back after 1-5 s", kill_server("rabbitmq", 1, 5), stacks=(RABBITMQ,)),
    Kind("kill-redis", "kill -9 of Redis, which keeps nothing, back after 1-5 s", kill_server("redis", 1, 5),
         stacks=(REDIS,)),
    Kind("pacs-killed", "kill -9 of Orthanc, back after 1-5 s", kill_server("orthanc", 1, 5), "deliver"),
    Kind("pacs-down", "the PACS refuses connections for 3-8 s", close_pacs(3, 8)),
    Kind("pacs-slow", "the PACS answers drop by drop for 3-8 s", slow_pacs),
    Kind("pacs-errors", "the PACS answers 500 or 503, even to what it stored", tricky_pacs(ERRORS), "at once"),
    Kind("pacs-halves", "half of a request or an answer, none, or an empty one", tricky_pacs(HALVES), "at once"),
    Kind("disk-mark", "the disk is filled below the marks; senders are told 0xA700, workers wait",
         fill_disk(3_000_000), disk_megabytes=SMALL_DISK_MEGABYTES, missing=no_small_disk,
         variables={"HLIP_SPOOL__MIN_FREE_GIGABYTES": "0.006", "HLIP_SPOOL__WORKER_MIN_FREE_GIGABYTES": "0.005"}),
    Kind("disk-full", "the disk is filled to the last byte, and no mark warns of it",
         fill_disk(0), disk_megabytes=SMALL_DISK_MEGABYTES, missing=no_small_disk,
         variables={"HLIP_SPOOL__MIN_FREE_GIGABYTES": "0", "HLIP_SPOOL__WORKER_MIN_FREE_GIGABYTES": "0"}),
    Kind("cut-senders", "associations and requests cut in mid-instance", cut_senders, "at once",
         gates=("dcmsend", "stow")),
    Kind("sent-twice", "the same instances again, at once and later", moment="at once", sending=twice),
    Kind("sent-different", "the same UIDs with other content, at once and later", moment="at once",
         sending=twice_different),
    Kind("out-of-order", "instances of all studies in one heap", moment="at once", sending=out_of_order),
    Kind("late-series", "a series, or slices, after the report", moment="at once", sending=late),
    Kind("clock-step", "the clock steps by 15 s to a day, forward or back", step_clock, before=start_clock,
         stacks=(SQLITE,), missing=no_clock, is_born=False),
    Kind("kill-postgresql-long", "kill -9 of PostgreSQL, back after 2-4 minutes", kill_server("postgresql", 120, 240),
         stacks=(RABBITMQ,), long=True),
    Kind("kill-rabbitmq-long", "kill -9 of RabbitMQ, back after 2-4 minutes", kill_server("rabbitmq", 120, 240),
         stacks=(RABBITMQ,), long=True),
    Kind("kill-redis-long", "kill -9 of Redis, back after 2-4 minutes", kill_server("redis", 120, 240),
         stacks=(REDIS,), long=True),
    Kind("pacs-down-long", "the PACS refuses connections for 2-4 minutes", close_pacs(120, 240), long=True),
)  # fmt: skip
BY_NAME = {kind.name: kind for kind in KINDS}
