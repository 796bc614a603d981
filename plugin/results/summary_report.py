"""The Summary SR: an Enhanced SR that reads as text in any viewer; every study has one, if only of refusals.

A viewer shows the tree in its order: notice, result, findings, series, model, limits. The number of a
finding stands beside its Present or Absent, since viewers do not show what is below a CODE.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from highdicom.sr import CodedConcept, ContainerContentItem, ContentItem, ContentSequence
from pydicom import Dataset

from plugin.results.codes import code
from plugin.results.document import (
    coded,
    container,
    digests,
    english,
    notice,
    number,
    observation_context,
    structured_report,
    text,
    uid,
)
from plugin.results.identity import STATUS_NOTICE, SUMMARY
from plugin.results.report import SeriesFate, StudyReport

if TYPE_CHECKING:
    from hlip_core.assessment import FindingScore
    from hlip_core.findings import Code

LIMITS = (
    "No person has reviewed this result.",
    "Only the findings that are listed here were looked for.",
    "Absent means that the score did not reach the threshold. It does not exclude the finding.",
    "A point on an image says where the model looked, not where a lesion is.",
)
NOT_CALIBRATED = "The scores are similarities, not probabilities: they were not calibrated."


def summary_report(report: StudyReport) -> Dataset:
    """Everything that was found, not found, and not looked at."""
    root = ContainerContentItem(name=code("report"), is_content_continuous=False)
    root.ContentSequence = ContentSequence(
        [
            *english(),
            *observation_context(report),
            container("summary", _summary(report)),
            container("findings", _findings(report)),
            container("series", [container("one-series", _series(fate)) for fate in report.series]),
            container("model", _model(report)),
            container("limits", [text("limit", limit) for limit in _limits(report)]),
        ]
    )
    return structured_report(report, SUMMARY, root)


def _summary(report: StudyReport) -> Iterator[ContentItem]:
    yield text("notice", notice(report))
    yield text("result", result_sentence(report))
    yield text("completeness", _completeness(report))
    yield text("revision", str(report.revision))


def result_sentence(report: StudyReport) -> str:
    """The result in one line, without numbers: for the head of the summary and for status pages."""
    if report.assessment is None:
        return "Nothing could be analysed."
    scores = list(report.scores())
    positive = [score.finding.name for score in scores if score.positive]
    not_assessed = [score for score in scores if score.threshold is None]
    if len(not_assessed) == len(scores):
        return "No finding was assessed: no thresholds are set."
    said = f"Present: {', '.join(positive)}." if positive else "No assessed finding reached its threshold."
    return f"{said} Not assessed, without threshold: {len(not_assessed)}." if not_assessed else said


def _completeness(report: StudyReport) -> str:
    analysed, missing, partial = len(report.analysed), len(report.missing), len(report.partial)
    if report.assessment is None and analysed:
        return f"PARTIAL: {analysed} series were prepared, but not analysed."
    in_part = f", {partial} of them in part: slices are missing or were left out" if partial else ""
    if missing:
        return f"PARTIAL: {missing} series could not be analysed, see below; {analysed} analysed{in_part}."
    if partial:
        return f"PARTIAL: {analysed} series analysed{in_part}, see below."
    return f"Complete: {analysed} series analysed, none of those meant for the model is missing."


def _findings(report: StudyReport) -> Iterator[ContentItem]:
    for score in report.scores():
        yield container(concept(score.finding.code), _finding(report, score))
    if report.assessment is None:
        yield text("comment", "Nothing could be analysed: no finding was assessed.")


def concept(row: "Code") -> CodedConcept:
    """A code of the findings table as highdicom's."""
    return CodedConcept(row.value, row.scheme, row.meaning)


def _finding(report: StudyReport, score: "FindingScore") -> Iterator[ContentItem]:
    name = concept(score.finding.code)
    if score.finding.name != name.CodeMeaning:
        yield text("finding", score.finding.name)
    if score.threshold is None:
        yield text(name, "Not assessed: no threshold.")
    else:
        yield coded(name, "present" if score.positive else "absent")
    yield number(*measurement(score))
    if score.threshold is not None:
        calibrated = score.probability is not None
        yield number("threshold", *scaled(score.threshold, calibrated=calibrated))
    if score.location is not None:
        yield text("looked", _where(report, score))


def scaled(value: float, *, calibrated: bool) -> tuple[float, str]:
    """A value as it is shown, and its unit: probabilities in percent, scores as they are."""
    return (round(100 * value, 1), "percent") if calibrated else (round(value, 4), "score-unit")


def measurement(score: "FindingScore") -> tuple[str, float, str]:
    """Name, value, unit of a finding's number: a certainty only when it was calibrated, else a score."""
    if score.probability is not None:
        return ("certainty", *scaled(score.probability, calibrated=True))
    return ("score", *scaled(score.score, calibrated=False))


def _where(report: StudyReport, score: "FindingScore") -> str:
    location = score.location
    assert location is not None
    source, fate = location.source, report.series_of(location.series_instance_uid)
    frame = "" if source.frame_number is None else f", frame {source.frame_number}"
    return (
        f"Series {_series_name(fate)}{frame}, row {source.row + 1:.0f}, column {source.column + 1:.0f}, "
        f"image {source.sop_instance_uid}"
    )


def _series_name(fate: SeriesFate) -> str:
    number = "without number" if fate.series_number is None else str(fate.series_number)
    return f"{number} ({fate.series_description})" if fate.series_description else number


def _series(fate: SeriesFate) -> Iterator[ContentItem]:
    if fate.series_number is not None:
        yield text("series-number", str(fate.series_number))
    if fate.series_description:
        yield text("description", fate.series_description)
    if fate.modality:
        yield text("modality", fate.modality)
    yield text("instances", str(fate.num_instances))
    if fate.is_partial:
        yield text("fate", "Analysed in part: slices are missing or were left out.")
    elif fate.reason is None:
        yield text("fate", "Analysed.")
    else:
        yield text("fate", f"Not analysed: {fate.reason.sentence} [{fate.reason}]")
    if fate.detail:
        yield text("note", fate.detail)
    for note in fate.notes:
        yield text("note", note)
    yield uid("series-uid", fate.series_instance_uid)


def _model(report: StudyReport) -> Iterator[ContentItem]:
    yield text("algorithm", report.bundle.name)
    yield text("version", report.bundle.version)
    yield text("status", STATUS_NOTICE.get(report.bundle.status, report.bundle.status))
    for what, value in digests(report):
        yield text("parameters", f"{what}: {value}")


def _limits(report: StudyReport) -> Iterator[str]:
    yield from LIMITS
    if any(score.probability is None for score in report.scores()):
        yield NOT_CALIBRATED
