"""The losses of pre-training, and the gradients of one step."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from hlip_core.errors import InputError
from small_runs import ENCODER, TEXT, config
from trainer.config import Config
from trainer.contrast import Contrast
from trainer.dataset import Studies
from trainer.losses import clip_loss, positives, siglip_loss
from trainer.start import new_model, tokenizer_of
from trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


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
