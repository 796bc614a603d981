"""Benchmark of `hlip archive scan`: studies an hour, where the time goes, what the clinic notices. Linux only.

    python deploy/bench/archive.py [--count 12] [--triage 3] [--studies FOLDER] [--bundle BUNDLE | --blocks N]
    python deploy/bench/archive.py --count 300 --triage 0 --kills 5 [--dimse]    # is the end the same?

Synthetic head CT studies (`hlip-train phantom`, or the folders in --studies) lie in an Orthanc with DICOMweb.
`hlip serve` runs on a fresh data folder. First urgent studies are sent to it while it is idle, one after the other;
then the archive is scanned, and others are sent in the middle. The encode slot is the time in which the analysing
worker was at a study, of the time from its first to its last one. All runs on this one machine, PACS and senders too.

With --dimse the PACS is dcmqrscp of dcmtk, asked by C-FIND and C-MOVE. With --kills the scan is killed (SIGKILL) often,
at random moments, and started again. The digest at the end is over what was found in which study: it is the same for
the same studies however they came.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ingest import HERE, Server, console, free_port, running, wait_until
from pydicom import dcmread
from rich.table import Table

from hlip_core.untrained import TINY, write_untrained_bundle

FOLDER = HERE.parents[1] / ".cache" / "bench-archive"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
QRSCP = """NetworkTCPPort = {port}
MaxPDUSize = 65536
MaxAssociations = 16
HostTable BEGIN
hlip = (HLIPSCAN, 127.0.0.1, {move_port})
HostTable END
VendorTable BEGIN
VendorTable END
AETable BEGIN
QRSCP {folder} RW (5000, 4gb) ANY
AETable END
"""
KILL_AFTER = (6.0, 20.0)
"""Seconds from the start of a scan until it is killed, at random in between."""
Span = tuple[float, float]


@dataclass(frozen=True)
class Site:
    """A running `hlip serve`, and the archive that it is to scan."""

    settings: Path
    index: Path
    port: int

    def query(self, statement: str, *values: object) -> list[tuple]:
        with closing(sqlite3.connect(self.index)) as index:
            return index.execute(statement, values).fetchall()

    def spans(self, stage: str) -> list[Span]:
        """From when to when each step of a kind was under way, by the database's clock."""
        rows = self.query("SELECT at - seconds, at FROM event WHERE stage = ? ORDER BY at", stage)
        return [(begun, ended) for begun, ended in rows]

    def reported_at(self, study_instance_uid: str) -> float | None:
        rows = self.query(
            "SELECT max(at) FROM event JOIN study ON study.id = study_id "
            "WHERE study_instance_uid = ? AND stage = 'analysed'",
            study_instance_uid,
        )
        return rows[0][0]


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


def dcmqrscp(folder: Path, port: int, *, move_port: int) -> list[list[str]]:
    (folder / "database").mkdir()
    settings = folder / "dcmqrscp.cfg"
    settings.write_text(QRSCP.format(port=port, move_port=move_port, folder=folder / "database"))
    return [["dcmqrscp", "-c", str(settings)]]


def serve(folder: Path, port: int, *, bundle: str, archive: str, look_ahead: int) -> list[list[str]]:
    settings = folder / "hlip.toml"
    settings.write_text(
        f'[spool]\nfolder = "{folder}/data"\n[listener]\nport = {port}\n[web]\nport = {free_port()}\n'
        f'[model]\nbundle = "{bundle}"\n[log]\nlevel = "warning"\n'
        f"[archive]\n{archive}\nlook_ahead = {look_ahead}\n"
    )
    return [[sys.executable, "-m", "plugin", "serve", "--config", str(settings)]]


def files(study: Path) -> list[Path]:
    return sorted(study.rglob("*.dcm"))


def fill(studies: Sequence[Path], port: int, *, dimse: bool) -> None:
    for study in studies:
        if dimse:
            send_study(study, port, "QRSCP")
            continue
        for path in files(study):
            request = urllib.request.Request(f"http://127.0.0.1:{port}/instances", data=path.read_bytes())
            with urllib.request.urlopen(request, timeout=60) as answer:
                answer.read()


def send_study(study: Path, port: int, ae_title: str) -> None:
    command = ["dcmsend", "-nh", "-aec", ae_title, "127.0.0.1", str(port), "+sd", "+r", str(study)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"TCP_NODELAY": "1"})


def latency(site: Site, study: Path) -> float:
    """Seconds from the beginning of the sending until the study is reported."""
    uid = str(dcmread(files(study)[0], stop_before_pixels=True).StudyInstanceUID)
    began = time.time()
    send_study(study, site.port, "HLIP")
    wait_until(lambda: site.reported_at(uid) is not None, "an urgent study to be reported", every=0.2)
    return (site.reported_at(uid) or 0.0) - began


def covered(spans: Sequence[Span]) -> float:
    """Seconds in which one of the spans was under way."""
    total, until = 0.0, float("-inf")
    for begun, ended in sorted(spans):
        total += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return total


def scan(site: Site, triage: Sequence[Path], *, kills: int) -> tuple[float, list[float]]:
    """Seconds that the scan took, and the latencies of the urgent studies sent in its middle."""
    began = time.monotonic()
    command = [sys.executable, "-m", "plugin", "archive", "scan", "--config", str(site.settings)]
    for _ in range(kills):
        doomed = subprocess.Popen(command, cwd=HERE.parents[1], stderr=subprocess.DEVNULL)
        time.sleep(random.uniform(*KILL_AFTER))
        doomed.kill()
        doomed.wait()
        states = dict(site.query("SELECT state, count(*) FROM archive_study GROUP BY 1"))
        console.print(f"killed at {states}")
    process = subprocess.Popen(command, cwd=HERE.parents[1])
    wait_until(lambda: bool(site.query("SELECT 1 FROM archive_study WHERE state = 'analysed'")), "a result", every=0.5)
    latencies = [latency(site, study) for study in triage]
    if process.wait() != 0:
        raise RuntimeError(f"the scan ended with exit code {process.returncode}")
    return time.monotonic() - began, latencies


def show(site: Site, seconds: float, count: int) -> None:
    analysed, prepared = site.spans("analysed"), site.spans("prepared")
    analysed = [span for span in analysed if span[0] >= (site.query("SELECT created_at FROM archive_scan")[0][0])]
    whole = max(ended for _, ended in analysed) - min(begun for begun, _ in analysed)
    fetched = site.query("SELECT sum(fetch_seconds), sum(instances), sum(megabytes) FROM archive_study")[0]
    table = Table("what", "value", title=f"hlip archive scan, {count} studies, all on one machine")
    rows = [
        ("studies/hour", f"{count / seconds * 3600:.0f}"),
        ("instances, MB fetched", f"{fetched[1]}, {fetched[2]:.0f}"),
        ("fetching, s a study (overlaps)", f"{fetched[0] / count:.2f}"),
        ("preparing, s a study (overlaps)", f"{sum(b - a for a, b in prepared) / count:.2f}"),
        ("analysing, s a study", f"{sum(b - a for a, b in analysed) / len(analysed):.2f}"),
        ("encode slot occupied", f"{covered(analysed) / whole:.1%}"),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    counts = site.query("SELECT state, coalesce(reason, ''), count(*) FROM archive_study GROUP BY 1, 2 ORDER BY 3 DESC")
    console.print(", ".join(f"{number} {state} {reason}".strip() for state, reason, number in counts))


def digest(site: Site, studies: Sequence[Path]) -> str:
    """SHA-256 of what was found in each of the archive's studies; each must have one set of results."""
    uids = {str(dcmread(files(study)[0], stop_before_pixels=True).StudyInstanceUID) for study in studies}
    rows = site.query("SELECT study_instance_uid, findings FROM revision JOIN study ON study.id = study_id ORDER BY 1")
    found = [(uid, findings) for uid, findings in rows if uid in uids]
    if sorted(uid for uid, _ in found) != sorted(uids):
        raise RuntimeError(f"{len(found)} sets of results for {len(uids)} studies")
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=12, help="studies in the archive")
    parser.add_argument("--triage", type=int, default=3, help="urgent studies: so many before, and so many during")
    parser.add_argument("--studies", type=Path, help="a folder with a folder for each study; without: phantoms")
    parser.add_argument("--bundle", default="demo", help="the model")
    parser.add_argument("--blocks", type=int, help="in its place an untrained one of so many blocks, 384 wide")
    parser.add_argument("--look-ahead", type=int, default=8, help="studies that may be here at once")
    parser.add_argument("--dimse", action="store_true", help="a PACS that is asked by C-FIND and C-MOVE")
    parser.add_argument("--kills", type=int, default=0, help="how often the scan is killed")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="emptied before and after")
    return parser.parse_args()


def bundle_of(options: argparse.Namespace) -> str:
    if options.blocks is None:
        return str(options.bundle)
    blocks = tuple(range(options.blocks))
    encoder = replace(
        TINY, embed_dim=384, num_heads=6, depth=len(blocks), scan_blocks=blocks[:-1], study_blocks=blocks[-1:]
    )
    return str(write_untrained_bundle(options.folder / "bundle", encoder=encoder))


def studies_of(options: argparse.Namespace) -> list[Path]:
    wanted = options.count + 2 * options.triage
    source = options.studies
    if source is None:
        source = options.folder / "phantoms"
        command = [sys.executable, "-m", "trainer", "phantom", "--out", str(source), "--count", str(wanted)]
        subprocess.run(command, check=True, cwd=HERE.parents[1])
    found = sorted(path for path in source.iterdir() if path.is_dir())
    if len(found) < wanted:
        raise ValueError(f"{wanted} studies are needed, and {source} has {len(found)}")
    return found[:wanted]


def main() -> int:
    options = parse()
    if shutil.which("Orthanc") is None or not PLUGIN.exists() or shutil.which("dcmsend") is None:
        console.print("Orthanc, its DICOMweb plugin or dcmsend is missing (Debian: orthanc, orthanc-dicomweb, dcmtk)")
        return 1
    shutil.rmtree(options.folder, ignore_errors=True)
    options.folder.mkdir(parents=True)
    bundle, studies = bundle_of(options), studies_of(options)
    past, urgent = studies[: options.count], studies[options.count :]
    archive_port, port, environment = free_port(), free_port(), dict(os.environ)
    move_port = free_port()
    archive = f'url = "http://127.0.0.1:{archive_port}/dicom-web"'
    pacs = Server(orthanc, lambda folder: 0)
    if options.dimse:
        archive = f'host = "127.0.0.1"\nport = {archive_port}\nae_title = "QRSCP"\nmove_port = {move_port}'
        pacs = Server(partial(dcmqrscp, move_port=move_port), lambda folder: 0)
    hlip = Server(partial(serve, bundle=bundle, archive=archive, look_ahead=options.look_ahead), lambda folder: 0)
    with (
        running(pacs, options.folder / "pacs", archive_port, environment),
        running(hlip, options.folder / "hlip", port, environment),
    ):
        fill(past, archive_port, dimse=options.dimse)
        site = Site(options.folder / "hlip" / "hlip.toml", options.folder / "hlip" / "data" / "index.sqlite", port)
        before = [latency(site, study) for study in urgent[: options.triage]]
        seconds, during = scan(site, urgent[options.triage :], kills=options.kills)
        show(site, seconds, len(past))
        console.print(f"digest of what was found: {digest(site, past)}")
    if before:
        usual, busy = statistics.median(before), statistics.median(during)
        console.print(f"urgent studies, median seconds to the report: {usual:.1f} idle, {busy:.1f} during the scan")
        console.print(f"ratio {busy / usual:.2f}")
    shutil.rmtree(options.folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
