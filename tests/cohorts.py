"""A small cohort that can be learnt: a bright ball, on one side, or none; and reports that say so."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

import tiny
from trainer.manifest import Cohort, StudyRow, write_cohort

PRESENT = (
    "Subdural hematoma identified.", "Findings suggesting {side} subdural hematoma.", "New {side} subdural hematoma.",
    "Likely {side} subdural hematoma.", "Findings consistent with {side} subdural hemorrhage.",
    "Subdural hemorrhage is noted.",
)  # fmt: skip
ABSENT = ("No subdural hematoma.", "There is no subdural hemorrhage.", "No evidence of a subdural collection.")
ASIDES = ("Mastoid air cells are clear.", "Comparison: none.", "Clinical history: fall.", "Paranasal sinus disease.")


def write(folder: Path, *, train: int = 24, validation: int = 8, source: str = "") -> Cohort:
    """A cohort of `tiny.SPEC`; every other study has a subdural hematoma, left or right in turn."""
    (folder / "scans").mkdir(parents=True)
    rows = [
        _study(folder, index, "train" if index < train else "validation", source) for index in range(train + validation)
    ]
    return write_cohort(folder, preprocessing=tiny.SPEC, rows=rows, facts={"source": "made for a test"})


def _study(folder: Path, index: int, split: str, source: str) -> StudyRow:
    rng = np.random.default_rng(index)
    present, side = index % 2 == 0, ("left", "right")[index // 2 % 2]
    names = []
    for number in range(1, 2 + index % 3 // 2):  # one or two series
        scan = tiny.scan(number, seed=index)
        voxels = scan.voxels.copy()
        if present:
            column = 26 if side == "left" else 6
            voxels[2:6, 14:26, column : column + 8] = 75
        name = f"scans/{index}-{number}.b2nd"
        dataclasses.replace(scan, voxels=voxels).save(folder / name)
        names.append(name)
    ways = PRESENT if present else ABSENT
    finding = ways[int(rng.integers(len(ways)))].format(side=side)
    asides = [ASIDES[i] for i in rng.permutation(len(ASIDES))[:2]]
    return StudyRow(
        study=f"2.25.{index}", patient=str(index), split=split, scans=tuple(names), sentences=(finding, *asides),
        labels={"subdural_hemorrhage": present}, source=source,
    )  # fmt: skip
