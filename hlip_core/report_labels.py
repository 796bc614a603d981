"""What the text of a report says of the findings: by a table of words, aware of denial and doubt.

In the manner of NegEx (Chapman et al., J Biomed Inform 2001): a name of a finding, and words before or after it in the
same clause that deny, doubt or remove it. `report_words.toml` holds all words; it is for English head CT reports.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from hlip_core.errors import InputError
from hlip_core.sentences import sentences

__all__ = ["DEFAULT", "ReportWords", "Said"]

DEFAULT = Path(__file__).with_name("report_words.toml")

State = Literal["present", "uncertain", "absent", "unmentioned"]

CUES = (
    "still_there", "nothing_learnt", "no_denials", "doubts_after", "denials_after", "seen_before", "elsewhere",
    "doubts", "denials",
)  # fmt: skip
"""The lists of the table, the one that counts first where words of two overlap."""


@dataclass(frozen=True)
class Said:
    """What a report says of a finding, and the sentence that says so ("" where none does)."""

    state: State
    sentence: str = ""


@dataclass(frozen=True)
class _Finding:
    label: str
    words: re.Pattern[str]
    never: re.Pattern[str] | None
    normal: re.Pattern[str] | None
    parent: str


@dataclass(frozen=True)
class _Cue:
    kind: str
    start: int
    end: int


class ReportWords:
    """The table of words. Raises InputError for one that cannot be meant."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        try:
            self.version = str(table["version"])
            self._cues = [(kind, _pattern(table[kind])) for kind in CUES]
            self._ends = _pattern(table["clause_ends"])
            self._goes_on = _pattern(table["goes_on"])
            self._findings = tuple(_finding(row) for row in table["finding"])
        except (KeyError, TypeError) as error:
            raise InputError(f"a table of report words has a missing or unknown field: {error}") from error

    @classmethod
    def from_toml(cls, path: Path = DEFAULT) -> ReportWords:
        """Read a table; without a path the one that comes along."""
        try:
            return cls(tomllib.loads(path.read_text(encoding="utf-8")))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{path.name} is not TOML: {error}") from error

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The findings that the table knows."""
        return tuple(finding.label for finding in self._findings)

    def read(self, report: str) -> dict[str, Said]:
        """What a report says of every finding. Sections that are not of the images (history, technique) do not count.

        A finding that is affirmed anywhere is present, whatever else denies it; doubt goes before denial.
        """
        found = {label: Said("unmentioned") for label in self.labels}
        for sentence in sentences(report):
            for label, state in self._of_sentence(sentence):
                if ORDER[state] > ORDER[found[label].state]:
                    found[label] = Said(state, sentence)
        return self._with_parents(found)

    def _of_sentence(self, sentence: str) -> Iterator[tuple[str, State]]:
        text = _plain(sentence)
        cues, names = list(self._found_cues(text)), self._names(text)
        for finding in self._findings:
            if finding.normal and finding.normal.search(text):
                yield finding.label, "absent"
            for match in finding.words.finditer(text):
                if finding.never and _is_something_else(finding.never, text, match):
                    continue
                state = self._state(text, match, cues, names)
                if state is not None:
                    yield finding.label, state

    def _names(self, text: str) -> list[tuple[int, int]]:
        """Where names stand, those that overlap as one."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(match.span() for f in self._findings for match in f.words.finditer(text)):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
            else:
                merged.append((start, end))
        return merged

    def _state(
        self, text: str, match: re.Match[str], cues: Sequence[_Cue], names: Sequence[tuple[int, int]]
    ) -> State | None:
        """What the clause says of a name in it; None where nothing is learnt."""
        start = max((end.end() for end in self._ends.finditer(text, 0, match.start())), default=0)
        start = max(start, text.rfind(";", 0, match.start()) + 1)
        past = min((end.start() for end in self._ends.finditer(text, match.end())), default=len(text))
        before = [cue for cue in cues if start <= cue.start and cue.end <= match.start() and cue.kind in BEFORE]
        after = [cue for cue in cues if match.end() <= cue.start and cue.end <= past and cue.kind in AFTER]
        kinds = {cue.kind for cue in before if _reaches_on(text, cue, match)}
        kinds |= {cue.kind for cue in after if _reaches_back(text, cue, match, names)}
        if self._goes_on.search(re.split("[,;]", text[match.end() :])[0]):
            kinds.discard("seen_before")
        return next((state for kind, state in DECIDES if kind in kinds), "present")

    def _found_cues(self, text: str) -> Iterator[_Cue]:
        """Words of the lists, each piece of text counted once."""
        taken = [False] * len(text)
        for kind, pattern in self._cues:
            for match in pattern.finditer(text):
                if not any(taken[match.start() : match.end()]):
                    taken[match.start() : match.end()] = [True] * (match.end() - match.start())
                    yield _Cue(kind, match.start(), match.end())

    def _with_parents(self, found: dict[str, Said]) -> dict[str, Said]:
        """A child that is present makes its parent present; a parent that is denied denies what is not mentioned."""
        for finding in self._findings:
            said = found[finding.label]
            parent = found.get(finding.parent)
            if parent is not None and ORDER[said.state] > max(ORDER[parent.state], ORDER["absent"]):
                found[finding.parent] = said
        for finding in self._findings:
            parent = found.get(finding.parent)
            if parent is not None and parent.state == "absent" and found[finding.label].state == "unmentioned":
                found[finding.label] = parent
        return found


ORDER: dict[State, int] = {"unmentioned": 0, "absent": 1, "uncertain": 2, "present": 3}


def _finding(row: Mapping[str, Any]) -> _Finding:
    never, normal = row.get("never"), row.get("normal")
    return _Finding(
        label=row["label"],
        words=_pattern(row["words"]),
        never=_pattern(never) if never else None,
        normal=_pattern(normal) if normal else None,
        parent=row.get("parent", ""),
    )


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    """All of the words, the longer first; `*` by itself is up to three words, at a word's end the rest of it."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile("|".join(rf"(?<!\w){_words(text)}(?!\w)" for text in longest_first), re.IGNORECASE)


def _words(text: str) -> str:
    parts = text.split()
    return " ".join(r"(?:\w+ ){0,2}\w+" if part == "*" else re.escape(part).replace(r"\*", r"\w*") for part in parts)


def _plain(sentence: str) -> str:
    """One blank between words, none of them joined by hyphens."""
    for short, long in (("w/o", "without"), ("s/p", "status post"), ("r/o", "rule out")):
        sentence = sentence.replace(short, long)
    return re.sub(r"\s+", " ", re.sub(r"[-‐–/](?=\w)", " ", sentence))


def _is_something_else(never: re.Pattern[str], text: str, match: re.Match[str]) -> bool:
    """Whether a word that means something else is part of the name, or stands up to three words before it."""
    before = re.search(r"(?:\w+ ){0,3}$", text[: match.start()])
    start = before.start() if before else match.start()
    return never.search(text, start, match.end()) is not None


def _reaches_on(text: str, cue: _Cue, match: re.Match[str]) -> bool:
    """Whether a word before a name is of it: past a comma only where a list goes on, bare names or before an "or"."""
    parts = text[cue.end : match.start()].split(",")[1:]
    if not parts:
        return True
    follows = text[match.end() :].split(";")[0].split(",")
    if any(LIST_END.match(part) for part in (parts[-1], *follows[1:])):
        return all(LISTED.fullmatch(part) for part in parts[:-1])
    is_bare = not follows[0].strip(" .:") or AND_MORE.match(follows[0]) is not None
    return is_bare and all(LISTED.fullmatch(part) for part in parts)


LIST_END = re.compile(r" (?:or|nor) ")
AND_MORE = re.compile(r" (?:and|or|nor) ")
LISTED = re.compile(r" (?!(?:\w+ )*(?:there|is|are|was|were|has|have|remains?|a|an|the)\b)(?:\w+ ?){0,5}")
"""An entry of a list: a few words, none of them of a sentence."""


def _reaches_back(text: str, cue: _Cue, match: re.Match[str], names: Sequence[tuple[int, int]]) -> bool:
    """Whether words after a name are of it: it is the last one before them, or joined to that one in a list."""
    end = next((e for s, e in names if s <= match.start() < e), match.end())
    later = [(s, e) for s, e in names if end <= s and e <= cue.start]
    gaps = [text[a:b] for a, b in zip([end, *(e for _, e in later)], [*(s for s, _ in later), cue.start], strict=True)]
    *joints, last = gaps
    if "," in last and not re.fullmatch(r",[^,]+, ?", last):
        return False
    is_singular = re.match(r"(?:is|has) ", text[cue.start : cue.end]) is not None
    ends_well = not joints or re.search(r"\b(?:or|nor)\b" if is_singular else r"\b(?:and|or|nor)\b", joints[-1])
    return bool(ends_well) and all(JOINT.fullmatch(joint) for joint in joints)


JOINT = re.compile(r"(?:, (?:(?:and|or|nor) )?| (?:and|or|nor) )(?:\w+ ){0,2}")
"""What stands between two names of a list."""

BEFORE = frozenset({"still_there", "nothing_learnt", "seen_before", "elsewhere", "doubts", "denials"})
AFTER = frozenset({"doubts_after", "denials_after"})
DECIDES: tuple[tuple[str, State | None], ...] = (
    ("nothing_learnt", None),
    ("still_there", "present"),
    ("seen_before", None),
    ("elsewhere", None),
    ("doubts_after", "uncertain"),
    ("denials", "absent"),
    ("denials_after", "absent"),
    ("doubts", "uncertain"),
)
"""The first kind of word around a name decides."""
