"""Settings: the sample file is complete and true, variables win over files, mistakes are told."""

import time
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from structlog.testing import capture_logs

from plugin.bootstrap import Plugin
from plugin.roles import warn_of_zone
from plugin.settings import Settings, load_settings

SAMPLE = Path(__file__).parents[1] / "deploy" / "hlip.toml"


def test_the_sample_file_holds_the_defaults() -> None:
    sample = load_settings(SAMPLE)
    defaults = Settings()
    assert sample.model_dump() == defaults.model_dump()


def test_the_sample_file_explains_every_setting() -> None:
    text = SAMPLE.read_text()
    written = tomllib.loads(text)
    for section, field in Settings.model_fields.items():
        if section in ("thresholds", "destinations", "signals"):
            assert f"[{section}]" in text
            continue
        assert isinstance(field.default, BaseModel)
        for key in type(field.default).model_fields:
            assert key in written[section], f"{section}.{key} is missing"
            if section != "routing":
                rows = text[text.index(f"\n[{section}]\n") :].splitlines()
                line = next(i for i, row in enumerate(rows) if row.startswith(f"{key} ="))
                above = rows[line - 1]
                assert above.startswith("#"), f"{section}.{key} is not explained"


def test_a_variable_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hlip.toml"
    file.write_text("[listener]\nport = 104\nae_title = 'FILE'\n")
    monkeypatch.setenv("HLIP_LISTENER__PORT", "4104")
    settings = load_settings(file)
    assert (settings.listener.port, settings.listener.ae_title) == (4104, "FILE")


def test_a_variable_of_no_section_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HLIP_LISTNER__PEERS", "[]")
    with pytest.raises(ValueError, match="HLIP_LISTNER__PEERS sets nothing: there is no section listner"):
        load_settings()
    monkeypatch.delenv("HLIP_LISTNER__PEERS")
    monkeypatch.setenv("hlip_listener__port", "4104")
    monkeypatch.setenv("HLIP_THRESHOLDS__hydrocephalus", "0.5")
    monkeypatch.setenv("HLIP_BIND", "for compose")
    assert load_settings().listener.port == 4104


@pytest.mark.parametrize(
    "text",
    [
        "[listener]\nprot = 104\n",
        "[listener]\nport = 99999\n",
        "[lisener]\nport = 104\n",
        "[results]\ntime_zone = 'Mars/Olympus'\n",
        "[results]\ntime_zone = '../../etc/passwd'\n",
        "[results]\ntime_zone = 'Europe'\n",
        "[[destinations]]\nname = 'a'\n",
        "[[destinations]]\nname = 'a'\nhost = 'h'\n",
        "[[destinations]]\nname = 'a'\nhost = 'h'\nae_title = 'A'\ndelete_withdrawn = 'orthanc'\n",
        "[[destinations]]\nname = 'a'\nhost = 'h'\nae_title = 'A'\ndelete_withdrawn = 'dicomweb'\n",
        "[[destinations]]\nname = 'a'\nurl = 'http://h'\n[[destinations]]\nname = 'a'\nurl = 'http://h'\n",
    ],
)
def test_a_mistake_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "hlip.toml"
    file.write_text(text)
    with pytest.raises(ValidationError):
        load_settings(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        load_settings(tmp_path / "nowhere.toml")


def test_a_time_zone_that_is_none_is_told_with_what_to_do() -> None:
    with pytest.raises(ValidationError, match=r"no time zone 'CEST' is known here.*tzdata"):
        Settings(results={"time_zone": "CEST"})


def test_results_are_dated_in_the_zone_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/Caracas")
    time.tzset()
    try:
        zones = [Plugin(Settings(results={"time_zone": name})).now().utcoffset() for name in ("Asia/Kolkata", "")]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert zones == [timedelta(hours=5, minutes=30), timedelta(hours=-4)]


@pytest.mark.parametrize(("machine", "site", "warnings"), [
    ("UTC", "", 1), ("UTC", "UTC", 0), ("UTC", "Asia/Kolkata", 0), ("Europe/London", "", 0), ("Africa/Accra", "", 0),
])  # fmt: skip
def test_a_machine_at_utc_is_warned_of_where_no_zone_is_set(
    monkeypatch: pytest.MonkeyPatch, machine: str, site: str, warnings: int
) -> None:
    monkeypatch.setenv("TZ", machine)
    time.tzset()
    try:
        with capture_logs() as logs:
            warn_of_zone(Plugin(Settings(results={"time_zone": site})))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert ["results.time_zone" in line["event"] for line in logs] == [True] * warnings


def test_secrets_are_not_printed(tmp_path: Path) -> None:
    file = tmp_path / "hlip.toml"
    file.write_text("[index]\nurl = 'postgresql+psycopg://hlip:hunter2@db/hlip'\n")
    settings = load_settings(file)
    assert "hunter2" not in repr(settings)
    assert settings.index_url.endswith("hunter2@db/hlip")
