"""`hlip-train evaluate`: what it writes and prints, and how it explains what it cannot do."""

from __future__ import annotations

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from trainer.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_writes_numbers_scores_and_a_picture(bundle, phantom_cohort, phantoms, tmp_path):
    arguments = [
        "evaluate",
        str(bundle.path),
        "--data",
        str(phantom_cohort.folder),
        "--split",
        "all",
        "-o",
        str(tmp_path),
    ]
    arguments += ["--phantoms", str(phantoms), "--histogram", "--threads", "1", "--threshold", "mass_effect=0.1"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for said in ("macro: all findings", "lowest third", "Retrieval among 8", "point of relevance", "ranks normals"):
        assert said in result.output
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["bundle"]["digest"] == bundle.digest
    assert document["phantoms"]["histogram"] == {"findings": {}, "macro": None}
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.width > 400
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 9


def test_the_command_explains_a_histogram_without_phantoms(bundle, phantom_cohort):
    result = CliRunner().invoke(
        app, ["evaluate", str(bundle.path), "--data", str(phantom_cohort.folder), "--histogram"]
    )
    assert result.exit_code == 2
    assert "needs" in result.output


def test_the_command_explains_what_it_cannot_do(bundle, tmp_path):
    result = CliRunner().invoke(app, ["evaluate", str(bundle.path), "--data", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "no cohort in" in result.output and "Traceback" not in result.output
