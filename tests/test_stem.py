"""An encoder with a convolutional stem keeps what every encoder promises."""

from dataclasses import replace

import pytest
import torch

from hlip_core.architectures import EncoderConfig, stem_strides
from hlip_core.encoder import Encoder
from hlip_core.errors import CheckpointMismatch, InputError
from hlip_core.initialisation import convert_mae
from hlip_core.model import HlipConfig

SHAPE = {"img_size": (16, 32, 32), "patch_size": (4, 8, 8), "embed_dim": 24, "depth": 2, "num_heads": 2}
CONFIG = EncoderConfig(**SHAPE, scan_blocks=(0,), study_blocks=(1,), max_num_scans=1, stem=(8, 16, 16))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(CONFIG).eval()


@pytest.fixture
def studies() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(n, 1, depth, 32, 40) for n, depth in ((1, 16), (3, 24), (2, 19))]


@pytest.mark.parametrize(
    ("patch", "stages", "steps"),
    [
        ((4, 8, 8), 3, [(1, 2, 2), (2, 2, 2), (2, 2, 2)]),
        ((1, 2, 4), 2, [(1, 1, 2), (1, 2, 2)]),
        ((8, 16, 16), 3, None),
        ((6, 16, 16), 4, None),
    ],
)
def test_the_stages_of_a_stem_divide_the_patch(patch, stages, steps):
    assert stem_strides(patch, stages) == steps


@pytest.mark.parametrize("stem", [(8, 16), (8, 16, 20)])
def test_a_stem_that_does_not_fit_is_refused(stem):
    with pytest.raises(InputError, match=r"powers of 2 up to \d+, and multiples of 8"):
        EncoderConfig(**SHAPE, scan_blocks=(0,), study_blocks=(1,), stem=stem)


def test_a_study_has_the_same_feature_whatever_else_is_in_the_batch(encoder, studies):
    with torch.inference_mode():
        together = encoder(studies)
        for study, feature in zip(studies, together, strict=True):
            torch.testing.assert_close(encoder([study])[0], feature, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(encoder([study.flip(0)])[0], feature, rtol=1e-5, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


@pytest.mark.parametrize("pool", ["cls_mean", "cls_max"])
def test_the_feature_holds_the_mean_or_the_maximum_of_the_patch_tokens(studies, pool):
    torch.manual_seed(0)
    encoder = Encoder(replace(CONFIG, pool=pool)).eval()
    with torch.inference_mode():
        features, tokens = encoder(studies), encoder.forward_features(studies)
        for feature, rows in zip(features, tokens, strict=True):
            patches = rows[1:].mean(0) if pool == "cls_mean" else rows[1:].amax(0)
            torch.testing.assert_close(feature, torch.cat([rows[0], patches]), rtol=1e-5, atol=1e-6)


def test_patches_made_before_give_the_same_feature(encoder, studies):
    studies[1][..., :16] = -2.0
    for air in (None, -1.9):
        with torch.inference_mode():
            torch.testing.assert_close(
                encoder([encoder.project(study, air=air) for study in studies]), encoder(studies, air=air)
            )


def test_a_token_sees_its_surroundings_and_no_other_scan(encoder):
    scans = torch.randn(2, 1, 16, 32, 32, requires_grad=True)
    parts = encoder.patch_embed.parts(scans, encoder.patch_embed.cut(scans))
    assert parts.shape == (2, 4 * 4 * 4, 16)
    place = 1 * 16 + 1 * 4 + 1  # depth 1, row 1, column 1: voxels 4..7, 8..15, 8..15
    (gradient,) = torch.autograd.grad(parts[0, place].square().sum(), scans)
    assert gradient[0, 0, 4:8, 8:16, 8:16].abs().sum() > 0
    assert gradient[0, 0, 2:4, 8:16, 8:16].abs().sum() > 0
    assert gradient[1].abs().max() == 0


def test_everything_of_a_stem_learns(encoder, studies):
    encoder.train()
    encoder(studies).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in encoder.patch_embed.parameters())


def test_a_model_with_a_stem_is_the_same_after_its_configuration_was_written_down():
    config = HlipConfig(encoder=CONFIG, embed_dim=16)
    assert HlipConfig.from_dict(config.to_dict()) == config


def test_weights_of_a_plain_vit_do_not_fit_a_stem(encoder):
    state = {name: value for name, value in encoder.state_dict().items() if "stem" not in name}
    state |= {"pos_embed": torch.zeros(1, 17, 24), "patch_embed.proj.weight": torch.zeros(24, 3, 8, 8)}
    with pytest.raises(CheckpointMismatch):
        convert_mae(state, encoder)


def test_a_stem_in_bf16_leaves_the_blocks_in_single_precision(encoder, studies):
    with torch.inference_mode():
        exact = encoder(studies)
        encoder.patch_embed.stem.bf16 = True
        rounded = encoder(studies)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.05 * exact.abs().max()


def test_a_grid_that_is_too_small_for_bf16_is_computed_in_single_precision(encoder):
    stem, scans = encoder.patch_embed.stem, torch.randn(2, 1, 8, 32, 32)
    exact = stem(scans)
    stem.bf16 = True
    for outer in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=outer):
            assert torch.equal(stem(scans), exact)
    assert not torch.equal(stem(torch.cat([scans, scans], dim=2))[:, :, :1], exact[:, :, :1])
