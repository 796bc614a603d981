"""Result objects: what a study's report looks like in DICOM.

    results = build_results(report)         # Summary SR always, Findings SR when something is positive
    for result in results:
        path.write_bytes(to_bytes(result))

The only place where highdicom is used.
"""

from collections.abc import Callable, Collection

from pydicom import Dataset

from plugin.results.findings_report import findings_report
from plugin.results.identity import (
    FINDINGS,
    KEY_IMAGE,
    KINDS,
    PARAMETRIC_MAP,
    SEGMENTATION,
    SUMMARY,
    SUPERSEDED_KINDS,
    Kind,
    creation_time,
    result_uid,
    to_bytes,
)
from plugin.results.key_image import key_findings, key_images, key_slice
from plugin.results.readable import html, page_of, terminal
from plugin.results.rejection_note import REJECTIONS, rejection_note
from plugin.results.relevance_image import parametric_map, segmentation
from plugin.results.report import KeySlice, RelevanceMap, SeriesFate, SourceFrame, StudyReport
from plugin.results.summary_report import result_sentence, summary_report

__all__ = [
    "KINDS",
    "REJECTIONS",
    "SUPERSEDED_KINDS",
    "KeySlice",
    "Kind",
    "RelevanceMap",
    "SeriesFate",
    "SourceFrame",
    "StudyReport",
    "build_results",
    "creation_time",
    "html",
    "key_findings",
    "key_slice",
    "page_of",
    "rejection_note",
    "result_sentence",
    "result_uid",
    "terminal",
    "to_bytes",
]


BUILDERS: dict[Kind, Callable[[StudyReport], list[Dataset]]] = {
    SUMMARY: lambda report: [summary_report(report)],
    FINDINGS: lambda report: [made] if (made := findings_report(report)) is not None else [],
    KEY_IMAGE: key_images,
    PARAMETRIC_MAP: parametric_map,
    SEGMENTATION: segmentation,
}


def build_results(report: StudyReport, *, without: Collection[str] = ()) -> list[Dataset]:
    """All objects of one revision; the same report gives the same bytes.

    The Summary SR always, the Findings SR when something is positive, a key image for each key slice, a Parametric
    Map and a Segmentation for the relevance map; none of the kinds whose names are in `without`.
    """
    return [result for kind, build in BUILDERS.items() if kind.name not in without for result in build(report)]
