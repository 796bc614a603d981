"""Headers: whom they name, and what may be written of them.

De-identification is PS3.15 Annex E, Basic Application Confidentiality Profile by dicom-anonymizer's table, with the
Retain Longitudinal Temporal Information Modified Dates Option; stricter where the profile leaves a choice. The table
knows one level of a dataset: the recursion into sequences is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date
from functools import cache
from typing import Any

from dicomanonymizer.simpledicomanonymizer import delete_or_empty_or_replace_UID, initialize_actions
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from hlip_core.headers import MALFORMED

from .cleaning import Identities, clean
from .pseudonyms import Pseudonyms

__all__ = ["deidentified", "identities_of"]

TABLE = "dicomfields_2026c"
PIXELS = 0x5000  # groups from here on hold curves, overlays, waveforms and pixels
PER_FRAME = Tag("PerFrameFunctionalGroupsSequence")
DEEPEST = 16
MOST = 64  # names, numbers, places of one header; more is an attack on the patience of the cleaning
LONGEST = 128  # characters of one of them
STANDARD_UID = "1.2.840.10008."
SHORT_TEXTS = frozenset({"CS", "LO", "SH", "AS"})
NUMERIC = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV", "AT"})

NUMBERS = frozenset(
    Tag(keyword)
    for keyword in (
        "PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "AdmissionID", "ServiceEpisodeID",
        "RequestedProcedureID", "ScheduledProcedureStepID", "PerformedProcedureStepID",
        "PlacerOrderNumberImagingServiceRequest", "FillerOrderNumberImagingServiceRequest", "PatientTelephoneNumbers",
        "PersonTelephoneNumbers", "ReferringPhysicianTelephoneNumbers", "MedicalRecordLocator", "DeviceSerialNumber",
        "PatientBirthDate", "OrderCallbackPhoneNumber",
    )
)  # fmt: skip
DESCRIPTIVE = frozenset(  # free words about the examination, which a report may well repeat: no identity by themselves
    Tag(keyword)
    for keyword in (
        "StudyDescription", "SeriesDescription", "ProtocolName", "PerformedProcedureStepDescription",
        "RequestedProcedureDescription", "ScheduledProcedureStepDescription", "ReasonForStudy", "ReasonForVisit",
        "ReasonForTheRequestedProcedure", "ReasonForTheImagingServiceRequest", "AdmittingDiagnosesDescription",
        "ContrastBolusAgent", "AcquisitionComments", "AcquisitionProtocolDescription", "AdditionalPatientHistory",
        "ImageComments", "PatientState", "EthnicGroup", "Occupation", "SmokingStatus", "PregnancyStatus", "Allergies",
        "MedicalAlerts", "SpecialNeeds", "PatientSexNeutered", "PatientBodyMassIndex", "TextValue", "TextString",
        "DerivationDescription", "InterpretationText", "InterpretationDiagnosisDescription", "Impressions",
        "ResultsComments", "StudyComments", "BodyPartExamined", "RequestedContrastAgent", "Modality", "PatientSex",
    )
)  # fmt: skip


def _plain(dataset: Dataset) -> Dataset:
    """The elements before the pixels that are in memory, without those of single frames."""
    header = Dataset()
    for tag in list(dataset.keys()):
        if tag.group >= PIXELS or tag == PER_FRAME:
            continue
        element = dataset.get_item(tag, keep_deferred=True)
        if isinstance(element, RawDataElement) and element.value is None and element.length:
            continue  # left in the file: too long to be a name
        header[tag] = element
    implicit, little_endian = dataset.original_encoding
    header.set_original_encoding(implicit, little_endian, dataset.original_character_set)
    return header


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    """The elements of one level that can be read."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            str(element.value if element.VR != "SQ" else "")
        except MALFORMED:
            continue
        yield element


# ---- whom a header names -------------------------------------------------------------------------------------


def identities_of(dataset: Dataset) -> Identities:
    """The persons, numbers and places that a header names, at any depth, private elements included."""
    found: dict[str, set[str]] = {"names": set(), "numbers": set(), "places": set()}
    _collect(_plain(dataset), found, DEEPEST)
    limited = {kind: frozenset(sorted(values)[:MOST]) for kind, values in found.items()}
    return Identities(**limited)


def _collect(dataset: Dataset, found: dict[str, set[str]], depth: int) -> None:
    for element in _elements(dataset):
        if element.VR == "SQ":
            for item in element.value if depth else ():
                _collect(item, found, depth - 1)
            continue
        kind = _kind(element)
        if kind:
            found[kind].update(text for text in _texts(element) if len(text) <= LONGEST)


def _kind(element: DataElement) -> str:
    if element.VR == "PN":
        return "names"
    if element.tag in NUMBERS:
        return "numbers"
    is_text = element.VR in ("LO", "SH", "ST", "LT", "UT", "UC", "AE")
    if is_text and element.tag not in DESCRIPTIVE and not element.tag.is_private and _action(element.tag) is not None:
        return "places"
    return ""


def _texts(element: DataElement) -> Iterator[str]:
    values = element.value if isinstance(element.value, list) or element.VM > 1 else [element.value]
    for value in values or ():
        if value is not None and str(value).strip():
            yield str(value).strip()


# ---- what may be written -------------------------------------------------------------------------------------

Action = Callable[[Dataset, tuple[int, int]], None]


@cache
def _actions() -> tuple[dict[int, Action], tuple[tuple[int, int, Action], ...]]:
    """The table's actions by tag, and those of repeating groups as (value, mask, action)."""
    single: dict[int, Action] = {}
    masked: list[tuple[int, int, Action]] = []
    for key, action in initialize_actions(TABLE).items():
        if len(key) == 2:
            single[key[0] << 16 | key[1]] = action
        else:
            masked.append((key[0] << 16 | key[1], key[2] << 16 | key[3], action))
    return single, tuple(masked)


def _action(tag: BaseTag) -> Action | None:
    single, masked = _actions()
    return single.get(int(tag)) or next((act for value, mask, act in masked if tag & mask == value & mask), None)


def deidentified(dataset: Dataset, pseudonyms: Pseudonyms, *, patient: str, identities: Identities) -> dict[str, Any]:
    """The header of an instance in DICOM JSON (PS3.18 Annex F), de-identified, without pixels and frames.

    UIDs are salted, dates moved by the patient's number of days, times, private elements and all persons removed;
    a short text that the profile lets stand is removed when it holds anything that `clean` finds.
    """
    header = _plain(dataset)
    if not pseudonyms.keep:
        _strip(header, pseudonyms, patient, identities, DEEPEST)
        header.PatientIdentityRemoved = "YES"
        header.LongitudinalTemporalInformationModified = "MODIFIED"
        header.DeidentificationMethodCodeSequence = [
            _method("113100", "Basic Application Confidentiality Profile"),
            _method("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
        ]
    return header.to_json_dict(suppress_invalid_tags=True)


def _method(value: str, meaning: str) -> Dataset:
    code = Dataset()  # CID 7050
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _strip(dataset: Dataset, pseudonyms: Pseudonyms, patient: str, identities: Identities, depth: int) -> None:
    readable = {element.tag: element for element in _elements(dataset)}
    for tag in list(dataset.keys()):
        element = readable.get(tag)
        if element is None or tag.is_private or not depth:
            del dataset[tag]
            continue
        kept = _kept(dataset, element, pseudonyms, patient, identities)
        if not kept:
            dataset.pop(tag, None)
        elif element.VR == "SQ":
            for item in element.value:
                _strip(item, pseudonyms, patient, identities, depth - 1)


def _kept(dataset: Dataset, element: DataElement, pseudonyms: Pseudonyms, patient: str, identities: Identities) -> bool:
    """Makes one element presentable; false where it has to go."""
    action = _action(element.tag)
    if element.VR == "UI":
        element.value = [_uid(str(uid), pseudonyms) for uid in _texts(element)] or ""
        return True
    if element.VR in ("DA", "DT"):
        element.value = [shifted for text in _texts(element) if (shifted := _shifted(text, pseudonyms, patient))]
        return True
    if element.VR == "SQ":  # what the profile would empty or replace goes; references to instances stay
        return action in (None, delete_or_empty_or_replace_UID)
    if action is not None:
        try:
            action(dataset, (element.tag.group, element.tag.element))
        except (NotImplementedError, *MALFORMED):  # a VR that the table's author did not foresee
            return False
        return element.tag in dataset
    if element.VR in NUMERIC:
        return True
    return element.VR in SHORT_TEXTS and not any(clean(text, identities).removed for text in _texts(element))


def _uid(uid: str, pseudonyms: Pseudonyms) -> str:
    return uid if uid.startswith(STANDARD_UID) else pseudonyms.uid(uid)


def _shifted(value: str, pseudonyms: Pseudonyms, patient: str) -> str:
    """YYYYMMDD; an empty text for what is no date."""
    try:
        return pseudonyms.shift(date(int(value[:4]), int(value[4:6]), int(value[6:8])), patient).strftime("%Y%m%d")
    except ValueError:
        return ""
