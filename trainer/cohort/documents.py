"""Reports that are DICOM Structured Reports in the study: the text that a person wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from hlip_core.headers import first_item, items, text
from hlip_core.sentences import section_of

__all__ = ["DOCUMENT_CLASSES", "Document", "read_document", "standing"]

DOCUMENT_CLASSES: dict[str, str] = {  # PS3.4 Table B.5-1; dose, CAD, procedure logs and the like are no reports
    "1.2.840.10008.5.1.4.1.1.88.11": "Basic Text SR",
    "1.2.840.10008.5.1.4.1.1.88.22": "Enhanced SR",
    "1.2.840.10008.5.1.4.1.1.88.33": "Comprehensive SR",
    "1.2.840.10008.5.1.4.1.1.88.34": "Comprehensive 3D SR",
    "1.2.840.10008.5.1.4.1.1.88.35": "Extensible SR",
}
DEEPEST = 24  # levels of the content tree that are read
OBSERVER_TYPE, PERSON, DEVICE = "121005", "121006", "121007"  # PS3.16 TID 1001, CID 270
SECTION_WORDS = ("impression", "conclusion", "finding", "history", "indication", "technique", "comparison",
                 "recommendation", "procedure", "request", "addendum", "diagnosis", "summary")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Document:
    """One document: its text with headings, and what tells which of several documents still stands."""

    sop_instance_uid: str
    text: str
    predecessors: frozenset[str]
    is_complete: bool
    date_time: str


def read_document(dataset: Dataset) -> Document | None:
    """A report that a person wrote; None for any other object, and for one that a device observed (an algorithm's)."""
    if text(dataset, "SOPClassUID") not in DOCUMENT_CLASSES or _is_by_device(dataset):
        return None
    written = "\n".join(_lines(dataset))
    if not written.strip():
        return None
    return Document(
        sop_instance_uid=text(dataset, "SOPInstanceUID"),
        text=written,
        predecessors=frozenset(_predecessors(dataset)),
        is_complete=text(dataset, "CompletionFlag").upper() != "PARTIAL",
        date_time=text(dataset, "ContentDate") + text(dataset, "ContentTime"),
    )


def standing(documents: Iterable[Document]) -> list[Document]:
    """The documents that no other one replaces, complete ones if there are any, in the order of their dates."""
    found = list(documents)
    replaced = frozenset().union(*(document.predecessors for document in found))
    left = [document for document in found if document.sop_instance_uid not in replaced]
    complete = [document for document in left if document.is_complete]
    return sorted(complete or left, key=lambda document: (document.date_time, document.sop_instance_uid))


def _code(item: Dataset, keyword: str) -> tuple[str, str]:
    """(value, meaning) of the first code."""
    code = first_item(item, keyword)
    return text(code, "CodeValue"), text(code, "CodeMeaning")


def _content(item: Dataset) -> Sequence[Dataset]:
    return items(item, "ContentSequence")


def _is_by_device(dataset: Dataset) -> bool:
    observers = {
        _code(item, "ConceptCodeSequence")[0]
        for item in _content(dataset)
        if _code(item, "ConceptNameCodeSequence")[0] == OBSERVER_TYPE
    }
    return DEVICE in observers and PERSON not in observers


def _predecessors(dataset: Dataset) -> Iterator[str]:
    for study in items(dataset, "PredecessorDocumentsSequence"):
        for series in items(study, "ReferencedSeriesSequence"):
            for reference in items(series, "ReferencedSOPSequence"):
                yield text(reference, "ReferencedSOPInstanceUID")


def _heading(meaning: str) -> str:
    """The heading that a container's title is, in words that `sentences` knows."""
    known = section_of(meaning)
    if known is None:
        known = next((word for word in SECTION_WORDS if word in meaning.casefold()), None)
    return "" if known is None else known.upper()


def _lines(dataset: Dataset) -> Iterator[str]:
    """Headings and texts of the content tree, depth first."""
    stack: list[tuple[Dataset, str, int]] = [(item, "", 1) for item in reversed(_content(dataset))]
    current = ""
    while stack:
        item, inherited, depth = stack.pop()
        if text(item, "RelationshipType").upper() in ("HAS OBS CONTEXT", "HAS ACQ CONTEXT", "HAS CONCEPT MOD"):
            continue
        heading = _heading(_code(item, "ConceptNameCodeSequence")[1]) or inherited
        written = _text_value(item)
        if written:
            if heading != current:
                current = heading
                yield f"\n{heading or 'REPORT'}:"
            yield written + "\n"
        if depth < DEEPEST:
            stack += [(child, heading, depth + 1) for child in reversed(_content(item))]


def _text_value(item: Dataset) -> str:
    return text(item, "TextValue") if text(item, "ValueType").upper() == "TEXT" else ""
