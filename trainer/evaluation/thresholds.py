"""From when on a finding counts as positive: the bundle's calibration, or what a site sets."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hlip_core.bundle import Bundle
from hlip_core.errors import InputError

__all__ = ["Threshold", "read_thresholds", "thresholds"]


@dataclass(frozen=True)
class Threshold:
    """A finding is positive from `value` on: a probability where the finding is calibrated, else a score."""

    value: float
    on: Literal["probability", "score"]

    def positive(self, bundle: Bundle, label: str, scores: np.ndarray) -> np.ndarray:
        """bool [S] of scores [S]."""
        if self.on == "score":
            return scores >= self.value
        calibration = bundle.calibrations[label]
        return np.array([calibration.probability(score) for score in scores]) >= self.value


def read_thresholds(options: Sequence[str]) -> dict[str, float]:
    """From `label=value` options, and TOML files with a table `thresholds` (such as hlip.toml); later ones win.

    Raises InputError for what is neither.
    """
    found: dict[str, float] = {}
    for option in options:
        label, separator, value = option.partition("=")
        if separator:
            found[label.strip()] = _number(label, value)
        else:
            table = _table(Path(option))
            found |= {name: _number(name, number) for name, number in table.items() if number != "off"}
    return found


def _table(path: Path) -> Mapping[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8")).get("thresholds")
    except (OSError, ValueError) as error:
        raise InputError(f"--threshold takes label=value or a TOML file; {path} is neither") from error
    if not isinstance(table, dict):
        raise InputError(f"{path} has no table [thresholds]")
    return table


def _number(label: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"the threshold of {label} is not a number") from error


def thresholds(bundle: Bundle, site: Mapping[str, float]) -> dict[str, Threshold]:
    """The threshold of each finding that has one: the site's, else the calibration's.

    Raises InputError for findings that the bundle does not have.
    """
    if unknown := sorted(set(site) - set(bundle.findings.labels)):
        raise InputError(f"thresholds for findings that the bundle does not have: {', '.join(unknown)}")
    values = {label: row.threshold for label, row in bundle.calibrations.items()} | dict(site)
    return {
        label: Threshold(value, "probability" if label in bundle.calibrations else "score")
        for label, value in values.items()
        if value is not None
    }
