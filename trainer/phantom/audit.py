"""Are the phantoms too easy? What a logistic regression on global histograms and maxima can tell.

A model that beats this by far has looked at where things are, not only at how many dense voxels there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hlip_core.errors import Refused
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.volume import open_series, prepare

from .generate import MANIFEST, read_manifest
from .population import LABELS

LIMIT = 0.75
"""Above this macro AUC the phantoms count as trivial."""
FOLDS = 5
EDGES = np.concatenate([np.arange(-120, 201, 4), [300, 500, 800, 1200, 1700, 2400, 4000]])
"""Histogram bins, HU."""
TAIL = (50, 90, 99, 99.9, 100)
"""Percentiles within the window of soft tissue, and of the whole volume; 100 is the maximum."""
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse regularisation; the best of them counts, in the baseline's favour."""


def features(voxels: NDArray[np.int16]) -> NDArray[np.float64]:
    """Logarithmic shares of the bins, and maxima and percentiles, of one prepared scan [D, H, W]."""
    values = voxels.ravel()
    shares = np.histogram(values, EDGES)[0] / values.size
    soft = values[(values > 0) & (values < 120)]
    tails = [np.percentile(part, TAIL) if part.size else np.zeros(len(TAIL)) for part in (values, soft)]
    return np.concatenate([np.log(shares + 1e-5), *tails])


def study_features(folder: Path, row: dict[str, Any]) -> NDArray[np.float64]:
    """Mean and maximum over the study's prepared scans; what serving would refuse is left out."""
    scans = []
    for series in row["series"]:
        paths = sorted((folder / row["folder"] / series["folder"]).iterdir())
        try:
            scans.append(features(prepare(open_series(paths), PREPROCESSINGS["head-ct/1"]).voxels))
        except Refused:
            continue
    if not scans:
        raise ValueError(f"{row['folder']} has no series that can be prepared")
    return np.concatenate([np.mean(scans, axis=0), np.max(scans, axis=0)])


def audit(folder: Path) -> Iterator[tuple[str, int, float]]:
    """(label, positives, AUC) of the histogram baseline, cross-validated, over a generated folder.

    A label needs two positives in each fold, or it is left out.
    """
    rows = read_manifest(folder / MANIFEST)
    x = np.stack([study_features(folder, row) for row in rows])
    for label in LABELS:
        y = np.array([row["labels"][label] for row in rows])
        if min(y.sum(), (~y).sum()) >= 2 * FOLDS:
            yield label, int(y.sum()), max(_auc(x, y, strength) for strength in STRENGTHS)


def _auc(x: NDArray[np.float64], y: NDArray[np.bool_], strength: float) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000, class_weight="balanced"))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(model, x, y, cv=folds, method="decision_function")
    return float(roc_auc_score(y, scores))
