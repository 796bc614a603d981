import inspect
import json
import subprocess
import sys

import pytest
import torch

import hlip_core
import parity
import tiny
from hlip_core.errors import InputError
from hlip_core.model import Hlip, HlipConfig

PUBLIC = [
    "ENCODERS",
    "Bundle",
    "Encoder",
    "EncoderConfig",
    "Hlip",
    "HlipConfig",
    "convert_mae",
    "create_encoder",
    "load_bundle",
    "read_checkpoint",
    "write_untrained_bundle",
]


# ---- the public surface ------------------------------------------------------------------------------------


def test_the_public_surface_is_this_list():
    assert hlip_core.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_with_a_docstring(name):
    value = getattr(hlip_core, name)
    members = [m for n, m in inspect.getmembers(value) if not n.startswith("_")] if inspect.isclass(value) else []
    own = [m for m in members if getattr(m, "__module__", "").startswith("hlip_core.") and callable(m)]
    for item in [value, *own] if callable(value) else []:
        assert inspect.getdoc(item), item


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute"):
        hlip_core.nonsense  # noqa: B018


@pytest.mark.parametrize("module", ["hlip_core", "hlip_core.bundle", "hlip_core.findings", "hlip_core.architectures"])
def test_importing_does_not_load_torch(module):
    code = f"import sys, {module}; sys.exit(int(bool({{'torch', 'timm', 'transformers'}} & sys.modules.keys())))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ---- the released layout -----------------------------------------------------------------------------------


def test_the_released_checkpoint_has_exactly_these_parameters():
    rows = parity.load_json("keys.json")["keys"]
    with torch.device("meta"):
        model = Hlip.from_config("vit_base_multiscan_h2_token1176")
    state = model.state_dict()
    assert len(state) == 351
    assert {name: list(value.shape) for name, value in state.items()} == {k: row["shape"] for k, row in rows.items()}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert trained == {name: row["requires_grad"] for name, row in rows.items()}


# ---- both towers -------------------------------------------------------------------------------------------


def test_studies_of_different_sizes_are_encoded_in_one_call():
    model, studies = tiny.model(), tiny.images(3, 1)
    with torch.inference_mode():
        vectors = model.encode_image(studies)
        alone = torch.cat([model.encode_image(study[None]) for study in studies])
    assert vectors.shape == (2, 16)
    torch.testing.assert_close(vectors, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_vectors_keep_their_length_on_demand():
    model = tiny.model()
    with torch.inference_mode():
        raw = model.encode_image(tiny.images(2), normalize=False)
        torch.testing.assert_close(model.encode_image(tiny.images(2)), raw / raw.norm())


def test_a_text_has_the_same_vector_beside_longer_ones(tmp_path):
    model = tiny.model(tokenizer=tiny.write_tokenizer(tmp_path))
    with torch.inference_mode():
        both = model.encode_text(["midline shift", "this study shows: findings consistent with midline shift"])
        torch.testing.assert_close(both[:1], model.encode_text(["midline shift"]), rtol=0, atol=1e-5)
    assert both.shape == (2, 16)


def test_images_and_texts_meet_in_one_forward():
    ids = torch.tensor([[2, 9, 3, 0], [2, 9, 10, 3]])
    with torch.inference_mode():
        out = tiny.model()(tiny.images(2, 1), ids)
    assert out["image_features"].shape == out["text_features"].shape == (2, 16)
    assert out["logit_scale"] > 0


def test_the_joint_family_has_two_heads_on_either_side_and_two_temperatures():
    model, ids = tiny.model(tiny.JOINT), torch.tensor([[2, 9, 3]])
    with torch.inference_mode():
        for encode, value in ((model.encode_image, tiny.images(2)), (model.encode_text, ids)):
            sentence, report = encode(value), encode(value, head="report")
            assert sentence.shape == report.shape == (1, 16)
            assert not torch.allclose(sentence, report)
    assert {"logit_scale", "report_logit_scale"} <= model.state_dict().keys()


def test_a_model_of_the_paper_has_no_report_head():
    with pytest.raises(InputError, match="no report head"):
        tiny.model().encode_image(tiny.images(1), head="report")
    with pytest.raises(InputError, match="no report head"):
        tiny.model().encode_text(torch.tensor([[2, 3]]), head="report")


# ---- configurations ----------------------------------------------------------------------------------------


def test_a_configuration_survives_json(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tiny.JOINT.to_dict()))
    assert HlipConfig.from_dict(json.loads(path.read_text())) == tiny.JOINT
    assert Hlip.from_config(path).config == Hlip.from_config(tiny.JOINT.to_dict()).config == tiny.JOINT


def test_a_published_name_may_stand_for_its_encoder():
    config = HlipConfig.from_dict({"encoder": "vit_base_singlescan_h2_token2744"})
    assert config.encoder == hlip_core.ENCODERS["vit_base_singlescan_h2_token2744"]
    assert HlipConfig.named("vit_base_singlescan_h2_token2744").text.context_length == 512


def test_a_configuration_that_cannot_be_meant_is_an_error():
    for config in (
        {"encoder": {"img_size": [1, 2, 3]}},
        {"text": None},
        {"encoder": "vit_base_multiscan_h2_token588", "x": 1},
    ):
        with pytest.raises(InputError):
            Hlip.from_config(config)
    with pytest.raises(InputError, match="neither a file nor a published model"):
        Hlip.from_config("vit_tiny")


def test_a_model_without_a_text_tower_says_so():
    model = Hlip.from_config({"encoder": tiny.ENCODER.__dict__, "text": None})
    with pytest.raises(InputError, match="no text tower"):
        model.encode_text(["midline shift"])
