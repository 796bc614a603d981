"""A cohort on disk: prepared scans and, a line each study, what is known of it.

    cohort.json     Cohort: preprocessing, where the studies come from, how they were de-identified, counts
    studies.jsonl   StudyRow, one JSON line a study
    scans/          prepared scans (`hlip_core.prepared.PreparedScan`), named by the rows

`hlip-train cohort` writes it, `pretrain` and `evaluate` read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hlip_core.errors import InputError
from hlip_core.preprocessing import Preprocessing

__all__ = ["SPLITS", "Cohort", "Split", "StudyRow", "read_cohort", "write_cohort"]

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
COHORT, STUDIES, SCANS = "cohort.json", "studies.jsonl", "scans"


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One study.

    study: its (de-identified) StudyInstanceUID; patient: a pseudonym, studies of one patient share it and the split;
    scans: paths of its prepared scans, relative to the cohort's folder, in the order in which the encoder sees them;
    sentences: the report's stand-alone sentences, none for a study without a report;
    labels: findings that are known to be present or absent, by label;
    conspicuity: of present findings of a phantom, 0..1; source: a phantom's folder name, else empty.
    """

    study: str
    patient: str
    split: Split
    scans: tuple[str, ...]
    sentences: tuple[str, ...] = ()
    labels: Mapping[str, bool] = field(default_factory=dict)
    conspicuity: Mapping[str, float] = field(default_factory=dict)
    source: str = ""

    @property
    def report(self) -> str:
        """The report as one text."""
        return " ".join(self.sentences)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudyRow:
        """The inverse of `dataclasses.asdict`. Raises InputError for what is no row."""
        try:
            row = cls(**{**values, **{name: tuple(values[name]) for name in ("scans", "sentences")}})
        except (KeyError, TypeError) as error:
            raise InputError(f"a line of {STUDIES} has a missing or unknown field: {error}") from error
        if row.split not in SPLITS:
            raise InputError(f"{STUDIES}: the split is {row.split!r}, not one of {', '.join(SPLITS)}")
        return row


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Studies that were prepared by one specification; `folder` holds what the rows name.

    facts: what a reader should know (source, de-identification, counts, tool versions), JSON-ready.
    """

    folder: Path
    preprocessing: Preprocessing
    rows: tuple[StudyRow, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def split(self, name: Split) -> tuple[StudyRow, ...]:
        """The studies of one split."""
        return tuple(row for row in self.rows if row.split == name)


def read_cohort(folder: Path) -> Cohort:
    """The cohort in a folder.

    Raises:
        InputError: there is none, or it is damaged.
    """
    folder = Path(folder)
    if not (folder / COHORT).is_file():
        raise InputError(f"no cohort in {folder}: {COHORT} is missing; `hlip-train cohort` makes one")
    try:
        head = json.loads((folder / COHORT).read_text())
        lines = (folder / STUDIES).read_text().splitlines()
        rows = tuple(StudyRow.from_dict(json.loads(line)) for line in lines if line)
        return Cohort(
            folder=folder, preprocessing=Preprocessing.from_dict(head["preprocessing"]), rows=rows, facts=head["facts"]
        )
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise InputError(f"the cohort in {folder} is damaged: {type(error).__name__}: {error}") from error


def write_cohort(
    folder: Path, *, preprocessing: Preprocessing, rows: Iterable[StudyRow], facts: Mapping[str, Any]
) -> Cohort:
    """Writes both files, each whole or not at all; the scans are there already."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = tuple(rows)
    _replace(folder / STUDIES, "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in kept))
    head = {"preprocessing": preprocessing.to_dict(), "facts": dict(facts)}
    _replace(folder / COHORT, json.dumps(head, indent=1, ensure_ascii=False) + "\n")
    return Cohort(folder=folder, preprocessing=preprocessing, rows=kept, facts=dict(facts))


def _replace(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
