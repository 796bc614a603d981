"""Measures of ranking, of yes or no, and of retrieval: arrays in, numbers out.

Letters: S studies, B bootstrap samples, E width of the shared space, K queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hlip_core.zero_shot import ClassEmbeddings

__all__ = [
    "Bootstrap",
    "Resampled",
    "auc",
    "expected_recall",
    "macro",
    "roc",
    "terciles",
    "wilson",
    "youden",
    "zero_shot_auc",
]

Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

SAMPLES, SEED = 1000, 0
CHUNK = 2**21
"""Weights that are worked on at once."""
Z = 1.959964
"""Of the normal distribution, for 95 %."""


def auc(scores: Floats, truth: Bools) -> float:
    """Share of pairs of a positive and a negative study in which the positive scores higher, ties counting half.

    NaN when there is no positive or no negative study. Both are [S].
    """
    return float(_weighted_auc(np.asarray(scores), np.asarray(truth, bool), np.ones((1, len(scores)), np.uint8))[0])


def zero_shot_auc(
    embeddings: Floats, labels: Sequence[Mapping[str, bool]], class_embeddings: ClassEmbeddings
) -> dict[str, float]:
    """AUC of each finding by the published protocol: the score is the study's unit vector times the class vector.

    `embeddings` is [S, E]; `labels` say what is known of each study. A finding of which no study, or every study, is
    positive is left out.
    """
    found = {}
    for label in class_embeddings.positive:
        known = np.array([label in row for row in labels], bool)
        truth = np.array([row[label] for row in labels if label in row], bool)
        if truth.any() and not truth.all():
            scores = embeddings[known].astype(np.float64) @ class_embeddings.direction(label).astype(np.float64)
            found[label] = auc(scores, truth)
    return found


@dataclass(frozen=True, eq=False)
class Resampled:
    """A measure: its value, and what it is in bootstrap samples [B]; NaN where a sample does not define it."""

    value: float
    samples: Floats

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the samples that define it."""
        defined = self.samples[~np.isnan(self.samples)]
        low, high = np.quantile(defined, [0.025, 0.975]) if defined.size else (math.nan, math.nan)
        return float(low), float(high)

    def numbers(self) -> list[float | None]:
        """[value, low, high] for JSON, None for what is not defined."""
        return [None if math.isnan(number) else round(number, 6) for number in (self.value, *self.interval)]


class Bootstrap:
    """Samples of the studies with replacement, the same for every measure, so that means of measures have one too."""

    def __init__(self, studies: int, *, samples: int = SAMPLES, seed: int = SEED) -> None:
        random = np.random.default_rng(seed)
        drawn = (np.bincount(random.integers(0, studies, studies), minlength=studies) for _ in range(samples))
        self.weights = np.stack([counts.astype(np.uint8) for counts in drawn])  # [b, s]

    def auc(self, scores: Floats, truth: Bools, chosen: NDArray[np.bool_] | None = None) -> Resampled:
        """The AUC of scores [S], of the chosen studies [S] only (those of which the truth is known; None: all)."""
        chosen = np.ones(len(scores), bool) if chosen is None else chosen
        scores, truth = np.asarray(scores)[chosen], np.asarray(truth, bool)[chosen]
        return Resampled(auc(scores, truth), _weighted_auc(scores, truth, self.weights[:, chosen]))


def macro(parts: Sequence[Resampled]) -> Resampled:
    """The mean of measures on the same bootstrap; a sample that does not define all of them is left out."""
    return Resampled(float(np.mean([part.value for part in parts])), np.mean([part.samples for part in parts], axis=0))


def _weighted_auc(scores: Floats, truth: Bools, weights: NDArray[np.uint8]) -> Floats:
    """[B] the AUC with each study counted as often as its weight [B, S]."""
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    first, past = np.searchsorted(ranked, ranked, "left"), np.searchsorted(ranked, ranked, "right")
    rows = max(1, CHUNK // max(1, len(scores)))
    parts = []
    for start in range(0, len(weights), rows):
        w = weights[start : start + rows, order].astype(np.float64)  # [b, s]
        below = np.pad(np.cumsum(np.where(positive, 0, w), axis=1), ((0, 0), (1, 0)))  # [b, s + 1] negatives
        beaten = (below[:, first] + below[:, past]) / 2
        hits = np.where(positive, w, 0)
        pairs = hits.sum(axis=1) * below[:, -1]
        won = (hits * beaten).sum(axis=1)
        parts.append(np.divide(won, pairs, out=np.full(len(w), np.nan), where=pairs > 0))
    return np.concatenate(parts)


def roc(scores: Floats, truth: Bools) -> tuple[Floats, Floats]:
    """(1 - specificity, sensitivity) at every threshold from above all scores to below them; both sides needed."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # the last study of each score
    hits, alarms = np.cumsum(truth[order])[last], np.cumsum(~truth[order])[last]
    return np.append(0.0, alarms / alarms[-1]), np.append(0.0, hits / hits[-1])


def youden(scores: Floats, truth: Bools) -> float:
    """The threshold with the highest sensitivity + specificity; at or above it a study is positive.

    Chosen on the studies that it is then applied to, so what follows from it is optimistic.
    """
    x, y = roc(scores, truth)
    levels = np.unique(scores)[::-1]
    return float(levels[int(np.argmax((y - x)[1:]))])


def wilson(hits: int, count: int) -> tuple[float, float, float] | None:
    """A share with its 95 % interval (Wilson 1927); None of nothing."""
    if count == 0:
        return None
    share = hits / count
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return share, max(0.0, centre - half), min(1.0, centre + half)


def expected_recall(similarity: Floats, at: Sequence[int]) -> dict[int, float]:
    """Recall at each k of queries [K] whose match is the item of the same place: `similarity` is [K, K].

    Items that are as similar as the match share its rank by chance, so equal reports count as what they are.
    """
    match = np.diag(similarity)[:, None]
    above, same = (similarity > match).sum(axis=1), (similarity == match).sum(axis=1)
    return {k: float(np.clip((k - above) / same, 0, 1).mean()) for k in at}


def terciles(values: Floats) -> tuple[NDArray[np.intp], ...]:
    """Indices of the lowest, middle and highest third of values [S], as equal in number as can be."""
    return tuple(np.array_split(np.argsort(values, kind="stable"), 3))
