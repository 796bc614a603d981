"""Whole runs of pre-training: neither kills nor processes change them, and a bundle comes of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import cohorts
import tiny
from hlip_core.bundle import load_bundle
from hlip_core.calibration_fit import Target
from hlip_core.errors import InputError
from small_runs import LEARNING, config, losses, write_toml
from trainer import checkpoints
from trainer.bundling import make_bundle
from trainer.recipe import Run, pretrain
from trainer.reporting import read_log
from trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def undisturbed(cohort, tmp_path_factory) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pretrain(config(cohort), folder)
    return folder


def test_a_run_learns_what_the_reports_say(cohort, tmp_path):
    pretrain(config(cohort, **LEARNING), tmp_path)
    log = read_log(tmp_path)
    assert np.mean(losses(tmp_path)[-20:]) < np.mean(losses(tmp_path)[:20]) - 0.1
    assert log[-1]["auc"]["subdural_hemorrhage"] > 0.9


def test_a_run_goes_on_where_its_checkpoint_left_it(cohort, tmp_path, undisturbed):
    settings = config(cohort)
    run = Run(settings, tmp_path, World.join("cpu"))
    for samples in run.samples():
        run.train_step(samples)
        if run.step == 10:  # in the middle of the fourth epoch
            break
    run.save()
    pretrain(settings, tmp_path)
    assert losses(tmp_path) == pytest.approx(losses(undisturbed)[10:], abs=1e-6)
    end, other = (checkpoints.load(checkpoints.latest(folder)) for folder in (tmp_path, undisturbed))
    assert all(torch.allclose(value, other["model"][name], atol=1e-6) for name, value in end["model"].items())


def start(config_file: Path, out: Path, *launcher: str) -> subprocess.Popen:
    command = [sys.executable, "-m", *(launcher or ()), "trainer", "pretrain", str(config_file), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def wait_for_step(out: Path, process: subprocess.Popen, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (out / "log.jsonl").is_file() and len(losses(out)) >= step:
            return
        time.sleep(0.01)
    raise AssertionError(f"never came to step {step}: {process.communicate()[0]}")


def test_a_killed_run_has_the_losses_of_an_undisturbed_one(cohort, tmp_path, undisturbed):
    file, out = write_toml(tmp_path / "run.toml", cohort), tmp_path / "run"
    process = start(file, out)
    wait_for_step(out, process, int(np.random.default_rng().integers(5, 15)))
    process.kill()
    process.communicate()
    assert checkpoints.latest(out) is not None
    finish(start(file, out))
    assert losses(out) == pytest.approx(losses(undisturbed), abs=1e-5)
    assert [line["step"] for line in read_log(out) if "loss" in line] == list(range(1, 22))


def test_a_run_that_is_asked_to_stop_writes_a_checkpoint_first(cohort, tmp_path):
    file, out = write_toml(tmp_path / "run.toml", cohort, progress={"checkpoint_steps": 1000}), tmp_path / "run"
    process = start(file, out)
    wait_for_step(out, process, 2)
    process.send_signal(signal.SIGTERM)
    assert "goes on from there" in " ".join(finish(process).split())
    assert checkpoints.load(checkpoints.latest(out))["step"] == len(losses(out)) < 21


def test_two_processes_have_the_losses_of_one(cohort, tmp_path, undisturbed):
    file, out = write_toml(tmp_path / "run.toml", cohort), tmp_path / "run"
    finish(start(file, out, "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"))
    assert len(losses(out)) == 21
    assert losses(out)[:20] == pytest.approx(losses(undisturbed)[:20], abs=1e-4)


def test_a_run_with_other_settings_does_not_go_on_from_a_checkpoint(cohort, undisturbed):
    with pytest.raises(InputError, match=r"other settings .*optimizer"):
        pretrain(config(cohort, optimizer={"batch_size": 4}), undisturbed)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("owned",))

    torch.save({"step": 1, "model": Hostile()}, tmp_path / "step-000001.pt")
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.load(tmp_path / "step-000001.pt")


def test_a_bundle_of_a_run_loads_and_says_what_it_was_trained_on(cohort, undisturbed, tmp_path):
    make_bundle(
        undisturbed, tmp_path / "bundle", version="2", findings=None, target=None, licence="CC0-1.0", data="a test"
    )
    bundle = load_bundle(tmp_path / "bundle")
    assert (bundle.name, bundle.version, bundle.status) == ("tiny", "2", "trained")
    assert "21 steps of 8 studies" in bundle.card and bundle.provenance["data"] == "a test"
    assert len(bundle.assess([tiny.scan()]).findings) == len(bundle.findings.labels)
    assert bundle.model(text=True).encode_text(["subdural hematoma"]).shape == (1, 16)


def test_a_bundle_of_phantoms_says_so_and_is_calibrated_on_the_validation_studies(tmp_path):
    cohort = cohorts.write(tmp_path / "c", validation=24, source="phantom-1").folder
    settings = config(cohort, **LEARNING)
    pretrain(settings, tmp_path / "run")
    bundle = make_bundle(
        tmp_path / "run",
        tmp_path / "b",
        version="1",
        findings=None,
        target=Target(sensitivity=0.9),
        licence="",
        data="",
    )
    assert bundle.status == "phantom" and "knows nothing of patients" in bundle.card
    assert list(bundle.calibrations) == ["subdural_hemorrhage"]
