"""Findings of many studies at once, from their vectors: no image, no model, no GPU.

Letters: S studies, E width of the shared space, F findings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hlip_core.calibration import Calibration
from plugin.index.filters import AtLeast, SearchError
from plugin.search.nearest import Least

if TYPE_CHECKING:
    from hlip_core.bundle import Bundle, SiteThreshold

__all__ = ["Scores", "Scoring"]


@dataclass(frozen=True, eq=False)
class Scores:
    """[S, F] each: scores, values (the probability where a finding is calibrated, else the score), positive."""

    scores: np.ndarray
    values: np.ndarray
    positive: np.ndarray


class Scoring:
    """What a bundle, with a site's thresholds, says of vectors; the same as `Bundle.assess` says of their studies."""

    def __init__(self, bundle: "Bundle", thresholds: Mapping[str, "SiteThreshold"]) -> None:
        self.bundle = bundle
        self.labels = bundle.findings.labels
        self.thresholds = bundle.thresholds(thresholds)
        self.directions = np.stack([bundle.embeddings.direction(label) for label in self.labels], axis=1)  # [e, f]
        self.calibrations: list[Calibration | None] = [bundle.calibrations.get(label) for label in self.labels]
        limits = [self.thresholds[label] for label in self.labels]
        self.limits = np.array([np.inf if limit is None else limit for limit in limits])  # [f]

    def scores(self, vectors: np.ndarray) -> Scores:
        """The findings of vectors [S, E]."""
        scores = vectors.astype(np.float64) @ self.directions.astype(np.float64)
        values = scores.copy()
        for column, calibration in enumerate(self.calibrations):
            if calibration is not None:
                values[:, column] = calibration.probabilities_of(scores[:, column])
        return Scores(scores, values, values >= self.limits)

    def least(self, asked: AtLeast) -> Least:
        """A finding that is asked for as the lowest score that fits. Raises SearchError for one that cannot be."""
        if asked.label not in self.labels:
            raise SearchError(f"{self.bundle.name} knows no finding {asked.label}; it knows {', '.join(self.labels)}")
        value = self.thresholds[asked.label] if asked.value is None else asked.value
        if value is None:
            raise SearchError(
                f"{asked.label} has no threshold, so it is never positive: ask for {asked.label}>=VALUE, or set one "
                "in the settings, section [thresholds]"
            )
        column = self.labels.index(asked.label)
        calibration = self.calibrations[column]
        score = value if calibration is None else calibration.lowest_score(value)
        return Least(asked.label, self.directions[:, column], score)
