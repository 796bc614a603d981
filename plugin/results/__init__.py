"""Result objects: what a study's report looks like in DICOM.

    results = build_results(report)         # Summary SR always, Findings SR when something is positive
    for result in results:
        path.write_bytes(to_bytes(result))

The only place where highdicom is used.
"""

from pydicom import Dataset

from plugin.results.findings_report import findings_report
from plugin.results.identity import KINDS, Kind, result_uid, to_bytes
from plugin.results.key_image import key_findings, key_images, key_slice
from plugin.results.readable import html, page_of, terminal
from plugin.results.rejection_note import REJECTIONS, Rejection, rejection_note
from plugin.results.report import KeySlice, SeriesFate, StudyReport
from plugin.results.summary_report import result_sentence, summary_report

__all__ = [
    "KINDS",
    "REJECTIONS",
    "KeySlice",
    "Kind",
    "Rejection",
    "SeriesFate",
    "StudyReport",
    "build_results",
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


def build_results(report: StudyReport) -> list[Dataset]:
    """All objects of one revision; the same report gives the same bytes.

    The Summary SR always, the Findings SR when something is positive, a key image for each key slice.
    """
    findings = findings_report(report)
    return [summary_report(report), *([] if findings is None else [findings]), *key_images(report)]
