"""Zero-shot AUC in the loop: how well the class vectors of the findings table rank the validation studies."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from hlip_core.findings import FindingsTable
from hlip_core.making import text_encoder
from hlip_core.model import Hlip
from hlip_core.zero_shot import build_zero_shot_classifier
from trainer.dataset import Studies

__all__ = ["zero_shot_auc"]


def zero_shot_auc(
    model: Hlip, studies: Studies, table: FindingsTable, *, limit: int, air: float | None
) -> dict[str, float]:
    """AUC of each finding that some of the first `limit` validation studies have and some have not, by label."""
    was_training = model.training
    model.eval()
    rows = studies.validation[:limit]
    device = model.logit_scale.device
    with torch.inference_mode():
        vectors = [
            model.encode_image([studies.whole(cohort, row).to(device)], air=air)[0].float().cpu().numpy()
            for cohort, row in rows
        ]
    classes = build_zero_shot_classifier(text_encoder(model), table)
    model.train(was_training)
    found = {}
    for label in table.labels:
        known = [
            (row.labels[label], vector) for (_, row), vector in zip(rows, vectors, strict=True) if label in row.labels
        ]
        truth = [present for present, _ in known]
        if any(truth) and not all(truth):
            scores = np.array([classes.score(vector, label) for _, vector in known])
            found[label] = float(roc_auc_score(truth, scores))
    return found
