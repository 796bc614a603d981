"""Eight small phantoms as a cohort, and the evaluation of a bundle on them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import tiny
from hlip_core.bundle import Bundle
from hlip_core.volume import open_series, prepare
from trainer.evaluation.evaluation import Evaluation, Options, evaluate
from trainer.manifest import Cohort, StudyRow, write_cohort
from trainer.phantom import read_study, write_study
from trainer.phantom.generate import MANIFEST, write_manifest

KINDS = [[], ["subdural"], ["epidural"], ["intraparenchymal"], [], ["subdural", "infarct"], ["subdural"], []]


def write_phantoms(folder: Path) -> Path:
    """Eight small phantoms with their manifest."""
    studies = [
        write_study(folder / f"phantom-{seed}", seed=seed, preset="tiny", lesions=kinds, series=["localizer", "thick"])
        for seed, kinds in enumerate(KINDS)
    ]
    write_manifest(folder / MANIFEST, studies)
    return folder


def write_phantom_cohort(folder: Path, phantoms: Path) -> Cohort:
    """The phantoms as a cohort, under other UIDs; the first two are validation studies."""
    (folder / "scans").mkdir()
    rows = []
    for index in range(len(KINDS)):
        study = read_study(phantoms / f"phantom-{index}")
        scan = prepare(open_series(sorted((study.folder / "2-thick").iterdir())), tiny.SPEC)
        scan.save(folder / f"scans/{index}.b2nd")
        rows.append(
            StudyRow(
                study=f"2.25.{index}", patient=str(index), split="validation" if index < 2 else "test",
                scans=(f"scans/{index}.b2nd",), sentences=study.sentences, labels=study.labels,
                conspicuity=study.conspicuity, source=study.folder.name,
            )
        )  # fmt: skip
    return write_cohort(folder, preprocessing=tiny.SPEC, rows=rows, facts={})


def lines(found: Evaluation) -> list[dict[str, str]]:
    """The table of scores."""
    return list(csv.DictReader(io.StringIO(found.table())))


def run(bundle: Bundle, cohort: Cohort, **options) -> Evaluation:
    return evaluate(bundle, "manifest", cohort.folder, Options(**{"split": "all", **options}))
