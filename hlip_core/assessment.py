"""What the model says about a study, and how it is put together from scans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hlip_core.errors import InputError
from hlip_core.findings import Finding
from hlip_core.windows import prepared_voxel

if TYPE_CHECKING:
    from hlip_core.preprocessing import Preprocessing
    from hlip_core.volume import PreparedScan, SourceVoxel

__all__ = ["Assessment", "FindingScore", "Location", "air_level", "brightest_cell", "order_scans", "thresholds_digest"]

TISSUE = {"CT": -500, "MR": 655}
"""Prepared values above this are not air: HU, and 2 % of the range of an MR."""


@dataclass(frozen=True)
class Location:
    """Where the model looked for a finding (not where a lesion is): a voxel of a prepared scan, and its source."""

    series_instance_uid: str
    z: int
    y: int
    x: int
    source: SourceVoxel


@dataclass(frozen=True)
class FindingScore:
    """One finding of a study.

    `score` is the published zero-shot score, a cosine. `probability` (0..1) exists only where the bundle has a
    calibration. `threshold` is on the probability where there is one, else on the score; without a threshold a
    finding is never positive. `relevance` [d, h, w] is that of the located series, the highest of its windows.
    """

    finding: Finding
    score: float
    probability: float | None
    threshold: float | None
    positive: bool
    location: Location | None = None
    relevance: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Assessment:
    """The vector of a study ([E] float32, unit length) and its findings, in the order of the table."""

    embedding: np.ndarray
    findings: tuple[FindingScore, ...]
    thresholds_digest: str
    device: str

    @property
    def positive(self) -> tuple[FindingScore, ...]:
        """The findings that are positive."""
        return tuple(finding for finding in self.findings if finding.positive)


def thresholds_digest(thresholds: Mapping[str, float | None]) -> str:
    """SHA-256 (hex) of the thresholds in effect."""
    canonical = json.dumps(dict(thresholds), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def order_scans(scans: Iterable[PreparedScan]) -> list[PreparedScan]:
    """The order in which the encoder sees the series of a study: by series number, then by UID.

    The windows of a series follow each other in the order of the preprocessing specification.
    """
    return sorted(scans, key=_place)


def _place(scan: PreparedScan) -> tuple[bool, int, str]:
    number = scan.series_number
    return number is None, number or 0, scan.series_instance_uid


def air_level(preprocessing: Preprocessing) -> float:
    """The normalised value of a voxel at the lower end of its window, and a little: what is dropped as air."""
    return (1e-3 - preprocessing.mean) / preprocessing.std


def brightest_cell(
    relevance: np.ndarray, scans: Sequence[PreparedScan], spec: Preprocessing, cell_size: Sequence[int]
) -> Location | None:
    """The centre of the most relevant cell whose centre is not air; None when no such cell is relevant at all.

    `relevance` [N, d, h, w] holds the windows of the scans one after the other, as the encoder saw them, with a value
    for each cell of `cell_size` voxels.
    """
    if len(relevance) != len(scans) * len(spec.windows):
        raise InputError(f"{len(relevance)} maps for {len(scans)} scans in {len(spec.windows)} windows")
    centres = [np.arange(g) * p + p // 2 for g, p in zip(relevance.shape[1:], cell_size, strict=True)]
    inside = np.ix_(*(axis + round(o) for axis, o in zip(centres, prepared_voxel(0, 0, 0, spec=spec), strict=True)))
    tissue = np.stack([scan.voxels[inside] > TISSUE[spec.modality] for scan in scans])  # [series, d, h, w]
    candidates = np.where(tissue.repeat(len(spec.windows), axis=0), relevance, 0)
    n, *cell = (int(i) for i in np.unravel_index(candidates.argmax(), candidates.shape))
    if not candidates[n, *cell] > 0:
        return None
    scan = scans[n // len(spec.windows)]
    centre = [axis[i] for axis, i in zip(centres, cell, strict=True)]
    z, y, x = (round(i) for i in prepared_voxel(*centre, spec=spec))
    return Location(scan.series_instance_uid, z, y, x, scan.source_of(z, y, x))
