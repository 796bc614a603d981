"""Bundles that are damaged, of another model or not whole: every one is seen, and named."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from hlip_core.bundle import load_bundle
from hlip_core.errors import BundleError, CheckpointMismatch, DigestMismatch
from tiny import calibrated


def test_a_changed_byte_anywhere_is_seen(bundle, tmp_path):
    names = [*json.loads((bundle.path / "digests.json").read_text())]
    assert {"weights.safetensors", "text.safetensors", "tokenizer/vocab.txt", "MODEL_CARD.md"} <= set(names)
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(bundle.path, copy)
        data = bytearray((copy / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copy / name).write_bytes(data)
        with pytest.raises(DigestMismatch, match=name):
            load_bundle(copy)
        shutil.rmtree(copy)


def redigest(folder: Path, name: str, data: bytes) -> Path:
    """Change a file, and the digests with it."""
    (folder / name).write_bytes(data)
    digests = json.loads((folder / "digests.json").read_text())
    digests[name] = hashlib.sha256(data).hexdigest()
    (folder / "digests.json").write_text(json.dumps(digests))
    return folder


@pytest.fixture
def copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


def test_truncated_weights_are_a_clear_error(copy):
    data = (copy / "weights.safetensors").read_bytes()
    (copy / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(DigestMismatch, match=r"weights\.safetensors"):
        load_bundle(copy)
    with pytest.raises(BundleError, match="not a whole safetensors file"):
        load_bundle(redigest(copy, "weights.safetensors", data[: len(data) // 2])).model()


def test_weights_of_another_model_are_listed(copy):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["encoder"]["max_num_scans"] = 20
    with pytest.raises(CheckpointMismatch) as mismatch:
        load_bundle(redigest(copy, "config.json", json.dumps(config).encode())).model()
    assert mismatch.value.misshapen == ("visual.trunk.sequential_posemb",)


BROKEN = {
    "no JSON": ("config.json", b"{"),
    "a list": ("config.json", b"[]"),
    "another format": ("config.json", b'{"format": 99}'),
    "no fields": ("config.json", b'{"format": 1}'),
    "no findings": ("findings.toml", b"version = 1"),
    "no calibrations": ("calibration.json", b"[]"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_bundle_is_a_bundle_error(copy, kind):
    with pytest.raises(BundleError):
        load_bundle(redigest(copy, *BROKEN[kind]))


def test_a_folder_that_is_no_bundle_is_a_bundle_error(tmp_path, copy):
    with pytest.raises(BundleError, match="no bundle"):
        load_bundle(tmp_path)
    (copy / "weights.safetensors").unlink()
    with pytest.raises(BundleError, match="cannot be read"):
        load_bundle(copy)


def test_digests_name_no_file_outside_of_the_bundle(copy):
    digests = json.loads((copy / "digests.json").read_text()) | {"../words/vocab.txt": "0"}
    (copy / "digests.json").write_text(json.dumps(digests))
    with pytest.raises(BundleError, match="outside"):
        load_bundle(copy)


def test_a_calibration_of_other_prompts_does_not_load(bundle, tmp_path):
    with pytest.raises(BundleError, match="calibrations of other class embeddings"):
        calibrated(bundle, tmp_path / "new", class_digest="0")
    assert not (tmp_path / "new").exists()
