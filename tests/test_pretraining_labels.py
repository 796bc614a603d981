"""Stages of pre-training that learn what rules read from the reports, and stages that leave the text tower as it is."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from small_runs import ENCODER, config, losses, write_toml
from trainer.contrast import Contrast
from trainer.dataset import Studies, label_names, stated
from trainer.recipe import Run, pretrain
from trainer.start import new_model, tokenizer_of
from trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

STAGE = {"epochs": 2, "lr": 2e-3, "scans_per_study": 2}


def names(*sentences: str) -> set[str]:
    return {label_names()[place] for place in stated(sentences)}


def test_what_a_report_states_is_read_sentence_by_sentence():
    assert names("No subdural hematoma.", "Possibly skull fracture.") == {"skull_fracture"}
    assert names("Indication: headache.", "Extradural hematoma identified.", "No midline shift.") == {
        "epidural_hemorrhage",
        "intracranial_hemorrhage",
    }
    assert names("Comparison: none.", "Unremarkable CT of the head.") == set() == names()


def step(settings, folder, share: float):
    """Loss, gradients by name, and the samples of one step."""
    studies = Studies(settings)
    model = new_model(settings, studies, tokenizer_of(settings, studies, folder)).train()
    contrast = Contrast(settings, model, World.join("cpu"), air=None)
    samples = [studies.sample(0, i, settings.stages[0]) for i in range(7)]
    loss = contrast.backward(samples, step=0, labels=share)
    found = {
        name: p.grad.clone() for part in (model, contrast) for name, p in part.named_parameters() if p.grad is not None
    }
    return loss, found, (model, contrast, samples)


def test_with_labels_alone_the_loss_is_a_binary_question_for_each_finding(cohort, tmp_path):
    settings = config(cohort, stages=[{**STAGE, "labels": 1.0}])
    loss, found, (model, contrast, samples) = step(settings, tmp_path, 1.0)
    truth = torch.zeros(7, len(label_names()))
    for row, sample in zip(truth, samples, strict=True):
        row[list(sample.findings)] = 1
    assert truth[::2, label_names().index("subdural_hemorrhage")].all() and truth[1::2].sum() == 0
    seeds = [sample.seed for sample in samples]
    features = model.visual.trunk.forward_prefix([sample.images.float() for sample in samples], seeds=seeds)[:, 0]
    assert loss == pytest.approx(F.binary_cross_entropy_with_logits(contrast.labels(features), truth).item(), abs=1e-5)
    assert found["labels.weight"].abs().sum() > 0
    assert not any(name.startswith("text.") or "head" in name for name in found)


def test_the_loss_is_shared_between_labels_and_the_contrast(cohort, tmp_path):
    def loss(share: float) -> float:
        return step(config(cohort, stages=[{**STAGE, "labels": 0.3}]), tmp_path, share)[0]

    assert loss(0.3) == pytest.approx(0.3 * loss(1.0) + 0.7 * loss(0.0), rel=1e-5)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(cohort, tmp_path):
    stages = [{**STAGE, "labels": 0.4}]
    whole, one, _ = step(config(cohort, stages=stages), tmp_path, 0.4)
    parts, three, _ = step(config(cohort, stages=stages, optimizer={"accumulate": 3}), tmp_path, 0.4)
    assert parts == pytest.approx(whole, abs=1e-5) and one.keys() == three.keys()
    for name, gradient in one.items():
        assert torch.allclose(gradient, three[name], atol=1e-5 + 1e-3 * gradient.abs().max()), name


def test_a_text_tower_whose_rate_is_0_stays_to_the_bit(cohort, tmp_path):
    stages = [{**STAGE, "text_lr": 0.0}, {**STAGE, "labels": 1.0, "text_lr": 0.0}, {**STAGE, "epochs": 1}]
    run = Run(config(cohort, stages=stages), tmp_path, World.join("cpu"))
    before = {name: value.clone() for name, value in run.model.text.state_dict().items()}
    moved = []
    for samples in run.samples():
        run.train_step(samples)
        moved.append(any(not torch.equal(value, before[name]) for name, value in run.model.text.state_dict().items()))
    assert moved == [False] * 12 + [True] * 3


def test_two_processes_have_the_losses_of_one(cohort, tmp_path):
    changes = {
        "stages": [{**STAGE, "epochs": 3, "labels": 0.5}],
        "model": {"encoder": {**ENCODER, "stem": [8, 16, 16], "max_num_scans": 1, "pool": "cls_mean"}, "spread": True},
        "optimizer": {"batch_size": 8, "precision": "bf16_stem"},
    }
    pretrain(config(cohort, **changes), tmp_path / "one")
    file = write_toml(tmp_path / "run.toml", cohort, **changes)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "trainer", "pretrain"]
    subprocess.run([sys.executable, *command, str(file), "--out", str(tmp_path / "two")], check=True, timeout=300)
    assert len(losses(tmp_path / "two")) == 9
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)


def test_a_stem_in_bf16_needs_a_stem(cohort):
    with pytest.raises(ValueError, match="bf16_stem needs an encoder with a stem"):
        config(cohort, optimizer={"batch_size": 8, "precision": "bf16_stem"})
