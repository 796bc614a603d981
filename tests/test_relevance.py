from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tiny
from hlip_core.architectures import EncoderConfig
from hlip_core.assessment import brightest_cell
from hlip_core.errors import InputError
from hlip_core.model import Hlip, HlipConfig, VisualTower
from hlip_core.relevance import Look


def direction(width: int = 16) -> np.ndarray:
    vector = np.random.default_rng(1).normal(size=width).astype(np.float32)
    return vector / np.linalg.norm(vector)


def by_autograd(visual: VisualTower, study: torch.Tensor, towards: np.ndarray) -> np.ndarray:
    """The rule written out: whole attention matrices, and the gradient with respect to all of them."""
    trunk, kept = visual.trunk, []
    block = trunk.blocks[-1]
    x, tree = trunk.embed([study])
    x = trunk.enter_last(trunk.run_blocks(x, tree, stop=trunk.config.depth - 1), tree)
    q, k, v = block.attn.qkv(block.norm1(x)).view(len(x), 3, block.attn.num_heads, -1).permute(1, 2, 0, 3)
    attention = (q @ k.transpose(1, 2) * block.attn.scale).softmax(-1)  # [a, r, r]
    attention.retain_grad()
    kept.append(attention)
    x = x + block.attn.proj((attention @ v).transpose(0, 1).flatten(1))
    x = trunk.norm(x + block.mlp(block.norm2(x)))
    feature = x[0] if trunk.config.pool == "cls" else torch.cat([x[0], x[trunk.config.num_prefix :].mean(0)])
    (F.normalize(visual.head(feature), dim=0) @ torch.from_numpy(towards)).backward()
    product = (attention.grad * attention).clamp(min=0).mean(0)[0]
    return product[trunk.config.num_prefix :].detach().numpy()


def test_relevance_equals_the_rule_written_out_on_whole_matrices():
    visual, (study,) = tiny.model().visual, tiny.images(3)
    relevance = Look(visual, study).relevance(direction())
    assert relevance.shape == (3, 2, 4, 4)
    np.testing.assert_allclose(relevance.ravel(), by_autograd(visual, study, direction()), rtol=1e-3, atol=1e-8)


def test_relevance_of_the_joint_family_follows_the_class_token():
    visual, (study,) = tiny.model(tiny.JOINT).visual, tiny.images(2)
    relevance = Look(visual, study).relevance(direction())
    assert relevance.shape == (2, 2, 4, 4)
    assert relevance.max() > 0


def test_the_look_has_the_vector_of_the_model():
    model, (study,) = tiny.model(), tiny.images(3)
    with torch.inference_mode():
        expected = model.encode_image([study])[0]
    torch.testing.assert_close(Look(model.visual, study).vector, expected, rtol=0, atol=1e-5)


def test_relevance_leaves_no_gradient_behind():
    model, (study,) = tiny.model(), tiny.images(2)
    look = Look(model.visual, study)
    first = look.relevance(direction())
    assert all(parameter.grad is None for parameter in model.parameters())
    np.testing.assert_array_equal(look.relevance(direction()), first)


def test_patches_left_out_as_air_have_no_relevance():
    visual, (study,) = tiny.model().visual, tiny.images(2)
    study[1, :, :4, :, :16] = -2.0
    relevance = Look(visual, study, air=-1.9).relevance(direction())
    assert relevance.shape == (2, 2, 4, 4)
    assert (relevance[1, 0, :, :2] == 0).all()
    assert np.count_nonzero(relevance) > 10


def with_stem() -> VisualTower:
    return tiny.model(replace(tiny.JOINT, encoder=replace(tiny.JOINT.encoder, stem=(8, 8, 16)))).visual


def test_a_stem_makes_the_map_finer_than_the_patches():
    visual, (study,) = with_stem(), tiny.images(2)
    look = Look(visual, study)
    assert look.cell == (1, 2, 2)
    relevance = look.relevance(direction())
    assert relevance.shape == (2, 8, 16, 16)
    assert (relevance >= 0).all()
    assert relevance.max() > 0
    within = relevance.reshape(2, 2, 4, 4, 4, 4, 4).transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, 64)
    assert (within.std(1) > 0).sum() > 10  # not one value a patch
    np.testing.assert_array_equal(look.relevance(direction()), relevance)


def test_air_has_no_relevance_behind_a_stem_either():
    visual, (study,) = with_stem(), tiny.images(2)
    study[1, :, :4, :, :16] = -2.0
    relevance = Look(visual, study, air=-1.9).relevance(direction())
    assert (relevance[1, :4, :, :8] == 0).all()
    assert np.count_nonzero(relevance) > 100


def test_behind_a_stem_a_place_counts_as_much_as_the_score_rises_with_it():
    config = replace(tiny.JOINT, encoder=replace(tiny.JOINT.encoder, patch_size=(4, 4, 4), stem=(8, 16)))
    visual, (study,), towards = tiny.model(config).visual, tiny.images(2), direction()
    counted = Look(visual, study)._of_stages(towards)
    assert counted.shape == (2, 4, 16, 16)
    places = [*counted.ravel().argsort()[-8:], *np.random.default_rng(0).integers(0, counted.size, 16)]
    rises = np.array([rise(visual, study, towards, np.unravel_index(place, counted.shape)) for place in places])
    of_place = counted.ravel()[places]
    scale = rises[:8].sum() / of_place[:8].sum()
    assert scale > 0
    np.testing.assert_allclose(of_place * scale, rises.clip(min=0), rtol=0.05, atol=0.02 * rises.max())


def rise(visual: VisualTower, study: torch.Tensor, towards: np.ndarray, place: tuple[int, ...]) -> float:
    """How much the score rises where one place of the stem's first stage grows, by central differences."""
    scores = []
    for growth in (1e-2, -1e-2):

        def grow(_module, _given, found, growth=growth):
            n, z, y, x = place
            found[n, :, z, y, x] *= 1 + growth
            return found

        hook = visual.trunk.patch_embed.stem[0].register_forward_hook(grow)
        with torch.no_grad():
            vector = F.normalize(visual.double()([study.double()]), dim=-1)[0]
        scores.append(float(vector @ torch.from_numpy(towards).double()))
        hook.remove()
    return scores[0] - scores[1]


def test_a_model_that_does_not_end_with_the_study_is_refused():
    config = {**tiny.ENCODER.__dict__, "scan_blocks": (0, 2), "study_blocks": (1,)}
    model = Hlip(HlipConfig(encoder=EncoderConfig(**config), text=None, embed_dim=16))
    with pytest.raises(InputError, match="last block"):
        Look(model.visual, tiny.images(1)[0])


# ---- from a patch to the source ----------------------------------------------------------------------------


def test_the_brightest_cell_is_named_by_its_centre_in_the_source():
    scans = [tiny.scan(1), tiny.scan(2)]
    relevance = np.zeros((4, 2, 4, 4))  # two series in two windows each
    relevance[3, 1, 2, 1] = 1.0
    scans[1].voxels[6, 4 + 20, 4 + 12] = 40
    location = brightest_cell(relevance, scans, tiny.SPEC, (4, 8, 8))
    assert (location.series_instance_uid, location.z, location.y, location.x) == ("2.25.2", 6, 24, 16)
    source = location.source
    assert (source.sop_instance_uid, source.frame_number, source.row, source.column) == ("2.25.2006", None, 24, 16)


def test_air_is_never_named():
    scans = [tiny.scan(1)]
    relevance = np.zeros((2, 2, 4, 4))
    relevance[0, 0, 0, 0] = 1.0  # a corner
    scans[0].voxels[2, 4 + 4, 4 + 4] = -1000
    relevance[1, 1, 1, 1] = 0.1
    scans[0].voxels[6, 4 + 12, 4 + 12] = 40
    assert brightest_cell(relevance, scans, tiny.SPEC, (4, 8, 8)).y == 4 + 12


def test_no_relevance_is_no_place():
    assert brightest_cell(np.zeros((2, 2, 4, 4)), [tiny.scan(1)], tiny.SPEC, (4, 8, 8)) is None


def test_maps_of_another_number_of_scans_are_an_error():
    with pytest.raises(InputError, match="maps for"):
        brightest_cell(np.zeros((3, 2, 4, 4)), [tiny.scan(1)], tiny.SPEC, (4, 8, 8))
