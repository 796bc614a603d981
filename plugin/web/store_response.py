"""The Store Instances Response Module (PS3.18 Annex I), and the HTTP status that goes with it (Table 10.5.3-1)."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from pydicom.datadict import keyword_for_tag

STORED = 0x0000
# Failure Reason (0008,1197), PS3.18 Table I.2-2
OUT_OF_RESOURCES = 0xA700
DOES_NOT_MATCH_SOP_CLASS = 0xA900
CANNOT_UNDERSTAND = 0xC000
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122
SOP_CLASS_NOT_SUPPORTED = 0x0122
# of our own, as the table allows
OTHER_STUDY = 0xC409
TOO_LARGE = 0xC413
NOT_DICOM = 0xC415
"""The part's media type is not application/dicom."""

ALONE = {OUT_OF_RESOURCES: 503, TOO_LARGE: 413, NOT_DICOM: 415}
"""The HTTP status where nothing was stored and this was the only reason; else it is 409."""

JSON, XML = "application/dicom+json", "application/dicom+xml"


@dataclass(frozen=True)
class Outcome:
    """What became of one part of a request. Without UIDs where they could not be read."""

    reason: int = STORED
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    study_instance_uid: str = ""

    @property
    def is_stored(self) -> bool:
        return self.reason == STORED


def status_code(outcomes: Sequence[Outcome]) -> int:
    """The HTTP status of a request that was read to its end."""
    reasons = {outcome.reason for outcome in outcomes}
    if STORED in reasons:
        return 200 if len(reasons) == 1 else 202
    return ALONE.get(reasons.pop(), 409) if len(reasons) == 1 else 409 if reasons else 400


def _item(outcome: Outcome) -> dict[str, Any]:
    item: dict[str, Any] = {}
    if outcome.sop_instance_uid:
        item["00081150"] = {"vr": "UI", "Value": [outcome.sop_class_uid]}
        item["00081155"] = {"vr": "UI", "Value": [outcome.sop_instance_uid]}
    if outcome.is_stored:
        item["00081190"] = {"vr": "UR"}  # type 2, and nothing can be retrieved here
    else:
        item["00081197"] = {"vr": "US", "Value": [outcome.reason]}
    return item


def _sequence(outcomes: Iterable[Outcome]) -> dict[str, Any]:
    return {"vr": "SQ", "Value": [_item(outcome) for outcome in outcomes]}


def module(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The module in the DICOM JSON Model (PS3.18 Annex F)."""
    sequences = {
        "00081198": [o for o in outcomes if not o.is_stored and o.sop_instance_uid],  # Failed SOP Sequence
        "00081199": [o for o in outcomes if o.is_stored],  # Referenced SOP Sequence
        "0008119A": [o for o in outcomes if not o.is_stored and not o.sop_instance_uid],  # Other Failures Sequence
    }
    return {"00081190": {"vr": "UR"}} | {tag: _sequence(found) for tag, found in sequences.items() if found}


def _add_xml(parent: ElementTree.Element, dataset: dict[str, Any]) -> None:
    for tag, element in dataset.items():
        named = {"tag": tag, "vr": element["vr"], "keyword": keyword_for_tag(int(tag, 16))}
        attribute = ElementTree.SubElement(parent, "DicomAttribute", named)
        for number, value in enumerate(element.get("Value", ()), 1):
            if element["vr"] == "SQ":
                _add_xml(ElementTree.SubElement(attribute, "Item", number=str(number)), value)
            else:
                ElementTree.SubElement(attribute, "Value", number=str(number)).text = str(value)


def encoded(outcomes: Sequence[Outcome], media_type: str) -> bytes:
    """The module as JSON, or in the Native DICOM Model (PS3.19 Annex A.1)."""
    if media_type == JSON:
        return json.dumps(module(outcomes), separators=(",", ":")).encode()
    root = ElementTree.Element("NativeDicomModel")
    _add_xml(root, module(outcomes))
    return ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)


def preferred(accept: str) -> str:
    """XML where the Accept header ranks it above JSON; JSON in all other cases, whatever else it asks for."""
    ranks = {JSON: 0.0, XML: 0.0}
    names = {JSON: JSON, "application/json": JSON, XML: XML, "application/xml": XML, "text/xml": XML}
    for row in accept.split(","):
        name, *parameters = (part.strip().lower() for part in row.split(";"))
        if name in names:
            quality = next((value[2:] for value in parameters if value.startswith("q=")), "1")
            try:
                ranks[names[name]] = max(ranks[names[name]], float(quality))
            except ValueError:
                continue
    return XML if ranks[XML] > ranks[JSON] else JSON
