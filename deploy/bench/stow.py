"""Benchmark of STOW-RS reception: instances/s from the first request until the last instance is indexed. Linux only.

    python deploy/bench/stow.py [--rounds 3] [--instances 200] [--connections 1 2] [--per-request 1 50] [--only hlip]

One synthetic CT study (512 x 512, half a megabyte an instance) is posted over kept-alive connections, one or several
instances a request. hlip is `hlip web` and `hlip schedule`: fsync before each answer, and it is done when the index
has every instance. Orthanc is as it comes (DICOMweb plugin, SQLite, files, no fsync). The systems run in turn, each
with a fresh server in a fresh folder. CPU is that of the server's processes, memory the sum of their peaks.
"""

import argparse
import json
import os
import shutil
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

from _ct_study import write_ct_study
from ingest import (
    HERE,
    Measured,
    Server,
    console,
    cpu_seconds,
    free_port,
    indexed,
    peak_mb,
    running,
    table,
    wait_until,
)
from rich.console import Console
from rich.progress import Progress

FOLDER = HERE.parents[1] / ".cache" / "bench-stow"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
BOUNDARY = "hlip-bench"
HEAD = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\n\r\n".encode()
LAST = f"--{BOUNDARY}--\r\n".encode()
CONTENT_TYPE = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'


def hlip(folder: Path, port: int) -> list[list[str]]:
    settings = folder / "hlip.toml"
    settings.write_text(f'[spool]\nfolder = "{folder}/data"\n[web]\nport = {port}\n[log]\nlevel = "error"\n')
    return [[sys.executable, "-m", "plugin", role, "--config", str(settings)] for role in ("web", "schedule")]


def orthanc(folder: Path, port: int) -> list[list[str]]:
    settings = folder / "orthanc.json"
    content = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "DicomPort": free_port(),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
    }
    settings.write_text(json.dumps(content))
    return [["Orthanc", str(settings)]]


def in_orthanc(folder: Path) -> int:
    port = json.loads((folder / "orthanc.json").read_text())["HttpPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/statistics", timeout=30) as answer:
        return int(json.load(answer)["CountInstances"])


SERVERS = {"orthanc": Server(orthanc, in_orthanc, ("Orthanc",)), "hlip": Server(hlip, indexed)}


def post(port: int, instances: Sequence[bytes], per_request: int) -> None:
    """Post instances over one connection, one request after the other. Raises RuntimeError unless all are stored."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        for at in range(0, len(instances), per_request):
            group = instances[at : at + per_request]
            body = [piece for content in group for piece in (HEAD, content, b"\r\n")] + [LAST]
            headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(sum(map(len, body)))}
            connection.request("POST", "/dicom-web/studies", iter(body), headers | {"Accept": "application/dicom+json"})
            answer = connection.getresponse()
            stored = json.loads(answer.read()).get("00081199", {}).get("Value", [])
            if answer.status != 200 or len(stored) != len(group):
                raise RuntimeError(f"answered {answer.status}, {len(stored)} of {len(group)} stored")
    finally:
        connection.close()


def measure(name: str, instances: Sequence[bytes], *, connections: int, per_request: int, folder: Path) -> Measured:
    server, port = SERVERS[name], free_port()
    with running(server, folder, port, dict(os.environ)) as pids, ThreadPoolExecutor(connections) as senders:
        before, began = sum(map(cpu_seconds, pids)), time.perf_counter()
        shares = [instances[number::connections] for number in range(connections)]
        list(senders.map(lambda share: post(port, share, per_request), shares))
        wait_until(lambda: server.count(folder) >= len(instances), f"{name} to have them all", every=0.02)
        seconds = time.perf_counter() - began
        cpu = sum(map(cpu_seconds, pids)) - before
        return Measured(len(instances) / seconds, cpu / len(instances) * 1000, sum(map(peak_mb, pids)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each system is measured")
    parser.add_argument("--instances", type=int, default=200, help="size of the study")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 2], help="a table for each number ...")
    parser.add_argument("--per-request", type=int, nargs="+", default=[1, 50], help="... and instances a request")
    parser.add_argument("--only", nargs="+", choices=list(SERVERS), default=list(SERVERS), help="systems")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="emptied before and after; not a tmpfs")
    return parser.parse_args()


def main() -> int:
    options = parse()
    names = [name for name in options.only if name != "orthanc" or (shutil.which("Orthanc") and PLUGIN.exists())]
    if len(names) < len(options.only):
        console.print("Orthanc is left out: it is not installed (Debian: orthanc, orthanc-dicomweb)")
    shutil.rmtree(options.folder, ignore_errors=True)
    paths = write_ct_study(options.folder / "study", instances=options.instances)
    instances = [path.read_bytes() for path in paths]
    plans = [(n, size) for size in options.per_request for n in options.connections]
    results: dict[tuple[int, int], dict[str, list[Measured]]] = {plan: {} for plan in plans}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("stow", total=len(plans) * options.rounds * len(names))
        for number in range(options.rounds):
            for connections, size in plans:
                for name in names:
                    progress.update(task, description=f"round {number + 1}, {connections} x {size}: {name}")
                    folder = options.folder / f"{name}-{number}-{connections}-{size}"
                    run = measure(name, instances, connections=connections, per_request=size, folder=folder)
                    results[connections, size].setdefault(name, []).append(run)
                    progress.advance(task)
    for (connections, size), rows in results.items():
        console.print(table(f"STOW-RS reception, {connections} connection(s), {size} instance(s) a request", rows))
    shutil.rmtree(options.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
