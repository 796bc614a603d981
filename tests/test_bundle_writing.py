"""Bundles that are written: whole or not at all, with other findings, without training."""

import pytest

import tiny
from hlip_core.bundle import bundle_files, load_bundle, write_bundle, write_untrained_bundle
from hlip_core.errors import BundleError
from hlip_core.findings import DEFAULT
from hlip_core.making import replace_findings
from tiny import LABEL, calibrated


def test_a_bundle_is_never_overwritten_by_chance(bundle):
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(bundle.path, bundle_files(bundle))


def test_a_bundle_that_fails_leaves_nothing_behind(bundle, tmp_path):
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "new", bundle_files(bundle) | {"config.json": b"{}"})
    with pytest.raises(BundleError, match="needs"):
        write_bundle(tmp_path / "new", {"config.json": b"{}"})
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_copied_file_by_file_is_the_same(bundle, tmp_path):
    assert load_bundle(write_bundle(tmp_path / "same", bundle_files(bundle))).digest == bundle.digest


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
