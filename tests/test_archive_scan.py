"""`hlip archive scan` on the whole road, from real archives: killed or not, by DICOMweb, C-MOVE or C-GET."""

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peers import dcmqrscp, dcmsend, free_port, orthanc, storescu, wait_until
from plugin.archive import report as reports
from plugin.archive import scan as scans
from plugin.archive.scan import Wishes
from plugin.archive.selection import Selection
from plugin.index import archive as index
from road import Road, head_ct, road, tiny_bundle
from scanning import scanning

HLIP = Path(sys.executable).parent / "hlip"
COUNT = 8
JANUARY = Selection(first_date="20260101", last_date="20260131")
SENT = {"destinations": [{"name": "pacs", "url": "http://127.0.0.1:9/none"}]}
RULES = {"first_retry_seconds": 0.1, "lease_seconds": 2}


def files(folder: Path, *, count: int = COUNT) -> list[Path]:
    """Studies of a head CT series each, one of them too short to be analysed, one that is no head."""
    short = head_ct(folder, name="short", slices=4)
    chest = head_ct(folder, name="chest", slices=12, BodyPartExamined="CHEST")
    return [p for i in range(count - 2) for p in head_ct(folder, name=f"s{i}", slices=12)] + short + chest


@contextmanager
def site(folder: Path, **archive: Any) -> Iterator[Road]:
    with road(folder, model={"bundle": str(tiny_bundle())}, archive={**RULES, **archive}, **SENT) as running:
        yield running


def command(running: Road, *arguments: str) -> subprocess.Popen[str]:
    """`hlip archive ...` on the same data folder."""
    settings = running.plugin.settings
    environment = {
        **os.environ,
        "HLIP_SPOOL__FOLDER": str(settings.spool.folder),
        "HLIP_MODEL__BUNDLE": settings.model.bundle,
        "HLIP_ARCHIVE__URL": settings.archive.url,
        "HLIP_ARCHIVE__FIRST_RETRY_SECONDS": "0.1",
        "HLIP_ARCHIVE__LEASE_SECONDS": "2",
        "COLUMNS": "200",
    }
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([HLIP, "archive", *arguments], env=environment, **pipes)


def check_all_is_done_once(running: Road) -> dict[str, Any]:
    """Every study of `files` was analysed or refused once, nothing is left of it but what was found."""
    found = reports.read(running.plugin, None)
    assert found["state"] == "finished"
    assert found["by_state"] == {"analysed": COUNT - 2, "refused": 2}
    status = running.status(findings=True)
    assert len(status["studies"]) == COUNT and not status["deliveries_by_state"]
    events = Counter(event["stage"] for study in status["studies"] for event in study["timeline"])
    assert events["analysed"] == sum(len(study["revisions"]) for study in status["studies"]) <= COUNT
    assert all(len(study["revisions"]) <= 1 and study["priority"] == 80 for study in status["studies"])
    spool = running.plugin.spool
    for kind in ("instances", "fetched", "fetching", "landing/incoming", "prepared", "conflicting"):
        assert not [path for path in (spool / kind).rglob("*") if path.is_file()], kind
    return found


def test_a_scan_that_is_killed_five_times_ends_as_one_that_is_not(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs, site(tmp_path, url=pacs.dicomweb) as running:
        for path in files(tmp_path / "in"):
            pacs.store(path.read_bytes())
        sections = {
            "spool": {"folder": running.plugin.settings.spool.folder},
            "model": {"bundle": running.plugin.settings.model.bundle},
            "archive": {**RULES, "url": pacs.dicomweb, "megabytes_per_second": 0.15},
        }
        for _ in range(5):
            with scanning(sections, JANUARY):
                time.sleep(random.uniform(0, 1.2))
        last = command(running, "scan", "--from", "2026-01-01", "--to", "2026-01-31")
        out, err = last.communicate()
        assert last.returncode == 0, err
        assert "finished" in out and "analysed" in out
        found = check_all_is_done_once(running)
        assert found["name"] == "scan-1" and sum(study["instances"] for study in found["studies"]) <= 12 * COUNT
        _a_study_that_is_sent_now_is_the_clinics(running, tmp_path)


def _a_study_that_is_sent_now_is_the_clinics(running: Road, folder: Path) -> None:
    """It was only scanned: now that a modality sends it, its results go out, though its images came before."""
    paths = head_ct(folder / "again", name="s0", slices=12)
    dcmsend(running.port, paths[0].parent)

    def revisions() -> list[dict[str, Any]]:
        found = [study["revisions"] for study in running.status()["studies"]]
        return next((each for each in found if len(each) == 2), [])

    old, new = wait_until(revisions, "the study to be reported to the clinic", 120)
    assert not old["current"] and new["current"]
    assert not any(result["deliveries"] for result in old["results"])
    assert all(result["deliveries"] for result in new["results"])


@pytest.mark.parametrize("way", ["move", "get"])
def test_a_pacs_that_speaks_dimse_only_is_scanned_too(tmp_path: Path, way: str) -> None:
    move_port = free_port()
    with dcmqrscp(tmp_path / "pacs", move_port=move_port) as port:
        sent = storescu(port, files(tmp_path / "in"), "-aec", "QRSCP")
        assert sent.returncode == 0, sent.stdout + sent.stderr
        pacs = {"host": "127.0.0.1", "port": port, "ae_title": "QRSCP", "move_port": move_port, "retrieve": way}
        with site(tmp_path, **pacs) as running:
            scan = scans.open_scan(running.plugin.database, JANUARY, Wishes())
            with (tmp_path / "err").open("w") as err:
                rules, stop = running.plugin.settings.archive, threading.Event()
                end = scans.run(running.plugin, rules, scan, console=Console(file=err), stop=stop)
            assert end.exit_code == 0, end
            check_all_is_done_once(running)


def test_a_pacs_that_does_not_know_where_to_send_to_is_said_to_be_so(tmp_path: Path) -> None:
    with dcmqrscp(tmp_path / "pacs", move_port=free_port()) as port:
        paths = head_ct(tmp_path / "in", name="one", slices=4)
        storescu(port, paths, "-aec", "QRSCP")
        pacs = {"host": "127.0.0.1", "port": port, "ae_title": "QRSCP", "move_port": 0, "move_ae_title": "WHO"}
        with site(tmp_path, **pacs) as running:
            scan = scans.open_scan(running.plugin.database, Selection(), Wishes())
            with (tmp_path / "err").open("w") as err:
                rules, stop = running.plugin.settings.archive, threading.Event()
                end = scans.run(running.plugin, rules, scan, console=Console(file=err), stop=stop)
            assert end.exit_code == 2 and "move_ae_title" in end.why
            assert index.standing(running.plugin.database, scan.id).counts == {"planned": 1}
            assert re.search("resume scan-1", end.why)
