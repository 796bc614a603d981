"""The command line: it teaches, explains mistakes in a sentence, and the README tells the truth about it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from peers import dciodvfy_errors
from plugin.cli import app
from road import head_ct, untrained_bundle

ROOT = Path(__file__).parents[1]
HLIP = Path(sys.executable).parent / "hlip"
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def hlip(folder: Path, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "HLIP_SPOOL__FOLDER": str(folder / "data"), "HLIP_MODEL__BUNDLE": str(untrained_bundle()),
        "COLUMNS": "200", **variables,
    }  # fmt: skip
    return subprocess.run([HLIP, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    described = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    assert len(described.help or "") > 60, f"hlip {command} has no help that teaches"
    for parameter in described.params:
        assert getattr(parameter, "help", None), f"hlip {command}: {parameter.name} is not explained"


def test_the_readme_names_every_command_and_no_other() -> None:
    named = set(re.findall(r"`?hlip ([a-z]+)", (ROOT / "README.md").read_text()))
    assert named <= set(COMMANDS)
    assert set(COMMANDS) <= named


def test_help_says_that_this_is_research_software(tmp_path: Path) -> None:
    assert "not a medical device" in hlip(tmp_path, "--help").stdout


def test_analyze_writes_valid_objects_and_findings(tmp_path: Path) -> None:
    source = head_ct(tmp_path / "in")
    done = hlip(tmp_path, "analyze", tmp_path / "in", "--out", tmp_path / "out",
                HLIP_THRESHOLDS='{"intracranial_hemorrhage": -1}')  # fmt: skip
    assert done.returncode == 0, done.stderr
    (study,) = (tmp_path / "out").iterdir()
    written = json.loads((study / "findings.json").read_text())
    assert written["model"]["status"] == "untrained" and "not for diagnosis" in written["notice"]
    assert [row["label"] for row in written["findings"] if row["positive"]] == ["intracranial_hemorrhage"]
    allowed = dciodvfy_errors(source[0])
    assert [result["file"].split("-hlip")[0] for result in written["results"]] == ["9101-1", "9102-1", "9103-1"]
    for result in written["results"]:
        assert dciodvfy_errors(study / result["file"]) <= allowed
        if "key images" in result["description"]:
            continue
        shown = hlip(tmp_path, "show", study / result["file"])
        assert shown.returncode == 0 and "UNTRAINED" in shown.stdout
    html = hlip(tmp_path, "show", "--html", study / written["results"][0]["file"]).stdout
    assert html.lstrip().lower().startswith("<!doctype html>")


def test_analyze_of_nothing_useful_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "letter.txt").write_text("Dear colleague")
    done = hlip(tmp_path, "analyze", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 1 and "No DICOM instance" in done.stderr


def test_analyze_of_a_study_that_could_not_be_analysed_says_why_and_exits_with_1(tmp_path: Path) -> None:
    head_ct(tmp_path / "in", slices=3)
    done = hlip(tmp_path, "analyze", tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    assert "too_few_slices" in done.stdout
    assert list((tmp_path / "out").glob("*/9101-1-*.dcm")), "the summary says so"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("status",), "start `hlip serve`"),
        (("show", "1.2.3"), "start `hlip serve`"),
        (("retry",), "start `hlip serve`"),
        (("serve", "--config", "nowhere.toml"), "nowhere.toml"),
        (("work", "--queue", "dream"), "no queue dream"),
        (("show", __file__), "test_cli.py is no DICOM file"),
        (("serve", "--config", "[/etc]/[red].toml"), "[/etc]/[red].toml"),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = hlip(tmp_path, *arguments)
    assert done.returncode == 2
    assert says in done.stderr and "Traceback" not in done.stderr


def test_a_broken_bundle_is_explained(tmp_path: Path) -> None:
    done = hlip(tmp_path, "serve", HLIP_MODEL__BUNDLE=str(tmp_path / "nothing"))
    assert done.returncode == 2 and "nothing" in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    done = hlip(tmp_path, "status", HLIP_LISTENER__PORT="many")
    assert done.returncode == 2 and "listener.port" in done.stderr
