"""The text of a report as stand-alone sentences, without the sections that say nothing of the images."""

from __future__ import annotations

import re
from collections.abc import Iterator

__all__ = ["SECTIONS", "section_of", "sentences"]

OF_THE_IMAGES = (
    "findings", "finding", "observations", "report", "body", "result", "results", "findings and impression",
    "findings/impression", "impression", "impressions", "conclusion", "conclusions", "summary", "opinion",
    "interpretation", "diagnosis", "addendum", "addenda", "befund", "beurteilung", "resultat", "conclusie",
)  # fmt: skip
OF_OTHER_THINGS = (
    "recommendation", "recommendations", "history", "clinical history", "clinical information", "clinical indication",
    "clinical data", "clinical details", "clinical question", "patient history", "indication", "indications",
    "reason for exam", "reason for examination", "reason for study", "reason for this examination", "request", "exam",
    "examination", "study", "procedure", "procedure description", "current procedure descriptions", "technique",
    "comparison", "comparisons", "comparison study", "prior studies", "contrast", "dose", "radiation dose", "date",
    "date of exam", "date of birth", "dob", "patient", "name", "patient name", "mrn", "accession", "accession number",
    "age", "sex", "signature", "attestation", "communication", "critical results", "notification",
    "referring physician", "ordering physician", "ordering provider", "attending", "attending physician",
    "radiologist", "resident", "fellow", "dictated by", "signed by", "electronically signed by", "transcribed by",
    "reported by", "read by", "interpreted by", "reviewed by", "approved by", "verified by", "finalized by", "cc",
    "anamnese", "klinische angaben", "fragestellung", "technik", "voruntersuchung",
)  # fmt: skip
SECTIONS: dict[str, bool] = {**dict.fromkeys(OF_THE_IMAGES, True), **dict.fromkeys(OF_OTHER_THINGS, False)}
"""Headings, as they are written or as codes of HL7 and DICOM name them: is what follows of the images?"""

# A dot after these ends no sentence; after those, none when a number follows.
NEVER = frozenset((
    "dr", "drs", "mr", "mrs", "ms", "prof", "st", "vs", "e.g", "i.e", "eg", "ie", "cf", "fig", "figs", "approx", "ca",
    "al", "im", "img", "ser", "resp", "incl", "z.b", "bzw", "u.a", "sog",
))  # fmt: skip
NUMBERED = frozenset(("no", "nr", "se", "image", "series", "slice", "page"))
LONGEST = 60_000  # characters of a report that are read: some twenty pages
WRAPPED = 55  # a shorter line ends a sentence when the next begins with a capital

_HEADINGS = "|".join(
    re.escape(heading).replace(r"\ ", r"[ \t]+") for heading in sorted(SECTIONS, key=len, reverse=True)
)
_HEADING = re.compile(
    rf"(?:^[ \t]*[*#_]*|(?<=[.!?;\])])[ \t]+)(?P<name>{_HEADINGS})(?:\(s\))?[*_]*[ \t]*(?::|[ \t]-(?=[ \t])|[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
_BULLET = re.compile(r"^[ \t]*(?:[-*•·–>]+|\(?\d{1,2}[.)](?!\d)|[a-h][.)])[ \t]+", re.MULTILINE)
_END = re.compile(r"[.!?]+[\"')\]]*(?=\s+\S)|(?<=[a-z)])\.(?=[A-Z][a-z])")
_WORD_BEFORE = re.compile(r"([\w.]+)$")


def section_of(heading: str) -> str | None:
    """The known heading that a text or the meaning of a code is, in small letters; None for any other."""
    name = re.sub(r"\s+", " ", heading).strip(" \t:*#_").casefold()
    return name if name in SECTIONS else None


def sentences(text: str, *, all_sections: bool = False) -> tuple[str, ...]:
    """The sentences of a report, in order, each once, without the sections that are of other things."""
    normal = text[:LONGEST].replace("\r\n", "\n").replace("\r", "\n")
    found: dict[str, None] = {}
    for wanted, section in _sections(normal):
        if wanted or all_sections:
            found.update(dict.fromkeys(_split(section)))
    return tuple(found)


def _sections(text: str) -> Iterator[tuple[bool, str]]:
    """(is it of the images, text) of each section; what comes before the first heading is."""
    wanted, start = True, 0
    for match in _HEADING.finditer(text):
        if not match["name"][0].isupper():
            continue  # "no other history - ..." is a sentence
        yield wanted, text[start : match.start()]
        wanted, start = SECTIONS[re.sub(r"\s+", " ", match["name"]).casefold()], match.end()
    yield wanted, text[start:]


def _split(text: str) -> Iterator[str]:
    for block in _blocks(text):
        yield from _sentences(re.sub(r"\s+", " ", block).strip())


def _blocks(text: str) -> Iterator[str]:
    """Runs of lines that belong together: a hard-wrapped paragraph, one item of a list."""
    block: list[str] = []
    for line in text.split("\n"):
        is_item = _BULLET.match(line) is not None
        content = _BULLET.sub("", line).strip()
        if block and (not content or is_item or _ends(block[-1], content)):
            yield " ".join(block)
            block = []
        if content:
            block.append(content)
    if block:
        yield " ".join(block)


def _ends(line: str, following: str) -> bool:
    """Whether a sentence ends with the line, though perhaps without a dot. "MCA" may well go on with a sentence."""
    if line.endswith((".", "!", "?", ";")):
        return True
    is_start = following[:1].isupper() and (following[1:2].islower() or line.isupper())
    return len(line) < WRAPPED and is_start and not line.endswith((":", ","))


def _sentences(text: str) -> Iterator[str]:
    start = 0
    has_capitals = any(character.isupper() for character in text)
    for match in _END.finditer(text):
        if _is_end(
            text[max(start, match.start() - 24) : match.start()],
            text[match.end() : match.end() + 4].lstrip(),
            has_capitals=has_capitals,
        ):
            yield from _kept(text[start : match.end()])
            start = match.end()
    yield from _kept(text[start:])


def _is_end(before: str, after: str, *, has_capitals: bool) -> bool:
    match = _WORD_BEFORE.search(before)
    word = match[1].casefold() if match else ""
    if word in NEVER or (len(word) == 1 and word.isalpha() and before[-1:].isupper()):  # an initial: "J. Doe"
        return False
    if word in NUMBERED and after[:1].isdigit():
        return False
    return after[:1].isupper() or after[:1].isdigit() or after[:1] in "\"'([" or not has_capitals


def _kept(sentence: str) -> Iterator[str]:
    stripped = sentence.strip(" \t-*_=•;,")
    if len(re.findall(r"[^\W\d_]", re.sub(r"\[\w+\]", "", stripped))) >= 3:  # letters, placeholders aside
        yield stripped
