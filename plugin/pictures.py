"""What of a report needs the source images: key slices, and relevance on the source's own pixels.

A source that is gone, on another host or not decodable costs its picture, never the report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import structlog
from pydicom import Dataset, dcmread

from hlip_core.errors import Refused
from hlip_core.files import open_series
from hlip_core.frames import Frame, frames_of
from hlip_core.headers import MALFORMED, lenient
from hlip_core.overlay import HIGH, outlines, relevance_on_source
from hlip_core.preprocessing import Preprocessing
from hlip_core.volume import PreparedScan
from plugin.results import KeySlice, RelevanceMap, SourceFrame, StudyReport, key_findings, key_slice
from plugin.settings import ResultsSettings

if TYPE_CHECKING:
    from hlip_core.assessment import FindingScore

log = structlog.get_logger("hlip.pictures")

ImagePath = Callable[[str, str], Path]
"""Where the image of a SeriesInstanceUID and SOPInstanceUID lies, or lay."""


def with_pictures(
    report: StudyReport,
    scans: Mapping[str, PreparedScan],
    spec: Preprocessing,
    image_path: ImagePath,
    settings: ResultsSettings,
) -> StudyReport:
    """The report with the pictures that the settings ask for, as far as they can be made."""
    if settings.key_images:
        report = replace(report, key_slices=key_slices(report, scans, spec, image_path))
    if settings.parametric_map or settings.segmentation:
        report = replace(report, relevance_map=relevance_map(report, scans, spec, image_path))
    return report


def key_slices(
    report: StudyReport, scans: Mapping[str, PreparedScan], spec: Preprocessing, image_path: ImagePath
) -> tuple[KeySlice, ...]:
    """The slices of the findings that deserve a key image, each with the contour of the relevance on it."""
    slices = []
    for score in key_findings(report):
        assert score.location is not None
        at = score.location
        try:
            with lenient():
                (image,) = open_series([image_path(at.series_instance_uid, at.source.sop_instance_uid)])
                contours = _contours(score, scans[at.series_instance_uid], spec)
                slices.append(key_slice(image, score, contours))
        except (Refused, *MALFORMED) as error:
            log.warning("no key image", label=score.finding.label, cause=type(error).__name__)
    return tuple(slices)


def _contours(score: "FindingScore", scan: PreparedScan, spec: Preprocessing) -> tuple[np.ndarray, ...]:
    if score.relevance is None or score.location is None:
        return ()
    at = score.location.source
    places = [(scan.instances[instance][1], number) for instance, number in scan.source.frames]
    (plane,) = relevance_on_source(score.relevance, scan, spec, [places.index((at.sop_instance_uid, at.frame_number))])
    return outlines(plane >= HIGH * score.relevance.max())


def relevance_map(
    report: StudyReport, scans: Mapping[str, PreparedScan], spec: Preprocessing, image_path: ImagePath
) -> RelevanceMap | None:
    """Relevance of the first of the key findings on all frames of its series; None where there is no such.

    On all, since viewers pair the planes of a map with the images of the series one by one.
    """
    score = next(iter(key_findings(report)), None)
    if score is None or score.relevance is None or score.location is None:
        return None
    scan = scans[score.location.series_instance_uid]
    if not scan.frame_of_reference_uid:  # without one, no image can lie on another
        return None
    try:
        with lenient():
            headers = [
                dcmread(image_path(scan.series_instance_uid, uid), stop_before_pixels=True) for _, uid in scan.instances
            ]
            frames = frames_of(headers, scan.modality)
    except (Refused, *MALFORMED) as error:
        log.warning("no relevance map", label=score.finding.label, cause=type(error).__name__)
        return None
    by_place = {(frame.instance, frame.number): frame for frame in frames}
    values = relevance_on_source(score.relevance, scan, spec, range(len(scan.source.frames)))
    return RelevanceMap(
        label=score.finding.label,
        frame_of_reference_uid=scan.frame_of_reference_uid,
        frames=tuple(_source_frame(headers, by_place[place]) for place in scan.source.frames),
        values=values / max(float(values.max()), 1e-12),
    )


def _source_frame(headers: Sequence[Dataset], frame: Frame) -> SourceFrame:
    header = headers[frame.instance]
    return SourceFrame(
        sop_class_uid=str(header.SOPClassUID),
        sop_instance_uid=str(header.SOPInstanceUID),
        frame_number=frame.number,
        position=frame.position,
        orientation=(*frame.across, *frame.down),
        spacing=frame.spacing,
        thickness=frame.thickness,
    )
