"""The forwarder beside Orthanc: what becomes stable there comes here, once, whoever is away in between."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from peers import DICOMWEB_PLUGIN, Orthanc, free_port, is_open, needs, orthanc, wait_until
from road import head_ct, road, tiny_bundle

FORWARD = Path(__file__).resolve().parents[1] / "deploy" / "orthanc" / "forward.py"


@contextmanager
def forwarding(archive: Orthanc, state: Path) -> Iterator[Path]:
    """The forwarder as a process; its log. It is killed at the end, as by kill -9."""
    log = state.with_suffix(".log")
    command = [sys.executable, str(FORWARD), "--orthanc", f"http://127.0.0.1:{archive.http_port}"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, "--state", str(state), "--poll-seconds", "0.2", "--push-seconds", "20"],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stderr=output,
        )
    try:
        yield log
    finally:
        process.kill()
        process.wait()


def name_hlip(archive: Orthanc, port: int) -> None:
    """In Orthanc's DicomModalities, as deploy/orthanc/orthanc.json does it."""
    url = f"http://127.0.0.1:{archive.http_port}/modalities/hlip"
    requests.put(url, json={"AET": "HLIP", "Host": "127.0.0.1", "Port": port}, timeout=10).raise_for_status()


def quick() -> dict[str, Any]:
    """A model that takes no time."""
    return {"model": {"bundle": str(tiny_bundle())}}


def store(archive: Orthanc, paths: list[Path]) -> None:
    for path in paths:
        archive.store(path.read_bytes())


def test_stable_studies_are_pushed_once_and_our_reports_are_not_sent_back(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        destination = {"name": "pacs", "url": archive.dicomweb}
        sections = {
            "destinations": [destination],
            "delivery": {"send_results_of_untrained_or_phantom_models": True},
            "audit": {"file": str(tmp_path / "audit")},
        }
        with road(tmp_path, **quick(), **sections) as running, forwarding(archive, tmp_path / "state.json") as log:
            name_hlip(archive, running.port)
            wait_until((tmp_path / "state.json").exists, "the forwarder to begin")
            store(archive, head_ct(tmp_path / "in"))
            status = running.settled(instances=12)
            uid = status["studies"][0]["study_instance_uid"]
            wait_until(lambda: archive.series(uid, "SR"), "the report in Orthanc")
            store(archive, head_ct(tmp_path / "late", number=3))
            running.settled(instances=24)
            since = json.loads((tmp_path / "state.json").read_text())["since"]
            wait_until(lambda: _is_stable_again(archive, since, tmp_path / "state.json"), "the last stable study")
            assert running.status()["instances"] == 24
            assert log.read_text().count("sent 1 series") == 2
            assert "SR" not in str(running.status(findings=True)["studies"][0]["series"])


def _is_stable_again(archive: Orthanc, since: int, state: Path) -> bool:
    """Whether Orthanc's own last change is a stable study, and the forwarder has seen it."""
    last = archive.get("/changes?last")
    followed = json.loads(state.read_text())["since"] == last["Last"]
    return followed and last["Changes"][0]["ChangeType"].startswith("Stable")


def test_what_became_stable_while_both_were_away_is_pushed_later(tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    with orthanc(tmp_path / "orthanc") as archive:
        with forwarding(archive, state) as log:
            name_hlip(archive, free_port())  # nobody is there
            wait_until(state.exists, "the forwarder to begin")
            store(archive, head_ct(tmp_path / "in"))
            wait_until(lambda: "not now" in log.read_text(), "a push that fails")
        store(archive, head_ct(tmp_path / "more", name="b"))
        with road(tmp_path, **quick()) as running:
            name_hlip(archive, running.port)
            with forwarding(archive, state):
                assert running.settled(instances=24)["studies_by_state"] == {"reported": 2}


def test_a_study_that_is_deleted_before_it_was_sent_stops_nothing(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive, road(tmp_path, **quick()) as running:
        name_hlip(archive, running.port)
        state = tmp_path / "state.json"
        state.write_text(json.dumps({"since": 0, "sent": {}}))
        store(archive, head_ct(tmp_path / "in"))
        wait_until(lambda: archive.get("/changes?last")["Changes"][0]["ChangeType"].startswith("Stable"), "stability")
        (study,) = archive.get("/studies")
        requests.delete(f"http://127.0.0.1:{archive.http_port}/studies/{study}", timeout=10).raise_for_status()
        store(archive, head_ct(tmp_path / "more", name="b"))
        with forwarding(archive, state):
            assert running.settled(instances=12)["studies_by_state"] == {"reported": 1}


def test_orthanc_takes_the_configuration_of_the_stack(tmp_path: Path) -> None:
    needs("Orthanc", "orthanc")
    http_port, text = free_port(), (FORWARD.parent / "orthanc.json").read_text()
    for ours, here in {
        "/var/lib/orthanc/db": str(tmp_path / "db"),
        '"/usr/share/orthanc/plugins", "/usr/local/share/orthanc/plugins"': f'"{DICOMWEB_PLUGIN}"',
        '"HttpPort": 8042': f'"HttpPort": {http_port}',
        '"DicomPort": 4242': f'"DicomPort": {free_port()}',
        '"RemoteAccessAllowed": true': '"RemoteAccessAllowed": false',
    }.items():
        assert ours in text
        text = text.replace(ours, here)
    (tmp_path / "orthanc.json").write_text(text)
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(["Orthanc", str(tmp_path / "orthanc.json")], stdout=log, stderr=log)
    try:
        wait_until(lambda: is_open(http_port), "Orthanc to start", 120)
        url = f"http://127.0.0.1:{http_port}"
        assert requests.get(f"{url}/modalities", timeout=30).json() == ["hlip"]
        assert requests.get(f"{url}/dicom-web/studies", timeout=30).json() == []
    finally:
        process.terminate()
        process.wait(60)
