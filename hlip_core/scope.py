"""What is analysed at all, told from the headers alone: the rules, in the order in which they are asked.

A series is in scope when its instances are CT or MR images of the specification's modality and region, in
grey values that mean what the model expects. Everything else has a reason code. Which studies a site sends
through at all (age, descriptions, departments) is routing and belongs to the settings of the plugin; the
facts that such rules read are the pure functions at the end of this module.

Body part: a BodyPartExamined (or AnatomicRegionSequence) that names a known region is trusted, right or
wrong, since nobody can see from outside why it was set; what it does not name (empty, a free text, WHOLEBODY)
is judged by the content of the volume, see `hlip_core.content`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date, datetime

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.uid import UID

from hlip_core.errors import Refused
from hlip_core.headers import first_item, integer, items, number, text, words
from hlip_core.preprocessing import Preprocessing
from hlip_core.reasons import Reason

__all__ = ["MODALITY_OF_CLASS", "REGIONS", "age_years", "is_image", "refusal", "region", "screen"]

MAX_SIDE = 4096  # rows, columns of one image

MODALITY_OF_CLASS: dict[str, str] = {  # PS3.4 Table B.5-1
    "1.2.840.10008.5.1.4.1.1.2": "CT",  # CT Image
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",  # Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",  # Legacy Converted Enhanced CT Image
    "1.2.840.10008.5.1.4.1.1.4": "MR",  # MR Image
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",  # Enhanced MR Image
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",  # Legacy Converted Enhanced MR Image
}


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


REGIONS: dict[str, frozenset[str]] = {  # words of BodyPartExamined, code values of AnatomicRegionSequence
    "head": _words(
        "HEAD BRAIN SKULL CRANIUM CRANIAL CEREBRUM HEADNECK NEUROCRANIUM KOPF SCHAEDEL HIRN GEHIRN TETE CRANE "
        "CERVEAU CABEZA CRANEO CEREBRO CABECA CRANIO TESTA ENCEFALO HOOFD HERSENEN "
        "69536005 12738006 89546000 774007 T-D1100 T-A0100 T-11100 T-D1000"
    ),
    "chest": _words("CHEST THORAX LUNG LUNGS HEART TORAX POUMON PULMON LUNGE 51185008 39607008 T-D3000 T-28000"),
    "other": _words(
        "ABDOMEN ABDOMINAL PELVIS ABDOMENPELVIS CHESTABDPELVIS CHESTABDOMEN ABDOPELVIS LIVER KIDNEY COLON HIP SPINE "
        "CSPINE TSPINE LSPINE SSPINE TLSPINE LSSPINE CTSPINE SACRUM COCCYX NECK ORBIT ORBITS SINUS SINUSES FACE "
        "FACIAL JAW MANDIBLE MAXILLA TMJ EAR IAC SHOULDER ARM ELBOW WRIST HAND FINGER EXTREMITY LEG FEMUR KNEE "
        "ANKLE FOOT TOE BREAST PROSTATE UTERUS BLADDER AORTA CLAVICLE SCAPULA HUMERUS FOREARM TIBIA FIBULA CALF "
        "THIGH CAROTID 818981001 818983003 12921003 45048000 T-D4000 T-D6000 T-D1600 T-11500"
    ),
}

SCREEN_SAVES = frozenset({"SCREEN SAVE", "SCREENSAVE", "SCREEN_SAVE", "SCREEN CAPTURE", "SNAPSHOT"})
LOCALIZERS = frozenset({"LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW", "SCANOGRAM"})
DOSE_TYPES = frozenset({"DOSE", "DOSE_INFO", "DOSE REPORT", "CT_SOM5 PROT", "PROTOCOL"})
DOSE_WORDS = re.compile(r"\bdos(e|is|es)\b|ctdi|\bdlp\b|exam summary|patient protocol|protocol page", re.IGNORECASE)
FRAME_TYPE_SEQUENCES = ("CTImageFrameTypeSequence", "MRImageFrameTypeSequence")
MAPS = _words("CBF CBV MTT TTP TTD TMAX RCBF RCBV RMTT RTTP PERMEABILITY MATERIAL_FRACTION")
HU_TYPES = frozenset({"", "HU", "HU_MOD", "US"})  # US, unspecified: some scanners write it on every HU image


def is_image(sop_class_uid: str) -> bool:
    """Whether the SOP class is an image by its name in PS3.6, so not an SR, KO, PR, SEG, PM or RT object."""
    return "Image Storage" in _name(sop_class_uid)


def _name(uid: str) -> str:
    return UID(uid, validation_mode=config.IGNORE).name


def _image_type(dataset: Dataset) -> tuple[str, ...]:
    """ImageType, and the FrameType that all frames of an enhanced image share (PS3.3 C.8.15.3.1, C.8.13.5.1)."""
    shared = first_item(dataset, "SharedFunctionalGroupsSequence")
    frame_types = (first_item(shared, keyword) for keyword in FRAME_TYPE_SEQUENCES)
    return words(dataset, "ImageType") + sum((words(item, "FrameType") for item in frame_types), ())


def _non_image(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    sop_class_uid = text(dataset, "SOPClassUID")
    if is_image(sop_class_uid):
        return None
    known = _name(sop_class_uid) != sop_class_uid
    return Refused(Reason.NON_IMAGE, _name(sop_class_uid) if known else "unknown SOP class")


def _identity(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    """Without UIDs no result can refer to the image. Leading zeros, which the standard forbids, do no harm."""
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not re.fullmatch(r"[0-9.]{1,64}", text(dataset, keyword)):
            return Refused(Reason.HEADER, f"{keyword} is not a UID")
    return None


def _capture(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    image_type = set(_image_type(dataset))
    is_capture = "Secondary Capture" in _name(text(dataset, "SOPClassUID"))
    if is_capture or image_type & (SCREEN_SAVES | DOSE_TYPES):
        if image_type & DOSE_TYPES or DOSE_WORDS.search(text(dataset, "SeriesDescription")):
            return Refused(Reason.DOSE_PAGE)
        if image_type & SCREEN_SAVES:
            return Refused(Reason.SCREEN_SAVE)
        return Refused(Reason.SECONDARY_CAPTURE)
    return None


def _modality(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    of_class = MODALITY_OF_CLASS.get(text(dataset, "SOPClassUID"))
    modality = text(dataset, "Modality").upper()
    if of_class and modality and modality != of_class:
        return Refused(Reason.HEADER, "Modality contradicts SOPClassUID")
    if of_class != spec.modality:
        return Refused(Reason.MODALITY, f"{spec.modality} expected")
    return None


def _colour(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    samples = integer(dataset, "SamplesPerPixel")
    photometric = text(dataset, "PhotometricInterpretation").upper()
    if (samples or 1) != 1 or (photometric and not photometric.startswith("MONOCHROME")):
        return Refused(Reason.COLOUR)
    return None


def _localizer(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    return Refused(Reason.LOCALIZER) if LOCALIZERS & set(_image_type(dataset)) else None


def _map(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    image_type = _image_type(dataset)
    if spec.modality != "CT":
        return None  # ADC, FA, perfusion maps belong to an uncurated MR study
    if MAPS & set(image_type) or (image_type[:1] == ("DERIVED",) and "PERFUSION" in image_type):
        return Refused(Reason.DERIVED_MAP)
    return None


def _mosaic(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    return Refused(Reason.MOSAIC) if "MOSAIC" in _image_type(dataset) else None


def _body_part(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    named = region(dataset)
    return Refused(Reason.OTHER_BODY_PART) if named is not None and named != spec.region else None


def _hounsfield(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    """For one-frame CT; the frames of an enhanced CT carry their own, see `hlip_core.frames`."""
    if spec.modality != "CT" or items(dataset, "PerFrameFunctionalGroupsSequence"):
        return None
    if text(dataset, "RescaleType").upper() not in HU_TYPES:
        return Refused(Reason.NON_HU, "RescaleType is not HU")
    if items(dataset, "ModalityLUTSequence"):
        return Refused(Reason.NON_HU, "a modality LUT in place of a rescale slope")
    if not number(dataset, "RescaleSlope") or number(dataset, "RescaleIntercept") is None:
        return Refused(Reason.HEADER, "no usable RescaleSlope and RescaleIntercept")
    return None


def _pixels(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    """The image pixel module (PS3.3 C.7.6.3) within limits, and an element that holds pixels."""
    if "PixelData" not in dataset or not _length(dataset):
        return Refused(Reason.MISSING_PIXELS)
    allocated, stored = integer(dataset, "BitsAllocated"), integer(dataset, "BitsStored")
    if allocated not in (8, 16, 32) or stored is None or not 1 <= stored <= allocated:
        return Refused(Reason.HEADER, "BitsAllocated, BitsStored")
    if integer(dataset, "PixelRepresentation") not in (0, 1) or not text(dataset, "PhotometricInterpretation"):
        return Refused(Reason.HEADER, "PixelRepresentation, PhotometricInterpretation")
    rows, columns = integer(dataset, "Rows") or 0, integer(dataset, "Columns") or 0
    if min(rows, columns) < 2:
        return Refused(Reason.HEADER, "Rows, Columns")
    if max(rows, columns) > MAX_SIDE:
        return Refused(Reason.TOO_LARGE, f"{rows} x {columns}")
    return None


def _length(dataset: Dataset) -> int:
    element = dataset.get_item("PixelData", keep_deferred=True)
    value = getattr(element, "value", None)
    if value is None:  # deferred, or empty
        return int(getattr(element, "length", 0) or 0)
    return len(value)


RULES: tuple[Callable[[Dataset, Preprocessing], Refused | None], ...] = (
    _non_image,
    _capture,
    _colour,
    _modality,
    _localizer,
    _map,
    _mosaic,
    _body_part,
    _hounsfield,
    _identity,
    _pixels,
)


def refusal(dataset: Dataset, spec: Preprocessing) -> Refused | None:
    """The first rule that speaks against one instance, or None. Reads headers only."""
    return next((refused for rule in RULES if (refused := rule(dataset, spec)) is not None), None)


def screen(datasets: Sequence[Dataset], spec: Preprocessing) -> tuple[list[Dataset], list[str]]:
    """The instances of a series that are in scope, and a note on those that are not.

    Raises Refused when nothing is in scope (with the commonest reason), and when any instance should have been
    usable and is not, since a stack with silent holes is worse than none.
    """
    kept: list[Dataset] = []
    refusals: list[Refused] = []
    for dataset in datasets:
        refused = refusal(dataset, spec)
        if refused is None:
            kept.append(dataset)
        else:
            refusals.append(refused)
    if not refusals:
        return kept, []
    defects = [refused for refused in refusals if refused.reason.kind == "defect"]
    if kept and not defects:
        counts = sorted(Counter(refused.reason for refused in refusals).items())
        return kept, [f"{count} of {len(datasets)} left out: {reason}" for reason, count in counts]
    raise _commonest(defects if kept else refusals)


def _commonest(refusals: Sequence[Refused]) -> Refused:
    """The refusal given most often; of two, the first in the alphabet, whatever the order of the instances."""
    counts = Counter((refused.reason, refused.detail) for refused in refusals)
    return min(refusals, key=lambda refused: (-counts[refused.reason, refused.detail], refused.reason, refused.detail))


# ---- facts that routing rules read ---------------------------------------------------------------------------


def region(dataset: Dataset) -> str | None:
    """The region that BodyPartExamined or AnatomicRegionSequence names: "head", "chest", "other"; None if unknown.

    A text that names the head beside something else (HEAD NECK) is the head.
    """
    anatomy = first_item(dataset, "AnatomicRegionSequence")
    frame = first_item(first_item(dataset, "SharedFunctionalGroupsSequence"), "FrameAnatomySequence")
    frame_anatomy = first_item(frame, "AnatomicRegionSequence")
    named = [text(dataset, "BodyPartExamined")]
    named += [text(item, keyword) for item in (anatomy, frame_anatomy) for keyword in ("CodeValue", "CodeMeaning")]
    for name in named:
        tokens = set(re.findall(r"[A-Z0-9-]+", name.upper()))
        tokens.add(re.sub(r"[^A-Z]", "", name.upper()))
        for key, known in REGIONS.items():
            if tokens & known:
                return key
    return None


def age_years(dataset: Dataset) -> float | None:
    """Age at the study: PatientAge (PS3.5 AS: nnnD, nnnW, nnnM, nnnY), else from the dates, else None."""
    match = re.fullmatch(r"(\d{1,3})([DWMY])", text(dataset, "PatientAge").upper())
    if match:
        return int(match[1]) / {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}[match[2]]
    birth, study = (_date(text(dataset, keyword)) for keyword in ("PatientBirthDate", "StudyDate"))
    return (study - birth).days / 365.25 if birth and study and birth <= study else None


def _date(value: str) -> date | None:
    try:
        return datetime.strptime(value, "%Y%m%d").date()
    except ValueError:
        return None
