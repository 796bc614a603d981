"""Synthetic studies whose headers and reports are full of identities that exist nowhere else: canaries."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from hlip_core.prepared import PreparedScan
from trainer.cohort.make import Files
from trainer.cohort.study import FoundSeries, FoundStudy
from trainer.phantom.study import write_study

SR_CLASS = "1.2.840.10008.5.1.4.1.1.88.11"

NAMES = {  # PN
    "PatientName": "Quillfeather^Zebulona^Ypsi",
    "OtherPatientNames": "Birdsong^Zuleikha",
    "PatientBirthName": "Vexlington^Zebulona",
    "PatientMotherBirthName": "Oddfellow^Marmalade",
    "ReferringPhysicianName": "Grumblethorpe^Xanthus^^Dr.",
    "PhysiciansOfRecord": "Snickerdoodle^Wilhelmar",
    "PerformingPhysicianName": "Bumblebrook^Ottoline",
    "NameOfPhysiciansReadingStudy": "Thistledown^Barnabus",
    "OperatorsName": "Fizzwhistle^Cornelian",
    "RequestingPhysician": "Pumpernickle^Drusilla",
    "ResponsiblePerson": "Crabtreeson^Peregrina",
    "ConsultingPhysicianName": "Humperdinck^Isoldine",
}
NUMBERS = {
    "PatientID": "PZ-771-40923",
    "AccessionNumber": "AKZ5530018",
    "StudyID": "STZ40417",
    "AdmissionID": "ADMZ90311",
    "ServiceEpisodeID": "EPZ61207",
    "RequestedProcedureID": "RPZ31881",
    "PlacerOrderNumberImagingServiceRequest": "PLZ52113",
    "FillerOrderNumberImagingServiceRequest": "FIZ88201",
    "PerformedProcedureStepID": "PPZ10933",
    "ScheduledProcedureStepID": "SPZ77120",
    "PatientTelephoneNumbers": "+49 7071 5558812",
    "MedicalRecordLocator": "MRLZ66421",
    "DeviceSerialNumber": "SNZ20119",
    "PatientBirthDate": "19410726",
    "OrderCallbackPhoneNumber": "0711 4477190",
}
PLACES = {
    "InstitutionName": "Mirkwooden Infirmary",
    "InstitutionAddress": "77 Gobbledygook Lane, Zwickelstadt",
    "InstitutionalDepartmentName": "Dept of Flabbergastrics",
    "StationName": "ZAPPODROME",
    "PatientAddress": "12 Wigglesworthy Road, Tumbleton",
    "RegionOfResidence": "Upper Nonsensia",
    "CountryOfResidence": "Fabulonia",
    "CurrentPatientLocation": "Ward Zephyrine",
    "PatientInstitutionResidence": "Home Brindlewick",
    "RequestingService": "Dizzyology",
    "ResponsibleOrganization": "Guild Of Tinkerfolk",
}
OTHERS = {  # not of the kind that a report repeats, and gone from what is written
    "PatientComments": "commentia quixotry",
    "AdditionalPatientHistory": "fell off a snarkwagon",
    "StudyDescription": "head of Zebbynote",
    "SeriesDescription": "Zebbyseries",
    "ProtocolName": "Zebbyprotocol",
    "ImageComments": "imagery wompwomp",
    "Occupation": "balloonwrangler",
    "EthnicGroup": "Zorblaxian",
    "PatientReligiousPreference": "pastafarzian",
    "MilitaryRank": "Grandflotilla",
    "RequestedProcedureDescription": "procedura zigzaggery",
    "PerformedProcedureStepDescription": "stepwise zigzaggery",
    "AdmittingDiagnosesDescription": "diagnosia zigzaggery",
    "ReasonForStudy": "reasona zigzaggery",
    "StudyComments": "studious zigzaggery",
    "AcquisitionComments": "acquisita zigzaggery",
    "PatientBirthTime": "031459",
    "PatientInsurancePlanCodeSequence": "",
    "DerivationDescription": "derivata zigzaggery",
    "InterpretationText": "interpreta zigzaggery",
}
ATTRIBUTES = {**NAMES, **NUMBERS, **PLACES, **OTHERS}
NESTED = {"PatientName": "Nestlingham^Quenby", "PatientID": "NEZ301155", "InstitutionName": "Burrowdeep Clinique",
          "PatientComments": "nesty commentia"}  # fmt: skip
PRIVATE = {"LO": "PRIVATIMUS", "PN": "Hiddenleigh^Zora", "UT": "a long secretissimo text"}

REPORT = """CT HEAD on 26.07.2024 at 14:52, {InstitutionName}, {InstitutionAddress}
Patient: Zebulona Quillfeather (QUILLFEATHER^ZEBULONA), born 07/26/1941, MRN {PatientID}, ACC# {AccessionNumber}
CLINICAL HISTORY: Mrs. Quillfeather of {PatientAddress} called +49 7071 5558812.
FINDINGS: There is a 5.2 mm. acute subdural hematoma. Quillfeather's ventricles are normal. No fracture.
Compared with the CT of July 12, 2023 read by Barnabus Thistledown, ZEBULONA QUILLFEATHER has no new infarct.
The study {StudyInstanceUID} was seen by Dr. Xenophilia Wobblegong of {CurrentPatientLocation}.
Order {PlacerOrderNumberImagingServiceRequest} by DR GRUMBLETHORPE. Ottoline Bumblebrook agrees; pz77140923 too.
IMPRESSION:
1. Subdural hematoma.
2. No midline shift
Discussed with Snickerdoodle by phone (0711 4477190) at 3 pm. Mail to wobblegong@mirkwooden.example please.
Electronically signed by Cornelian Fizzwhistle, MD
"""
EXPECTED = {"There is a 5.2 mm. acute subdural hematoma.", "No fracture.", "Subdural hematoma.", "No midline shift"}
WORDS_OF_THE_REPORT = ("26.07.2024", "14:52", "07/26/1941", "July 12", "Xenophilia", "Wobblegong")


@dataclass(frozen=True)
class Identified:
    """One study in memory: images, its report document, and the words that must appear nowhere."""

    images: tuple[Dataset, ...]
    document: Dataset
    report: str
    canaries: frozenset[str]

    @property
    def study_instance_uid(self) -> str:
        return str(self.document.StudyInstanceUID)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        return (*self.images, self.document)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for number, dataset in enumerate(self.datasets):
            dataset.save_as(folder / f"{number:03}.dcm", enforce_file_format=True)


@dataclass(frozen=True)
class Deadly(Files):
    """Files of which one study takes the process down that reads it, as a decoder may."""

    study_instance_uid: str

    def datasets(self, study: FoundStudy, series: FoundSeries) -> Sequence[Dataset]:
        if study.study_instance_uid == self.study_instance_uid:
            os._exit(1)
        return super().datasets(study, series)


@cache
def _template(folder: Path, slices: int) -> tuple[Dataset, ...]:
    """A tiny head of a few thick slices."""
    write_study(folder / "template", seed=7, lesions=[], series=["thick"], preset="tiny")
    files = sorted((folder / "template").rglob("*.dcm"))
    step = max(1, len(files) // slices)
    return tuple(dcmread(path) for path in files[::step][:slices])


def _add_canaries(dataset: Dataset, number: int) -> None:
    for keyword, value in ATTRIBUTES.items():
        if value:
            setattr(dataset, keyword, _own(keyword, value, number))
    nested = Dataset()
    for keyword, value in NESTED.items():
        setattr(nested, keyword, value)
    deep = copy.deepcopy(nested)
    deep.ReferencedStudySequence = [copy.deepcopy(nested)]
    dataset.RequestAttributesSequence = [deep]
    dataset.OtherPatientIDsSequence = [copy.deepcopy(nested)]
    dataset.SourceImageSequence = [copy.deepcopy(nested)]  # kept by the profile, what is in it is not
    block = dataset.private_block(0x0029, "Zippity Scanners", create=True)
    for offset, (vr, value) in enumerate(PRIVATE.items(), 1):
        block.add_new(offset, vr, value)
    block.add_new(0x10, "SQ", [copy.deepcopy(nested)])


def _own(keyword: str, value: str, number: int) -> str:
    return f"{value}{number:02}" if keyword in ("PatientID", "AccessionNumber") else value


def identified(folder: Path, number: int, *, slices: int = 10, patient: int | None = None) -> Identified:
    """Study `number`; `patient` decides PatientID, so that studies can share one. `folder` keeps the template."""
    images = tuple(copy.deepcopy(_template(folder, slices)))
    root = f"1.2.826.0.1.3680043.8.498.7731.{number}"
    for index, image in enumerate(images):
        _add_canaries(image, number)
        image.PatientID = f"{NUMBERS['PatientID']}{number if patient is None else patient:02}"
        image.StudyInstanceUID, image.SeriesInstanceUID = f"{root}.1", f"{root}.2"
        image.FrameOfReferenceUID, image.SOPInstanceUID = f"{root}.3", f"{root}.4.{index}"
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
    first = images[0]
    report = REPORT.format(**{**ATTRIBUTES, "PatientID": first.PatientID, "AccessionNumber": first.AccessionNumber,
                              "StudyInstanceUID": first.StudyInstanceUID})  # fmt: skip
    return Identified(images, _document(first, root, report), report, _canaries(first, root))


def _document(image: Dataset, root: str, report: str) -> Dataset:
    """A Basic Text SR with the report, by a person."""
    document = Dataset()
    for tag in ("StudyInstanceUID", "StudyDate", "StudyTime", *NAMES, *NUMBERS, *PLACES):
        if tag in image:
            document[tag] = image[tag]
    document.SOPClassUID, document.SOPInstanceUID = SR_CLASS, f"{root}.9.1"
    document.SeriesInstanceUID, document.SeriesNumber, document.Modality = f"{root}.9", 99, "SR"
    document.CompletionFlag, document.VerificationFlag, document.ValueType = "COMPLETE", "VERIFIED", "CONTAINER"
    document.ContentDate, document.ContentTime, document.SpecificCharacterSet = "20240726", "145200", "ISO_IR 192"
    document.ConceptNameCodeSequence = [_code("18748-4", "LN", "Diagnostic imaging report")]
    observer = Dataset()
    observer.RelationshipType, observer.ValueType = "HAS OBS CONTEXT", "PNAME"
    observer.ConceptNameCodeSequence = [_code("121008", "DCM", "Person Observer Name")]
    observer.PersonName = "Wobblegong^Xenophilia"
    written = Dataset()
    written.RelationshipType, written.ValueType, written.TextValue = "CONTAINS", "TEXT", report
    written.ConceptNameCodeSequence = [_code("121071", "DCM", "Finding")]
    document.ContentSequence = [observer, written]
    document.file_meta = FileMetaDataset()
    document.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    document.file_meta.MediaStorageSOPClassUID = SR_CLASS
    document.file_meta.MediaStorageSOPInstanceUID = document.SOPInstanceUID
    return document


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code


def _canaries(image: Dataset, root: str) -> frozenset[str]:
    """The single words that name someone, and the UIDs."""
    found = {root, str(image.PatientID), str(image.AccessionNumber), *WORDS_OF_THE_REPORT}
    for values in (ATTRIBUTES, NESTED, PRIVATE):
        for value in values.values():
            found |= {word for word in value.replace("^", " ").replace(",", " ").split() if len(word) > 5}
    return frozenset(found - {"Infirmary"})


def texts_of(folder: Path) -> Iterator[tuple[Path, str]]:
    """Everything that a cohort's folder says: names of files, their bytes, and prepared scans decompressed."""
    for path in sorted(folder.rglob("*")):
        yield path, str(path.relative_to(folder))
        if path.is_file():
            yield path, path.read_bytes().decode("latin-1")
        if path.suffix == ".b2nd":
            scan = PreparedScan.load(path)
            yield path, repr({name: getattr(scan, name) for name in scan.__dataclass_fields__ if name != "voxels"})
            yield path, np.ascontiguousarray(scan.voxels).tobytes().decode("latin-1")


SALTED_UID = re.compile(r"2\.25\.\d{20,39}")


def leaks(folder: Path, canaries: frozenset[str], *more: str) -> set[tuple[str, str]]:
    """(file, canary) wherever a canary stands, in any case.

    Among hundreds of random UIDs some hold the digits of a date by chance: numbers are searched for beside them.
    """
    by_text = {text: path.name for path, text in texts_of(folder)}  # the same voxels are searched once
    said = [(name, text.casefold()) for text, name in by_text.items()]
    said += [("output", text.casefold()) for text in more]
    found = set()
    for name, text in said:
        beside = SALTED_UID.sub(" ", text)
        found |= {(name, canary) for canary in canaries if canary.casefold() in (beside if canary.isdigit() else text)}
    return found
