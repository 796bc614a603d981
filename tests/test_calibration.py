import dataclasses
import io
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from hlip_core.calibration import Calibration, calibrations_from_json, calibrations_to_json
from hlip_core.calibration_fit import Target, fit_calibration, held_out_probabilities
from hlip_core.errors import InputError
from hlip_core.reliability import Bin, draw_reliability, reliability

PLATT = Calibration(method="platt", scores=(20.0,), probabilities=(-2.0,), class_digest="d", threshold=0.5)


def labelled(count: int = 600, *, slope: float = 20.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores, and truth that follows a known curve: sigmoid(slope * score - 2)."""
    random = np.random.default_rng(seed)
    scores = random.normal(0.1, 0.15, count)
    return scores, random.random(count) < 1 / (1 + np.exp(-(slope * scores - 2)))


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_fitted_curve_finds_the_probabilities_that_made_the_truth(method):
    scores, truth = labelled(3000)
    curve = fit_calibration(scores, truth, method=method, class_digest="d")
    for score in (-0.1, 0.05, 0.1, 0.2, 0.3):
        assert curve.probability(score) == pytest.approx(1 / (1 + np.exp(-(20 * score - 2))), abs=0.08)


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_higher_score_never_has_a_lower_probability(method):
    curve = fit_calibration(*labelled(), method=method, class_digest="d")
    probabilities = [curve.probability(score) for score in np.linspace(-1, 1, 101)]
    assert all(a <= b for a, b in pairwise(probabilities))
    assert probabilities[0] >= 0 and probabilities[-1] <= 1


@pytest.mark.parametrize("wanted", [0.8, 0.9, 1.0])
def test_thresholds_reach_what_they_were_chosen_for(wanted):
    scores, truth = labelled()
    for target in (Target(sensitivity=wanted), Target(specificity=wanted)):
        curve = fit_calibration(scores, truth, method="platt", class_digest="d", target=target)
        called = np.array([curve.probability(score) for score in scores]) >= curve.threshold
        sensitivity, specificity = called[truth].mean(), 1 - called[~truth].mean()
        reached, other = (sensitivity, specificity) if target.sensitivity else (specificity, sensitivity)
        assert reached >= wanted
        assert other > 0 or wanted == 1.0
        assert curve.evidence["sensitivity"][0] == pytest.approx(sensitivity)
        assert curve.evidence["specificity"][0] == pytest.approx(specificity)


def test_intervals_hold_the_value_and_narrow_with_more_studies():
    few, many = (fit_calibration(*labelled(n), method="platt", class_digest="d").evidence for n in (60, 2000))
    for evidence in (few, many):
        for value, low, high in (evidence["auc"], evidence["brier"]):
            assert low <= value <= high
    assert many["auc"][2] - many["auc"][1] < few["auc"][2] - few["auc"][1]
    assert few["studies"] == 60


def test_fitting_twice_gives_the_same():
    target = Target(sensitivity=0.9)
    one, two = (fit_calibration(*labelled(), method="platt", class_digest="d", target=target) for _ in range(2))
    assert one == two


def test_studies_that_separate_perfectly_give_no_certainty():
    scores = np.concatenate([np.linspace(0, 0.4, 10), np.linspace(0.6, 1, 10)])
    curve = fit_calibration(scores, scores > 0.5, method="platt", class_digest="d")
    assert 0.01 < curve.probability(0.0) < 0.2
    assert 0.8 < curve.probability(1.0) < 0.99


BAD = {
    "too few positives": (np.arange(20.0), np.arange(20) >= 16),
    "no separation": (np.arange(20.0), np.arange(20) < 10),
    "NaN": (np.full(20, np.nan), np.arange(20) < 10),
    "another length": (np.arange(20.0), np.arange(19) < 10),
}


@pytest.mark.parametrize("kind", BAD)
def test_studies_that_allow_no_calibration_are_an_error(kind):
    scores, truth = BAD[kind]
    with pytest.raises(InputError):
        fit_calibration(scores, truth, method="platt", class_digest="d")


@pytest.mark.parametrize(
    "wanted", [{}, {"sensitivity": 0.9, "specificity": 0.9}, {"sensitivity": 0}, {"specificity": 2}]
)
def test_a_target_is_one_sensitivity_or_one_specificity(wanted):
    with pytest.raises(InputError, match="either"):
        Target(**wanted)


def test_an_unknown_method_is_an_error():
    with pytest.raises(InputError, match="unknown calibration method"):
        fit_calibration(*labelled(), method="guess", class_digest="d")


# ---- the file ----------------------------------------------------------------------------------------------


def test_calibrations_survive_their_file():
    scores, truth = labelled()
    rows = {m: fit_calibration(scores, truth, method=m, class_digest="d") for m in ("platt", "isotonic")}
    data = calibrations_to_json(rows)
    assert calibrations_from_json(data) == rows
    assert calibrations_to_json(calibrations_from_json(data)) == data


@pytest.mark.parametrize("data", [b"", b"[]", b'{"a": 1}', b'{"a": {"scores": [1], "probabilities": ["x"]}}'])
def test_a_file_that_holds_no_calibrations_is_an_error(data):
    with pytest.raises(InputError):
        calibrations_from_json(data)


@pytest.mark.parametrize(
    "change",
    [{"scores": ()}, {"scores": (1.0, 2.0)}, {"method": "x"}, {"scores": (np.nan,)}],
)
def test_a_calibration_that_cannot_be_meant_is_an_error(change):
    with pytest.raises(InputError):
        dataclasses.replace(PLATT, **change)


# ---- the diagram -------------------------------------------------------------------------------------------


def test_bins_compare_what_was_predicted_with_what_was_seen():
    rows = reliability(np.array([0.11, 0.13, 0.97, 1.0]), np.array([False, True, True, True]))
    assert rows == (Bin(pytest.approx(0.12), 0.5, 2), Bin(pytest.approx(0.985), 1.0, 2))


def test_held_out_probabilities_of_a_fitted_curve_are_reliable():
    scores, truth = labelled(3000)
    rows = reliability(held_out_probabilities(scores, truth, method="platt"), truth)
    assert all(abs(row.predicted - row.seen) < 0.15 for row in rows if row.studies > 50)


def test_the_diagram_is_a_picture():
    image = draw_reliability((Bin(0.1, 0.2, 5), Bin(0.9, 0.7, 50)), "subdural_hemorrhage")
    assert Image.open(io.BytesIO(image)).size == (360, 360)
    assert image == draw_reliability((Bin(0.1, 0.2, 5), Bin(0.9, 0.7, 50)), "subdural_hemorrhage")
