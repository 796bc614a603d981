"""The Findings SR: TID 1500 with a measurement group for each positive finding; viewers open on its slice.

What a viewer needs (measured with OHIF 3.13): a tracking identifier of its own arrow tool, a Tracking UID
for each group, a group whose first NUM is INFERRED FROM a SCOORD POINT that is SELECTED FROM an image, and
the label as a comment. A group that reaches no SCOORD crashes the viewer: a positive finding without a
location is in the Summary SR only.
"""

from typing import TYPE_CHECKING

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CoordinatesForMeasurement,
    FindingSite,
    GraphicTypeValues,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    SourceImageForRegion,
    TrackingIdentifier,
)
from pydicom import Dataset

from plugin.results.codes import code
from plugin.results.document import digests, english, notice, observation_context, structured_report, text
from plugin.results.identity import FINDINGS, MANUFACTURER, result_uid
from plugin.results.report import StudyReport
from plugin.results.summary_report import concept, measurement, scaled

if TYPE_CHECKING:
    from hlip_core.assessment import FindingScore, Location

ARROW = "Cornerstone3DTools@^0.1.0:ArrowAnnotate"
"""The tracking identifier by which OHIF takes a point as its arrow annotation."""

PROCEDURES = {"CT": "ct", "MR": "mr"}


def findings_report(report: StudyReport) -> Dataset | None:
    """The positive findings on their slices; None when there are none."""
    if not report.located:
        return None
    content = MeasurementReport(
        observation_context=observation_context(report),
        procedure_reported=code(PROCEDURES[report.bundle.preprocessing.modality]),
        imaging_measurements=[_group(report, score) for score in report.located],
        language_of_content_item_and_descendants=english(),
    )
    root = content[0]
    root.ContentSequence.append(text("comment", notice(report)))
    return structured_report(report, FINDINGS, root)


def label(report: StudyReport, score: "FindingScore") -> str:
    """What stands beside the point in the viewer and in its list."""
    status = "" if report.bundle.status == "trained" else f"{report.bundle.status.upper()} - "
    if score.probability is None:
        return f"{status}{score.finding.name}: AI score {score.score:.2f}"
    return f"{status}{score.finding.name}: AI score {scaled(score.probability, calibrated=True)[0]:.0f}%"


def _group(report: StudyReport, score: "FindingScore") -> MeasurementsAndQualitativeEvaluations:
    """TID 1501 for one positive finding."""
    finding = score.finding
    assert score.location is not None
    name, value, unit = measurement(score)
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(uid=result_uid("tracking", report, finding.label), identifier=ARROW),
        finding_type=concept(finding.code),
        finding_sites=[FindingSite(anatomic_location=concept(finding.site))],
        algorithm_id=_algorithm(report, score),
        measurements=[
            Measurement(
                name=code(name),
                value=value,
                unit=code(unit),
                referenced_coordinates=[_point(score.location)],
            )
        ],
    )
    group[0].ContentSequence.append(text("comment", label(report, score)))
    return group


def _point(location: "Location") -> CoordinatesForMeasurement:
    """The point as an SCOORD: (column, row) from the upper left corner of the first pixel (PS3.3 C.18.6.1.2).

    The centre of the first pixel is at 0.5, 0.5; source rows and columns count pixel centres from 0.
    """
    source = location.source
    frames = None if source.frame_number is None else [source.frame_number]
    return CoordinatesForMeasurement(
        graphic_type=GraphicTypeValues.POINT,
        graphic_data=np.array([[source.column + 0.5, source.row + 0.5]], np.float32),  # FL
        source_image=SourceImageForRegion(source.sop_class_uid, source.sop_instance_uid, frames),
        purpose=code("looked"),
    )


def _algorithm(report: StudyReport, score: "FindingScore") -> AlgorithmIdentification:
    """TID 4019, with all digests and the threshold as parameters."""
    parameters = [f"{what}: {value}" for what, value in digests(report)]
    if score.threshold is not None:
        value, _ = scaled(score.threshold, calibrated=score.probability is not None)
        parameters.append(f"threshold: {value}{'%' if score.probability is not None else ''}")
    return AlgorithmIdentification(
        name=report.bundle.name,
        version=report.bundle.version,
        manufacturer=MANUFACTURER,
        family=code("artificial-intelligence"),
        parameters=parameters,
    )
