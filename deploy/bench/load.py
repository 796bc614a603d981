"""Benchmark of the whole road: ten senders at once, PostgreSQL, RabbitMQ, Orthanc as destination. Linux only.

    python deploy/bench/load.py [--studies 200] [--senders 10] [--bundle DIR] [--prepare 1] [--analyse 1] [--small]

Synthetic head CTs (a few series each) under UIDs of their own are sent by dcmsend, study after study, by all senders at
once. The settings are those that a site has (a series settles after 3 s, a study after 10 s); each role is a process.
Printed are studies an hour from the first association until the last result is in Orthanc, the latency of a study from
its last acknowledged image until it is reported and until all its results are delivered, with the quiet time in it, and
CPU seconds and peak memory by role. At the end every study must be reported and delivered, else the exit code is 1.
The table of sizes in deploy/OPERATE.md is made of it. The bundle that comes along has a model that takes no time: give
--bundle for the time of yours.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from statistics import quantiles

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from faults import material
from faults.servers import Orthanc, PostgreSQL, RabbitMQ, Redis, descendants
from faults.stack import Stack
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from soak import renamed
from sqlalchemy import select

from plugin.index.database import Database
from plugin.index.tables import Delivery, Event, Result, Revision, Study
from plugin.lifecycle import DELIVERY_DONE, STUDY_DONE, DeliveryState, StudyState
from plugin.roles import ROLES

AS_A_SITE = {
    "HLIP_SETTLE__SERIES_QUIET_SECONDS": "3",
    "HLIP_SETTLE__STUDY_QUIET_SECONDS": "10",
    "HLIP_SETTLE__TICK_SECONDS": "0.25",
    "HLIP_WORKERS__LEASE_SECONDS": "30",
    "HLIP_DELIVERY__FIRST_RETRY_SECONDS": "5",
    "HLIP_DELIVERY__TIMEOUT_SECONDS": "60",
    "HLIP_LOG__LEVEL": "warning",
}
"""What the fault bench's stack sets smaller is as it comes again."""
BROKERS = {"rabbitmq": RabbitMQ, "redis": Redis}
TICKS = 100.0  # of proc(5), a second
console = Console(width=120)


@dataclass
class Load:
    """What the senders share: studies to send, and when each was whole here, by the time of day."""

    waiting: Queue[material.Study] = field(default_factory=Queue)
    whole_at: dict[str, float] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    num_instances: int = 0


def send(load: Load, port: int) -> None:
    """One sender: study after study, an association each, until none waits."""
    while True:
        try:
            study = load.waiting.get_nowait()
        except Empty:
            return
        paths = [str(item.path) for item in study.items]
        done = subprocess.run(
            ["dcmsend", "-nh", "-aet", "LOAD", "-aec", "HLIP", "127.0.0.1", str(port), *paths],
            capture_output=True,
            check=False,
        )
        load.whole_at[study.uid] = time.time()
        if done.returncode:
            load.failed.append(study.name)


# ---- what the roles cost -----------------------------------------------------------------------------------------


@dataclass
class Cost:
    """Of one role's processes, with their children."""

    cpu_seconds: float = 0.0
    peak_mb: float = 0.0


def cost(pids: Sequence[int]) -> Cost:
    """CPU so far, and the sum of the peaks (proc(5))."""
    found = Cost()
    for pid in {child for parent in pids for child in descendants(parent)}:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:  # it has just ended
            continue
        found.cpu_seconds += sum(map(int, words[11:13])) / TICKS
        if "VmHWM:" in status:
            found.peak_mb += int(status.split("VmHWM:")[1].split()[0]) / 1024
    return found


class Meter:
    """The highest that was seen of each role, read every second: children come and go."""

    def __init__(self, pids: dict[str, list[int]]) -> None:
        self._pids = pids
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._before = {role: cost(pids[role]) for role in pids}
        self.found: dict[str, Cost] = {role: Cost() for role in pids}

    def __enter__(self) -> "Meter":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            for role, pids in self._pids.items():
                now, seen = cost(pids), self.found[role]
                seen.cpu_seconds = max(seen.cpu_seconds, now.cpu_seconds - self._before[role].cpu_seconds)
                seen.peak_mb = max(seen.peak_mb, now.peak_mb)


# ---- the stack ---------------------------------------------------------------------------------------------------


class Site(Stack):
    """The stack of the fault bench, with as many workers of a kind as wanted."""

    def start_more(self, role: str, count: int) -> None:
        for number in range(count):
            with (self.folder / f"{role}-{number}.log").open("ab") as log:
                self._processes[f"{role}-{number}"] = subprocess.Popen(
                    [sys.executable, "-P", "-m", "plugin", *ROLES[role]],
                    env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                )  # fmt: skip

    def pids(self) -> dict[str, list[int]]:
        """Process IDs by role."""
        found: dict[str, list[int]] = {}
        for name, process in self._processes.items():
            found.setdefault(name.partition("-")[0], []).append(process.pid)
        return found


@contextmanager
def servers(folder: Path, broker_kind: type[RabbitMQ] | type[Redis]) -> Iterator[dict[str, str]]:
    """PostgreSQL, a broker and Orthanc, and the settings that name them."""
    with ExitStack() as stack:
        started = []
        for kind in (PostgreSQL, broker_kind, Orthanc):
            server = kind(folder / kind.name.lower())
            stack.callback(server.stop)
            server.start()
            started.append(server)
        database, broker, pacs = started
        assert isinstance(database, PostgreSQL) and isinstance(broker, RabbitMQ | Redis)
        database.wipe()
        yield {
            "HLIP_INDEX__URL": database.url,
            "HLIP_BROKER__URL": broker.url,
            "HLIP_DESTINATIONS": f'[{{"name": "pacs", "url": "http://127.0.0.1:{pacs.port}/dicom-web"}}]',
        }


@contextmanager
def site(folder: Path, variables: dict[str, str], *, prepare: int, analyse: int) -> Iterator[Site]:
    """All roles, ready for senders, stopped at the end."""
    running = Site(folder, variables)
    try:
        running.start()
        running.start_more("prepare", prepare - 1)
        running.start_more("analyse", analyse - 1)
        running.wait_for_senders()
        time.sleep(5)  # the model is loaded, the first ticks are over
        yield running
    finally:
        running.stop()


# ---- one run -----------------------------------------------------------------------------------------------------


def is_done(database: Database, count: int) -> bool:
    with database.read() as session:
        studies = list(session.scalars(select(Study.state)))
        if len(studies) < count or not set(studies) <= STUDY_DONE:
            return False
        return set(session.scalars(select(Delivery.state).distinct())) <= DELIVERY_DONE


def finished(database: Database) -> tuple[dict[str, float], dict[str, float]]:
    """When each study was reported, and when the last of its results was delivered, by StudyInstanceUID."""
    with database.read() as session:
        reported = select(Study.study_instance_uid, Event.at).join(Event, Event.study_id == Study.id)
        rows = session.execute(reported.where(Event.stage == "analysed", Study.state == StudyState.REPORTED)).all()
        at = {uid: moment for uid, moment in rows}
        delivered = (
            select(Study.study_instance_uid, Delivery.delivered_at)
            .join(Revision, Revision.study_id == Study.id)
            .join(Result, Result.revision_id == Revision.id)
            .join(Delivery, Delivery.result_id == Result.id)
            .where(Delivery.state == DeliveryState.DELIVERED)
        )
        last: dict[str, float] = {}
        for uid, moment in session.execute(delivered).all():
            last[uid] = max(last.get(uid, 0.0), moment or 0.0)
    return at, last


def run(options: argparse.Namespace, folder: Path) -> int:
    phantoms = [study for study in material.studies(folder / "phantoms") if study.is_head]
    bundle = options.bundle or material.bundle(folder / "bundle")
    load = Load()
    for number in range(options.studies):
        study = renamed(phantoms[number % len(phantoms)], number, folder / "sent" / f"{number:06}")
        load.waiting.put(study)
        load.num_instances += len(study.items)
    with servers(folder, BROKERS[options.broker]) as urls:
        variables = {
            **AS_A_SITE,
            "HLIP_MODEL__BUNDLE": str(bundle),
            "HLIP_MODEL__THREADS": str(options.threads),
            **urls,
        }
        with site(folder, variables, prepare=options.prepare, analyse=options.analyse) as running:
            database = Database(running.index_url, lock=folder / "lock")
            try:
                return measure(options, load, running, database)
            finally:
                database.close()


def measure(options: argparse.Namespace, load: Load, running: Site, database: Database) -> int:
    """Send everything, wait for the last result, and print what it took."""
    count, began = options.studies, time.time()
    senders = [threading.Thread(target=send, args=(load, running.port)) for _ in range(options.senders)]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Meter(running.pids()) as meter, Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        sent = progress.add_task("sent", total=count)
        for sender in senders:
            sender.start()
        while not is_done(database, count) and time.time() - began < options.minutes * 60:
            progress.update(sent, completed=len(load.whole_at))
            time.sleep(0.5)
        for sender in senders:
            sender.join()
    reported, delivered = finished(database)
    show(options, load, began, reported, delivered, meter.found)
    lost = [uid for uid in load.whole_at if uid not in reported or uid not in delivered]
    if lost or load.failed:
        console.print(
            f"[red]{len(lost)} studies are not reported and delivered, {len(load.failed)} were not taken.[/red]"
        )
    return 1 if lost or load.failed else 0


def show(
    options: argparse.Namespace,
    load: Load,
    began: float,
    reported: dict[str, float],
    delivered: dict[str, float],
    costs: dict[str, Cost],
) -> None:
    seconds = max(delivered.values(), default=began) - began
    console.print(
        f"{len(delivered)} studies ({load.num_instances} instances) by {options.senders} senders in {seconds:.0f} s: "
        f"[bold]{len(delivered) / max(seconds, 1e-9) * 3600:.0f} studies/h[/bold], "
        f"{options.prepare} prepare, {options.analyse} analyse"
    )
    table = Table("seconds after the last image was acknowledged", "median", "95 %", "99 %", "longest", width=100)
    for name, ends in (("reported", reported), ("all results delivered", delivered)):
        waits = sorted(end - load.whole_at[uid] for uid, end in ends.items())
        if len(waits) > 1:
            cuts = quantiles(waits, n=100, method="inclusive")
            table.add_row(name, *(f"{value:.1f}" for value in (cuts[49], cuts[94], cuts[98], waits[-1])))
    console.print(table)
    by_role = Table("role", "CPU s", "CPU s/study", "peak MB", width=100)
    for role, used in costs.items():
        by_role.add_row(
            role, f"{used.cpu_seconds:.1f}", f"{used.cpu_seconds / options.studies:.2f}", f"{used.peak_mb:.0f}"
        )
    console.print(by_role)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200, help="how many are sent")
    parser.add_argument("--senders", type=int, default=10, help="how many send at once")
    parser.add_argument("--prepare", type=int, default=1, help="workers that prepare")
    parser.add_argument("--analyse", type=int, default=1, help="workers that analyse")
    parser.add_argument("--broker", choices=list(BROKERS), default="rabbitmq")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each model; 0: as many as torch likes")
    parser.add_argument("--bundle", type=Path, help="a bundle's folder; without: an untrained one that takes no time")
    parser.add_argument("--minutes", type=float, default=60, help="give up after so long")
    parser.add_argument("--folder", type=Path, help="a new folder on a real disk; emptied afterwards")
    parser.add_argument("--small", action="store_true", help="ten studies: does it run at all?")
    options = parser.parse_args()
    if options.small:
        options.studies = 10
    return options


def main() -> int:
    options = parse()
    missing = [why for kind in (PostgreSQL, BROKERS[options.broker], Orthanc) if (why := kind.missing())]
    if shutil.which("dcmsend") is None:
        missing.append("dcmsend is not installed (Debian: dcmtk)")
    if missing:
        console.print("\n".join(missing))
        return 1
    # not in the home folder: PostgreSQL's own user must get there
    folder = options.folder or Path(tempfile.mkdtemp(prefix="hlip-load-", dir="/var/tmp"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return run(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
