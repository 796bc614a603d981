"""Every code that our objects carry, with the evidence for it. No code is used that is not in this table.

Where no public code could be verified, a private one stands in the scheme 99HLIP, which each object declares
(Coding Scheme Identification Sequence, PS3.3 C.12.1). The clinical codes of the findings come with the model
bundle (`hlip_core/findings.toml`); those of the project's own table are in CLINICAL, and a test holds the two
together.
"""

from collections.abc import Iterable
from typing import NamedTuple

from highdicom.sr import CodedConcept
from pydicom import Dataset

PRIVATE_SCHEME = "99HLIP"
PRIVATE_SCHEME_NAME = "Private codes of the hlip-pacs project"


class CodeRow(NamedTuple):
    """A coded concept and why we believe it: where the value and its meaning can be looked up."""

    value: str
    scheme: str
    meaning: str
    evidence: str

    @property
    def code(self) -> CodedConcept:
        return CodedConcept(self.value, self.scheme, self.meaning)


DICTIONARY = "pydicom.sr, made from PS3.16"
"""Evidence that a test checks: the row is in the tables that pydicom generates from PS3.16."""

PRIVATE = "own concept: none verified in PS3.16, SNOMED CT or LOINC"

CODES: dict[str, CodeRow] = {
    # documents and their sections
    "report": CodeRow("18748-4", "LN", "Diagnostic Imaging Report", DICTIONARY),
    "summary": CodeRow("55112-7", "LN", "Summary", DICTIONARY),
    "findings": CodeRow("59776-5", "LN", "Findings", DICTIONARY),
    "series": CodeRow("series", PRIVATE_SCHEME, "Series of the study", PRIVATE),
    "one-series": CodeRow("one-series", PRIVATE_SCHEME, "Series", PRIVATE),
    "model": CodeRow("model", PRIVATE_SCHEME, "Model", PRIVATE),
    "limits": CodeRow("limits", PRIVATE_SCHEME, "Limits of this result", PRIVATE),
    # summary
    "notice": CodeRow("notice", PRIVATE_SCHEME, "Notice", PRIVATE),
    "status": CodeRow("model-status", PRIVATE_SCHEME, "Model status", PRIVATE),
    "result": CodeRow("result", PRIVATE_SCHEME, "Result", PRIVATE),
    "completeness": CodeRow("completeness", PRIVATE_SCHEME, "Completeness", PRIVATE),
    "revision": CodeRow("revision", PRIVATE_SCHEME, "Revision of this result", PRIVATE),
    "limit": CodeRow("limit", PRIVATE_SCHEME, "Limit", PRIVATE),
    # a finding
    "present": CodeRow("52101004", "SCT", "Present", DICTIONARY),
    "absent": CodeRow("272519000", "SCT", "Absent", DICTIONARY),
    "certainty": CodeRow("111012", "DCM", "Certainty of Finding", DICTIONARY),
    "score": CodeRow("score", PRIVATE_SCHEME, "Zero-shot similarity score, not calibrated", PRIVATE),
    "threshold": CodeRow("threshold", PRIVATE_SCHEME, "Threshold", PRIVATE),
    "looked": CodeRow("looked", PRIVATE_SCHEME, "Where the model looked", PRIVATE),
    "finding": CodeRow("121071", "DCM", "Finding", DICTIONARY),
    "comment": CodeRow("121106", "DCM", "Comment", DICTIONARY),
    "finding-site": CodeRow("363698007", "SCT", "Finding Site", DICTIONARY),
    "percent": CodeRow("%", "UCUM", "Percent", DICTIONARY),
    "score-unit": CodeRow("{score}", "UCUM", "score", "UCUM 2.5.2, arbitrary unit written as an annotation"),
    # images
    "source-image": CodeRow("121322", "DCM", "Source image for image processing operation", DICTIONARY),
    "relevance": CodeRow("relevance", PRIVATE_SCHEME, "Relevance for the score of the model", PRIVATE),
    "no-units": CodeRow("1", "UCUM", "no units", DICTIONARY),
    "spatial-concept": CodeRow("309825002", "SCT", "Spatial and Relational Concept", DICTIONARY),
    # withdrawal, PS3.16 CID 7010 and IHE RAD TF-3 4.66 (IOCM)
    "quality": CodeRow("113001", "DCM", "Rejected for Quality Reasons", DICTIONARY),
    "patient-safety": CodeRow("113037", "DCM", "Rejected for Patient Safety Reasons", DICTIONARY),
    "worklist": CodeRow("113038", "DCM", "Incorrect Modality Worklist Entry", DICTIONARY),
    "retention": CodeRow("113039", "DCM", "Data Retention Policy Expired", DICTIONARY),
    # language
    "english": CodeRow("en", "RFC5646", "English", "PS3.16 CID 5000, RFC 5646"),
    # a series
    "series-number": CodeRow("113607", "DCM", "Series Number", DICTIONARY),
    "series-uid": CodeRow("112002", "DCM", "Series Instance UID", DICTIONARY),
    "modality": CodeRow("121139", "DCM", "Modality", DICTIONARY),
    "description": CodeRow("description", PRIVATE_SCHEME, "Series Description", PRIVATE),
    "instances": CodeRow("instances", PRIVATE_SCHEME, "Number of instances", PRIVATE),
    "fate": CodeRow("fate", PRIVATE_SCHEME, "Analysis", PRIVATE),
    "note": CodeRow("note", PRIVATE_SCHEME, "Note", PRIVATE),
    # the algorithm and the device
    "algorithm": CodeRow("111001", "DCM", "Algorithm Name", DICTIONARY),
    "version": CodeRow("111003", "DCM", "Algorithm Version", DICTIONARY),
    "parameters": CodeRow("111002", "DCM", "Algorithm Parameters", DICTIONARY),
    "artificial-intelligence": CodeRow("123110", "DCM", "Artificial Intelligence", DICTIONARY),
    "device": CodeRow("121007", "DCM", "Device", DICTIONARY),
    # procedures, PS3.16 CID 100
    "ct": CodeRow("25045-6", "LN", "CT unspecified body region", DICTIONARY),
    "mr": CodeRow("25056-3", "LN", "MRI unspecified body region", DICTIONARY),
}
"""By the name that this package calls it."""

CLINICAL: tuple[CodeRow, ...] = (
    CodeRow("1386000", "SCT", "Intracranial hemorrhage", "pydicom.sr: Intracranial hemorrhage (disorder)"),
    CodeRow("21454007", "SCT", "Subarachnoid hemorrhage", "public value sets, full name"),
    CodeRow("274100004", "SCT", "Cerebral hemorrhage", "public value sets, full name"),
    CodeRow("230745008", "SCT", "Hydrocephalus", "public value sets, full name"),
    CodeRow("432504007", "SCT", "Cerebral infarction", "one public table; acuteness is not expressed"),
    CodeRow("35486000", "SCT", "Subdural hemorrhage", "two secondary sources"),
    CodeRow("82999001", "SCT", "Epidural hemorrhage", "one secondary source"),
    CodeRow("12738006", "SCT", "Brain", DICTIONARY),
    CodeRow("89546000", "SCT", "Skull", DICTIONARY),
    CodeRow("35764002", "SCT", "Brain ventricle", DICTIONARY),
    CodeRow("35951006", "SCT", "Subarachnoid space", DICTIONARY),
)
"""Public codes of findings and sites. A test also verifies the check digit of each SNOMED CT value."""


def code(name: str) -> CodedConcept:
    """The concept that this package calls `name`. Raises KeyError."""
    return CODES[name].code


def coding_schemes(content: Iterable[Dataset]) -> list[Dataset]:
    """Items that declare the private schemes (99...) used anywhere in `content`, sorted by designator."""
    designators = sorted({value for value in _designators(content) if value.startswith("99")})
    return [_scheme(designator) for designator in designators]


def _designators(datasets: Iterable[Dataset]) -> Iterable[str]:
    for dataset in datasets:
        if "CodingSchemeDesignator" in dataset:
            yield str(dataset.CodingSchemeDesignator)
        for element in dataset:
            if element.VR == "SQ":
                yield from _designators(element.value)


def _scheme(designator: str) -> Dataset:
    item = Dataset()
    item.CodingSchemeDesignator = designator
    if designator == PRIVATE_SCHEME:
        item.CodingSchemeName = PRIVATE_SCHEME_NAME
        item.CodingSchemeResponsibleOrganization = "hlip-pacs"
    else:
        item.CodingSchemeName = "Private codes of the model bundle"
    return item
