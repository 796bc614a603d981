"""Scoring the whole archive again from its vectors, and what changes sides by it: no image, no model, no GPU."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plugin.index.database import Database
from plugin.index.filters import Filters
from plugin.index.rescoring import ReportedPart, reported
from plugin.index.search import Space
from plugin.search.scoring import Scores, Scoring

__all__ = ["Difference", "Side", "rescore"]

SAID = np.dtype([("place", np.int32), ("column", np.int32), ("positive", bool), ("value", np.float64)])
"""One finding of one study, as it was reported."""


@dataclass(frozen=True)
class Side:
    """A finding of a study that is now on the other side of its threshold."""

    study_instance_uid: str
    study_date: str
    label: str
    was: float | None
    now: float
    positive: bool


@dataclass
class Difference:
    """What scoring again comes to: counts of each finding, and every change of sides.

    `reported`: positive by what was reported; `now`: by the scores of today; `new`: findings that were not reported on.
    """

    labels: tuple[str, ...]
    studies: int = 0
    reported: dict[str, int] = field(default_factory=dict)
    now: dict[str, int] = field(default_factory=dict)
    new: dict[str, int] = field(default_factory=dict)
    sides: list[Side] = field(default_factory=list)

    @property
    def changed_studies(self) -> list[str]:
        """UIDs of the studies in which anything changed sides, each once."""
        return list(dict.fromkeys(side.study_instance_uid for side in self.sides))

    def changes(self, label: str) -> tuple[int, int]:
        """How many became positive, and how many ceased to be."""
        of_label = [side.positive for side in self.sides if side.label == label]
        return sum(of_label), len(of_label) - sum(of_label)


Take = Callable[[ReportedPart, Scores], None]


def rescore(
    database: Database, space: Space, scoring: Scoring, *, filters: Filters | None = None, take: Take | None = None
) -> Difference:
    """Score every study that fits; `take` is given each part with its scores, to keep or to show progress."""
    difference = Difference(scoring.labels)
    for counts in (difference.reported, difference.now, difference.new):
        counts.update(dict.fromkeys(scoring.labels, 0))
    for part in reported(database, space, filters or Filters()):
        scores = scoring.scores(part.vectors)
        _compare(difference, part, scores)
        if take is not None:
            take(part, scores)
    return difference


def _compare(difference: Difference, part: ReportedPart, scores: Scores) -> None:
    known, before, values = before_of(part.findings, difference.labels)
    difference.studies += len(part.study_instance_uids)
    for column, label in enumerate(difference.labels):
        difference.reported[label] += int(before[:, column].sum())
        difference.now[label] += int(scores.positive[:, column].sum())
        difference.new[label] += int((~known[:, column]).sum())
        for place in np.flatnonzero(before[:, column] != scores.positive[:, column]):
            was = values[place, column]
            difference.sides.append(
                Side(
                    study_instance_uid=part.study_instance_uids[place],
                    study_date=part.study_dates[place],
                    label=label,
                    was=None if np.isnan(was) else float(was),
                    now=round(float(scores.values[place, column]), 6),
                    positive=bool(scores.positive[place, column]),
                )
            )


def before_of(
    findings: Sequence[Sequence[dict[str, Any]]], labels: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[S, F] each, of what was reported: known, positive, the value (probability or score; NaN where not known)."""
    column = {label: number for number, label in enumerate(labels)}
    said = np.fromiter(
        (
            (
                place,
                column[row["label"]],
                row["positive"],
                row["score"] if row.get("probability") is None else row["probability"],
            )
            for place, rows in enumerate(findings)
            for row in rows
            if row["label"] in column
        ),
        SAID,
    )
    known = np.zeros((len(findings), len(labels)), bool)
    positive, values = known.copy(), np.full(known.shape, np.nan)
    at = said["place"], said["column"]
    known[at], positive[at], values[at] = True, said["positive"], said["value"]
    return known, positive, values
