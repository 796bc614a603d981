import numpy as np
import pytest
import torch

import parity
from hlip_core.architectures import ENCODERS, EncoderConfig
from hlip_core.encoder import Encoder, create_encoder
from hlip_core.errors import CheckpointMismatch, InputError
from hlip_core.initialisation import convert_mae

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = parity.load_json("tiny.json")
NUMBERS = np.load(parity.FIXTURES / "tiny.npz")
JOINT = [name for name in ENCODERS if name.endswith("token1568")]


def tiny(model: str, profile: str = "sharp") -> Encoder:
    """One of the small models with recorded numbers."""
    fields = {f"{k}_blocks" if k in ("slice", "scan", "study") else k: v for k, v in TINY["models"][model].items()}
    encoder = Encoder(EncoderConfig(**fields)).eval()
    encoder.load_state_dict(parity.filled(encoder.state_dict(), profile))
    return encoder


def studies(*scans: int, size: tuple[int, int, int] = (24, 32, 64)) -> list[torch.Tensor]:
    return [torch.from_numpy(parity.image(f"study {n}", (1, n, 1, *size)))[0] for n in scans]


def joint(name: str) -> Encoder:
    """A model of the 2025-26 family, narrow enough for a test."""
    torch.manual_seed(0)
    return create_encoder(name, embed_dim=48, num_heads=4, img_size=(12, 32, 32)).eval()


# ---- the numbers of the reference --------------------------------------------------------------------------


def test_the_random_streams_are_those_of_the_recorded_numbers():
    for name, row in parity.load_json("golden.json").items():
        if isinstance(row, dict):
            assert parity.seed(name) == row["seed"]
            assert parity.normal(name, [4]).tolist() == row["first4"]


def run_stages(encoder: Encoder, images: torch.Tensor, scan_index) -> dict[str, torch.Tensor]:
    """Every intermediate result, by the names of the fixtures."""
    seen, patches = {}, []
    hooks = [
        encoder.patch_embed.register_forward_hook(lambda m, i, o: patches.append(o)),
        encoder.blocks[0].register_forward_pre_hook(lambda m, i: seen.update(embed=i[0].clone())),
    ]
    for j, block in enumerate(encoder.blocks):
        hooks.append(block.register_forward_hook(lambda m, i, o, j=j: seen.update({f"block{j}": o.clone()})))
    with torch.inference_mode():
        seen["tokens"] = torch.stack(encoder.forward_features(images, scan_index=scan_index))
        seen["patch_embed"] = torch.stack(patches)
        for hook in hooks:
            hook.remove()
        seen["feat"] = encoder(images, scan_index=scan_index)
    return seen


@pytest.mark.parametrize("case", TINY["cases"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_stage_equals_the_reference(case, dtype):
    facts = TINY["cases"][case]
    encoder = tiny(facts["model"], facts["profile"]).to(dtype)
    images = torch.from_numpy(parity.image(facts["input"], facts["shape"])).to(dtype)
    seen = run_stages(encoder, images, facts.get("scan_index"))
    atol = 1e-10 if dtype == torch.float64 else 1e-4
    stages = zip(facts["stages"], NUMBERS[f"{case}/stats"], NUMBERS[f"{case}/first16"], strict=True)
    for (stage, shape), stats, first in stages:
        values = seen[stage].reshape(shape).numpy()
        measured = [values.mean(dtype=np.float64), values.std(dtype=np.float64), parity.probe(stage, values)]
        np.testing.assert_allclose(measured, stats, rtol=0, atol=atol, err_msg=stage)
        np.testing.assert_allclose(values.ravel()[:16], first, rtol=0, atol=atol, err_msg=stage)
    np.testing.assert_allclose(seen["feat"], NUMBERS[f"{case}/feat"], rtol=0, atol=min(atol, 5e-5))


@pytest.mark.parametrize("model", TINY["models"])
def test_bf16_stays_close_to_the_reference(model):
    case = f"{model}/n1/sharp"
    images = torch.from_numpy(parity.image(TINY["cases"][case]["input"], TINY["cases"][case]["shape"]))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = tiny(model)(images)
    expected = torch.from_numpy(NUMBERS[f"{case}/feat"])
    assert 1 - torch.cosine_similarity(features.double(), expected).item() < 1e-4


# ---- batches -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TINY["models"])
def test_studies_of_different_sizes_in_one_call_equal_one_by_one(model):
    encoder = tiny(model)
    batch = [*studies(3, 1, 5), *studies(2, size=(40, 32, 64))]
    with torch.inference_mode():
        together = encoder(batch)
        alone = torch.cat([encoder([study]) for study in batch])
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-5)


def test_dropping_air_in_one_call_equals_one_by_one():
    encoder, batch = tiny("tiny_multi_h3"), studies(3, 1, 5)
    for i, study in enumerate(batch):
        study[0, :, :8] = -2.0  # a slab of air
        study[:, :, :, : 16 * (i % 2)] = -2.0
    with torch.inference_mode():
        together = encoder(batch, air=-1.9)
        alone = torch.cat([encoder([study], air=-1.9) for study in batch])
        everything = encoder(batch)
    torch.testing.assert_close(together, alone, rtol=0, atol=5e-5)
    assert (together - everything).abs().max() > 1e-3


def test_nothing_is_dropped_where_there_is_no_air():
    encoder, batch = tiny("tiny_multi_h2"), studies(3, 2)
    with torch.inference_mode():
        torch.testing.assert_close(encoder(batch, air=-100.0), encoder(batch), rtol=0, atol=1e-5)


def test_a_study_of_air_alone_still_has_a_feature():
    with torch.inference_mode():
        for model in TINY["models"]:
            assert tiny(model)([torch.full((2, 1, 24, 48, 96), -2.0)], air=-1.9).isfinite().all()


def test_eval_mode_is_the_same_for_any_batch():
    encoder, (study,) = tiny("tiny_multi_h2"), studies(3)
    with torch.inference_mode():
        one, two = encoder(study[None]), encoder(torch.stack([study, study]))
    torch.testing.assert_close(two, one.expand(2, -1), rtol=0, atol=5e-5)


def test_the_shortcut_of_the_last_block_gives_the_class_token_of_all_tokens():
    for model in TINY["models"]:
        encoder, batch = tiny(model), studies(3, 1, size=(24, 48, 96))
        with torch.inference_mode():
            tokens = encoder.forward_features(batch)
            torch.testing.assert_close(encoder(batch), torch.stack([t[0] for t in tokens]), rtol=0, atol=5e-5)


def test_scan_index_may_differ_in_each_study():
    encoder, batch = tiny("tiny_multi_h2"), studies(2, 3)
    index = [[7, 3], [39, 0, 5]]
    with torch.inference_mode():
        together = encoder(batch, scan_index=index)
        alone = [encoder([s], scan_index=i) for s, i in zip(batch, index, strict=True)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=5e-5)


# ---- training ----------------------------------------------------------------------------------------------


def test_training_draws_rows_of_the_sequential_table():
    encoder, batch = tiny("tiny_multi_h2").train(), studies(3)
    torch.manual_seed(0)
    first, second = encoder(batch), encoder(batch)
    assert not torch.equal(first, second)


def test_patch_dropout_leaves_out_the_same_number_in_each_slice():
    encoder = tiny("tiny_multi_h3").train()
    encoder.patch_dropout = 0.5
    _, tree = encoder.embed(studies(3, 2))
    assert tree["slice"].sizes == [4] * 15
    assert int(tree.kept.sum()) == 60
    assert len(encoder.eval().embed(studies(3))[1]["slice"].runs) == 1


def test_gradient_checkpointing_changes_no_gradient():
    batch, gradients = studies(2), []
    for checkpointing in (False, True):
        encoder = tiny("tiny_multi_h2").train()
        encoder.grad_checkpointing = checkpointing
        encoder(batch, scan_index=[0, 1]).sum().backward()
        gradients.append(encoder.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_training_and_inference_compute_the_same():
    encoder, batch = tiny("tiny_multi_h3"), studies(2, 3)
    with torch.inference_mode():
        expected = encoder(batch)
    torch.testing.assert_close(encoder(batch).detach(), expected, rtol=0, atol=5e-5)


@pytest.mark.full
def test_a_compiled_encoder_gives_the_same():
    encoder, batch = tiny("tiny_multi_h2"), studies(3)
    with torch.inference_mode():
        expected = encoder(batch)
        encoder.compile()
        torch.testing.assert_close(encoder(batch), expected, rtol=0, atol=5e-5)


# ---- published shapes --------------------------------------------------------------------------------------


def test_the_released_trunk_has_exactly_these_parameters():
    rows = parity.load_json("keys.json")["keys"]
    prefix = "visual.trunk."
    with torch.device("meta"):
        encoder = create_encoder("vit_base_multiscan_h2_token1176")
    shapes = {name: list(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes == {k.removeprefix(prefix): row["shape"] for k, row in rows.items() if k.startswith(prefix)}
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    assert frozen == {"spatial_posemb", "sequential_posemb"}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_name_says_how_many_patches_a_scan_has(name):
    config = ENCODERS[name]
    assert np.prod(config.grid_size) == int(name.rsplit("token")[-1])
    assert config.embed_dim // config.num_heads == 64
    assert config.levels[-1] == "study"
    assert ("slice" in config.levels) == ("h3" in name or "singlescan" in name)


# ---- the family of 2025-26, held by its properties ---------------------------------------------------------


@pytest.mark.parametrize("name", JOINT)
def test_the_order_of_scans_does_not_matter_without_a_sequential_table(name):
    encoder, (study,) = joint(name), studies(3, size=(12, 32, 32))
    with torch.inference_mode():
        forward, backward = encoder([study]), encoder([study.flip(0)])
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", JOINT)
def test_class_token_and_register_each_have_a_feature_beside_the_mean_of_the_patches(name):
    encoder, batch = joint(name), studies(3, 2, size=(12, 32, 32))
    with torch.inference_mode():
        features, tokens = encoder.forward_prefix(batch), encoder.forward_features(batch)
    assert features.shape == (2, 2, 96)
    for feature, study in zip(features, tokens, strict=True):
        for j in range(2):
            torch.testing.assert_close(feature[j], torch.cat([study[j], study[2:].mean(0)]), rtol=0, atol=1e-5)


# ---- bad input ---------------------------------------------------------------------------------------------

BAD = {
    "NaN": (torch.full((1, 2, 1, 24, 32, 64), torch.nan), "not finite"),
    "infinite": (torch.full((1, 2, 1, 24, 32, 64), torch.inf), "not finite"),
    "no scan": (torch.zeros(1, 0, 1, 24, 32, 64), "without scans"),
    "no study": ([], "no study"),
    "five axes": (torch.zeros(2, 1, 24, 32, 64), "must be"),
    "two channels": (torch.zeros(1, 2, 2, 24, 32, 64), "must be"),
    "too thin": (torch.zeros(1, 2, 1, 4, 32, 64), "smaller than a patch"),
    "integers": (torch.zeros(1, 2, 1, 24, 32, 64, dtype=torch.int16), "floating point"),
}


@pytest.mark.parametrize("kind", BAD)
def test_input_that_cannot_be_meant_is_an_error(kind):
    images, message = BAD[kind]
    with pytest.raises(InputError, match=message):
        tiny("tiny_multi_h2")(images)


@pytest.mark.parametrize("index", [[0, 1, 2, 3], [0], [0, 40, 1], [-1, 0, 1]])
def test_a_scan_index_that_does_not_fit_is_an_error(index):
    with pytest.raises(InputError, match="scan_index"):
        tiny("tiny_multi_h2")(studies(3), scan_index=index)


def test_an_unknown_name_is_an_error_that_lists_the_known():
    with pytest.raises(InputError, match="vit_base_multiscan_h2_token1176"):
        create_encoder("vit_huge")


def test_a_block_without_a_level_is_an_error():
    with pytest.raises(InputError, match="one level"):
        create_encoder("vit_base_multiscan_h2_token1176", depth=13)


# ---- a start from ImageNet ---------------------------------------------------------------------------------


def mae_state(encoder: Encoder, *, patch: int = 16, side: int = 2) -> dict[str, torch.Tensor]:
    C = encoder.config.embed_dim  # noqa: N806
    state = {k: torch.randn_like(v) for k, v in encoder.state_dict().items() if k.startswith(("blocks", "norm"))}
    return state | {
        "cls_token": torch.randn(1, 1, C),
        "pos_embed": torch.randn(1, 1 + side * side, C),
        "patch_embed.proj.weight": torch.randn(C, 3, patch, patch),
        "patch_embed.proj.bias": torch.randn(C),
        "mask_token": torch.randn(1, 1, C),
    }


def test_imagenet_weights_become_the_start_of_an_encoder():
    encoder = create_encoder("vit_base_multiscan_h2_token1176", embed_dim=48, num_heads=3, img_size=(24, 32, 32))
    state = mae_state(encoder)
    encoder.load_state_dict(convert_mae(state, encoder))
    kernel = state["patch_embed.proj.weight"].sum(1) / 8
    torch.testing.assert_close(encoder.patch_embed.proj.weight[:, 0, 5], kernel)
    torch.testing.assert_close(encoder.cls_token, state["cls_token"] + state["pos_embed"][:, :1])
    torch.testing.assert_close(encoder.blocks[3].mlp.fc1.weight.data, state["blocks.3.mlp.fc1.weight"])
    plane = state["pos_embed"][0, 1:].view(2, 2, 48)
    depth = torch.cat([torch.sin(torch.tensor([1.0])), torch.cos(torch.tensor([1.0]))])
    torch.testing.assert_close(encoder.spatial_posemb[0, 0, :, :, :24], plane[..., :24])
    torch.testing.assert_close(encoder.spatial_posemb[0, 1, 0, 0, [0, 24]], plane[0, 0, [0, 24]] + depth)


def test_imagenet_kernels_are_resized_to_larger_patches():
    encoder = create_encoder("vit_base_singlescan_h2_token2744", embed_dim=48, num_heads=3, img_size=(16, 48, 48))
    state = mae_state(encoder)
    resized = torch.nn.functional.interpolate(state["patch_embed.proj.weight"], size=(24, 24), mode="bicubic")
    converted = convert_mae(state, encoder)
    torch.testing.assert_close(converted["patch_embed.proj.weight"][:, 0, 0], resized.sum(1) / 8)
    assert converted.keys() == encoder.state_dict().keys()


def test_weights_of_another_shape_are_no_start():
    encoder = create_encoder("vit_base_multiscan_h2_token1176", embed_dim=48, num_heads=3, img_size=(24, 32, 32))
    state = mae_state(encoder)
    with pytest.raises(CheckpointMismatch) as mismatch:
        convert_mae(state | {"norm.weight": torch.ones(47)}, encoder)
    assert mismatch.value.misshapen == ("norm.weight",)
    with pytest.raises(CheckpointMismatch) as mismatch:
        convert_mae({}, encoder)
    assert "pos_embed" in mismatch.value.missing
