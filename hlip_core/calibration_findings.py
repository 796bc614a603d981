"""Calibrating all findings of a bundle from studies of which the truth is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hlip_core.bundle import Bundle
from hlip_core.calibration import Calibration, Method
from hlip_core.calibration_fit import Target, fit_calibration, held_out_probabilities
from hlip_core.errors import InputError
from hlip_core.reliability import draw_reliability, reliability

__all__ = ["Fitted", "Truth", "fit_findings"]

Truth = Mapping[str, Mapping[str, bool]]
"""What is known of each study, by finding; what is not known is left out."""


@dataclass(frozen=True)
class Fitted:
    """Calibrations and reliability diagrams (PNG) by label, and why other findings have none."""

    calibrations: dict[str, Calibration]
    diagrams: dict[str, bytes]
    refused: dict[str, str]


def fit_findings(
    bundle: Bundle,
    truth: Truth,
    vectors: Mapping[str, np.ndarray],
    *,
    method: Method,
    target: Target | None,
) -> Fitted:
    """A calibration and a diagram for each finding of the bundle that the studies allow one for."""
    fitted = Fitted({}, {}, {})
    for label in bundle.findings.labels:
        known = [name for name in sorted(vectors) if label in truth.get(name, {})]
        scores = np.array([bundle.embeddings.score(vectors[name], label) for name in known])
        present = np.array([truth[name][label] for name in known], dtype=bool)
        digest = bundle.embeddings.digest(label)
        try:
            calibration = fit_calibration(scores, present, method=method, class_digest=digest, target=target)
        except InputError as error:
            fitted.refused[label] = str(error)
            continue
        fitted.calibrations[label] = calibration
        held_out = held_out_probabilities(scores, present, method=method)
        fitted.diagrams[label] = draw_reliability(reliability(held_out, present), label)
    return fitted
