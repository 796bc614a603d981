"""Checkpoints as they are published: imported, refused, and never run."""

import dataclasses
import json
import os
import pickle
from pathlib import Path

import pytest
import torch

import parity
import tiny
from hlip_core.bundle import load_bundle
from hlip_core.checkpoint import read_checkpoint
from hlip_core.errors import BundleError, CheckpointMismatch, HostileCheckpoint
from hlip_core.findings import DEFAULT, FindingsTable
from hlip_core.making import Description, import_checkpoint
from hlip_core.model import Hlip
from hlip_core.preprocessing import PREPROCESSINGS

DESCRIPTION = Description(name="imported", version="1", status="trained", preprocessing=tiny.SPEC)


def released(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A checkpoint as it is published: a prefix, an epoch and an optimizer beside, a stray buffer."""
    stray = {"module.text.transformer.embeddings.position_ids": torch.arange(64)[None]}
    prefixed = {f"module.{name}": value for name, value in state.items()}
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}
    content = {"epoch": 20, "name": "run", "state_dict": prefixed | stray, "optimizer": optimizer, "scaler": {}}
    torch.save(content, path)
    return path


def config_file(path: Path, config=tiny.CONFIG) -> Path:
    path.write_text(json.dumps(config.to_dict()))
    return path


@pytest.fixture
def arguments(tmp_path) -> dict:
    return {"findings": DEFAULT.read_bytes(), "tokenizer": tiny.write_tokenizer(tmp_path / "words")}


def test_an_imported_checkpoint_gives_the_same_features(tmp_path, arguments):
    model = tiny.model(tokenizer=arguments["tokenizer"])
    checkpoint = released(tmp_path / "epoch_20.pt", model.state_dict())
    config = config_file(tmp_path / "config.json")
    import_checkpoint(checkpoint, str(config), tmp_path / "new", DESCRIPTION, **arguments)
    imported = load_bundle(tmp_path / "new").model(text=True)
    texts = FindingsTable.from_toml().texts(("midline shift",))
    with torch.inference_mode():
        for images in (tiny.images(3, 1), tiny.images(2)):
            torch.testing.assert_close(imported.encode_image(images), model.encode_image(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(imported.encode_text(texts), model.encode_text(texts), rtol=0, atol=1e-6)
    assert load_bundle(tmp_path / "new").model().logit_scale == model.logit_scale


def test_what_does_not_fit_is_listed_and_nothing_is_written(tmp_path, arguments):
    state = tiny.model().state_dict()
    del state["visual.trunk.norm.bias"]
    state |= {"visual.extra": torch.zeros(1), "visual.head.proj.weight": torch.zeros(2, 2)}
    checkpoint = released(tmp_path / "epoch_20.pt", state)
    config = config_file(tmp_path / "config.json")
    with pytest.raises(CheckpointMismatch) as mismatch:
        import_checkpoint(checkpoint, str(config), tmp_path / "new", DESCRIPTION, **arguments)
    assert mismatch.value.missing == ("visual.trunk.norm.bias",)
    assert mismatch.value.unexpected == ("visual.extra",)
    assert mismatch.value.misshapen == ("visual.head.proj.weight",)
    assert not (tmp_path / "new").exists()


class Hostile:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "name": Hostile(trace)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"state_dict": Hostile(trace)}))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(HostileCheckpoint, match="not run"):
            read_checkpoint(tmp_path / name)
    assert not trace.exists()


@pytest.mark.parametrize("content", [{}, {"state_dict": {"a": 1}}, {"epoch": 3}, [torch.zeros(1)]])
def test_a_checkpoint_without_a_state_dict_is_a_bundle_error(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(BundleError, match="no state dict"):
        read_checkpoint(tmp_path / "x.pt")


def test_a_checkpoint_that_cannot_be_read_is_a_bundle_error(tmp_path):
    whole = released(tmp_path / "whole.pt", {"a": torch.zeros(1000)}).read_bytes()
    for data in (b"", b"nonsense", whole[: len(whole) // 2]):
        (tmp_path / "x.pt").write_bytes(data)
        with pytest.raises(BundleError):
            read_checkpoint(tmp_path / "x.pt")
    (tmp_path / "x.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(BundleError, match="not a whole safetensors file"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.full
def test_a_synthetic_checkpoint_of_the_released_size_imports(tmp_path):
    name, words = "vit_base_multiscan_h2_token1176", tiny.write_tokenizer(tmp_path / "words")
    model = Hlip.from_config(name, tokenizer=words).eval()
    model.load_state_dict(parity.filled(model.state_dict(), "plain"))
    checkpoint = released(tmp_path / "released.pt", model.state_dict())
    description = dataclasses.replace(DESCRIPTION, preprocessing=PREPROCESSINGS["head-ct/1"])
    import_checkpoint(checkpoint, name, tmp_path / "new", description, findings=DEFAULT.read_bytes(), tokenizer=words)
    imported = load_bundle(tmp_path / "new").model(text=True)
    images, texts = torch.from_numpy(parity.image("full", (1, 1, 1, 48, 224, 224))), ["midline shift", "hydrocephalus"]
    with torch.inference_mode():
        torch.testing.assert_close(imported.encode_image(images), model.encode_image(images), rtol=0, atol=1e-6)
        torch.testing.assert_close(imported.encode_text(texts), model.encode_text(texts), rtol=0, atol=1e-6)
