"""Making many synthetic studies: resumable, in parallel, listed, and not told apart by histograms alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from trainer.cli import app
from trainer.phantom.audit import EDGES, audit, features
from trainer.phantom.generate import MANIFEST, Batch, generate, read_manifest

OPTIONS = {"preset": "tiny", "series": ["thick"]}


def test_a_batch_is_listed_in_the_order_of_its_seeds(tmp_path: Path) -> None:
    made = list(generate(Batch(tmp_path, 3, 10, OPTIONS), workers=2))
    rows = read_manifest(tmp_path / MANIFEST)
    assert [row["seed"] for row in rows] == [10, 11, 12]
    assert {row["study_instance_uid"] for row in rows} == {study.study_instance_uid for study in made}


def test_a_longer_batch_keeps_what_a_shorter_one_made(tmp_path: Path) -> None:
    list(generate(Batch(tmp_path, 2, 10, OPTIONS), workers=1))
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.dcm")}
    list(generate(Batch(tmp_path, 3, 10, OPTIONS), workers=1))
    assert len(read_manifest(tmp_path / MANIFEST)) == 3
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())


def test_the_command_makes_what_it_is_asked_for(tmp_path: Path) -> None:
    arguments = ["phantom", "-o", str(tmp_path), "-n", "2", "--preset", "tiny", "-w", "1", "--lesions", "epidural"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert all(row["labels"]["epidural_hemorrhage"] for row in read_manifest(tmp_path / MANIFEST))


def test_the_command_says_which_lesions_there_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["phantom", "-o", str(tmp_path), "--lesions", "wart"])
    assert result.exit_code == 2
    assert "no such lesion" in result.output


def test_the_command_keeps_conspicuity_within_its_limits(tmp_path: Path) -> None:
    arguments = ["phantom", "-o", str(tmp_path), "-n", "3", "--preset", "tiny", "-w", "1", "--lesions", "infarct"]
    result = CliRunner().invoke(app, [*arguments, "--conspicuity", "0.8", "0.9"])
    assert result.exit_code == 0, result.output
    rows = read_manifest(tmp_path / MANIFEST)
    assert all(0.8 <= lesion["conspicuity"] <= 0.9 for row in rows for lesion in row["lesions"])
    assert CliRunner().invoke(app, [*arguments, "--conspicuity", "0.9", "0.8"]).exit_code == 2


def test_the_audit_sees_histograms_only() -> None:
    voxels = np.random.default_rng(0).integers(-1000, 100, (8, 16, 16)).astype(np.int16)
    shuffled = np.random.default_rng(1).permutation(voxels.ravel()).reshape(voxels.shape)
    assert np.array_equal(features(voxels), features(shuffled))
    assert features(voxels).shape == (len(EDGES) - 1 + 10,)


def test_the_audit_leaves_out_rare_findings(tmp_path: Path) -> None:
    list(generate(Batch(tmp_path, 3, 10, {**OPTIONS, "preset": "training", "size": 64}), workers=1))
    assert list(audit(tmp_path)) == []
