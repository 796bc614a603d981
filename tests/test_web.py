"""The web role: it starts and stops like the others, says what is wrong, and what it takes goes the whole road."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from peers import free_port, is_open, wait_until
from plugin.spool import Spool
from plugin.web.app import create_app
from plugin.web.server import serving
from road import renamed, road
from series import head, series
from web import Web, multipart

HLIP = Path(sys.executable).parent / "hlip"


def environment(folder: Path, **variables: str) -> dict[str, str]:
    own = {"HLIP_SPOOL__FOLDER": str(folder / "data"), "HLIP_SPOOL__MIN_FREE_GIGABYTES": "0"}
    return {**os.environ, **own, **variables}


@contextmanager
def role(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`hlip web` as a site runs it."""
    with (folder / "web.log").open("ab") as log:
        process = subprocess.Popen([HLIP, "web"], env=environment(folder, HLIP_WEB__PORT=str(port)), stderr=log)
    try:
        wait_until(lambda: is_open(port), "hlip web", 60)
        yield process
    finally:
        process.kill()
        process.wait()


def test_it_answers_and_stops_cleanly_and_takes_up_after_a_kill(tmp_path: Path) -> None:
    port = free_port()
    body = multipart(renamed(series(head(3)), name="a", number=2))
    spool = Spool(tmp_path / "data", min_free_gigabytes=0)
    server = Web(port, spool)
    with role(tmp_path, port) as process:
        assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).json() == {"status": "ok"}

        def until_killed() -> Iterator[bytes]:
            yield body[: len(body) - 1000]
            wait_until(lambda: spool.open_studies(cap_seconds=60).studies, "the mark")
            process.send_signal(signal.SIGKILL)
            process.wait()
            yield body[len(body) - 1000 :]

        with pytest.raises(requests.ConnectionError):
            server.post(until_killed())
    assert spool.open_studies(cap_seconds=60).studies
    with role(tmp_path, port) as process:
        assert not spool.open_studies(cap_seconds=60).studies  # marks of the one that was killed
        assert server.post(body).status_code == 200
        process.terminate()
        assert process.wait(30) == 0
    assert "Traceback" not in (tmp_path / "web.log").read_text()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"HLIP_WEB__HOST": "0.0.0.0"}, "set web.stow_token"),
        ({"HLIP_WEB__HOST": "192.0.2.1", "HLIP_WEB__STOW": "false"}, "cannot listen on 192.0.2.1:8080"),
        ({"HLIP_WEB__STOW_TOKEN": "short"}, "16 characters"),
    ],
)
def test_what_is_wrong_is_told_in_a_sentence(tmp_path: Path, variables: dict[str, str], says: str) -> None:
    wide = environment(tmp_path, COLUMNS="300", **variables)
    done = subprocess.run([HLIP, "web"], env=wide, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr and "short" not in done.stderr


def test_without_stow_there_is_only_health(tmp_path: Path) -> None:
    from web import web

    with web(tmp_path, stow=False) as server:
        assert server.post(b"").status_code == 404
        assert requests.get(f"http://127.0.0.1:{server.port}/healthz", timeout=10).status_code == 200


def test_a_mistake_of_ours_is_told_by_its_type_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from plugin.web.stow import Stow
    from web import web

    def fail(*_: object) -> None:
        raise RuntimeError("Canary^Jane")

    monkeypatch.setattr(Stow, "_check", fail)
    with web(tmp_path) as server:
        answer = server.post(b"")
        assert (answer.status_code, "Canary" in answer.text) == (500, False)
    captured = capfd.readouterr()
    assert "RuntimeError" in captured.out + captured.err and "Canary" not in captured.out + captured.err


def test_a_study_that_comes_by_stow_is_reported(tmp_path: Path) -> None:
    images = list(renamed(series(head(12)), name="a", number=2))
    with (
        road(tmp_path, web={"port": 0}) as running,
        serving(create_app(running.plugin), running.plugin.settings.web) as server,
    ):
        assert Web(server.port, running.plugin.spool).store(images).status_code == 200
        assert running.settled(instances=12)["studies_by_state"] == {"reported": 1}
        assert running.study(images[0].StudyInstanceUID) is not None
