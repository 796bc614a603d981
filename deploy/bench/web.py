"""Benchmark of the page: server time of the worklist, and memory while browsers listen. Linux only.

    python deploy/bench/web.py [--studies 10000] [--listeners 50] [--rounds 20] [--seconds 20]

The index (SQLite) holds that many studies, reported with findings, a tenth of them critical. `hlip web` serves it as
a site does. Time is from the request to the last byte of the answer on a kept-alive connection, each request for
another list than the one before, so that none is answered from what was rendered last. Then listeners open
`/events`, a study changes every second, and each listener asks for the list when it is told, as a browser does.
"""

import argparse
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from ingest import HERE, console, free_port, wait_until
from rich.table import Table

from hlip_core.findings import FindingsTable
from plugin.bootstrap import Plugin
from plugin.index import worklist
from plugin.index.tables import Event, Revision, Study
from plugin.settings import Settings

FOLDER = HERE.parents[1] / ".cache" / "bench-web"
LIVE = {"X-Live": "1"}


def main() -> int:
    options = parse()
    shutil.rmtree(FOLDER, ignore_errors=True)
    plugin = Plugin(Settings(spool={"folder": FOLDER / "data"}))
    plugin.database.upgrade()
    fill(plugin, options.studies)
    with serving(FOLDER / "data") as (port, pid):
        times = {name: measure(port, path, options.rounds) for name, path in LISTS.items()}
        rows = [(name, f"{median(ms):.0f}", f"{quantiles(ms, n=20)[-1]:.0f}") for name, ms in times.items()]
        show(f"{options.studies} studies", ("list", "median (ms)", "95th (ms)"), rows)
        watch(plugin, port, pid, listeners=options.listeners, seconds=options.seconds)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--listeners", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=20, help="requests for each list")
    parser.add_argument("--seconds", type=float, default=20, help="how long the listeners listen")
    return parser.parse_args()


LISTS = {
    "first page": "/?days=&date=&start=0&q=%20{n}",
    "far page": "/worklist?days=&start={far}",
    "words": "/worklist?days=&q=name{n}",
    "a finding": "/worklist?days=&finding=mass_effect&q=%20{n}",
}


def fill(plugin: Plugin, count: int) -> None:
    """Studies of the last 30 days with a revision each; all names are numbers."""
    dice, now = random.Random(1), time.time()
    table_of_findings = FindingsTable.from_toml().findings
    with plugin.database.write() as session:
        for number in range(count):
            arrived = now - dice.random() * 30 * 86400
            study = Study(
                study_instance_uid=f"2.25.{number + 1}", patient_name=f"Name{number}^Given", patient_id=f"{number:08d}",
                study_date="20261124", study_description="CT HEAD", state="reported", priority=20, revision=1,
                first_image_at=arrived, last_image_at=arrived + 20,
            )  # fmt: skip
            session.add(study)
            session.flush()
            findings = [finding_row(finding, dice, number % 10 == 0) for finding in table_of_findings]
            session.add(Revision(study_id=study.id, number=1, inputs_digest="", content_digest="", bundle_digest="",
                                 preprocessing="", findings=findings, created_at=arrived + 60))  # fmt: skip
            worklist.note_reported(session, study.id, findings)


def finding_row(finding: Any, dice: random.Random, is_ill: bool) -> dict[str, Any]:
    is_positive = is_ill and dice.random() < 0.3
    return {"label": finding.label, "name": finding.name, "critical": finding.critical, "score": dice.random(),
            "probability": None, "threshold": 0.5, "positive": is_positive}  # fmt: skip


@contextmanager
def serving(data: Path) -> Iterator[tuple[int, int]]:
    """`hlip web` on a folder: its port and process id."""
    port = free_port()
    settings = FOLDER / "hlip.toml"
    settings.write_text(f'[spool]\nfolder = "{data}"\n[web]\nport = {port}\n[log]\nlevel = "error"\n')
    process = subprocess.Popen([sys.executable, "-m", "plugin", "web", "--config", str(settings)])
    try:
        wait_until(lambda: answers(port), "hlip web", every=0.2)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def answers(port: int) -> bool:
    try:
        return get(HTTPConnection("127.0.0.1", port, timeout=30), "/healthz") > 0
    except OSError:
        return False


def get(connection: HTTPConnection, path: str, headers: dict[str, str] | None = None) -> int:
    """The length of an answer. Raises OSError for one that is none."""
    connection.request("GET", path, headers=headers or {})
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        raise OSError(f"{path}: {answer.status}")
    return len(body)


def measure(port: int, path: str, rounds: int) -> list[float]:
    """Milliseconds of each request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    get(connection, path.format(n="", far=0))
    found = []
    for number in range(rounds):
        started = time.perf_counter()
        get(connection, path.format(n="" if "%20" in path else number, far=5000 + 50 * number))
        found.append((time.perf_counter() - started) * 1000)
        time.sleep(1.05 if "%20" in path else 0)  # the same list again is answered anew after a second
    return found


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    shown = Table(*columns, title=title)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def watch(plugin: Plugin, port: int, pid: int, *, listeners: int, seconds: float) -> None:
    """Memory before, while and after browsers listen, and how often they were told."""
    stop, told = threading.Event(), [0] * listeners
    before = megabytes(pid)
    threads = [threading.Thread(target=listen, args=(port, told, i, stop), daemon=True) for i in range(listeners)]
    for thread in threads:
        thread.start()
    samples = []
    for number in range(int(seconds)):
        with plugin.database.write() as session:
            session.add(Event(study_id=number + 1, stage="assessed", at=time.time()))
        time.sleep(1)
        samples.append(megabytes(pid))
    stop.set()
    half = len(samples) // 2
    rows = [
        ("before", f"{before:.0f}", ""),
        ("first half", f"{max(samples[:half]):.0f}", ""),
        ("second half", f"{max(samples[half:]):.0f}", f"{min(told)} to {max(told)}"),
    ]
    show(f"{listeners} listeners, a change a second", ("when", "memory (MB)", "told, each"), rows)


def listen(port: int, told: list[int], number: int, stop: threading.Event) -> None:
    stream, lists = (HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(2))
    stream.request("GET", "/events")
    answer = stream.getresponse()
    while not stop.is_set():
        if answer.readline().startswith(b"event: changed"):
            told[number] += 1
            get(lists, "/worklist?days=", LIVE)


if __name__ == "__main__":
    sys.exit(main())
