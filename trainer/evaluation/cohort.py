"""A cohort as a benchmark: what `hlip-train cohort` wrote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hlip_core.errors import InputError
from hlip_core.preprocessing import Preprocessing
from hlip_core.volume import PreparedScan
from trainer.evaluation.benchmarks import Case, Data
from trainer.manifest import Cohort, StudyRow, read_cohort

__all__ = ["read_manifest_cases"]


def read_manifest_cases(folder: Path, spec: Preprocessing, *, split: str) -> Data:
    """The studies of one split, or of `all`.

    Raises InputError for what is no cohort, one of another preprocessing, or a split without studies.
    """
    cohort = read_cohort(folder)
    if cohort.preprocessing.digest != spec.digest:
        raise InputError(
            f"the cohort was prepared by {cohort.preprocessing.name}, the bundle expects {spec.name} "
            f"(digests {cohort.preprocessing.digest[:8]}, {spec.digest[:8]}): make the cohort again"
        )
    rows = [row for row in cohort.rows if split in (row.split, "all")]
    if not rows:
        counts = Counter(row.split for row in cohort.rows)
        there = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "no studies at all"
        raise InputError(f"the cohort has no studies in the split {split!r}; it has: {there} (--split all takes all)")
    return Data(tuple(_case(cohort, row) for row in rows), tuple(_notes(cohort, rows, split)))


def _case(cohort: Cohort, row: StudyRow) -> Case:
    paths = [cohort.folder / name for name in row.scans]
    return Case(study=row.study, truth=row.labels, load=partial(_load, paths), row=row)


def _load(paths: Sequence[Path], spec: Preprocessing) -> list[PreparedScan]:
    return [PreparedScan.load(path) for path in paths]


def _notes(cohort: Cohort, rows: Sequence[StudyRow], split: str) -> list[str]:
    notes = [f"{len(rows)} studies of {len({row.patient for row in rows})} patients, split {split}"]
    trained = sum(row.split == "train" for row in rows)
    if trained:
        notes.append(f"{trained} of them are marked for training: figures of studies that were trained on mean little")
    unlabelled = sum(not row.labels for row in rows)
    if unlabelled:
        notes.append(f"{unlabelled} have no labels and count in the retrieval only")
    return notes
