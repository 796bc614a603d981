"""Relevance as images that lie on the source: a Parametric Map of it, and a Segmentation that outlines its height.

Both say where the model looked, not where a lesion is. highdicom lays out the frames; who and what the object is
comes from `identity`, as for all results.
"""

from io import BytesIO
from typing import TYPE_CHECKING, Any

from highdicom import AlgorithmIdentificationSequence, VOILUTTransformation
from highdicom.pm import ParametricMap, RealWorldValueMapping
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage

from hlip_core.overlay import HIGH
from plugin.results.codes import code, coding_schemes
from plugin.results.document import digests
from plugin.results.identity import (
    MANUFACTURER,
    PARAMETRIC_MAP,
    SEGMENTATION,
    SOFTWARE_VERSION,
    Kind,
    fit,
    instance_uid,
    new_object,
    result_uid,
    to_bytes,
)
from plugin.results.key_image import BODY_PARTS
from plugin.results.modules import PATIENT, STUDY, TRIAL
from plugin.results.report import RelevanceMap, SourceFrame, StudyReport

if TYPE_CHECKING:
    from hlip_core.assessment import FindingScore

OUTLINE_COLOUR = (56000, 30000, 60000)
"""Yellow, as CIELab (PS3.3 C.10.7.1.1)."""

NOT_COPIED = frozenset({*PATIENT, *STUDY, *TRIAL, "SpecificCharacterSet", "ContributingEquipmentSequence"})


def parametric_map(report: StudyReport) -> list[Dataset]:
    """The relevance map as float values from 0 to 1 on its source frames; nothing without a map.

    Nothing either for a tilted gantry or varying gaps: it would be right, but viewers that make one block of the
    slices cannot lay it on them, and say that something went wrong (OHIF 3.13). The Segmentation shows there.
    """
    shown = report.relevance_map
    if shown is None or not shown.is_upright:
        return []
    mapping = RealWorldValueMapping(
        lut_label="relevance",
        lut_explanation="Where the model looked, not where a lesion is",
        unit=code("no-units"),
        value_range=(0.0, 1.0),
        slope=1.0,
        intercept=0.0,
        quantity_definition=code("relevance"),
    )
    made = ParametricMap(
        source_images=_sources(report, shown),
        pixel_array=shown.values,
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="RELEVANCE",
        **_identity(PARAMETRIC_MAP, report),
    )
    return [_ours(report, PARAMETRIC_MAP, made)]


def segmentation(report: StudyReport) -> list[Dataset]:
    """The region of high relevance as one binary segment on its source frames; nothing without a map."""
    shown = report.relevance_map
    if shown is None:
        return []
    segment = SegmentDescription(
        segment_number=1,
        segment_label=fit(f"Where the model looked: {_score(report, shown).finding.name}", report.source)[:64],
        segmented_property_category=code("spatial-concept"),
        segmented_property_type=code("looked"),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=report.bundle.name,
            family=code("artificial-intelligence"),
            version=report.bundle.version,
            source=MANUFACTURER,
            parameters=dict(digests(report)),
        ),
        tracking_uid=result_uid("segment", report, shown.label),
        tracking_id=shown.label,
    )
    segment.RecommendedDisplayCIELabValue = list(OUTLINE_COLOUR)
    made = Segmentation(
        source_images=_sources(report, shown),
        pixel_array=shown.values >= HIGH,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        content_label="RELEVANCE",
        **_identity(SEGMENTATION, report),
    )
    return [_ours(report, SEGMENTATION, made)]


def _score(report: StudyReport, shown: RelevanceMap) -> "FindingScore":
    return next(score for score in report.located if score.finding.label == shown.label)


def _identity(kind: Kind, report: StudyReport) -> dict[str, Any]:
    """What highdicom's constructors ask for; `_ours` has the last word on it."""
    return {
        "series_instance_uid": result_uid("series", report, kind.name),
        "series_number": kind.series_number,
        "sop_instance_uid": instance_uid(kind, report),
        "instance_number": 1,
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": "HLIP",
        "software_versions": SOFTWARE_VERSION,
        "device_serial_number": report.installation_uid,
    }


def _sources(report: StudyReport, shown: RelevanceMap) -> list[Dataset]:
    """Each source frame as an image of its own, with the geometry and nothing else that could be wrong."""
    return [_source(report, shown, frame, number) for number, frame in enumerate(shown.frames, start=1)]


def _source(report: StudyReport, shown: RelevanceMap, frame: SourceFrame, number: int) -> Dataset:
    image = Dataset()
    image.SOPClassUID = CTImageStorage
    image.SOPInstanceUID = f"2.25.{number}"  # replaced by the true reference
    image.StudyInstanceUID = report.source.StudyInstanceUID
    image.SeriesInstanceUID = _score(report, shown).location.series_instance_uid  # type: ignore[union-attr]
    image.FrameOfReferenceUID = shown.frame_of_reference_uid
    image.Modality = report.bundle.preprocessing.modality
    image.Rows, image.Columns = shown.values.shape[1:]
    image.ImagePositionPatient = [_decimal(value) for value in frame.position]
    image.ImageOrientationPatient = [_decimal(value) for value in frame.orientation]
    image.PixelSpacing = [_decimal(value) for value in frame.spacing]
    image.SliceThickness = frame.thickness
    image.InstanceNumber = number
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID",
                    "StudyDate", "StudyTime", "ReferringPhysicianName", "PositionReferenceIndicator"):  # fmt: skip
        setattr(image, keyword, "")
    return image


def _decimal(value: float) -> str:
    """A number in the 16 characters of a DS (PS3.5 6.2)."""
    return f"{value:.9g}" if abs(value) >= 1e-4 else f"{value:.8f}"


def _ours(report: StudyReport, kind: Kind, made: Dataset) -> Dataset:
    """The object with our identity, and references to the true source frames."""
    assert report.relevance_map is not None
    result = new_object(report, kind)
    for element in dcmread(BytesIO(to_bytes(made))):  # plain elements, without highdicom's classes
        if element.keyword not in result and element.keyword not in NOT_COPIED:
            result[element.tag] = element
    result.ContentDescription = "Where the model looked, not where a lesion is"
    result.BodyPartExamined = BODY_PARTS[report.bundle.preprocessing.region]
    _refer(result, report.relevance_map.frames)
    organization = result_uid("dimensions", report, kind.name)
    for item in (*result.DimensionOrganizationSequence, *result.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    if schemes := coding_schemes([result]):
        result.CodingSchemeIdentificationSequence = schemes
    return result


def _refer(result: Dataset, frames: tuple[SourceFrame, ...]) -> None:
    """Put the true source frames in the place of the stand-ins, frame by frame and in the list of instances."""
    truth = {f"2.25.{number}": frame for number, frame in enumerate(frames, start=1)}
    for group in result.PerFrameFunctionalGroupsSequence:
        for derivation in group.DerivationImageSequence:
            for item in derivation.SourceImageSequence:
                frame = truth[item.ReferencedSOPInstanceUID]
                _point_to(item, frame)
                if frame.frame_number is not None:
                    item.ReferencedFrameNumber = frame.frame_number
    instances = {frame.sop_instance_uid: frame for frame in frames}
    for of_series in result.ReferencedSeriesSequence:
        of_series.ReferencedInstanceSequence = [_point_to(Dataset(), frame) for frame in instances.values()]
    if "SourceImageSequence" in result:
        result.SourceImageSequence = [_point_to(Dataset(), frame) for frame in instances.values()]


def _point_to(item: Dataset, frame: SourceFrame) -> Dataset:
    item.ReferencedSOPClassUID = frame.sop_class_uid
    item.ReferencedSOPInstanceUID = frame.sop_instance_uid
    return item
