import dataclasses
import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import parity
import tiny
from hlip_core.bundle import Bundle, bundle_files, load_bundle, write_bundle, write_untrained_bundle
from hlip_core.calibration import Calibration
from hlip_core.checkpoint import read_checkpoint
from hlip_core.errors import BundleError, CheckpointMismatch, DigestMismatch, HostileCheckpoint, InputError
from hlip_core.findings import DEFAULT, FindingsTable
from hlip_core.making import Description, import_checkpoint, replace_calibrations, replace_findings
from hlip_core.model import Hlip
from hlip_core.preprocessing import PREPROCESSINGS

LABEL = "midline_shift"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tiny.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


@pytest.fixture
def bundle(folder) -> Bundle:
    return load_bundle(folder)


def calibrated(bundle: Bundle, out: Path, **changes) -> Bundle:
    row = {
        "method": "platt",
        "scores": (10.0,),
        "probabilities": (0.5,),
        "class_digest": bundle.embeddings.digest(LABEL),
        "threshold": 0.01,
    }
    return replace_calibrations(bundle, {LABEL: Calibration(**row | changes)}, out, diagrams={LABEL: b"png"})


# ---- the untrained bundle ----------------------------------------------------------------------------------


def test_the_untrained_bundle_is_the_same_wherever_it_is_written(tmp_path):
    one, two = (load_bundle(write_untrained_bundle(tmp_path / name)) for name in ("one", "two"))
    assert one.digest == two.digest
    assert one.status == "untrained"
    assert "never trained" in one.card
    assert one.preprocessing.name == "head-ct/1"
    assert sum(path.stat().st_size for path in one.path.iterdir()) < 4_000_000


def test_the_untrained_bundle_encodes_real_shapes(tmp_path):
    model = load_bundle(write_untrained_bundle(tmp_path / "one")).model()
    with torch.inference_mode():
        assert model.encode_image(torch.zeros(1, 2, 1, 48, 224, 224)).shape == (1, 512)


# ---- what a bundle says ------------------------------------------------------------------------------------


def test_an_assessment_has_every_finding_in_the_order_of_the_table(bundle):
    assessment = bundle.assess([tiny.scan(1)])
    assert [score.finding.label for score in assessment.findings] == list(bundle.findings.labels)
    assert np.linalg.norm(assessment.embedding) == pytest.approx(1)
    assert assessment.embedding.dtype == np.float32
    for score in assessment.findings:
        assert score.score == pytest.approx(
            float(assessment.embedding @ bundle.embeddings.positive[score.finding.label])
        )
        assert -1 <= score.score <= 1


def test_without_a_threshold_nothing_is_positive_and_nothing_is_a_probability(bundle):
    for score in bundle.assess([tiny.scan(1)]).findings:
        assert (score.positive, score.probability, score.threshold, score.location) == (False, None, None, None)


def test_a_threshold_of_the_site_is_on_the_score_of_an_uncalibrated_finding(bundle):
    score = next(s for s in bundle.assess([tiny.scan(1)]).findings if s.finding.label == LABEL).score
    below = bundle.assess([tiny.scan(1)], thresholds={LABEL: score - 1e-3})
    (positive,) = below.positive
    assert (positive.finding.label, positive.probability, positive.threshold) == (LABEL, None, score - 1e-3)
    assert not bundle.assess([tiny.scan(1)], thresholds={LABEL: score + 1e-3}).positive


def test_a_positive_finding_has_a_place_in_the_source(bundle):
    (positive,) = bundle.assess([tiny.scan(2), tiny.scan(1)], thresholds={LABEL: -1.0}).positive
    place = positive.location
    assert place.series_instance_uid in ("2.25.1", "2.25.2")
    assert place.source.sop_instance_uid == f"{place.series_instance_uid}{place.z:03d}"
    scan = tiny.scan(int(place.series_instance_uid[-1]))
    assert scan.voxels[place.z, place.y, place.x] > -500


def test_a_calibrated_finding_has_a_probability_and_its_own_threshold(bundle, tmp_path):
    new = calibrated(bundle, tmp_path / "new")
    score = next(s for s in new.assess([tiny.scan(1)]).findings if s.finding.label == LABEL)
    assert score.probability == pytest.approx(1 / (1 + np.exp(-(10 * score.score + 0.5))))
    assert score.threshold == 0.01
    assert score.positive
    assert not new.assess([tiny.scan(1)], thresholds={LABEL: 0.9999999}).positive


def test_a_finding_that_a_site_switches_off_is_not_assessed(bundle, tmp_path):
    new = calibrated(bundle, tmp_path / "new")
    score = next(s for s in new.assess([tiny.scan(1)], thresholds={LABEL: "off"}).findings if s.finding.label == LABEL)
    assert score.threshold is None and not score.positive
    with pytest.raises(InputError, match="no probability is above 1"):
        new.assess([tiny.scan(1)], thresholds={LABEL: 1.5})


def test_the_same_scans_in_any_order_give_the_same_bytes(bundle):
    scans, thresholds = [tiny.scan(3), tiny.scan(1), tiny.scan(2)], {LABEL: -1.0}
    one, two = (bundle.assess(s, thresholds=thresholds) for s in (scans, scans[::-1]))
    assert one.embedding.tobytes() == two.embedding.tobytes()
    assert one.findings == two.findings
    assert one.thresholds_digest == two.thresholds_digest != bundle.assess(scans).thresholds_digest


def test_windows_of_a_series_follow_each_other(bundle):
    images = bundle.model_scans([tiny.scan(1), tiny.scan(2)])
    assert images.shape == (4, 1, 8, 32, 32)
    brain, bone = bundle.model_scans([tiny.scan(1)])
    np.testing.assert_array_equal(images[0], brain)
    np.testing.assert_array_equal(images[1], bone)
    assert not np.array_equal(brain, bone)


def test_speed_options_stay_near_the_exact_numbers(bundle, tmp_path):
    fast = load_bundle(tiny.write_bundle(tmp_path / "fast", precision="bf16", drop_air=True))
    exact, near = (b.assess([tiny.scan(1)], thresholds={LABEL: -1.0}) for b in (bundle, fast))
    assert exact.embedding @ near.embedding > 0.9
    assert near.positive[0].location is not None
    assert fast.weights_digest == bundle.weights_digest
    assert fast.digest != bundle.digest


@pytest.mark.parametrize("scans", [[], [tiny.scan(n) for n in range(31)]])
def test_no_scan_or_too_many_are_an_error(bundle, scans):
    with pytest.raises(InputError, match="model scans"):
        bundle.assess(scans)


def test_a_scan_of_another_preprocessing_is_an_error(bundle):
    with pytest.raises(InputError, match="prepared by"):
        bundle.assess([dataclasses.replace(tiny.scan(1), preprocessing_digest="0")])


def test_a_threshold_for_an_unknown_finding_is_an_error(bundle):
    with pytest.raises(InputError, match="midline_shfit"):
        bundle.assess([tiny.scan(1)], thresholds={"midline_shfit": 0.5})


# ---- digests -----------------------------------------------------------------------------------------------


def test_a_changed_byte_anywhere_is_seen(folder, tmp_path):
    names = [*json.loads((folder / "digests.json").read_text())]
    assert {"weights.safetensors", "text.safetensors", "tokenizer/vocab.txt", "MODEL_CARD.md"} <= set(names)
    for name in names:
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
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
def copy(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


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


# ---- writing -----------------------------------------------------------------------------------------------


def test_a_bundle_is_never_overwritten_by_chance(bundle, folder):
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(folder, bundle_files(bundle))


def test_a_bundle_that_fails_leaves_nothing_behind(bundle, tmp_path):
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "new", bundle_files(bundle) | {"config.json": b"{}"})
    with pytest.raises(BundleError, match="needs"):
        write_bundle(tmp_path / "new", {"config.json": b"{}"})
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_copied_file_by_file_is_the_same(bundle, tmp_path):
    assert load_bundle(write_bundle(tmp_path / "same", bundle_files(bundle))).digest == bundle.digest


# ---- findings ----------------------------------------------------------------------------------------------

ROW = b"""
[[finding]]
label = "pneumocephalus"
name = "Pneumocephalus"
prompts = ["pneumocephalus", "intracranial air"]
negatives = ["no intracranial air"]
code = { value = "PNEUMOCEPHALUS", scheme = "99HLIP", meaning = "Pneumocephalus" }
site = { value = "12738006", scheme = "SCT", meaning = "Brain" }
"""


def test_a_row_more_is_a_finding_more_without_training(bundle, tmp_path):
    old = calibrated(bundle, tmp_path / "old")
    assert replace_findings(old, DEFAULT.read_bytes() + ROW, tmp_path / "new") == ()
    new = load_bundle(tmp_path / "new")
    assert new.weights_digest == old.weights_digest
    assert new.prompts_digest != old.prompts_digest
    assert new.assess([tiny.scan(1)]).findings[-1].finding.label == "pneumocephalus"
    assert new.embeddings.negative.keys() == {"pneumocephalus"}
    assert new.calibrations == old.calibrations


def test_other_prompts_lose_their_calibration(bundle, tmp_path):
    old = calibrated(bundle, tmp_path / "old")
    other = DEFAULT.read_bytes().replace(b'"shift of midline structures"', b'"midline deviation"')
    assert replace_findings(old, other, tmp_path / "new") == (LABEL,)
    assert load_bundle(tmp_path / "new").calibrations == {}


def test_without_a_text_tower_the_findings_cannot_change(tmp_path):
    untrained = load_bundle(write_untrained_bundle(tmp_path / "untrained"))
    with pytest.raises(BundleError, match="no text tower"):
        replace_findings(untrained, DEFAULT.read_bytes(), tmp_path / "new")


# ---- released checkpoints ----------------------------------------------------------------------------------

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
