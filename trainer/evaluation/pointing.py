"""Does the model look where the lesion is? The point of relevance against the lesion masks of synthetic studies.

Asked of the phantoms' own DICOM, since a cohort's UIDs are others: the study goes the way of every study, the point
comes back as a pixel of a source image, and its header says where in the patient that is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from scipy.spatial import cKDTree

from hlip_core.architectures import patch_grid
from hlip_core.assessment import Location, brightest_cell, order_scans
from hlip_core.bundle import Bundle
from hlip_core.errors import InputError
from hlip_core.headers import numbers, text
from hlip_core.metrics import wilson
from hlip_core.prepared import SourceVoxel
from hlip_core.volume import open_series
from trainer.evaluation.benchmarks import Case
from trainer.evaluation.dicom import prepare_series
from trainer.evaluation.vectors import encoder_digest
from trainer.phantom.masks import LesionMask

__all__ = ["NEAR_MM", "Pointing", "patient_point", "pointing_rows"]

NEAR_MM = 10.0
"""As far as a point may lie outside of the lesion."""
FILE = "pointing.json"
RANDOM_POINTS = 16
"""Cells drawn at random in each study, to say what chance would reach."""
MASK = "lesions.npz"
RULE = "relevance/2"
"""Of `hlip_core.relevance`; another one asks every study again."""

Track = Callable[[Sequence[Case], str], Iterable[Case]]


def patient_point(header: Dataset, voxel: SourceVoxel) -> np.ndarray:
    """(x, y, z) mm of a pixel of a one-frame image (PS3.3 C.7.6.2.1.1). Raises InputError without a geometry."""
    position, orientation, spacing = (
        numbers(header, keyword) for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if position is None or orientation is None or spacing is None:
        raise InputError("a source image has no position, orientation or pixel spacing")
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    return np.array(position) + along_row * spacing[1] * voxel.column + along_column * spacing[0] * voxel.row


class Pointing:
    """Distances (mm) from the model's point to the lesion, for each present finding; kept in a folder if there is one.

    `of` is {study: {label: [distance or None, share of random points that are near]}}.
    """

    def __init__(self, bundle: Bundle, phantoms: Path, *, device: str, folder: Path | None = None) -> None:
        self.bundle, self.phantoms, self.device = bundle, phantoms, device
        self.path = folder / FILE if folder else None
        key = f"{RULE} {encoder_digest(bundle)} {bundle.prompts_digest} {phantoms.resolve()}"
        self.digest = hashlib.sha256(key.encode()).hexdigest()
        self.of: dict[str, dict[str, list[float | None]]] = {}
        if self.path is not None and self.path.is_file():
            kept = json.loads(self.path.read_text())
            self.of = kept["studies"] if kept["digest"] == self.digest else {}

    def run(self, cases: Sequence[Case], *, track: Track) -> None:
        """Looks at every case that shows a finding and was not looked at yet.

        Raises InputError when the folder holds none of the phantoms.
        """
        asked = [case for case in cases if case.row and case.row.source and any(case.truth.values())]
        there = [case for case in asked if case.row and (self.phantoms / case.row.source / MASK).is_file()]
        if asked and not there:
            raise InputError(f"{self.phantoms} holds none of the cohort's phantoms (a folder each, with {MASK})")
        try:
            for case in track([case for case in there if case.study not in self.of], "pointing"):
                assert case.row is not None
                labels = [label for label, present in case.truth.items() if present]
                self.of[case.study] = _look(self.bundle, self.phantoms / case.row.source, labels, self.device)
        finally:
            self._save()

    def _save(self) -> None:
        if self.path is not None:
            part = self.path.with_name(f".{self.path.name}.part")
            part.write_text(json.dumps({"digest": self.digest, "studies": self.of}))
            part.replace(self.path)


def _look(bundle: Bundle, folder: Path, labels: Sequence[str], device: str) -> dict[str, list[float | None]]:
    """One phantom: [distance, chance] for each present finding that the bundle knows; nothing if it is refused."""
    import torch

    from hlip_core.relevance import Look

    series = [open_series(sorted(path.iterdir())) for path in sorted(folder.iterdir()) if path.is_dir()]
    scans = order_scans(prepare_series(series, bundle.preprocessing)[0])
    scans = scans[: bundle.max_scans // len(bundle.preprocessing.windows)]
    if not scans:
        return {}
    headers = {text(dataset, "SOPInstanceUID"): dataset for datasets in series for dataset in datasets}
    images = torch.from_numpy(bundle.model_scans(scans)).to(device)
    with bundle.autocast(device):
        look = Look(bundle.model(device).visual, images, air=bundle.air)
    mask = LesionMask.load(folder / MASK)
    random = np.random.default_rng(0)
    noise = [random.random((len(images), *patch_grid(images.shape[2:], look.cell))) for _ in range(RANDOM_POINTS)]
    found: dict[str, list[float | None]] = {}
    for label in labels:
        if label not in bundle.embeddings.positive:
            continue
        maps = (look.relevance(bundle.embeddings.direction(label)), *noise)
        places = [brightest_cell(relevance, scans, bundle.preprocessing, look.cell) for relevance in maps]
        point, *others = _distances(places, headers, mask.points(label))
        near = [other is not None and other <= NEAR_MM for other in others]
        found[label] = [point, float(np.mean(near))]
    return found


def _distances(
    places: Sequence[Location | None], headers: Mapping[str, Dataset], lesion: np.ndarray
) -> list[float | None]:
    """mm from each place to the nearest point of a lesion [N, 3]; None without a place or a lesion."""
    if not len(lesion):
        return [None] * len(places)
    tree = cKDTree(lesion)
    points = [place and patient_point(headers[place.source.sop_instance_uid], place.source) for place in places]
    return [None if point is None else round(float(tree.query(point)[0]), 2) for point in points]


def pointing_rows(pointing: Pointing, positive: Mapping[str, Iterable[str]]) -> dict[str, Any]:
    """Share of the true positives whose point is within 10 mm of the lesion, for each finding and over all.

    `positive` names the studies that are positive, by label.
    """
    hits, chances, unseen = {}, {}, 0
    for label, studies in positive.items():
        unseen += sum(label not in pointing.of.get(study, {}) for study in studies)
        looked = [pointing.of[study][label] for study in studies if label in pointing.of.get(study, {})]
        hits[label] = [distance is not None and distance <= NEAR_MM for distance, _ in looked]
        chances[label] = [chance for _, chance in looked if chance is not None]
    total = [hit for of_label in hits.values() for hit in of_label]
    chance = [value for of_label in chances.values() for value in of_label]
    return {
        "within_mm": NEAR_MM,
        "findings": {
            label: {
                "true_positives": len(of_label),
                "share": wilson(sum(of_label), len(of_label)),
                "chance": round(float(np.mean(chances[label])), 4),
            }
            for label, of_label in hits.items()
            if of_label
        },
        "true_positives": len(total),
        "not_looked_at": unseen,
        "share": wilson(sum(total), len(total)),
        "chance": round(float(np.mean(chance)), 4) if chance else None,
    }
