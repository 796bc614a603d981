import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from hlip_core.metrics import (
    Bootstrap,
    Resampled,
    auc,
    expected_recall,
    macro,
    roc,
    terciles,
    wilson,
    youden,
    zero_shot_auc,
)
from hlip_core.zero_shot import ClassEmbeddings


def scored(count: int = 80, *, levels: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that rank somewhat, with ties when there are few levels."""
    random = np.random.default_rng(seed)
    truth = random.random(count) < 0.3
    scores = random.normal(0, 1, count) + truth
    return (np.round(scores * levels) / levels if levels else scores), truth


@pytest.mark.parametrize("levels", [None, 2])
def test_auc_and_curve_are_those_of_scikit_learn(levels):
    scores, truth = scored(levels=levels)
    assert auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    x, y = roc(scores, truth)
    expected_x, expected_y, _ = roc_curve(truth, scores, drop_intermediate=False)
    np.testing.assert_allclose(x, expected_x)
    np.testing.assert_allclose(y, expected_y)


def test_auc_by_hand():
    assert auc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])) == 0.75
    assert auc(np.array([1.0, 1.0]), np.array([False, True])) == 0.5
    assert math.isnan(auc(np.array([1.0, 2.0]), np.array([True, True])))


@pytest.mark.parametrize("levels", [None, 2])
def test_bootstrap_samples_are_the_aucs_of_drawn_studies(levels):
    scores, truth = scored(40, levels=levels)
    bootstrap = Bootstrap(40, samples=20)
    found = bootstrap.auc(scores, truth)
    for weights, value in zip(bootstrap.weights, found.samples, strict=True):
        rows = np.repeat(np.arange(40), weights)
        assert len(rows) == 40
        assert value == pytest.approx(roc_auc_score(truth[rows], scores[rows]), abs=1e-12)


def test_the_interval_holds_the_value_narrows_with_more_studies_and_comes_again():
    few, many = (Bootstrap(n).auc(*scored(n)) for n in (60, 2000))
    for found in (few, many):
        assert found.interval[0] < found.value < found.interval[1]
    assert np.ptp(many.interval) < np.ptp(few.interval)
    assert Bootstrap(60).auc(*scored(60)).numbers() == few.numbers()


def test_the_interval_is_as_wide_as_theory_says():
    scores, truth = scored(3000)
    found, positives = Bootstrap(3000).auc(scores, truth), truth.sum()
    a, n = found.value, len(truth) - positives
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)  # Hanley and McNeil 1982
    error = math.sqrt((a * (1 - a) + (positives - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / (positives * n))
    assert np.ptp(found.interval) == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_only_the_chosen_studies_count():
    scores, truth = scored(60)
    chosen = np.arange(60) % 2 == 0
    found = Bootstrap(60).auc(scores, truth, chosen)
    assert found.value == pytest.approx(roc_auc_score(truth[chosen], scores[chosen]))


def test_a_macro_is_the_mean_in_each_sample():
    one, two = Resampled(0.8, np.array([0.7, 0.9, np.nan])), Resampled(0.6, np.array([0.5, 0.7, 0.6]))
    both = macro([one, two])
    assert both.value == pytest.approx(0.7)
    np.testing.assert_allclose(both.samples, [0.6, 0.8, np.nan])
    assert both.numbers() == [0.7, 0.605, 0.795]


def test_what_no_sample_defines_has_no_interval():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Resampled(1.0, np.array([np.nan])).numbers() == [1.0, None, None]


def test_zero_shot_auc_is_that_of_the_cosines_of_studies_that_are_known():
    random = np.random.default_rng(3)
    vectors = random.normal(size=(30, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    a, b, c = np.eye(8, dtype=np.float32)[:3]
    labels: list[dict[str, bool]] = [{"a": bool(random.random() < 0.5), "all": True} for _ in range(30)]
    del labels[4]["a"]
    found = zero_shot_auc(vectors, labels, ClassEmbeddings({"a": a, "all": b, "unknown": b}, {"a": c}))
    known = [place for place, row in enumerate(labels) if "a" in row]
    expected = roc_auc_score([labels[place]["a"] for place in known], vectors[known, 0] - vectors[known, 2])
    assert found == {"a": pytest.approx(expected)}


def test_youden_is_the_threshold_with_the_best_sum():
    scores, truth = np.array([0.1, 0.2, 0.3, 0.4, 0.5]), np.array([False, False, True, False, True])
    assert youden(scores, truth) == 0.3  # sensitivity 1, specificity 2/3
    assert youden(-scores, ~truth) == -0.2


def test_wilson_by_hand():
    assert wilson(0, 0) is None
    assert wilson(8, 10) == pytest.approx((0.8, 0.4902, 0.9433), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)


def test_recall_by_hand():
    similarity = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.1, 0.2, 0.3]])
    assert expected_recall(similarity, (1, 2)) == {1: pytest.approx(2 / 3), 2: 1.0}
    assert expected_recall(similarity.T, (1,)) == {1: 1.0}


def test_recall_of_items_that_cannot_be_told_apart_is_that_of_chance():
    assert expected_recall(np.ones((4, 4)), (1, 2, 10)) == {1: 0.25, 2: 0.5, 10: 1.0}


def test_terciles_are_equal_in_number_and_ordered():
    values = np.random.default_rng(0).random(20)
    parts = terciles(values)
    assert [len(part) for part in parts] == [7, 7, 6]
    assert values[parts[0]].max() <= values[parts[1]].min() <= values[parts[1]].max() <= values[parts[2]].min()
    assert sorted(np.concatenate(parts)) == list(range(20))
