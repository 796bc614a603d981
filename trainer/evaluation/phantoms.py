"""What can be asked of synthetic studies only: by conspicuity, in words that were never trained on, by denial.

Everything that is returned is JSON-ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hlip_core.metrics import Resampled, macro, terciles
from trainer.evaluation.benchmarks import Case
from trainer.evaluation.scores import Scored
from trainer.evaluation.words import Words
from trainer.phantom.reports import HELD_OUT

__all__ = ["by_conspicuity", "denial", "is_phantom", "leaked_paraphrases", "of_histograms", "paraphrases"]

TERCILES = ("lowest", "middle", "highest")
BLEED = "intracranial_hemorrhage"
DENIALS = ("no intracranial hemorrhage",)
FEWEST = 3
"""Positives of a finding, for one in each tercile."""


def is_phantom(cases: Sequence[Case]) -> bool:
    """Whether the studies are synthetic: their rows name a phantom and say how conspicuous it is."""
    return any(case.row and case.row.source and case.row.conspicuity for case in cases)


def by_conspicuity(scored: Scored) -> dict[str, Any]:
    """AUC of the positives of each third, by their conspicuity, against all negatives of the finding."""
    findings: dict[str, dict[str, Any]] = {}
    parts: dict[str, list[Resampled]] = {name: [] for name in TERCILES}
    for label, direction in scored.directions.items():
        graded = [
            (place, case.row.conspicuity[label])
            for place, case in enumerate(scored.cases)
            if case.row and case.truth.get(label) and label in case.row.conspicuity
        ]
        if len(graded) < FEWEST:
            continue
        places, values = np.array([place for place, _ in graded]), np.array([value for _, value in graded])
        measured = {}
        for name, chosen in zip(TERCILES, terciles(values), strict=True):
            positives = np.zeros(len(scored.cases), bool)
            positives[places[chosen]] = True
            part = scored.auc(label, direction, positives)
            if part is not None:
                measured[name] = {"auc": part.numbers(), "up_to": float(values[chosen].max()), "positives": len(chosen)}
                parts[name].append(part)
        findings[label] = measured
    return {"findings": findings, "macro": {name: macro(rows).numbers() for name, rows in parts.items() if rows}}


def paraphrases(scored: Scored, words: Words) -> dict[str, Any]:
    """AUC of each finding when it is asked for in words that no training report holds."""
    measured = {}
    for label, prompts in HELD_OUT.items():
        if label in scored.directions:
            part = scored.auc(label, words.direction(prompts))
            if part is not None:
                measured[label] = part
    return {
        "findings": {label: part.numbers() for label, part in measured.items()},
        "macro": macro(list(measured.values())).numbers() if measured else None,
        "prompts": {label: list(HELD_OUT[label]) for label in measured},
    }


def leaked_paraphrases(reports: Iterable[str]) -> list[str]:
    """The held-out phrases that a report holds after all; there should be none."""
    texts = [report.lower() for report in reports]
    phrases = [phrase for of_label in HELD_OUT.values() for phrase in of_label]
    return [phrase for phrase in phrases if any(phrase.lower() in text for text in texts)]


def denial(scored: Scored, words: Words) -> dict[str, Any] | None:
    """Does the sentence that denies a bleed rank those without one first? As it stands, not in the templates.

    `normals`: studies without any finding; `others`: all studies without a bleed. None where one side is missing.
    """
    known, bleeds = scored.truth(BLEED)
    normal = np.array([not any(case.truth.values()) for case in scored.cases], bool)
    template = scored_template(words)
    texts = [template.format(text) for text in DENIALS]
    scores = scored.score(words.sentences(texts).mean(axis=0))
    found: dict[str, Any] = {"texts": texts}
    for name, wanted in (("normals", normal), ("others", ~bleeds)):
        chosen = known & (wanted | bleeds)
        if (chosen & wanted).any() and (chosen & bleeds).any():
            found[name] = scored.bootstrap.auc(scores, wanted, chosen).numbers()
            found[f"{name}_studies"] = int((chosen & wanted).sum())
    return found if "normals" in found else None


def scored_template(words: Words) -> str:
    """The plainest of the bundle's templates: the others ("new {}", "likely {}") make no denial."""
    return min(words.bundle.findings.templates, key=len)


def of_histograms(folder: Path) -> dict[str, Any]:
    """What a logistic regression on global histograms and maxima reaches on the same phantoms, cross-validated."""
    from trainer.phantom.audit import audit

    findings = {label: auc for label, _, auc in audit(folder)}
    return {"findings": findings, "macro": float(np.mean(list(findings.values()))) if findings else None}
