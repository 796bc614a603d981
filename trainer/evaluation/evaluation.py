"""One evaluation from top to bottom: studies, vectors, scores, what the set allows beyond, one JSON-ready document."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hlip_core.bundle import Bundle
from hlip_core.errors import InputError
from hlip_core.metrics import youden
from trainer.evaluation import phantoms
from trainer.evaluation.benchmarks import Benchmark, Data, of_findings
from trainer.evaluation.cohort import read_manifest_cases
from trainer.evaluation.cq500 import read_cq500_cases
from trainer.evaluation.picture import Curve
from trainer.evaluation.pointing import Pointing, pointing_rows
from trainer.evaluation.rsna import read_rsna_cases
from trainer.evaluation.scores import Scored, class_rows, macro_rows, retrieval
from trainer.evaluation.thresholds import Threshold, thresholds
from trainer.evaluation.vectors import Vectors, refusals, study_vectors
from trainer.evaluation.words import Words, directions

__all__ = ["BENCHMARKS", "Evaluation", "Options", "evaluate"]

BENCHMARKS = ("manifest", "cq500", "rsna")
NOTICE = "Research software, not for diagnosis."
STATUS = {
    "untrained": "The bundle was never trained: its figures mean nothing.",
    "phantom": "The bundle was trained on synthetic phantoms: its figures say nothing about patients.",
}
T = TypeVar("T")
Track = Callable[[Sequence[T], str], Iterable[T]]


def _untracked(things: Sequence[T], what: str) -> Iterable[T]:
    return things


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to evaluate. `out` keeps vectors for the next run; `phantoms` is the folder of the phantoms themselves;
    `series` is how many of a study the encoder sees at most, in its order."""

    split: str = "test"
    limit: int | None = None
    series: int | None = None
    device: str = "cpu"
    batch: int = 1
    out: Path | None = None
    site: Mapping[str, float] = field(default_factory=dict)
    phantoms: Path | None = None
    histogram: bool = False
    track: Track[Any] = _untracked


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The document, and what is behind it."""

    document: dict[str, Any]
    scored: Scored

    @property
    def curves(self) -> list[Curve]:
        """For the picture: the classes that have an AUC."""
        curves = []
        for name, direction in self.scored.directions.items():
            known, present = self.scored.truth(name)
            if (known & present).any() and (known & ~present).any():
                curves.append(Curve(name, self.scored.score(direction)[known], present[known]))
        return curves

    def table(self) -> str:
        """CSV: a line a study, its score and its truth (0, 1 or nothing) for each class."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        names = list(self.scored.directions)
        writer.writerow(["study", *(f"{name}:{part}" for name in names for part in ("score", "truth"))])
        scores = [self.scored.score(self.scored.directions[name]) for name in names]
        for place, case in enumerate(self.scored.cases):
            row: list[object] = [case.study]
            for name, of_class in zip(names, scores, strict=True):
                row += [f"{of_class[place]:.6f}", int(case.truth[name]) if name in case.truth else ""]
            writer.writerow(row)
        return file.getvalue()


def evaluate(bundle: Bundle, name: str, folder: Path, options: Options) -> Evaluation:
    """Evaluates a bundle on a benchmark (one of BENCHMARKS) whose data lies in a folder.

    Raises InputError for data or options that cannot be meant, or when no study is usable.
    """
    limits = thresholds(bundle, options.site)
    if options.series is not None:
        bundle = copy(bundle)
        bundle.max_scans = min(bundle.max_scans, options.series * len(bundle.preprocessing.windows))
    benchmark, data = _data(bundle, name, folder, options)
    vectors = Vectors(bundle, options.out)
    study_vectors(bundle, data.cases, vectors, device=options.device, batch=options.batch, track=options.track)
    words = Words.of(bundle, options.device)
    known, skipped = directions(bundle, benchmark.classes, words)
    refused = refusals(vectors, data.cases)
    scored = Scored.of(data.cases, vectors, known)
    if not scored.cases:
        raise InputError(f"none of the {len(data.cases)} studies is usable: {dict(refused) or 'there are none'}")
    rows, aucs = class_rows(scored, benchmark, bundle, limits)
    document: dict[str, Any] = {
        "notice": " ".join(filter(None, (NOTICE, STATUS.get(bundle.status)))),
        "bundle": _facts(bundle),
        "benchmark": {"name": name, "title": benchmark.title, "truth": benchmark.truth, "notes": list(data.notes)},
        "studies": len(scored.cases),
        "refused": dict(refused),
        "intervals": "95 %: bootstrap over studies (1000 samples, seed 0) for AUC, Wilson for shares",
        "macro": macro_rows(aucs, benchmark.macros),
        "classes": rows,
        "skipped": skipped,
        "retrieval": retrieval(scored.cases, vectors, words) if words else None,
        "published": list(benchmark.published),
    }
    if name == "manifest" and phantoms.is_phantom(scored.cases):
        document["phantoms"] = _phantoms(bundle, scored, words, limits, options)
    return Evaluation(document, scored)


def _data(bundle: Bundle, name: str, folder: Path, options: Options) -> tuple[Benchmark, Data]:
    if name == "manifest":
        data = read_manifest_cases(folder, bundle.preprocessing, split=options.split)
        benchmark = of_findings(bundle.findings, data)
    else:
        benchmark = Benchmark.named(name)
        if name == "cq500":
            data = read_cq500_cases(folder, benchmark)
        else:
            data = read_rsna_cases(folder, benchmark, track=options.track, keep=options.out)
    if options.limit is not None and options.limit < len(data.cases):
        notes = (*data.notes, f"only the first {options.limit} of {len(data.cases)} studies")
        data = Data(data.cases[: options.limit], notes)
    if options.series is not None:
        data = Data(data.cases, (*data.notes, f"only the first {options.series} series of each study"))
    return benchmark, data


def _facts(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.name,
        "version": bundle.version,
        "status": bundle.status,
        "digest": bundle.digest,
        "weights_digest": bundle.weights_digest,
        "prompts_digest": bundle.prompts_digest,
        "calibration_digest": bundle.calibration_digest,
        "preprocessing": bundle.preprocessing.name,
        "precision": bundle.precision,
    }


def _phantoms(
    bundle: Bundle, scored: Scored, words: Words | None, limits: Mapping[str, Threshold], options: Options
) -> dict[str, Any]:
    found: dict[str, Any] = {"conspicuity": phantoms.by_conspicuity(scored)}
    if words is not None:
        reports = [case.row.report for case in scored.cases if case.row]
        found["paraphrases"] = phantoms.paraphrases(scored, words)
        found["paraphrases"]["in_reports"] = phantoms.leaked_paraphrases(reports)
        found["denial"] = phantoms.denial(scored, words)
    if options.phantoms is not None:
        pointing = Pointing(bundle, options.phantoms, device=options.device, folder=options.out)
        pointing.run(scored.cases, track=options.track)
        found["pointing"] = pointing_rows(pointing, _true_positives(bundle, scored, limits))
        found["pointing"]["thresholds"] = {
            label: "the bundle's or the site's" if label in limits else "Youden's, chosen on these studies"
            for label in found["pointing"]["findings"]
        }
        if options.histogram:
            found["histogram"] = phantoms.of_histograms(options.phantoms)
    return found


def _true_positives(bundle: Bundle, scored: Scored, limits: Mapping[str, Threshold]) -> dict[str, list[str]]:
    """The studies that show a finding and are positive: by its threshold, else by Youden's on these studies."""
    found = {}
    for label, direction in scored.directions.items():
        known, present = scored.truth(label)
        if not (known & present).any() or not (known & ~present).any():
            continue
        scores = scored.score(direction)
        limit = limits.get(label) or Threshold(youden(scores[known], present[known]), "score")
        called = limit.positive(bundle, label, scores)
        found[label] = [case.study for case, hit in zip(scored.cases, called & present, strict=True) if hit]
    return found
