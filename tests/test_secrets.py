"""Secrets of the settings are nowhere but in the settings, and what is written is for its owner only."""

import json
import os
import stat
import subprocess
import time
from pathlib import Path

import pytest

from peers import dcmsend, free_port, wait_until
from plugin.settings import Settings, load_settings
from road import head_ct, tiny_bundle
from test_serve import HLIP, serving

CANARY = "canary-in-the-coal-mine"


def secrets(port: int) -> dict[str, str]:
    """A canary in every secret that a running server can have; nobody answers at `port`."""
    destination = {"name": "pacs", "url": f"http://127.0.0.1:{port}/dicom-web", "user": "hlip",
                   "password": CANARY, "token": CANARY}  # fmt: skip
    return {
        "HLIP_DESTINATIONS": json.dumps([destination]),
        "HLIP_DELIVERY__FIRST_RETRY_SECONDS": "0.2",
        "HLIP_WEB__STOW_TOKEN": CANARY,
        "HLIP_LOG__LEVEL": "debug",
        "HLIP_MODEL__BUNDLE": str(tiny_bundle()),
    }


def test_a_served_study_leaves_no_secret_and_no_file_for_others(tmp_path: Path) -> None:
    open_to_all = os.umask(0o022)
    try:
        with serving(tmp_path, **secrets(free_port())) as server:
            os.umask(open_to_all)
            dcmsend(server.port, head_ct(tmp_path, PatientName="Canary^Jane", PatientID="CANARY-1")[0].parent)
            server.reported(1)
            wait_until(lambda: "not delivered" in server.log.read_text(), "a failed delivery")
            shown = server.run("status").stdout + server.run("status", "--json").stdout
            modes = {path: oct(stat.S_IMODE(path.stat().st_mode)) for path in (tmp_path / "data").rglob("*")}
    finally:
        os.umask(open_to_all)
    said = server.log.read_text() + shown
    assert CANARY not in said
    assert "canary" not in said.lower(), "nor is the patient named"
    written = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not [path for path in written if CANARY.encode() in path.read_bytes()]
    assert set(modes.values()) == {"0o600", "0o700"}, modes


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("HLIP_INDEX__URL", "postgresql+psycopg://hlip:{secret}@127.0.0.1:{port}/hlip"),
        ("HLIP_BROKER__URL", "amqp://hlip:{secret}@127.0.0.1:{port}//"),
        ("HLIP_BROKER__URL", "redis://:{secret}@127.0.0.1:{port}/0"),
    ],
)
def test_a_database_or_broker_that_is_away_is_told_without_its_password(
    tmp_path: Path, variable: str, url: str
) -> None:
    environment = {
        **os.environ,
        "HLIP_SPOOL__FOLDER": str(tmp_path / "data"),
        variable: url.format(secret=CANARY, port=free_port()),
    }
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([HLIP, "schedule"], env=environment, stdout=output, stderr=output)
        try:
            wait_until(lambda: log.read_bytes() or process.poll() is not None, "the first word")
            time.sleep(2)
        finally:
            process.terminate()
            process.wait(30)
    assert CANARY not in log.read_text()


def test_a_worker_whose_broker_is_away_does_not_tell_its_password(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "HLIP_SPOOL__FOLDER": str(tmp_path / "data"),
        "HLIP_BROKER__URL": f"amqp://hlip:{CANARY}@127.0.0.1:{free_port()}//",
    }
    log = tmp_path / "log"
    make = [HLIP, "schedule"]
    scheduler = subprocess.Popen(make, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with log.open("wb") as output:
        worker = subprocess.Popen([HLIP, "work", "--queue", "deliver"], env=environment, stdout=output, stderr=output)
        try:
            wait_until(lambda: b"127.0.0.1" in log.read_bytes(), "the worker's complaint", 60)
        finally:
            for process in (worker, scheduler):
                process.kill()
                process.wait(30)
    assert CANARY not in log.read_text()


def test_settings_print_no_secret_and_a_mistake_beside_one_does_not_either(tmp_path: Path) -> None:
    file = tmp_path / "hlip.toml"
    file.write_text(
        f"[index]\nurl = 'postgresql+psycopg://hlip:{CANARY}@db/hlip'\n[broker]\nurl = 'amqp://hlip:{CANARY}@rabbit/'\n"
        f"[[destinations]]\nname = 'pacs'\nurl = 'https://pacs'\ntoken = '{CANARY}'\npassword = '{CANARY}'\n"
    )
    settings = load_settings(file)
    assert CANARY not in repr(settings) + str(settings.model_dump()) + settings.model_dump_json()
    file.write_text(file.read_text() + "port = 'many'\n")
    done = subprocess.run([HLIP, "status", "--config", file], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "destinations.0.port" in done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_every_setting_that_may_hold_a_secret_is_kept_as_one() -> None:
    """By its name: whoever adds another is reminded here."""
    telling = ("password", "token", "secret")
    schema = json.dumps(Settings.model_json_schema())
    for section in json.loads(schema)["$defs"].values():
        for name, field in section.get("properties", {}).items():
            if any(word in name for word in telling):
                assert field.get("format") == "password", f"{section['title']}.{name}"
