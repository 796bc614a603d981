"""Mixed load for an hour: does anything grow, does anything get slower, is anything lost?

    make soak [MINUTES=60]          # 5 in CI;  python deploy/soak.py --help

`hlip serve` on SQLite and the embedded broker, Orthanc as its destination, and several senders at once, who do what
senders do: new head CTs by dcmsend and STOW-RS, the same study again, late series, other content under the same UIDs,
reports, studies to be refused, associations that break off. Memory, open files and threads of each process are read
every few seconds. At the end the books must balance as in the fault bench, and the exit code is 1 where they do not,
where a process holds more memory than --limit times that after the warm-up, or more open files.
"""

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from faults import material
from faults.books import Books, check, is_quiet
from faults.gate import CuttingGate
from faults.load import Load, renamed, sender
from faults.servers import Orthanc, descendants, wait_until
from faults.stack import Stack
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from sqlalchemy import func, select

from plugin.index import tables
from plugin.index.database import Database
from plugin.spool import Spool

OUT = Path(__file__).resolve().parents[1] / ".cache" / "soak"
SAMPLE_SECONDS = 3.0
WINDOW_SHARE = 0.1
MOST_MORE_FILES = 3
SENDERS = 3
console = Console(width=120)


# ---- what is measured --------------------------------------------------------------------------------------------


def processes(pid: int) -> Iterator[tuple[str, int]]:
    """Those of `hlip serve`: its own, each role, and the child in which series are prepared."""
    for each in descendants(pid):
        with suppress(OSError):
            words = Path(f"/proc/{each}/cmdline").read_text().split("\0")
            if each == pid:
                yield "supervisor", each
            elif "plugin" in words:
                yield words[-2], each
            elif "plugin.sandbox" in words:
                yield "sandbox", each


def sample(pid: int) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "megabytes": int(status["VmRSS"].split()[0]) / 1024,
        "open_files": sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()),
        "threads": int(status["Threads"]),
        "pid": pid,
    }


Samples = dict[str, list[tuple[float, dict[str, float]]]]
"""By process: (seconds since the start, what was read)."""


def window(samples: Sequence[tuple[float, dict[str, float]]], begin: float, end: float) -> dict[str, float]:
    """Of a while: the median of memory, and the fewest open files and threads, since work in hand has some more."""
    inside = [values for at, values in samples if begin <= at <= end] or [samples[-1][1]]
    return {
        "megabytes": round(statistics.median(values["megabytes"] for values in inside), 1),
        "open_files": min(values["open_files"] for values in inside),
        "threads": min(values["threads"] for values in inside),
    }


def judged(samples: Samples, seconds: float, options: argparse.Namespace, problems: list[str]) -> dict[str, Any]:
    """Each process after the warm-up and at the end; what breaks a limit becomes a problem."""
    rows = {}
    length = max(3 * SAMPLE_SECONDS, WINDOW_SHARE * seconds)
    for name, of_process in samples.items():
        warm = window(of_process, options.warm_up * 60, options.warm_up * 60 + length)
        end = window(of_process, seconds - length, seconds)
        ratio = round(end["megabytes"] / warm["megabytes"], 3)
        starts = len({values["pid"] for _, values in of_process})
        rows[name] = {"warm": warm, "end": end, "ratio": ratio, "starts": starts}
        if starts > 1:
            problems.append(f"{name} was started {starts} times")
        if ratio > options.limit:
            problems.append(f"memory of {name}: {ratio:.2f} times that after the warm-up")
        if end["open_files"] > warm["open_files"] + MOST_MORE_FILES:
            problems.append(f"open files of {name}: {warm['open_files']:g}, at the end {end['open_files']:g}")
    return rows


def latencies(database: Database, whole_at: dict[str, float]) -> list[float]:
    """Seconds from each study's last acknowledgement to its last delivery."""
    query = (
        select(tables.Study.study_instance_uid, func.max(tables.Event.at))
        .join(tables.Event, tables.Event.study_id == tables.Study.id)
        .where(tables.Event.stage == "delivered")
        .group_by(tables.Study.study_instance_uid)
    )
    with database.read() as session:
        return sorted(at - whole_at[uid] for uid, at in session.execute(query) if uid in whole_at)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    at = {"median": 0.5, "90 %": 0.9, "99 %": 0.99, "longest": 1.0}
    return {name: round(values[min(len(values) - 1, int(share * len(values)))], 2) for name, share in at.items()}


# ---- the run -----------------------------------------------------------------------------------------------------


@contextmanager
def serving(stack: Stack) -> Iterator[subprocess.Popen]:
    """`hlip serve`, up and answering, stopped at the end."""
    with (stack.folder / "serve.log").open("wb") as log:
        command = [sys.executable, "-P", "-m", "plugin", "serve"]
        server = subprocess.Popen(command, env=stack.environment, stdout=log, stderr=log, cwd=stack.folder)
    try:
        stack.wait_for_senders()
        yield server
    finally:
        server.terminate()
        server.wait(60)


def watch(server: subprocess.Popen, seconds: float, samples: Samples) -> None:
    """Sample for so long. Raises RuntimeError where the server ends."""
    columns = (TextColumn("soak"), BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
               TextColumn("{task.description}"))  # fmt: skip
    began = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=seconds)
        while (now := time.monotonic() - began) < seconds:
            if server.poll() is not None:
                raise RuntimeError("hlip serve has ended; see serve.log")
            for name, pid in processes(server.pid):
                with suppress(OSError, KeyError):  # it has just ended
                    samples[name].append((now, sample(pid)))
            total = sum(of_process[-1][1]["megabytes"] for of_process in samples.values())
            progress.update(task, completed=now, description=f"{total:.0f} MB in all")
            time.sleep(SAMPLE_SECONDS)


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; what was found, JSON-ready."""
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    made = OUT.parent / "faults"
    pacs = Orthanc(options.out / "orthanc")
    variables = {
        "HLIP_MODEL__BUNDLE": str(material.bundle(made / "untrained")),
        "HLIP_DESTINATIONS": json.dumps([{"name": "pacs", "url": f"http://127.0.0.1:{pacs.port}/dicom-web"}]),
        "HLIP_SETTLE__SERIES_QUIET_SECONDS": "1",
        "HLIP_SETTLE__STUDY_QUIET_SECONDS": "3",
        "HLIP_WORKERS__LEASE_SECONDS": "30",
        "HLIP_DELIVERY__TIMEOUT_SECONDS": "60",
    }
    stack = Stack(options.out, variables)
    load = Load(stack, options.out, material.studies(made / "phantoms"), gate=CuttingGate(stack.port))
    database = Database(stack.index_url, lock=options.out / "lock")
    samples: Samples = defaultdict(list)
    seconds, problems = options.minutes * 60, []
    every = options.every * SENDERS
    threads = [threading.Thread(target=sender, args=(load, seed, every)) for seed in range(SENDERS)]
    pacs.start()
    try:
        with serving(stack) as server:
            wait_until(database.is_current, "the index")
            for thread in threads:
                thread.start()
            try:
                watch(server, seconds, samples)
            finally:
                load.stop.set()
                for thread in threads:
                    thread.join()
            books = balanced(load, database, Spool(stack.data, min_free_gigabytes=0), pacs, problems)
        found = latencies(database, load.whole_at)
    finally:
        database.close()
        pacs.stop()
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "minutes": options.minutes,
        "warm_up_minutes": options.warm_up,
        "seconds_between_studies": options.every,
        "limit": options.limit,
        "studies": len(load.studies),
        "instances": books.acknowledged,
        "actions": dict(load.done),
        "processes": judged(samples, seconds, options, problems),
        "latency_seconds": percentiles(found) if found else {},
        "problems": problems + books.problems,
    }


def balanced(load: Load, database: Database, spool: Spool, pacs: Orthanc, problems: list[str]) -> Books:
    """Wait until all is quiet, then look. What was stopped in the middle of being sent is whole again by now."""
    rng = random.Random(0)
    load.stop.clear()
    for number, study in enumerate(load.studies):
        unsent = [item for item in study.items if item not in load.ledger.acknowledged]
        if unsent:
            phantom = next(each for each in load.phantoms if each.name == study.name.split()[0])
            load.send(renamed(phantom, number, load.folder / "rest").items, rng)
    try:
        wait_until(lambda: is_quiet(database, spool), "all to be quiet", seconds=300, every=0.5)
    except TimeoutError as error:
        problems.append(str(error))
    return check(load.ledger, load.studies, database, spool, pacs)


def show(found: dict[str, Any]) -> None:
    table = Table("process", "MB after warm-up", "at the end", "ratio", "open files", "at the end", "threads",
                  "at the end", title=f"{found['minutes']:g} minutes of mixed load")  # fmt: skip
    for name, row in found["processes"].items():
        pairs = [f"{row[when][key]:g}" for key in ("open_files", "threads") for when in ("warm", "end")]
        memory = (f"{row[when]['megabytes']:.0f}" for when in ("warm", "end"))
        table.add_row(name, *memory, f"{row['ratio']:.2f}", *pairs)
    console.print(table)
    console.print(f"{found['studies']} studies, {found['instances']} instances; {found['actions']}")
    console.print(f"last instance -> results in the PACS, seconds: {found['latency_seconds']}")
    for problem in found["problems"]:
        console.print(f"[red]{problem}[/red]")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--warm-up", type=float, help="minutes; a tenth of all without, but one at least")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two studies, in the mean")
    parser.add_argument("--limit", type=float, default=1.1, help="memory at the end against that after the warm-up")
    parser.add_argument("--out", type=Path, default=OUT, help="emptied first; soak.json is written there")
    options = parser.parse_args()
    if options.warm_up is None:
        options.warm_up = min(max(1.0, options.minutes / 10), options.minutes / 2)
    options.out = options.out.resolve()
    return options


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    missing = Orthanc.missing() or ("" if shutil.which("dcmsend") else "dcmsend is missing (Debian: dcmtk)")
    if missing:
        console.print(missing)
        return 1
    found = soak(options)
    (options.out / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    show(found)
    return 1 if found["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
