"""Pre-training: the losses, what a step sees, and that neither kills nor processes change a run."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cohorts
import tiny
from hlip_core.bundle import load_bundle
from hlip_core.calibration_fit import Target
from hlip_core.errors import InputError
from trainer import checkpoints
from trainer.bundling import make_bundle
from trainer.config import CONFIGS, Config, Stage, load_config
from trainer.contrast import Contrast
from trainer.dataset import Studies, batches, mirrored
from trainer.losses import clip_loss, positives, siglip_loss
from trainer.recipe import Plan, Run, pretrain
from trainer.reporting import read_log
from trainer.start import new_model, tokenizer_of, vocabulary
from trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")

ENCODER = {
    "img_size": [8, 32, 32], "patch_size": [4, 8, 8], "embed_dim": 24, "depth": 2, "num_heads": 2,
    "scan_blocks": [0], "study_blocks": [1],
}  # fmt: skip
TEXT = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48, "vocab_size": 300}

LEARNING = {
    "model": {"whiten_patches": 4000},
    "loss": {"sentences_per_study": 0, "logit_scale": 2.0},
    "stages": [{"epochs": 100, "lr": 1e-2, "warmup_steps": 20, "scans_per_study": 4}],
}
"""Soon leaves the plateau on which every contrast begins."""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    return cohorts.write(tmp_path_factory.mktemp("cohort") / "c").folder


def values(cohort: Path, **changes) -> dict:
    """A small run's settings; `changes` are sections."""
    sections = {
        "name": "tiny", "seed": 3, "threads": 1, "device": "cpu",
        "data": {"cohorts": [str(cohort)], "mirror": True, "jitter": True},
        "model": {"encoder": ENCODER, "text": TEXT, "context_length": 32, "embed_dim": 16, "vocabulary": 300},
        "loss": {"sentences_per_study": 2},
        "optimizer": {"batch_size": 8},
        "stages": [{"epochs": 7, "lr": 2e-3, "warmup_steps": 3, "patch_dropout": 0.25, "scans_per_study": 2}],
        "progress": {"checkpoint_steps": 4, "tensorboard": False},
    }  # fmt: skip
    for name, change in changes.items():
        sections[name] = {**sections[name], **change} if isinstance(change, dict) else change
    return sections


def config(cohort: Path, **changes) -> Config:
    return Config.model_validate(values(cohort, **changes))


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_log(folder) if "loss" in line]


def write_toml(path: Path, cohort: Path, **changes) -> Path:
    """The settings as a TOML file: JSON's values are TOML's, but for tables."""
    lines = []
    for name, value in values(cohort, **changes).items():
        if name == "stages":
            lines += ["[[stages]]", *(f"{key} = {json.dumps(v)}" for key, v in value[0].items())]
        elif isinstance(value, dict):
            flat = {k: v for k, v in value.items() if not isinstance(v, dict)}
            lines += [f"[{name}]", *(f"{key} = {json.dumps(v)}" for key, v in flat.items())]
            for key, table in value.items():
                if isinstance(table, dict):
                    lines += [f"[{name}.{key}]", *(f"{k} = {json.dumps(v)}" for k, v in table.items())]
        else:
            lines.insert(0, f"{name} = {json.dumps(value)}")
    path.write_text("\n".join(lines) + "\n")
    return path


# ---- losses ------------------------------------------------------------------------------------------------------


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_with_one_text_a_study_the_loss_is_that_of_clip():
    images, texts, scale = features(5, 8), features(5, 8, seed=1), torch.tensor(1.5)
    logits = scale.exp() * images @ texts.T
    target = torch.arange(5)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    positive = positives(target, torch.arange(5), 5)
    assert clip_loss(images, texts, positive, logit_scale=scale).item() == pytest.approx(expected.item(), abs=1e-6)


def test_siglip_is_a_binary_question_for_each_pair():
    images, texts = features(3, 8), features(4, 8, seed=1)
    positive = positives(torch.tensor([0, 0, 1, 2]), torch.arange(4), 3)
    logits = 10 * images @ texts.T - 10
    expected = F.binary_cross_entropy_with_logits(logits, positive.float(), reduction="sum") / 3
    found = siglip_loss(images, texts, positive, logit_scale=torch.tensor(10.0).log(), logit_bias=torch.tensor(-10.0))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_equal_texts_of_two_studies_are_true_of_both():
    owner, text_id = torch.tensor([0, 0, 1, 2]), torch.tensor([7, 8, 7, 9])
    assert positives(owner, text_id, 3).tolist() == [
        [True, True, True, False], [True, False, True, False], [False, False, False, True],
    ]  # fmt: skip


# ---- what a step sees --------------------------------------------------------------------------------------------


def test_what_is_drawn_for_a_study_depends_on_seed_epoch_and_study_alone(cohort):
    stage = config(cohort).stages[0]
    one, other = Studies(config(cohort)), Studies(config(cohort))
    other.sample(0, 5, stage)  # whatever came before
    first, again = one.sample(2, 3, stage), other.sample(2, 3, stage)
    assert torch.equal(first.images, again.images) and first.texts == again.texts and first.seed == again.seed
    assert one.sample(3, 3, stage).seed != first.seed
    assert first.images.shape == (2, 1, 8, 32, 32)


def test_a_mirrored_study_has_a_mirrored_report(cohort):
    plain, turned = Studies(config(cohort, data={"mirror": False, "jitter": False})), Studies(
        config(cohort, data={"mirror": True, "jitter": False})
    )  # fmt: skip
    stage = Stage(epochs=1, lr=1, scans_per_study=9)
    index = next(i for i, (_, row) in enumerate(plain.train) if "left" in row.report)
    seen = set()
    for epoch in range(8):
        sample, original = (studies.sample(epoch, index, stage) for studies in (turned, plain))
        side = "right" if "right" in sample.report else "left"
        assert side in sample.report and "left" in original.report
        assert torch.equal(sample.images, original.images if side == "left" else original.images.flip(-1))
        seen.add(side)
    assert seen == {"left", "right"}
    assert mirrored("Left to right shift, leftmost.") == "Right to left shift, leftmost."


def test_an_epoch_shows_each_study_at_most_once():
    found = batches(1, 0, 26, 8)
    assert len(found) == 3 and len({i for batch in found for i in batch}) == 24
    assert found != batches(1, 1, 26, 8)


def test_stages_follow_each_other_with_warm_up_and_cosine(cohort):
    stages = [
        {"epochs": 4, "lr": 1.0, "warmup_steps": 2, "patch_dropout": 0.5},
        {"epochs": 2, "lr": 0.1, "last_lr": 0.05},
    ]
    plan = Plan(config(cohort, stages=stages), 24)
    rates = [plan.stage(step)[1] for step in range(plan.num_steps)]
    assert plan.lengths == [12, 6] and rates[:3] == [0.5, 1.0, 1.0]
    assert all(a >= b for a, b in pairwise(rates[2:12]))
    assert rates[12] == pytest.approx(0.1) and rates[-1] > 0.05
    assert [plan.stage(step)[0].patch_dropout for step in (0, 11, 12)] == [0.5, 0.5, 0.0]


def test_what_patch_dropout_leaves_out_does_not_depend_on_the_batch(cohort):
    encoder = tiny.model(tiny.JOINT).visual.trunk.train()
    encoder.patch_dropout = 0.5
    one, two = tiny.images(2, 3)
    together = encoder.forward_prefix([one, two], seeds=[11, 12])
    alone = encoder.forward_prefix([two], seeds=[12])
    assert torch.allclose(together[1], alone[0], atol=1e-5)
    assert not torch.allclose(alone, encoder.forward_prefix([two], seeds=[13]), atol=1e-3)


def test_patches_that_are_kept_give_what_the_voxels_give(cohort):
    encoder = tiny.model(tiny.JOINT).visual.trunk
    (study,) = tiny.images(3)
    plain = encoder.forward_prefix([study], air=-1.0)
    assert torch.allclose(encoder.forward_prefix([encoder.project(study, air=-1.0)]), plain, atol=1e-6)
    encoder.train()
    encoder.patch_dropout = 0.5
    whole = encoder.forward_prefix([study], seeds=[4])
    assert torch.allclose(encoder.forward_prefix([encoder.project(study)], seeds=[4]), whole, atol=1e-6)


def test_a_locked_patch_embedding_sees_each_variant_of_a_study_once(cohort, tmp_path):
    locked = {"model": {"lock_patches": True, "whiten_patches": 1000}, "data": {"variants": 2}}
    run = Run(config(cohort, **locked), tmp_path, World.join("cpu"))
    before = run.model.visual.trunk.patch_embed.proj.weight.clone()
    for samples in run.samples():
        run.train_step(samples)
    assert run.step == run.plan.num_steps == 21
    assert torch.equal(run.model.visual.trunk.patch_embed.proj.weight, before)
    assert set(run.keep._scans) == {(index, variant) for index in range(24) for variant in range(2)}
    one = run.studies.sample(0, 3, run.config.stages[0]).images
    kept = run.studies.sample(2, 3, Stage(epochs=1, lr=1, scans_per_study=9), run.keep)
    assert len(kept.images) == 2 * len(run.studies.train[3][1].scans) and len(one) == 2


def test_a_learnt_vocabulary_is_always_the_same_and_knows_endings():
    texts = ["An infarct.", "Acute infarction of the pons.", "infarct infarct", "Zebra"]
    found = vocabulary(texts, 300)
    assert found == vocabulary(iter(texts), 300) and len(found) == len(set(found))
    assert {"infarct", "##ion", "infarction", "zebra", "##q", "."} <= set(found)
    assert found[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


# ---- one step ----------------------------------------------------------------------------------------------------


def gradients(settings: Config, folder: Path) -> tuple[float, dict[str, torch.Tensor]]:
    studies = Studies(settings)
    model = new_model(settings, studies, tokenizer_of(settings, studies, folder)).train()
    contrast = Contrast(settings, model, World.join("cpu"), air=None)
    loss = contrast.backward([studies.sample(0, i, settings.stages[0]) for i in range(7)], step=0)
    return loss, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(cohort, tmp_path, kind):
    whole, one = gradients(config(cohort, loss={"kind": kind}), tmp_path)
    parts, three = gradients(config(cohort, loss={"kind": kind}, optimizer={"accumulate": 3}), tmp_path)
    assert parts == pytest.approx(whole, abs=1e-5) and one.keys() == three.keys()
    for name, gradient in one.items():
        assert torch.allclose(gradient, three[name], atol=1e-5 + 1e-3 * gradient.abs().max()), name


def test_two_heads_hold_sentences_and_reports_each_in_its_own_space(cohort, tmp_path):
    joint = {**ENCODER, "num_registers": 1, "pool": "cls_mean", "max_num_scans": 1}
    _, found = gradients(config(cohort, model={"encoder": joint}, loss={"text": "both"}), tmp_path)
    for name in ("visual.head.proj.weight", "visual.report_head.proj.weight", "text.proj.weight",
                 "text.report_proj.weight", "logit_scale", "report_logit_scale"):  # fmt: skip
        assert found[name].abs().sum() > 0, name


def test_a_report_head_needs_a_register(cohort, tmp_path):
    with pytest.raises(InputError, match="num_registers"):
        gradients(config(cohort, loss={"text": "report"}), tmp_path)


@pytest.mark.parametrize(("layers", "trained"), [(0, 0), (1, 1), (-1, 2)])
def test_the_text_tower_can_be_locked_partly_or_whole(cohort, tmp_path, layers, trained):
    text = {**TEXT, "num_hidden_layers": 2}
    _, found = gradients(config(cohort, model={"text": text, "unlocked_text_layers": layers}), tmp_path)
    names = [name for name in found if name.startswith("text.transformer.")]
    assert len({name.split(".")[4] for name in names if ".layer." in name}) == trained
    assert ("text.transformer.embeddings.word_embeddings.weight" in names) == (layers == -1)
    assert "text.proj.weight" in found


def test_whitened_patches_have_uncorrelated_channels(cohort, tmp_path):
    settings = config(cohort, model={"whiten_patches": 4000}, data={"mirror": False, "jitter": False})
    studies = Studies(settings)
    trunk = new_model(settings, studies, tokenizer_of(settings, studies, tmp_path)).visual.trunk
    voxels = trunk.patch_embed.cut(studies.sample(0, 0, settings.stages[0]).images.float()).flatten(0, 1)
    tokens = trunk.patch_embed(voxels[(voxels > -1.9).float().mean(1) > 0.5]).detach()
    assert 0.1 < tokens.std() < 1.5
    correlation = np.corrcoef(tokens.numpy().T) - np.eye(tokens.shape[1])
    assert np.abs(correlation).mean() < 0.35


def test_a_spread_start_gives_studies_and_sentences_different_vectors(cohort, tmp_path):
    likeness = {}
    for spread in (False, True):
        settings = config(cohort, model={"spread": spread}, data={"mirror": False, "jitter": False})
        studies = Studies(settings)
        model = new_model(settings, studies, tokenizer_of(settings, studies, tmp_path)).eval()
        images = [studies.sample(0, i, settings.stages[0]).images.float() for i in range(len(studies.train))]
        with torch.inference_mode():
            vectors = {"image": model.encode_image(images), "text": model.encode_text(sorted(set(studies.sentences)))}
        for tower, found in vectors.items():
            likeness[tower, spread] = (found @ found.T).mean().item()
    for tower in ("image", "text"):
        assert likeness[tower, True] < 0.2 < 0.5 < likeness[tower, False]


# ---- whole runs --------------------------------------------------------------------------------------------------


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


# ---- configurations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configurations_that_come_along_describe_models(path):
    from trainer.start import architecture

    settings = load_config(path)
    assert settings.name == path.stem
    assert architecture(settings).encoder.depth == len(architecture(settings).encoder.levels)
    assert math.isfinite(sum(stage.lr for stage in settings.stages))


def test_a_value_can_be_put_over_the_files(cohort, tmp_path):
    file = write_toml(tmp_path / "run.toml", cohort)
    settings = load_config(file, ("stages.0.lr=0.5", "optimizer.precision=bf16", "data.mirror=false"))
    assert (settings.stages[0].lr, settings.optimizer.precision, settings.data.mirror) == (0.5, "bf16", False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("optimizer.batch_sice=3", "batch_sice"),
        ("optimizer.batch_size=1", "batch_size of 2"),
        ("loss.kind=triplet", "loss.kind"),
        ("model.lock_patches=true", "data.variants"),
        ("nonsense", "section.name=value"),
    ],
)
def test_a_wrong_setting_is_named(cohort, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_config(write_toml(tmp_path / "run.toml", cohort), (change,))


def test_a_missing_configuration_names_those_that_come_along(tmp_path):
    with pytest.raises(InputError, match="demo"):
        load_config(tmp_path / "none.toml")


# ---- commands ----------------------------------------------------------------------------------------------------


def test_every_command_of_the_trainer_explains_itself_and_is_in_its_readme():
    import typer

    from trainer.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert sorted(commands) == ["bundle", "cohort", "evaluate", "phantom", "pretrain"]
    readme = (CONFIGS.parent / "README.md").read_text()
    for name, command in commands.items():
        assert len(command.help) > 60 and f"hlip-train {name}" in readme
        assert all(getattr(parameter, "help", None) for parameter in command.params), name


def test_a_mistake_is_told_in_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "pretrain", "demo", "--set", f"data.cohorts=['{tmp_path}']", "--out",
         str(tmp_path / "run")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "no cohort in" in done.stderr and "Traceback" not in done.stderr
