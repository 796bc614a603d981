"""Who and what a result object is: its UIDs, its patient and study, its series, its equipment.

The patient and study modules are copied from the source as they are, byte for byte where they are text, wrong
values and unknown character sets included: a PACS files our objects by them, so they must equal its own.
(highdicom's constructors check and re-encode them, and stamp the clock; so the modules are built here, and
highdicom builds the content.)
"""

import re
import uuid
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from importlib.metadata import version
from io import BytesIO

from pydicom import Dataset, dcmwrite
from pydicom.charset import python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    Comprehensive3DSRStorage,
    EnhancedSRStorage,
    ExplicitVRLittleEndian,
    KeyObjectSelectionDocumentStorage,
    ParametricMapStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from pydicom.valuerep import STR_VR

from plugin.results.modules import PATIENT, STUDY, TRIAL, TYPE_2
from plugin.results.report import StudyReport

NAMESPACE = uuid.UUID("6838c923-928c-4510-a156-564db627bfdb")
SOFTWARE_VERSION = version("hlip-pacs")
IMPLEMENTATION_VERSION_NAME = f"HLIP_PACS_{SOFTWARE_VERSION}"[:16]
MANUFACTURER = "hlip-pacs (research software)"

NOT_FOR_DIAGNOSIS = "Research software, not for diagnosis."
STATUS_NOTICE = {
    "untrained": "UNTRAINED MODEL: random weights, the scores mean nothing.",
    "phantom": "PHANTOM MODEL: trained on synthetic phantoms only, the scores mean nothing for patients.",
}
"""What every result of a model that was not trained on patients says in so many words."""


OFFSET = re.compile(r"(?P<sign>[+-])(?P<hours>0[0-9]|1[0-4])(?P<minutes>[0-5][0-9])")
"""TimezoneOffsetFromUTC (PS3.3 C.12.1): no place is further from UTC than 14 hours."""


@dataclass(frozen=True)
class Kind:
    """One of our series: SeriesNumber and SeriesDescription are the same in every study."""

    name: str
    sop_class_uid: UID
    modality: str
    series_number: int
    title: str


SUMMARY = Kind("summary", EnhancedSRStorage, "SR", 9101, "AI summary")
FINDINGS = Kind("findings", Comprehensive3DSRStorage, "SR", 9102, "AI findings")
KEY_IMAGE = Kind("key_image", SecondaryCaptureImageStorage, "OT", 9103, "AI key images")
REJECTION = Kind("rejection", KeyObjectSelectionDocumentStorage, "KO", 9109, "AI results withdrawn")
PARAMETRIC_MAP = Kind("parametric_map", ParametricMapStorage, "OT", 9104, "AI relevance")
SEGMENTATION = Kind("segmentation", SegmentationStorage, "SEG", 9105, "AI relevance outline")
KINDS = (SUMMARY, FINDINGS, KEY_IMAGE, PARAMETRIC_MAP, SEGMENTATION, REJECTION)
SUPERSEDED_KINDS = frozenset(kind.sop_class_uid for kind in (FINDINGS, KEY_IMAGE, PARAMETRIC_MAP, SEGMENTATION))
"""SOP classes of what must not stay current when a next revision says something else."""


def result_uid(kind: str, report: StudyReport, *parts: str) -> UID:
    """A UID that follows from everything that can change the result: the same again for the same result."""
    return derived_uid(
        report.installation_uid,
        report.run,
        str(report.source.StudyInstanceUID),
        report.content_digest,
        report.bundle.digest,
        report.thresholds_digest,
        report.bundle.preprocessing.digest,
        str(report.revision),
        kind,
        *parts,
    )


def instance_uid(kind: Kind, report: StudyReport, part: str = "") -> UID:
    """The SOPInstanceUID of a result; `part` tells several objects of one kind apart."""
    return result_uid("instance", report, kind.name, part)


def derived_uid(*parts: str) -> UID:
    """A name-based UUID (RFC 9562, version 5) as a UID (PS3.5 B.2)."""
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, chr(10).join(parts)).int}")


def _as_explicit(source: Dataset, keyword: str) -> object:
    """The element as it was read, if it is text that no one has decoded yet; else a decoded copy."""
    element = source.get_item(keyword)
    if isinstance(element, RawDataElement):
        vr = element.VR or dictionary_VR(element.tag)
        if vr in STR_VR:
            return element._replace(VR=vr, is_implicit_VR=False, is_little_endian=True)
    return deepcopy(source[keyword])


def patient_and_study(source: Dataset) -> Dataset:
    """The patient and study modules of `source` and its character set; missing type 2 elements are empty."""
    copied = Dataset()
    if "SpecificCharacterSet" in source:
        copied["SpecificCharacterSet"] = deepcopy(source["SpecificCharacterSet"])
    for keyword in (*PATIENT, *TRIAL, *STUDY):
        if keyword in source:
            copied[keyword] = _as_explicit(source, keyword)  # type: ignore[assignment]
    for keyword in TYPE_2:
        if keyword not in copied:
            setattr(copied, keyword, "")
    # pydicom writes text that was never decoded as it stands, if the encoding stays the same
    copied.set_original_encoding(False, True, source.original_character_set)
    return copied


def fit(text: str, source: Dataset) -> str:
    """`text` with a question mark for each control character, and each that the source's character set lacks."""
    declared = source.get("SpecificCharacterSet") or ""
    terms = [declared] if isinstance(declared, str) else list(declared)
    # the default repertoire is ASCII (PS3.5 6.1.1), which Python's table reads as Latin-1
    encodings = [
        "ascii" if term in ("", "ISO_IR 6", "ISO 2022 IR 6") else python_encoding.get(term, "ascii") for term in terms
    ]
    return "".join(character if _encodable(character, encodings) else "?" for character in text)


def _encodable(character: str, encodings: list[str]) -> bool:
    if character.isascii():
        return character.isprintable() or character in "\t\n\r"
    return any(character.encode(encoding, "ignore") for encoding in encodings)


def _zone(source: Dataset, created: datetime) -> tzinfo | None:
    """The zone of the source, which its copied dates are in; without one that can be, that of `created`."""
    offset = OFFSET.fullmatch(str(source.get("TimezoneOffsetFromUTC") or "").strip())
    if offset is None:
        return created.tzinfo
    east = timedelta(hours=int(offset["hours"]), minutes=int(offset["minutes"]))
    return timezone(-east if offset["sign"] == "-" else east)


def new_object(report: StudyReport, kind: Kind, *, part: str = "", instance_number: int = 1) -> Dataset:
    """A result object with all but its content: patient, study, series, equipment, SOP common, file meta.

    `part` tells several objects of one kind (one series) apart.
    """
    result = common_modules(
        report.source,
        kind,
        series_instance_uid=result_uid("series", report, kind.name),
        sop_instance_uid=instance_uid(kind, report, part),
        created=report.created,
        installation_uid=report.installation_uid,
    )
    status = "" if report.bundle.status == "trained" else f" ({report.bundle.status.upper()})"
    result.SeriesDescription = f"HLIP {kind.title}{status}, NOT FOR DIAGNOSIS"
    result.InstanceNumber = instance_number
    result.ManufacturerModelName = fit(report.bundle.name, report.source)[:64]
    result.SoftwareVersions = [SOFTWARE_VERSION, fit(report.bundle.version, report.source)[:64]]
    return result


def common_modules(
    source: Dataset,
    kind: Kind,
    *,
    series_instance_uid: UID,
    sop_instance_uid: UID,
    created: datetime,
    installation_uid: str,
) -> Dataset:
    """The modules that all our objects have, whatever they say (PS3.3 C.7.3.1, C.7.5.1, C.12.1)."""
    result = patient_and_study(source)
    created = created.astimezone(_zone(source, created))
    date, time = f"{created:%Y%m%d}", f"{created:%H%M%S.%f}"

    result.SeriesInstanceUID = series_instance_uid
    result.SeriesNumber = kind.series_number
    result.SeriesDescription = f"HLIP {kind.title}"
    result.Modality = kind.modality
    result.SeriesDate = result.ContentDate = result.InstanceCreationDate = date
    result.SeriesTime = result.ContentTime = result.InstanceCreationTime = time
    result.TimezoneOffsetFromUTC = f"{created:%z}"[:5]

    result.Manufacturer = MANUFACTURER
    result.DeviceSerialNumber = installation_uid
    result.SoftwareVersions = SOFTWARE_VERSION

    result.SOPClassUID = kind.sop_class_uid
    result.SOPInstanceUID = sop_instance_uid
    result.InstanceNumber = 1
    result.InstanceCreatorUID = installation_uid
    result.ContentQualification = "RESEARCH"
    result.file_meta = _file_meta(result)
    return result


def creation_time(report: StudyReport, result: Dataset) -> datetime | None:
    """When `result` was made, if it is the summary of this very report; None for any other object.

    Raises AttributeError and ValueError for one that has not what `common_modules` gives it.
    """
    if result.SOPInstanceUID != instance_uid(SUMMARY, report):
        return None
    text = f"{result.InstanceCreationDate}{result.InstanceCreationTime}{result.TimezoneOffsetFromUTC}"
    return datetime.strptime(text, "%Y%m%d%H%M%S.%f%z")


def _file_meta(result: Dataset) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = result.SOPClassUID
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = derived_uid("implementation")
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return meta


def to_bytes(result: Dataset) -> bytes:
    """The object as a DICOM file (PS3.10)."""
    buffer = BytesIO()
    dcmwrite(buffer, result, enforce_file_format=True)
    return buffer.getvalue()
