"""Benchmark of C-STORE reception: instances/s from the first association until all is indexed. Linux only.

    python deploy/bench/ingest.py [--rounds 3] [--instances 545] [--associations 1 2 4] [--only hlip orthanc]

One synthetic CT study (545 instances of 512 x 512: 287 MB) is sent by dcmtk's dcmsend, split over the associations.
The systems run in turn, each with a fresh server in a fresh folder; Nagle's algorithm is off at both ends
(TCP_NODELAY=1), except in the last table. hlip is `hlip listen` and `hlip schedule`: fsync before each
acknowledgement, and it is done when the index has every instance. Orthanc is as it comes (SQLite, files), storescp
has no index and no fsync; storescp-synced has no index, but syncs as hlip does: what is left to gain for a receiver
that keeps the same promise. CPU is that of the server's processes, memory the sum of their peaks. Each ratio is the
median over the rounds of instances/s against Orthanc.

It needs 0.3 GB of disk for each run until its end. Files that are removed in between would slow down the next run: for
five minutes ext4 passes over the inodes of removed files, one by one, whenever a file is made near them (15 us become
hundreds). Choose a --folder where little was removed.
"""

import argparse
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from _ct_study import write_ct_study
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

HERE = Path(__file__).parent
FOLDER = HERE.parents[1] / ".cache" / "bench-ingest"
TICKS = os.sysconf("SC_CLK_TCK")
STOCK_INSTANCES = 100
LONGEST_SECONDS = 300.0
console = Console(width=120)


@dataclass(frozen=True)
class Server:
    """Args: `commands` start it in `folder` on `port`; `count` says how many instances it has there."""

    commands: Callable[[Path, int], list[list[str]]]
    count: Callable[[Path], int]
    tools: tuple[str, ...] = ()


def hlip(folder: Path, port: int) -> list[list[str]]:
    settings = folder / "hlip.toml"
    settings.write_text(f'[spool]\nfolder = "{folder}/data"\n[listener]\nport = {port}\n[log]\nlevel = "error"\n')
    return [[sys.executable, "-m", "plugin", role, "--config", str(settings)] for role in ("listen", "schedule")]


def indexed(folder: Path) -> int:
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(folder / "data" / "index.sqlite")) as index:
        return int(index.execute("SELECT count(*) FROM instance").fetchone()[0])
    return 0


def orthanc(folder: Path, port: int) -> list[list[str]]:
    settings = folder / "orthanc.json"
    settings.write_text(
        json.dumps(
            {
                "StorageDirectory": str(folder / "storage"),
                "IndexDirectory": str(folder / "storage"),
                "DicomAet": "ORTHANC",
                "DicomPort": port,
                "HttpPort": free_port(),
                "RemoteAccessAllowed": False,
                "AuthenticationEnabled": False,
                "Plugins": [],
            }
        )
    )
    return [["Orthanc", str(settings)]]


def in_orthanc(folder: Path) -> int:
    """It has indexed what it has answered, so it is asked at the beginning and at the end only."""
    port = json.loads((folder / "orthanc.json").read_text())["HttpPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/statistics", timeout=30) as answer:
        return int(json.load(answer)["CountInstances"])


def storescp(folder: Path, port: int) -> list[list[str]]:
    return [["storescp", "--fork", "--output-directory", str(folder), str(port)]]


def synced(folder: Path, port: int) -> list[list[str]]:
    """storescp with the listener's promise: the sync, the rename and the sync of the folder before each answer."""
    library = folder.parent / "_synced.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(HERE / "_synced.c"), "-ldl"], check=True)
    return [["env", f"LD_PRELOAD={library}", *command] for command in storescp(folder, port)]


def plain(folder: Path, port: int) -> list[list[str]]:
    return [[sys.executable, str(HERE / "_plain_pynetdicom.py"), str(port), str(folder)]]


def files(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


SERVERS = {
    "orthanc": Server(orthanc, in_orthanc, ("Orthanc",)),
    "hlip": Server(hlip, indexed),
    "storescp": Server(storescp, files, ("storescp",)),
    "storescp-synced": Server(synced, files, ("storescp", "cc")),
    "pynetdicom": Server(plain, files),
}
BASE = "orthanc"


@dataclass(frozen=True)
class Measured:
    per_second: float
    cpu_ms: float
    """Of the server's processes, per instance."""
    peak_mb: float


def processes(pid: int) -> Iterator[int]:
    """A process and its living descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from processes(int(child))


def cpu_seconds(pid: int) -> float:
    """Of a process, its descendants, and those that have ended (proc(5): utime, stime, cutime, cstime)."""
    total = 0
    for each in processes(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, fields[11:15]))
    return total / TICKS


def peak_mb(pid: int) -> float:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], what: str, *, every: float) -> None:
    end = time.monotonic() + LONGEST_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(every)


def is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def ended(started: Sequence[subprocess.Popen]) -> bool:
    return any(process.poll() is not None for process in started)


@contextmanager
def running(server: Server, folder: Path, port: int, environment: dict[str, str]) -> Iterator[list[int]]:
    """The process IDs of a server that takes associations."""
    folder.mkdir(parents=True)
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        started = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=HERE.parents[1])
            for command in server.commands(folder, port)
        ]
        try:
            wait_until(lambda: is_open(port) or ended(started), f"{folder.name} to listen", every=0.1)
            if ended(started):
                raise RuntimeError(f"{folder.name} ended at once; why is in {folder}.log")
            time.sleep(2)  # the schedulers and garbage of the start
            yield [process.pid for process in started]
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(30)


def send(paths: Sequence[Path], port: int, associations: int, environment: dict[str, str]) -> float:
    """Send everything; when the first association was requested (dcmsend reads all the files' headers before)."""
    command = ["dcmsend", "-v", "-aec", "ANY-SCP", "127.0.0.1", str(port)]
    senders = [
        subprocess.Popen(
            [*command, *map(str, paths[number::associations])],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        for number in range(associations)
    ]
    began = []
    for sender in senders:
        assert sender.stdout is not None
        line = next((line for line in sender.stdout if "equesting" in line or "stablish" in line), "")
        began.append(time.perf_counter())
        if not line:
            raise RuntimeError("dcmsend did not get as far as an association")
    for sender in senders:
        sender.communicate()
        if sender.returncode:
            raise RuntimeError(f"dcmsend failed with exit code {sender.returncode}")
    return min(began)


def measure(
    name: str, paths: Sequence[Path], associations: int, *, folder: Path, before: Path | None, nagle: bool
) -> Measured:
    """One run in `folder`; the run before it was in `before`."""
    server, port = SERVERS[name], free_port()
    environment = dict(os.environ) if nagle else os.environ | {"TCP_NODELAY": "1"}
    with running(server, folder, port, environment) as pids:
        if before is not None:
            forget(before)
        cpu_before, already = sum(map(cpu_seconds, pids)), server.count(folder)
        began = send(paths, port, associations, environment)
        wait_until(lambda: server.count(folder) - already >= len(paths), f"{name} to have them all", every=0.02)
        seconds = time.perf_counter() - began
        cpu = sum(map(cpu_seconds, pids)) - cpu_before
        return Measured(len(paths) / seconds, cpu / len(paths) * 1000, sum(map(peak_mb, pids)))


def forget(folder: Path) -> None:
    """Give the memory of a folder's cached files back: the next run uses it again at once, not other memory, which
    a virtual machine may first have to ask its host for, page by page."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def table(title: str, rows: dict[str, list[Measured]]) -> Table:
    shown = Table("system", "instances/s", "CPU ms/instance", "peak MB", "ratio", title=title, width=100)
    base = rows.get(BASE)
    for name, runs in rows.items():
        ratio = statistics.median(a.per_second / b.per_second for a, b in zip(runs, base, strict=True)) if base else 0
        shown.add_row(
            name,
            f"{statistics.median(run.per_second for run in runs):.0f}",
            f"{statistics.median(run.cpu_ms for run in runs):.2f}",
            f"{max(run.peak_mb for run in runs):.0f}",
            f"{ratio:.2f}" if base else "",
        )
    return shown


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each system is measured")
    parser.add_argument("--instances", type=int, default=545, help="size of the study")
    parser.add_argument("--associations", type=int, nargs="+", default=[1, 2, 4], help="a table for each number")
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), default=list(SERVERS), help="systems")
    parser.add_argument("--no-stock", action="store_true", help="without the table of stock senders")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="emptied before and after; not a tmpfs")
    return parser.parse_args()


def search_the_system_only() -> None:
    """pynetdicom brings a storescp of its own: in an activated environment it would be found before dcmtk's."""
    own = Path(sys.prefix) / "bin"
    os.environ["PATH"] = os.pathsep.join(path for path in os.environ["PATH"].split(os.pathsep) if Path(path) != own)


def main() -> int:
    options = parse()
    search_the_system_only()
    if shutil.which("dcmsend") is None:
        console.print("dcmsend is missing (Debian: dcmtk)")
        return 1
    names = [name for name in options.only if all(map(shutil.which, SERVERS[name].tools))]
    for name in sorted(set(options.only) - set(names)):
        console.print(f"{name} is left out: it is not installed (Debian: orthanc, dcmtk, gcc)")
    shutil.rmtree(options.folder, ignore_errors=True)
    paths = write_ct_study(options.folder / "study", instances=options.instances)
    plans = [(f"{n} association(s)", paths, n, False) for n in options.associations]
    if not options.no_stock:
        plans.append(("1 association, stock senders (Nagle on)", paths[:STOCK_INSTANCES], 1, True))
    results: dict[str, dict[str, list[Measured]]] = {}
    before = None
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("ingest", total=len(plans) * options.rounds * len(names))
        for number in range(options.rounds):
            for title, sent, associations, nagle in plans:
                for name in names:
                    progress.update(task, description=f"round {number + 1}, {title}: {name}")
                    folder = options.folder / f"{name}-{number}-{associations}-{len(sent)}{'-nagle' * nagle}"
                    run = measure(name, sent, associations, folder=folder, before=before, nagle=nagle)
                    before = folder
                    results.setdefault(title, {}).setdefault(name, []).append(run)
                    progress.advance(task)
    for title, _, _, _ in plans:
        console.print(table(f"C-STORE reception, {title}", results[title]))
    shutil.rmtree(options.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
