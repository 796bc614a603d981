"""The published protocol on studies with vectors: AUC by class and their mean, sensitivity, specificity, retrieval.

Everything that is returned is JSON-ready; a measure is [value, low, high] with its 95 % interval.

Letters: S studies, E width of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hlip_core.bundle import Bundle
from hlip_core.metrics import Bootstrap, Resampled, expected_recall, macro, wilson, youden
from trainer.evaluation.benchmarks import Benchmark, Case
from trainer.evaluation.thresholds import Threshold
from trainer.evaluation.vectors import Vectors
from trainer.evaluation.words import Words

__all__ = ["Scored", "class_rows", "macro_rows", "retrieval"]

RECALL_AT = (1, 5, 10)


@dataclass(frozen=True, eq=False)
class Scored:
    """The cases that have a vector, with the scores [S] of each class that has a direction [E]."""

    cases: tuple[Case, ...]
    embeddings: np.ndarray  # [s, e], of the sentence head
    directions: Mapping[str, np.ndarray]

    @classmethod
    def of(cls, cases: Sequence[Case], vectors: Vectors, directions: Mapping[str, np.ndarray]) -> Scored:
        """Leaves out the cases that were refused."""
        kept = tuple(case for case in cases if case.study in vectors.of)
        return cls(kept, np.array([vectors.of[case.study][0] for case in kept]), directions)

    @cached_property
    def bootstrap(self) -> Bootstrap:
        """The same samples of the studies for every measure."""
        return Bootstrap(len(self.cases))

    def score(self, direction: np.ndarray) -> np.ndarray:
        """[S] the published score: a cosine, less that of the negative prompts where a finding has any."""
        return self.embeddings.astype(np.float64) @ direction.astype(np.float64)

    def truth(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(known, present) bool [S] of a class; what is not known is not present."""
        known = np.array([name in case.truth for case in self.cases], bool)
        return known, np.array([case.truth.get(name, False) for case in self.cases], bool)

    def auc(self, name: str, direction: np.ndarray, positives: np.ndarray | None = None) -> Resampled | None:
        """AUC of a class along a direction, None if not defined; with `positives` bool [S]: of these positives only."""
        known, present = self.truth(name)
        chosen = known if positives is None else known & (positives | ~present)
        if not (chosen & present).any() or not (chosen & ~present).any():
            return None
        return self.bootstrap.auc(self.score(direction), present, chosen)


def class_rows(
    scored: Scored, benchmark: Benchmark, bundle: Bundle, limits: Mapping[str, Threshold]
) -> tuple[dict[str, dict[str, Any]], dict[str, Resampled]]:
    """A row for each class that can be scored, and its AUC for means."""
    rows: dict[str, dict[str, Any]] = {}
    aucs: dict[str, Resampled] = {}
    for known in benchmark.classes:
        if known.name not in scored.directions:
            continue
        is_known, present = scored.truth(known.name)
        counts = {"studies": int(is_known.sum()), "positives": int(present.sum())}
        row: dict[str, Any] = {"label": known.label, **counts, "auc": None}
        rows[known.name] = row
        measured = scored.auc(known.name, scored.directions[known.name])
        if measured is None:
            continue
        aucs[known.name] = measured
        scores, truth = scored.score(scored.directions[known.name])[is_known], present[is_known]
        best = youden(scores, truth)
        row |= {"auc": measured.numbers(), "youden": {"threshold": best, **_rates(scores >= best, truth)}}
        limit = limits.get(known.label or "")
        if known.label and limit is not None:
            called = limit.positive(bundle, known.label, scores)
            row["at_threshold"] = {"threshold": limit.value, "on": limit.on, **_rates(called, truth)}
    return rows, aucs


def _rates(called: np.ndarray, present: np.ndarray) -> dict[str, Any]:
    sensitivity = wilson(int((called & present).sum()), int(present.sum()))
    specificity = wilson(int((~called & ~present).sum()), int((~present).sum()))
    return {"sensitivity": sensitivity, "specificity": specificity}


def macro_rows(aucs: Mapping[str, Resampled], macros: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
    """The mean AUC of each list of classes, over those that have one; which ones is said."""
    rows = {}
    for title, names in macros.items():
        used = [name for name in names if name in aucs]
        if used:
            value = macro([aucs[name] for name in used])
            rows[title] = {"auc": value.numbers(), "classes": used, "missing": [n for n in names if n not in aucs]}
    return rows


def retrieval(cases: Sequence[Case], vectors: Vectors, words: Words) -> dict[str, Any] | None:
    """Recall at k among the studies with a report, both ways, and what chance would reach; None for fewer than two."""
    told = [(case, case.row.report) for case in cases if case.row and case.row.report and case.study in vectors.of]
    if len(told) < 2:
        return None
    texts = words.reports([report for _, report in told])
    images = np.array([vectors.of[case.study][-1] for case, _ in told])  # of the report head where there is one
    similarity = images @ texts.T  # [s, s]
    count = len(told)
    return {
        "studies": count,
        "different_reports": len({report for _, report in told}),
        "image_to_report": expected_recall(similarity, RECALL_AT),
        "report_to_image": expected_recall(similarity.T, RECALL_AT),
        "chance": {k: min(1.0, k / count) for k in RECALL_AT},
    }
