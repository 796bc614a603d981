"""What a step of pre-training sees: studies, reports, stages, and the patches that are left."""

from itertools import pairwise

import pytest
import torch

import tiny
from small_runs import config
from trainer.config import Stage
from trainer.dataset import Studies, batches, mirrored
from trainer.recipe import Plan, Run
from trainer.world import World

pytestmark = pytest.mark.usefixtures("one_thread")


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
