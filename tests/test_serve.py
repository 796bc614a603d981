"""`hlip serve` as a site runs it: real processes, the embedded broker, kills in the middle."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peers import dcmsend, free_port, is_open, wait_until
from plugin.index.database import Database
from plugin.index.overview import overview
from plugin.roles import STOP_SIGNALS, until_stopped
from road import head_ct

HLIP = Path(sys.executable).parent / "hlip"


class Server:
    """A running `hlip serve` and the commands beside it."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.port = free_port()
        self.environment = {
            **os.environ,
            "HLIP_SPOOL__FOLDER": str(folder / "data"),
            "HLIP_LISTENER__PORT": str(self.port),
            "HLIP_WEB__PORT": str(free_port()),
            "HLIP_SETTLE__SERIES_QUIET_SECONDS": "0.3",
            "HLIP_SETTLE__STUDY_QUIET_SECONDS": "0.8",
            "HLIP_WORKERS__LEASE_SECONDS": "3",
            **variables,
        }
        self.log = folder / "serve.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([HLIP, "serve"], env=self.environment, stdout=log, stderr=log)
        wait_until(lambda: is_open(self.port), "the listener", 90)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(60)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([HLIP, *arguments], env=self.environment, capture_output=True, text=True, check=False)

    def status(self) -> dict[str, Any]:
        """As `hlip status --json` gives it, read in this process."""
        sqlite = f"sqlite:///{self.folder / 'data' / 'index.sqlite'}"
        database = Database(self.environment.get("HLIP_INDEX__URL", sqlite), lock=self.folder / "lock")
        try:
            return overview(database)
        finally:
            database.close()

    def reported(self, count: int, seconds: float = 120) -> dict[str, Any]:
        wait_until(lambda: self.status()["studies_by_state"] == {"reported": count}, f"{count} reports", seconds)
        return self.status()

    def children(self) -> dict[str, int]:
        """Process ids by role."""
        assert self.process is not None
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        roles = {}
        for pid in pids:
            try:
                words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
            if "plugin" in words:  # else it is just being started
                roles[words[-2]] = int(pid)
        return roles


@contextmanager
def serving(folder: Path, **variables: str) -> Iterator[Server]:
    server = Server(folder, **variables)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.mark.usefixtures("stack")
def test_one_command_serves_a_study_and_stops_cleanly(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        roles = server.children()
        check_one_study(server, tmp_path)
        assert server.stop() == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in roles.values())


def check_one_study(server: Server, tmp_path: Path) -> None:
    """A study is reported, shown, and taken up again with the same result; the broker never hears its UID."""
    dcmsend(server.port, head_ct(tmp_path)[0].parent)
    study = server.reported(1)["studies"][0]
    uid = study["study_instance_uid"]
    shown = server.run("show", uid)
    assert shown.returncode == 0 and "PHANTOM MODEL" in shown.stdout and "not for diagnosis" in shown.stdout.lower()
    assert uid in server.run("status").stdout.replace("\n", "")
    assert json.loads(server.run("status", "--json").stdout)["studies_by_state"] == {"reported": 1}
    retried = server.run("retry", uid)
    assert "1 series, 1 studies" in retried.stdout
    again = server.reported(1)["studies"][0]
    assert again["revisions"] == study["revisions"]
    messages = [p for p in (tmp_path / "data" / "broker").rglob("*") if p.is_file()]
    assert not any(uid.encode() in p.read_bytes() for p in messages)


@pytest.mark.parametrize(
    "stack", ["sqlite-embedded", pytest.param("postgresql-rabbitmq", marks=pytest.mark.full)], indirect=True
)
def test_each_process_that_is_killed_comes_back_and_nothing_is_lost(tmp_path: Path, stack: str) -> None:
    with serving(tmp_path) as server:
        for number, role in enumerate(("listen", "schedule", "prepare", "analyse", "deliver"), 1):
            pid = wait_until(lambda role=role: server.children().get(role), role)
            wait_until(lambda: is_open(server.port), "the listener")
            dcmsend(server.port, head_ct(tmp_path, name=role)[0].parent)
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda role=role, pid=pid: server.children().get(role) not in (None, pid), f"{role} again", 60)
            assert server.reported(number)["instances"] == 12 * number
        assert all(len(study["revisions"]) == 1 for study in server.status()["studies"])


@pytest.mark.usefixtures("stack")
def test_everything_killed_at_once_is_taken_up_at_the_next_start(tmp_path: Path) -> None:
    server = Server(tmp_path, HLIP_SETTLE__STUDY_QUIET_SECONDS="3")
    server.start()
    dcmsend(server.port, head_ct(tmp_path)[0].parent)
    assert server.process is not None
    for pid in (server.process.pid, *server.children().values()):
        os.kill(pid, signal.SIGKILL)
    server.process.wait()
    wait_until(lambda: not is_open(server.port), "the port to be free")
    server.start()
    try:
        assert server.reported(1)["instances"] == 12
    finally:
        server.stop()


def test_a_wrong_setting_is_explained_and_nothing_starts(tmp_path: Path) -> None:
    server = Server(tmp_path, HLIP_THRESHOLDS='{"headache": 0.5}')
    done = server.run("serve")
    assert done.returncode == 2
    assert "headache" in done.stderr and "intracranial_hemorrhage" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_wait_for_the_schema(tmp_path: Path) -> None:
    server = Server(tmp_path)
    worker = subprocess.Popen([HLIP, "work", "--queue", "deliver"], env=server.environment, stderr=subprocess.DEVNULL)
    time.sleep(3)
    assert worker.poll() is None
    worker.terminate()
    worker.wait(30)


@pytest.mark.parametrize("number", sorted(STOP_SIGNALS))
def test_a_signal_in_the_middle_of_a_wait_for_it_stops_a_role_all_the_same(number: int) -> None:
    """Before, its handler waited for the lock that the interrupted wait held."""
    before = {each: signal.getsignal(each) for each in STOP_SIGNALS}
    try:
        stop = until_stopped()
        with stop._cond:  # type: ignore[attr-defined]
            signal.raise_signal(number)
        assert stop.wait(30)
    finally:
        signal.set_wakeup_fd(-1)
        for each, handler in before.items():
            signal.signal(each, handler)
