"""`make demo`: a head CT in by C-STORE, a report out, on this machine, with everything told on the way.

    python deploy/demo.py [--study DIR] [--pacs URL] [--once]

Without --study it makes a synthetic head CT with a haemorrhage. The model was trained on such phantoms and knows
nothing of patients; every result says so. In the end the page shows it all, until Ctrl-C; with --once it ends by
itself.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from plugin.bootstrap import Plugin
from plugin.dimse import Peer, PeerRefused, PeerUnavailable, send
from plugin.folder import dicom_files
from plugin.lifecycle import DELIVERY_DONE, STUDY_DONE
from plugin.screens import read_status, status_page
from plugin.settings import load_settings

HERE = Path(__file__).resolve().parents[1] / "demo"
HLIP = Path(sys.executable).parent / "hlip"
HLIP_TRAIN = Path(sys.executable).parent / "hlip-train"
LONGEST_SECONDS = 600
console = Console()


def main() -> int:
    options = parse()
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    folder = options.study or make_phantom()
    environment = settings(options.pacs)
    with serving(environment) as server:
        started = time.time()
        if not send_study(folder, int(environment["HLIP_LISTENER__PORT"])):
            return 1
        status = follow(environment, server)
        console.rule("[bold]what was found")
        show_results(status, environment)
        console.rule("[bold]how long it took")
        show_times(status, started, server)
        good, delivered = judge(status)
        if not options.once:
            show_page(environment, server, status)
    return 0 if good and delivered else 1


def judge(status: dict[str, Any]) -> tuple[bool, bool]:
    """Whether all studies came to a good end, and whether all results were delivered."""
    good = bool(status["studies"]) and all(s["state"] in ("reported", "refused") for s in status["studies"])
    delivered = status["deliveries_by_state"].keys() <= {"delivered"}
    if not delivered:
        console.print("[red]Not everything was delivered; `hlip status` says why.[/red]")
    return good, delivered


def show_page(environment: dict[str, str], server: subprocess.Popen, status: dict[str, Any]) -> None:
    """Where to look at it in a browser, until Ctrl-C or SIGTERM."""
    address = f"http://127.0.0.1:{environment['HLIP_WEB__PORT']}"
    console.rule("[bold]the page")
    console.print(f"worklist   {address}/")
    for study in status["studies"]:
        console.print(f"study      {address}/studies/{study['study_instance_uid']}", soft_wrap=True)
    console.print("Send more to AE title HLIP at the port above and watch it come. Ctrl-C ends the demo.")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        server.wait()
    except KeyboardInterrupt:
        console.print("Ended.")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", type=Path, help="a folder with your own DICOM instead of a phantom")
    parser.add_argument("--pacs", default="", help="a DICOMweb address to deliver to, such as http://host/dicom-web")
    parser.add_argument("--once", action="store_true", help="end after the report, for CI: do not serve the page")
    options = parser.parse_args()
    if options.study is not None and not options.study.exists():
        parser.error(f"there is no {options.study}")
    return options


def make_phantom() -> Path:
    """A synthetic head CT with four series and an acute subdural haemorrhage."""
    console.rule("[bold]a synthetic head CT with a haemorrhage")
    command = ["phantom", "--count", "1", "--seed", "7", "--preset", "full", "--lesions", "subdural",
               "--series", "localizer,thick,bone,coronal", "--out", str(HERE / "phantom")]  # fmt: skip
    subprocess.run([HLIP_TRAIN, *command], check=True)
    return HERE / "phantom"


def settings(pacs: str) -> dict[str, str]:
    """The demo's settings: a folder and ports of its own, quick settling."""
    with socket.socket() as listener, socket.socket() as web:
        for free in (listener, web):
            free.bind(("127.0.0.1", 0))
        port, web_port = listener.getsockname()[1], web.getsockname()[1]
    chosen = {
        "HLIP_SPOOL__FOLDER": str(HERE / "data"),
        "HLIP_LISTENER__PORT": str(port),
        "HLIP_WEB__PORT": str(web_port),
        "HLIP_SETTLE__SERIES_QUIET_SECONDS": "1",
        "HLIP_SETTLE__STUDY_QUIET_SECONDS": "3",
        "HLIP_LOG__LEVEL": "warning",
    }
    if pacs:
        chosen["HLIP_DESTINATIONS"] = json.dumps([{"name": "pacs", "url": pacs}])
        chosen["HLIP_DELIVERY__SEND_RESULTS_OF_UNTRAINED_OR_PHANTOM_MODELS"] = "true"
    return {**os.environ, **chosen}


@contextmanager
def serving(environment: dict[str, str]) -> Iterator[subprocess.Popen]:
    """`hlip serve`, up and answering, stopped at the end."""
    console.rule("[bold]hlip serve")
    log = (HERE / "serve.log").open("wb")
    server = subprocess.Popen([HLIP, "serve"], env=environment, stderr=log, stdout=log)
    try:
        port = int(environment["HLIP_LISTENER__PORT"])
        for _ in track(range(600), description="starting", transient=True):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if server.poll() is not None:
                raise SystemExit((HERE / "serve.log").read_text())
            time.sleep(0.1)
        console.print(f"AE title HLIP at 127.0.0.1:{port}, data in {escape(environment['HLIP_SPOOL__FOLDER'])}")
        yield server
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=30)
        log.close()


def send_study(folder: Path, port: int) -> bool:
    """C-STORE every DICOM file of a folder; False where none was taken."""
    console.rule("[bold]C-STORE")
    paths = [path for path in dicom_files([folder]) if is_dicom(path)]
    if not paths:
        console.print(f"[red]No DICOM file in {escape(str(folder))}.[/red]")
        return False
    taken = 0
    try:
        sent = send(paths, Peer(host="127.0.0.1", port=port, ae_title="HLIP", calling_ae_title="DEMO"))
        for _, status in track(sent, total=len(paths), description="sending"):
            taken += status == 0x0000
    except (PeerUnavailable, PeerRefused) as error:
        console.print(f"[red]{escape(str(error))}[/red]")
    console.print(f"{taken} of {len(paths)} instances acknowledged")
    return taken > 0


def is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def follow(environment: dict[str, str], server: subprocess.Popen) -> dict[str, Any]:
    """Show what each study and series is doing until all is done, or for ten minutes."""
    console.rule("[bold]the road")
    os.environ.update(environment)
    plugin = Plugin(load_settings())
    deadline = time.monotonic() + LONGEST_SECONDS
    status = read_status(plugin, study_uids=(), limit=20)
    with Live(status_page(status), console=console, auto_refresh=False) as live:
        while server.poll() is None and time.monotonic() < deadline:
            live.update(status_page(status), refresh=True)
            done = status["studies"] and set(status["studies_by_state"]) <= STUDY_DONE
            if done and set(status["deliveries_by_state"]) <= DELIVERY_DONE and not status["waiting_to_be_indexed"]:
                break
            time.sleep(0.3)
            status = read_status(plugin, study_uids=(), limit=20)
    return status


def show_results(status: dict[str, Any], environment: dict[str, str]) -> None:
    """Each report as a readable page, and where the files are."""
    for study in status["studies"]:
        if study["state"] != "reported":
            console.print(f"study {study['state']}: {study['reason']}")
            continue
        results = study["revisions"][-1]["results"]
        subprocess.run([HLIP, "show", HERE / "data" / results[0]["path"]], env=environment, check=True)
        console.print(f"[bold]{len(results)} result objects[/bold], each readable with `.venv/bin/hlip show FILE`:")
        for result in results:
            console.print(escape(str(HERE / "data" / result["path"])), highlight=False, soft_wrap=True)
            for delivery in result["deliveries"]:
                console.print(f"  {delivery['state']} to {delivery['destination']} {delivery['detail']}")


def show_times(status: dict[str, Any], started: float, server: subprocess.Popen) -> None:
    """When each stage of each study ended, and the memory of each process."""
    table = Table("seconds since sending began", "stage", "series", "its own work (s)")
    for study in status["studies"]:
        numbers = {series["series_instance_uid"]: str(series["series_number"]) for series in study["series"]}
        for event in study["timeline"]:
            own = "" if event["seconds"] is None else f"{event['seconds']:.2f}"
            series = numbers.get(event["series_instance_uid"], "")
            table.add_row(f"{event['at'] - started:.1f}", event["stage"], series, own)
    console.print(table)
    for role, megabytes in peak_memory(server):
        console.print(f"peak memory of {role}: {megabytes:.0f} MB")
    console.print(
        "[bold]Research software, not for diagnosis.[/bold] The model was trained on synthetic phantoms: "
        "it knows nothing of patients."
    )


def peak_memory(server: subprocess.Popen) -> Iterator[tuple[str, float]]:
    """Of the processes of `hlip serve` (Linux)."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    if not children.exists():
        return
    for pid in children.read_text().split():
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        role = " ".join(words[words.index("plugin") + 1 :]).strip()
        peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmHWM" in line)
        yield role, int(peak.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
