"""What there is to tell of a study: JSON-ready facts from its report, and who would be told which of them."""

import unicodedata
from collections.abc import Iterable
from typing import Any

from pydicom import Dataset

from hlip_core.assessment import FindingScore
from hlip_core.findings import Code
from hlip_core.headers import text
from plugin.index.signals import Offer
from plugin.results import StudyReport, result_sentence
from plugin.results.document import digests, notice
from plugin.results.identity import SOFTWARE_VERSION
from plugin.settings import SignalReceiver

LONGEST = 250
"""Characters of a text from the study; none that DICOM allows here is longer (PS3.5 Table 6.2-1, PN: 64 a group)."""

NAME_PARTS = ("family", "given", "middle", "prefix", "suffix")  # PS3.5 section 6.2.1

STUDY_TEXTS = {
    "accession_number": "AccessionNumber",
    "date": "StudyDate",
    "time": "StudyTime",
    "description": "StudyDescription",
    "id": "StudyID",
    "placer_order_number": "PlacerOrderNumberImagingServiceRequest",
    "modality": "Modality",
}


def facts(report: StudyReport, *, results: Iterable[tuple[str, str, str]]) -> dict[str, Any]:
    """Everything that a template can say. `results`: SOPInstanceUID, SeriesInstanceUID, description of our objects."""
    bundle = report.bundle
    return {
        "notice": notice(report),
        "sentence": result_sentence(report),
        "revision": report.revision,
        "is_partial": report.is_partial,
        "analysed_at": report.created.isoformat(timespec="seconds"),
        "installation_uid": report.installation_uid,
        "software_version": SOFTWARE_VERSION,
        "model": {
            "name": bundle.name,
            "version": bundle.version,
            "status": bundle.status,
            "digests": [{"what": what, "value": value} for what, value in digests(report)],
        },
        "patient": _patient(report.source),
        "study": {
            "study_instance_uid": str(report.source.StudyInstanceUID),
            **{name: cleaned(text(report.source, keyword)) for name, keyword in STUDY_TEXTS.items()},
        },
        "findings": [_finding(score) for score in report.scores()],
        "results": [
            {"sop_instance_uid": uid, "series_instance_uid": series, "description": description}
            for uid, series, description in results
        ],
    }


def _patient(source: Dataset) -> dict[str, Any]:
    whole = text(source, "PatientName")
    first = next((group for group in whole.split("=") if group.strip("^ ")), "")  # alphabetic, if there is one
    parts = [cleaned(part) for part in first.split("^", 4)] + [""] * 5
    return {
        "id": cleaned(text(source, "PatientID")),
        "issuer": cleaned(text(source, "IssuerOfPatientID")),
        "name": dict(zip(NAME_PARTS, parts, strict=False)),
        "birth_date": cleaned(text(source, "PatientBirthDate")),
        "sex": cleaned(text(source, "PatientSex")),
    }


def cleaned(value: str) -> str:
    """Text of a study as messages can carry it: no half or control characters, not without end."""
    whole = value[: 2 * LONGEST].encode("utf-8", "replace").decode()
    shown = "".join(" " if unicodedata.category(c) == "Cc" else c for c in whole)
    return unicodedata.normalize("NFC", shown)[:LONGEST].strip()


def _code(code: Code) -> dict[str, str]:
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}


def _finding(score: FindingScore) -> dict[str, Any]:
    """`probability` is None where the score was not calibrated, `threshold` where the finding was not assessed."""
    return {
        "label": score.finding.label,
        "name": score.finding.name,
        "critical": score.finding.critical,
        "positive": score.positive,
        "score": round(float(score.score), 4),
        "probability": None if score.probability is None else round(float(score.probability), 4),
        "threshold": score.threshold,
        "code": _code(score.finding.code),
        "site": _code(score.finding.site),
    }


# ---- who is told what --------------------------------------------------------------------------------------


def offer(receiver: SignalReceiver, report: StudyReport, told: dict[str, Any], *, hold: bool) -> Offer:
    """What a receiver would be told, of the findings that it asks for; its identity is all that can change it."""
    chosen = [finding for finding in told["findings"] if _wants(receiver, finding)]
    identity = (
        report.installation_uid,
        str(report.source.StudyInstanceUID),
        report.content_digest,
        report.bundle.digest,
        report.thresholds_digest,
        str(report.revision),
    )
    return Offer(
        receiver=receiver.name,
        identity="\n".join(identity),
        positive=tuple(sorted(finding["label"] for finding in chosen if finding["positive"])),
        always=receiver.minimum_state == "reported",
        hold=hold,
        content={**told, "findings": chosen},
    )


def _wants(receiver: SignalReceiver, finding: dict[str, Any]) -> bool:
    if receiver.findings == "critical":
        return bool(finding["critical"])
    return receiver.findings == "any" or finding["label"] in receiver.findings
