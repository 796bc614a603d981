"""What our structured reports share: content items, observer, completion, evidence, predecessors."""

from collections.abc import Iterable, Sequence

from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    ContainerContentItem,
    ContentItem,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    LanguageOfContentItemAndDescendants,
    NumContentItem,
    ObservationContext,
    ObserverContext,
    RelationshipTypeValues,
    TextContentItem,
    UIDRefContentItem,
)
from pydicom import Dataset

from plugin.results.codes import code, coding_schemes
from plugin.results.identity import KINDS, MANUFACTURER, NOT_FOR_DIAGNOSIS, STATUS_NOTICE, Kind, fit, new_object
from plugin.results.report import StudyReport

SR_CLASSES = frozenset(kind.sop_class_uid for kind in KINDS if kind.modality == "SR")
CONTAINS = RelationshipTypeValues.CONTAINS


def text(name: str | CodedConcept, value: str) -> TextContentItem:
    return TextContentItem(name=_concept(name), value=value, relationship_type=CONTAINS)


def coded(name: str | CodedConcept, value: str | CodedConcept) -> CodeContentItem:
    return CodeContentItem(name=_concept(name), value=_concept(value), relationship_type=CONTAINS)


def number(name: str | CodedConcept, value: float, unit: str) -> NumContentItem:
    return NumContentItem(name=_concept(name), value=value, unit=code(unit), relationship_type=CONTAINS)


def uid(name: str | CodedConcept, value: str) -> UIDRefContentItem:
    return UIDRefContentItem(name=_concept(name), value=value, relationship_type=CONTAINS)


def container(name: str | CodedConcept, children: Iterable[ContentItem]) -> ContainerContentItem:
    """A section whose items are shown apart, each with its name (viewers run CONTINUOUS ones together)."""
    item = ContainerContentItem(name=_concept(name), is_content_continuous=False, relationship_type=CONTAINS)
    items = list(children)
    if items:
        item.ContentSequence = ContentSequence(items)
    return item


def _concept(name: str | CodedConcept) -> CodedConcept:
    return code(name) if isinstance(name, str) else name


def english() -> LanguageOfContentItemAndDescendants:
    return LanguageOfContentItemAndDescendants(code("english"))


def observer(installation_uid: str, model_name: str | None = None) -> ObserverContext:
    """The installation as observing device (TID 1002, 1004)."""
    device = DeviceObserverIdentifyingAttributes(
        uid=installation_uid, name="HLIP", manufacturer_name=MANUFACTURER, model_name=model_name
    )
    return ObserverContext(observer_type=code("device"), observer_identifying_attributes=device)


def observation_context(report: StudyReport) -> ObservationContext:
    """The installation with its model as observing device (TID 1001)."""
    model_name = f"{report.bundle.name} {report.bundle.version}"
    return ObservationContext(observer_device_context=observer(report.installation_uid, model_name))


def digests(report: StudyReport) -> tuple[tuple[str, str], ...]:
    """(what, SHA-256 or name) of everything that made the result."""
    bundle = report.bundle
    return (
        ("weights sha256", bundle.weights_digest),
        ("prompts sha256", bundle.prompts_digest),
        ("calibration sha256", bundle.calibration_digest),
        ("thresholds sha256", report.thresholds_digest or "none: nothing was assessed"),
        ("preprocessing", bundle.preprocessing.name),
        ("preprocessing sha256", bundle.preprocessing.digest),
        ("bundle sha256", bundle.digest),
    )


def notice(report: StudyReport) -> str:
    """What every result says first: not for diagnosis, and what the model is if it is not a trained one."""
    return " ".join(filter(None, (STATUS_NOTICE.get(report.bundle.status), NOT_FOR_DIAGNOSIS)))


def structured_report(report: StudyReport, kind: Kind, root: Dataset) -> Dataset:
    """The document with content `root`: SR Document General and Content Modules (PS3.3 C.17.2, C.17.3).

    All that was analysed is evidence of the current procedure, by series. PARTIAL says that something that
    should have been analysed was not.
    """
    document = new_object(report, kind)
    document.CompletionFlag = "PARTIAL" if report.is_partial else "COMPLETE"
    if report.is_partial:
        document.CompletionFlagDescription = "Series or slices were not analysed, see the AI summary"
    document.VerificationFlag = "UNVERIFIED"
    document.PreliminaryFlag = "PRELIMINARY"
    document.ReferencedPerformedProcedureStepSequence = []
    document.PerformedProcedureCodeSequence = []

    instances = [(fate.series_instance_uid, *instance) for fate in report.analysed for instance in fate.instances]
    if instances:
        document.CurrentRequestedProcedureEvidenceSequence = [references(document.StudyInstanceUID, instances)]
    earlier = [
        (series, sop_class, instance)
        for sop_class, instance, series in report.predecessors
        if sop_class in SR_CLASSES  # a predecessor is a document; key images are not
    ]
    if earlier:
        document.PredecessorDocumentsSequence = [references(document.StudyInstanceUID, earlier)]

    add_content(document, root)
    return document


def add_content(document: Dataset, root: Dataset) -> None:
    """Give a document its content tree (SR Document Content Module), in the character set of the study."""
    _fit_content(root, document)
    for keyword in ("ValueType", "ConceptNameCodeSequence", "ContinuityOfContent", "ContentTemplateSequence"):
        if keyword in root:
            document[keyword] = root[keyword]
    document.ContentSequence = list(root.ContentSequence)
    if schemes := coding_schemes([root]):
        document.CodingSchemeIdentificationSequence = schemes


def references(study_instance_uid: str, instances: Sequence[tuple[str, str, str]]) -> Dataset:
    """Hierarchical SOP Instance Reference (PS3.3 C.17.2.1) to (series, SOP class, instance) of one study."""
    by_series: dict[str, list[Dataset]] = {}
    for series_instance_uid, sop_class_uid, sop_instance_uid in instances:
        item = Dataset()
        item.ReferencedSOPClassUID = sop_class_uid
        item.ReferencedSOPInstanceUID = sop_instance_uid
        by_series.setdefault(series_instance_uid, []).append(item)

    study = Dataset()
    study.StudyInstanceUID = study_instance_uid
    study.ReferencedSeriesSequence = []
    for series_instance_uid, items in by_series.items():
        series = Dataset()
        series.SeriesInstanceUID = series_instance_uid
        series.ReferencedSOPSequence = items
        study.ReferencedSeriesSequence.append(series)
    return study


def _fit_content(item: Dataset, source: Dataset) -> None:
    """Make all text of the content tree fit into the character set of the source."""
    for element in item:
        if element.VR == "SQ":
            for child in element.value:
                _fit_content(child, source)
        elif element.VR in ("UT", "LO", "SH", "UC"):
            element.value = fit(str(element.value), source)
