"""What a bundle says of scans."""

import dataclasses

import numpy as np
import pytest
import torch

import tiny
from hlip_core.bundle import load_bundle, write_untrained_bundle
from hlip_core.errors import InputError
from tiny import LABEL, calibrated


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
