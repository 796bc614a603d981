"""Which studies are searched at all: plain values, and how people write them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Self

__all__ = ["AGE_GROUPS", "AtLeast", "Filters", "SearchError"]

AGE_GROUPS: dict[str, tuple[float, float]] = {
    "infant": (0, 2),
    "child": (2, 12),
    "adolescent": (12, 18),
    "adult": (18, 65),
    "senior": (65, 200),
}
"""From how many years on, and below how many."""

_AGES = re.compile(r"(\d{1,3})-(\d{1,3})")
_FINDING = re.compile(r"(?P<label>[a-z][a-z0-9_]*)\s*(?:>=?\s*(?P<value>-?\d*\.?\d+))?")
_DATES = ("%Y-%m-%d", "%Y%m%d")


class SearchError(ValueError):
    """A question that cannot be answered as it is asked; the message says what to do."""


@dataclass(frozen=True)
class AtLeast:
    """A finding at or above a value, on the probability where it is calibrated, else on the score.

    Without a value: its threshold, so that it is positive.
    """

    label: str
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Filters:
    """What all hits have in common; an empty field asks for nothing.

    `since` and `until` are StudyDates (YYYYMMDD), both included; `ages` are years, from and below; `station` is a
    StationName or a part of one, `description` a part of the StudyDescription, in any case.
    """

    since: str = ""
    until: str = ""
    modality: str = ""
    ages: tuple[float, float] | None = None
    station: str = ""
    description: str = ""
    findings: tuple[AtLeast, ...] = ()

    @classmethod
    def parse(
        cls,
        *,
        since: str = "",
        until: str = "",
        modality: str = "",
        age: str = "",
        station: str = "",
        description: str = "",
        findings: Sequence[str] = (),
    ) -> Self:
        """From what a person writes. Raises SearchError for what cannot be meant."""
        return cls(
            since=_date(since),
            until=_date(until),
            modality=modality.strip().upper(),
            ages=_ages(age.strip().lower()),
            station=station.strip(),
            description=description.strip(),
            findings=tuple(_finding(text.strip()) for text in findings if text.strip()),
        )

    @property
    def by_rows(self) -> bool:
        """Whether anything but findings is asked for."""
        return self != Filters(findings=self.findings)

    @property
    def of_study(self) -> bool:
        """Whether anything is asked for that stands in the study's own row."""
        return bool(self.since or self.until or self.description)


def _date(text: str) -> str:
    if not text.strip():
        return ""
    for form in _DATES:
        try:
            found: date = datetime.strptime(text.strip(), form).date()
        except ValueError:
            continue
        return found.strftime("%Y%m%d")
    raise SearchError("a date is written 2026-01-31")


def _ages(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    if text in AGE_GROUPS:
        return AGE_GROUPS[text]
    years = _AGES.fullmatch(text)
    if years is None or int(years[1]) > int(years[2]):
        raise SearchError(f"an age is one of {', '.join(AGE_GROUPS)}, or years such as 60-80")
    return float(years[1]), float(years[2]) + 1  # who is 80 and some months is 80


def _finding(text: str) -> AtLeast:
    match = _FINDING.fullmatch(text)
    if match is None:
        raise SearchError("a finding is asked for as subdural_hemorrhage (positive), or subdural_hemorrhage>=0.3")
    return AtLeast(match["label"], None if match["value"] is None else float(match["value"]))
