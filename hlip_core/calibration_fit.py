"""Fitting calibrations: curve, threshold and how far both can be trusted, from scores of labelled studies.

Letters: S studies of one finding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from hlip_core.calibration import Calibration, Method
from hlip_core.errors import InputError

__all__ = ["Target", "fit_calibration", "held_out_probabilities"]

MIN_STUDIES = 5
"""Fewest positive and fewest negative studies from which anything is fitted."""
FOLDS = 5
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Target:
    """What a threshold is chosen for: at least this sensitivity, or at least this specificity, 0..1."""

    sensitivity: float | None = None
    specificity: float | None = None

    def __post_init__(self) -> None:
        wanted = [value for value in (self.sensitivity, self.specificity) if value is not None]
        if len(wanted) != 1 or not 0 < wanted[0] <= 1:
            raise InputError("a threshold needs either a sensitivity or a specificity, above 0 and at most 1")


def fit_calibration(
    scores: np.ndarray, truth: np.ndarray, *, method: Method, class_digest: str, target: Target | None = None
) -> Calibration:
    """Calibrate one finding from the scores [S] of labelled studies (truth [S], 1 where it is present).

    The curve is fitted on all studies. What its evidence says of the curve (Brier score, reliability) comes from
    probabilities of studies that were held out in turn; intervals are 95 % of bootstrap samples of the studies.
    Sensitivity and specificity are those of the studies that the threshold was chosen on.

    Raises :class:`InputError` for fewer than 5 positive or 5 negative studies, or scores that do not separate them.
    """
    scores, truth = np.asarray(scores, float), np.asarray(truth).astype(bool)
    if scores.shape != truth.shape or scores.ndim != 1 or not np.isfinite(scores).all():
        raise InputError("calibration needs one finite score and one truth value for each study")
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if min(positives, negatives) < MIN_STUDIES:
        raise InputError(f"{positives} positive and {negatives} negative studies; {MIN_STUDIES} of each are needed")
    auc = _auc(truth, scores)
    if auc <= 0.5:
        raise InputError(f"the scores do not separate the studies (AUC {auc:.2f})")
    curve = _fit(scores, truth, method, class_digest)
    held_out = held_out_probabilities(scores, truth, method=method)
    evidence: dict[str, Any] = {
        "studies": len(scores),
        "positive": positives,
        "auc": [auc, *_interval(scores, truth, _auc)],
        "brier": [_brier(truth, held_out), *_interval(held_out, truth, _brier)],
    }
    if target is None:
        return replace(curve, evidence=evidence)
    probabilities = np.array([curve.probability(score) for score in scores])
    threshold = _threshold(probabilities, truth, target)
    rates = {"sensitivity": _sensitivity, "specificity": _specificity}
    for name, rate in rates.items():
        called = (probabilities >= threshold).astype(float)
        evidence[name] = [rate(truth, called), *_interval(called, truth, rate)]
    return replace(curve, threshold=threshold, evidence=evidence)


def held_out_probabilities(scores: np.ndarray, truth: np.ndarray, *, method: Method) -> np.ndarray:
    """Probabilities [S] of the studies, each from a curve that was fitted without it (five folds)."""
    probabilities = np.empty(len(scores))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=SEED)
    for fitted, held_out in folds.split(scores[:, None], truth):
        curve = _fit(scores[fitted], truth[fitted], method, "")
        probabilities[held_out] = [curve.probability(score) for score in scores[held_out]]
    return probabilities


def _fit(scores: np.ndarray, truth: np.ndarray, method: Method, class_digest: str) -> Calibration:
    fit = {"platt": _fit_platt, "isotonic": _fit_isotonic}
    if method not in fit:
        raise InputError(f"unknown calibration method {method!r}; known: {', '.join(fit)}")
    x, y = fit[method](scores, truth)
    return Calibration(method=method, scores=x, probabilities=y, class_digest=class_digest)


def _fit_platt(scores: np.ndarray, truth: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Slope and intercept; with Platt's soft targets, so that studies that separate well give no endless slope."""
    positives, negatives = truth.sum(), (~truth).sum()
    target = np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    centre, scale = scores.mean(), scores.std() or 1.0
    x = np.tile((scores - centre) / scale, 2)[:, None]
    y = np.repeat([1, 0], len(scores))
    model = LogisticRegression(C=1e6).fit(x, y, sample_weight=np.concatenate([target, 1 - target]))
    slope = float(model.coef_[0, 0]) / scale
    return (slope,), (float(model.intercept_[0]) - slope * centre,)


def _fit_isotonic(scores: np.ndarray, truth: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    model = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, truth.astype(float))
    return tuple(map(float, model.X_thresholds_)), tuple(map(float, model.y_thresholds_))


def _threshold(probabilities: np.ndarray, truth: np.ndarray, target: Target) -> float:
    """The highest threshold that reaches the sensitivity, or the lowest that reaches the specificity."""
    if target.sensitivity is not None:
        positive = np.sort(probabilities[truth])[::-1]
        return float(positive[math.ceil(target.sensitivity * len(positive)) - 1])
    assert target.specificity is not None
    negative = np.sort(probabilities[~truth])
    last_below = negative[math.ceil(target.specificity * len(negative)) - 1]
    return float(np.nextafter(last_below, np.inf))


def _auc(truth: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative study in which the positive one scores higher."""
    positives = truth.sum()
    above = rankdata(scores)[truth].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(truth) - positives)))


def _brier(truth: np.ndarray, probabilities: np.ndarray) -> float:
    return float(((probabilities - truth) ** 2).mean())


def _sensitivity(truth: np.ndarray, called: np.ndarray) -> float:
    return float(called[truth].mean())


def _specificity(truth: np.ndarray, called: np.ndarray) -> float:
    return float(1 - called[~truth].mean())


def _interval(
    values: np.ndarray, truth: np.ndarray, measure: Callable[[np.ndarray, np.ndarray], float]
) -> tuple[float, float]:
    """95 % bootstrap interval of a measure; positive and negative studies are drawn apart."""
    random = np.random.default_rng(SEED)
    sides = [np.flatnonzero(truth), np.flatnonzero(~truth)]
    drawn = [np.concatenate([random.choice(side, len(side)) for side in sides]) for _ in range(RESAMPLES)]
    low, high = np.quantile([measure(truth[rows], values[rows]) for rows in drawn], [0.025, 0.975])
    return float(low), float(high)
