"""Names and identifying numbers out of a report's text.

Two nets. What the headers of the study, its documents and messages say of who took part (`Identities`) is removed
wherever it stands, whatever its case, accents or separators. And a table of rules removes what looks like a date,
a number that identifies, an address, a name behind a title, and drops sentences that only say who told whom.
A name that no header knows and that stands alone ("seen with Jane Doe") may pass: read a sample before you share.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

__all__ = ["DROPPED", "RULES", "Cleaned", "Identities", "clean"]


def _bag(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Name parts that are also words of reports or grammar, titles or abbreviations: removed only beside another part of
# the name or a title, since "No" as a surname must not turn "No hemorrhage" into "hemorrhage".
ORDINARY = _bag(
    "a an and are as at be by do for from has he her him his in into is it its man may no non nor not of on "
    "or per she so son than that the their there these this to was were who will with without yes all any "
    "both each few more most new old one two left right mild acute normal within none over under up down out "
    "see seen show shows head brain skull bone mass day"
    " ct mr us iv ed er pe rt lt ap pa ml mm cm cc vs hr mg kg hu md ms st ii vi tb ca ac am pm la le de da di"
    " dr prof med jr sr mrs miss phd dipl iii"
)
LONGEST = 60_000  # characters of a text that are read: some twenty pages
MOST_NAMES, MOST_WORDS = 256, 8  # of a study, of a name
SHORTEST_NAME = 2
SHORTEST_NUMBER = 4
GENERIC = _bag("unknown anonymous anonymized none null test unspecified radiology hospital ct mr other")
_PARTICLES = _bag("van von der den de la le du di da del dos el al bin ibn ter ten zu zur y")
_EXPANDED = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "ø": "oe", "å": "aa", "æ": "ae", "œ": "oe"})


@dataclass(frozen=True, kw_only=True)
class Identities:
    """Who took part in a study, as its headers, documents and messages say.

    names: of persons, each as one text in any layout; numbers: identifiers, telephone numbers, birth dates;
    places: institutions and addresses.
    """

    names: frozenset[str] = frozenset()
    numbers: frozenset[str] = frozenset()
    places: frozenset[str] = frozenset()

    def __or__(self, other: Identities) -> Identities:
        return Identities(
            names=self.names | other.names, numbers=self.numbers | other.numbers, places=self.places | other.places
        )


@dataclass(frozen=True)
class Rule:
    """Text that looks identifying, whoever it names; what its group `keep`, if there is one, matched, stays."""

    placeholder: str
    pattern: re.Pattern[str]

    def apply(self, text: str) -> tuple[str, int]:
        """The text with placeholders, and how many."""
        if "keep" in self.pattern.groupindex:
            return self.pattern.subn(lambda match: match["keep"] + self.placeholder, text)
        return self.pattern.subn(self.placeholder, text)


@dataclass(frozen=True)
class Cleaned:
    """A text without identities, and how many passages were replaced."""

    text: str
    removed: int


_MONTH = (  # all but May, which is also a verb
    r"(?:jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|june?|juni|july?|juli|aug(?:ust)?"
    r"|sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?)"
)
_YEAR, _DAY, _MONTH_NUMBER = r"(?:19|20)\d\d", r"(?:0?[1-9]|[12]\d|3[01])", r"(?:0?[1-9]|1[0-2])"
_NO_SIZE = r"(?!\.?\d|\s*(?:mm|cm|ml|cc|hu|x)\b)"
_CAPITAL = r"(?<!\w)[A-ZÀ-ÖØ-Þ][\w'’-]{0,40}+"
_PARTICLE = r"(?:(?:van|von|der|den|de|la|le|di|da|del|bin|al)[ \t]{1,9}){0,3}"
_NAME = rf"(?:(?:[A-Z]\.[ \t]?){{0,3}}{_PARTICLE}{_CAPITAL}(?:[ \t]{{1,9}}{_PARTICLE}(?:[A-Z]\.|{_CAPITAL})){{0,2}})"
_ID = r"[:#.\s]*(?:(?:number|no|num|nr|id|is)\b[:#.\s]*)?[A-Za-z]{0,6}[-/]?\d[\w/-]*"
_STREET = (
    r"(?:St\b\.?|Ave\b\.?|Rd\b\.?|Ln\b\.?|Drive|Blvd\b\.?|Way|Terrace|Square|Plaza|Parkway|Highway|Court"
    r"|(?i:street|avenue|road|lane|boulevard)\b)"
)
_HOSPITAL = r"(?:Hospital|Medical Cent(?:er|re)|Clinic|Infirmary|Klinik|Klinikum|Krankenhaus)"
_ROLE = (
    r"(?:patient name|pt name|patient|name|referring physician|ordering (?:physician|provider)|attending(?: physician)?"
    r"|radiologist|resident|fellow|technologist|operator|physician|provider|referred by|requested by|performed by)"
)
_TOLD = (
    r"(?:(?:[Dd]iscussed|[Rr]eviewed|[Cc]ommunicated|[Ss]poke|[Cc]onferred|[Ss]hared|[Rr]elayed|[Cc]onveyed)"
    r"(?:\s+(?:by phone|directly|personally))?\s+(?:with|to|by)"
    r"|[Pp]aged|[Nn]otified|[Ii]nformed|(?:[Ss]igned|[Dd]ictated|[Rr]ead|[Ss]een|[Aa]ttended|[Rr]eferred)\s+by)"
)
_NUMBERED = (
    r"(?:mrn|m\.r\.n|med(?:ical)? rec(?:ord)?|patient id|pat\.? ?id|pid|accession|acc(?=[#:. ]+\w*\d)|ssn"
    r"|social security|insurance|policy|account|acct|encounter (?=no|number|id)|visit (?=no|number|id)"
    r"|order (?=no|number|id)|requisition|case (?=no|number|id)|study id|exam id|csn|nhs|hospital (?=no|number))"
)


def _rule(placeholder: str, *pattern: str, case: bool = False) -> Rule:
    return Rule(f"[{placeholder}]", re.compile("".join(pattern), 0 if case else re.IGNORECASE))


UNBREAKABLE: tuple[Rule, ...] = (  # before a known name in them is taken out and the rest is left
    _rule("contact", r"[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+"),
    _rule("contact", r"\b(?:https?://|www\.)\S+"),
    _rule("number", r"\b\d{1,39}(?:\.\d{1,39}){4,}\b"),  # a UID
)
RULES: tuple[Rule, ...] = (
    _rule("number", rf"\b{_NUMBERED}{_ID}"),
    _rule("date", r"\b(?:date of birth|d\.?o\.?b\.?|born)(?: on)?[:\s]+[\w.,/-]+(?:\s+\d{1,2},?\s+\d{2,4})?"),
    _rule("date", rf"\b{_YEAR}([-/.]){_MONTH_NUMBER}\1{_DAY}\b(?:T[\d:.]+)?"),
    _rule("date", rf"\b{_DAY}([-/.]){_DAY}\1(?:{_YEAR}|\d\d)\b{_NO_SIZE}"),
    _rule("date", rf"(?<![\d.]){_YEAR}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?![\d.]\d|\d)"),
    _rule("date", rf"\b{_DAY}(?:st|nd|rd|th|\.)?[-\s]+(?:of\s+)?{_MONTH}\b\.?(?:,?[-\s]+{_YEAR}\b|[-\s]\d\d\b)?"),
    _rule("date", rf"\b{_MONTH}\.?[-\s]+(?:{_DAY}(?:st|nd|rd|th)?\b{_NO_SIZE}(?:,?[-\s]+{_YEAR})?|{_YEAR}\b)"),
    _rule("date", rf"\b{_DAY}(?:st|nd|rd|th|\.)?[-\s]+(?:of\s+)?(?:may|mai)[-.,\s]+(?:{_YEAR}|\d\d)\b"),
    _rule("date", rf"\b(?:may|mai)[-\s]+(?:{_DAY}(?:st|nd|rd|th)?,?[-\s]+)?{_YEAR}\b"),
    _rule("date", rf"\b{_DAY}(?:st|nd|rd|th)\s+(?:of\s+)?May\b|\b(?<=on )May\s+{_DAY}\b{_NO_SIZE}", case=True),
    _rule("date", rf"(?:(?<=\bon )|(?<=\bdated )|(?<=\bfrom )){_MONTH_NUMBER}/{_DAY}\b(?!/)"),
    _rule("time", r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?:\s*[ap]\.?m\b\.?)?(?:\s*(?:hrs|hours|uhr)\b)?"),
    _rule("time", r"\b(?:1[0-2]|0?[1-9])\s*[ap]\.?m\b"),
    _rule("contact", r"\b(?:tel(?:ephone)?|phone|fax|pager|beeper|mobile|cell|ext(?:ension)?)\b[.:#\s]*"
          r"(?:(?:no|number)\b[.:\s]*)?\+?[\d(][\d\s()./-]{2,20}\d"),
    _rule("contact", r"(?<![\w.])(?:\+|00)\d{1,3}[\s./-]?(?:\(?\d{1,5}\)?[\s./-]?){2,5}\d{2,}"),
    _rule("contact", r"(?<![\w.])\(?\d{3}\)?[\s.-]\d{3}[\s.-]\d{4}\b"),
    _rule("contact", r"(?<![\w.-])\d{3}-\d{4}\b(?!-)"),
    _rule("number", r"\b\d{3}-\d{2}-\d{4}\b"),  # a social security number
    _rule("place", r"\b\d{1,5}[A-Za-z]?,?[ ](?:(?:North|South|East|West|[NSEW]\.)[ ])?",
          rf"(?:{_CAPITAL}[ ]){{1,3}}{_STREET}(?:,[ ]{_CAPITAL})?",
          case=True),
    _rule("place", r"\b[A-ZÄÖÜ][a-zäöüß-]+(?:straße|strasse|str\.|weg|platz|allee|gasse)\s+\d{1,4}[a-z]?\b", case=True),
    _rule("place", r"\b(?:[A-Z][a-z]+,\s+)?[A-Z]{2}\s+\d{5}(?:-\d{4})?\b", case=True),
    _rule("place", rf"\b(?:St\.?\s+)?{_CAPITAL}",
          rf"(?:\s{{1,9}}(?:(?:of|and|the)\s{{1,9}}){{0,2}}{_CAPITAL}){{0,4}}\s{{1,9}}{_HOSPITAL}\b",
          case=True),
    _rule("name", r"\b(?:[Dd]rs?\b\.?|D[Rr]S?\b\.?|[Pp]rof\.|Prof(?:essor)?\b|PROF\.|[Dd]octor\b|DOCTOR\b)[ \t]+",
          rf"(?:(?:[Mm]ed|[Dd]r|DR|PD|[Pp]rof)\b\.?[ \t]{{0,9}}){{0,3}}(?:{_NAME}|{_PARTICLE}[a-z][\w'-]+)", case=True),
    _rule("name", rf"\b(?:Mr|Mrs|Ms|Miss|Mister|Herrn?|Frau|Madame|Sra?)\b\.?[ \t]+{_NAME}", case=True),
    _rule("name", rf"{_NAME}(?:,?[ \t]+(?:M\.?D\b\.?|MBBS\b|FRCR\b|FRCPC\b|Ph\.?D\b\.?)"
          r"|,[ \t]*(?:D\.O\.|DO\b|R\.?N\b\.?|PA-C\b|NP\b|M\.?Sc\b\.?|RT\(R\)|Radiolog\w+))", case=True),
    _rule("name", rf"\b{_ROLE}\s*:[ \t]*[^\n.;]{{2,80}}"),
    _rule("name", rf"\b(?P<keep>{_TOLD}\s+){_NAME}", case=True),
    _rule("name", r"\b(?P<keep>[Pp]atient[ \t]+)[A-Z][a-z'’-]+(?:[ \t]+[A-Z]\.?)?[ \t]+[A-Z][a-z'’-]+", case=True),
    _rule("age", r"\b(?:9\d|1[01]\d)(?=[\s-]*(?:years?|yrs?|y\.?o\b|y/o|yo\b|jährig))"),
    _rule("number", r"(?<![\w.])[A-Za-z]{0,12}+[-_]?\d{5,}+[A-Za-z0-9_-]*+(?!\s*(?:mm|ml|cc|hu)[23²³]?\b)"),
    _rule("number", r"\b[A-Z]{2,12}[-_]?\d{3,}[A-Za-z0-9_-]*", case=True),
)  # fmt: skip

DROPPED = re.compile(  # sentences that say who told whom, and nothing of the images
    r"\b(?:electronically|digitally)\s+(?:signed|authenticated|approved)"
    r"|\b(?:signed|dictated|transcribed|typed|verified|approved|authenticated|finalized|attested|edited)\s+(?:by|on|at)\b"
    r"|\b(?:interpreted|reported|read)\s+by\b"
    r"|\b(?:discussed|communicated|spoke|conferred)\b.{0,40}\b(?:with|to)\b"
    r"|\b(?:relayed|conveyed|called|telephoned|phoned)\s+to\b"
    r"|\b(?:notified|paged|was informed|were informed|read[- ]?back)\b"
    r"|\bpersonally\s+reviewed\b|\bhave\s+reviewed\s+the\s+images\b|\bI,?\s+\[name\]",
    re.IGNORECASE,
)


def clean(text: str, identities: Identities) -> Cleaned:
    """The text without what the identities name and without what the rules match; placeholders in their place."""
    normal = unicodedata.normalize("NFC", text[:LONGEST])
    removed = 0
    for rule in UNBREAKABLE:
        normal, count = rule.apply(normal)
        removed += count
    for placeholder, pattern in _known(identities):
        normal, count = _replace_folded(normal, pattern, placeholder)
        removed += count
    for rule in RULES:
        normal, count = rule.apply(normal)
        removed += count
    return Cleaned(re.sub(r"(\[\w+\])(?:[\s,^-]*\1)+", r"\1", normal), removed)


# ---- what is known -------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _known(identities: Identities) -> list[tuple[str, re.Pattern[str]]]:
    """A pattern of each kind for a folded text; longest alternatives first, so that no part of a name is left."""
    whole, parts = _names(identities.names)
    kinds = (
        ("[number]", {_number(number) for number in identities.numbers}),
        ("[place]", {_place(place) for place in identities.places}),
        ("[name]", whole),
        ("[name]", parts),
    )
    return [
        (placeholder, re.compile("|".join(sorted(patterns, key=lambda p: (-len(p), p)))))
        for placeholder, found in kinds
        if (patterns := found - {""})
    ]


def _fold(text: str) -> str:
    """Small letters without accents, one character for each, so that places in it are places in the text."""
    return "".join(_fold_character(character) for character in text)


@cache
def _fold_character(character: str) -> str:
    base = unicodedata.normalize("NFKD", character)[:1] or character
    folded = base.casefold()
    return folded if len(folded) == 1 else character


def _replace_folded(text: str, pattern: re.Pattern[str], placeholder: str) -> tuple[str, int]:
    spans = [match.span() for match in pattern.finditer(_fold(text))]
    for start, end in reversed(spans):
        text = text[:start] + placeholder + text[end:]
    return text, len(spans)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\s^=,;/\\()<>&]+|(?<=\w)\.(?=\s|$)", name) if word.strip("-'’.")][:MOST_WORDS]


def _spellings(word: str) -> set[str]:
    plain = unicodedata.normalize("NFC", word).lower().strip("-'’.")
    return {_fold(plain), _fold(plain.casefold()), _fold(plain.translate(_EXPANDED))} - {""}


def _bounded(pattern: str, first: str, last: str) -> str:
    """Not inside of a longer word; scripts that are written without blanks have no such border."""
    before = r"(?<![^\W\d_])" if first.isascii() else ""
    after = r"(?:['’]s)?(?![^\W\d_])" if last.isascii() else ""
    return before + pattern + after


def _names(names: Iterable[str]) -> tuple[set[str], set[str]]:
    """Patterns of names in pairs of parts, then of single parts."""
    pairs: set[str] = set()
    parts: set[str] = set()
    for name in sorted(names)[:MOST_NAMES]:
        words = [word for word in _words(name) if word.casefold().strip(".") not in GENERIC]
        spelled = [sorted(_spellings(word)) for word in words]
        for spellings in spelled:
            parts.update(_bounded(re.escape(s), s[0], s[-1]) for s in spellings if _stands_alone(s))
        for i, left in enumerate(spelled):
            for j, right in enumerate(spelled):
                if i != j:
                    pairs.update(_pair(a, b) for a in left for b in right if a and b)
    return pairs, parts


def _stands_alone(part: str) -> bool:
    return len(part) >= SHORTEST_NAME and part not in ORDINARY | _PARTICLES and not part.isdigit()


def _pair(left: str, right: str) -> str:
    """Two parts of one name beside each other, in either order: "Will^May", "May, Will"."""
    if left in _PARTICLES and right in _PARTICLES:
        return _bounded(rf"{re.escape(left)}\s+{re.escape(right)}", left[0], right[-1])
    return _bounded(rf"{re.escape(left)}[\s,^.=-]{{1,3}}{re.escape(right)}", left[0], right[-1])


def _number(number: str) -> str:
    """The letters and digits of an identifier, whatever stands between them."""
    characters = [_fold(c) for c in number if c.isalnum()]
    text = "".join(characters)
    if len(text) < SHORTEST_NUMBER or text in GENERIC or not any(c.isdigit() for c in text):
        return _place(number) if len(text) >= SHORTEST_NUMBER and text not in GENERIC else ""
    return r"(?<![^\W_])" + r"[\s./_^-]?".join(map(re.escape, characters)) + r"(?![^\W_])"


def _place(place: str) -> str:
    words = [word for word in re.split(r"[\s,;^\\]+", _fold(place.strip())) if word]
    if len("".join(words)) < SHORTEST_NUMBER or all(word in GENERIC or word in ORDINARY for word in words):
        return ""
    return _bounded(r"[\s,;^]+".join(map(re.escape, words)), words[0][0], words[-1][-1])
