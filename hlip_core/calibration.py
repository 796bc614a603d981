"""From scores to probabilities: one fitted curve and one threshold for each finding.

A finding without a calibration has a score only, which is no probability and has no default threshold.
`hlip_core.calibration_fit` makes calibrations; applying one needs this module and numpy.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from hlip_core.errors import InputError

__all__ = ["Calibration", "calibrations_from_json", "calibrations_to_json"]

Method = Literal["platt", "isotonic"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The calibration of one finding.

    - `method` "platt": the probability is sigmoid(slope * score + intercept), `scores` = (slope,),
      `probabilities` = (intercept,).
    - `method` "isotonic": piecewise linear through the points (`scores`, `probabilities`), constant outside.
    """

    method: Method
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]
    class_digest: str
    """The class vector it was fitted for (`ClassEmbeddings.digest`)."""
    threshold: float | None = None
    """On the probability; a study at or above it is positive."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What it was fitted on, and how well it holds: counts, intervals."""

    def __post_init__(self) -> None:
        n = len(self.scores)
        if self.method not in ("platt", "isotonic") or n == 0 or n != len(self.probabilities):
            raise InputError(f"a calibration of method {self.method!r} with {n} points")
        if self.method == "platt" and n != 1:
            raise InputError("a Platt calibration has one slope and one intercept")
        if not np.isfinite([*self.scores, *self.probabilities]).all():
            raise InputError("a calibration with numbers that are not finite")

    def probability(self, score: float) -> float:
        """Probability (0..1) of a score."""
        return float(self.probabilities_of(np.asarray(score)))

    def probabilities_of(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities (0..1) of scores, of any shape."""
        if self.method == "isotonic":
            return np.interp(scores, self.scores, self.probabilities)
        return 1 / (1 + np.exp(-(self.scores[0] * scores + self.probabilities[0])))

    def lowest_score(self, probability: float) -> float:
        """The lowest score with at least this probability; infinite where there is none, or where all have it.

        Raises InputError for a curve that falls.
        """
        if self.method == "isotonic":
            return self._lowest_of_points(probability)
        slope, intercept = self.scores[0], self.probabilities[0]
        if not slope > 0:
            raise InputError("a calibration that falls with the score")
        if not 0 < probability < 1:
            return -math.inf if probability <= 0 else math.inf
        return (math.log(probability / (1 - probability)) - intercept) / slope

    def _lowest_of_points(self, probability: float) -> float:
        x, y = np.array(self.scores), np.array(self.probabilities)
        if (np.diff(y) < 0).any():
            raise InputError("a calibration that falls with the score")
        at = int(np.searchsorted(y, probability, "left"))  # the first point that has it
        if at == 0:
            return -math.inf
        if at == len(y):
            return math.inf
        return float(x[at - 1] + (x[at] - x[at - 1]) * (probability - y[at - 1]) / (y[at] - y[at - 1]))


def calibrations_to_json(calibrations: Mapping[str, Calibration]) -> bytes:
    """Calibrations by label as the bytes of a JSON file, the same for the same values."""
    rows = {label: asdict(calibration) for label, calibration in calibrations.items()}
    return (json.dumps(rows, sort_keys=True, indent=1) + "\n").encode()


def calibrations_from_json(data: bytes) -> dict[str, Calibration]:
    """The inverse of `calibrations_to_json`. Raises InputError for a file that holds none."""
    try:
        rows = {label: {**row, **_tuples(row)} for label, row in json.loads(data).items()}
        return {label: Calibration(**row) for label, row in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"not a calibration file: {error}") from error


def _tuples(row: Mapping[str, Any]) -> dict[str, tuple[float, ...]]:
    return {key: tuple(map(float, row[key])) for key in ("scores", "probabilities")}
