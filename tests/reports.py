"""Study reports without a model: sources with the headers that matter, scores and locations as asked for."""

import hashlib
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, dcmread
from pydicom.uid import CTImageStorage

from hlip_core.assessment import Assessment, FindingScore, Location
from hlip_core.findings import Finding, FindingsTable
from hlip_core.prepared import SourceVoxel
from hlip_core.preprocessing import PREPROCESSINGS, Preprocessing
from hlip_core.reasons import Reason
from peers import dciodvfy_errors, needs
from plugin.results import SeriesFate, StudyReport, to_bytes

CREATED = datetime(2026, 11, 24, 13, 5, 7, 120000, tzinfo=timezone(timedelta(hours=1)))
STUDY, SERIES = "2.25.1000", "2.25.2000"

FINDINGS = FindingsTable.from_toml()
ICH, SHIFT, FRACTURE = (FINDINGS[label] for label in ("intracranial_hemorrhage", "midline_shift", "skull_fracture"))


def sha256(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


@dataclass(frozen=True)
class Card:
    """A model card as results need it."""

    name: str = "test-model"
    version: str = "1.0"
    status: str = "trained"
    weights_digest: str = sha256("weights")
    prompts_digest: str = sha256("prompts")
    calibration_digest: str = sha256("calibration")
    digest: str = sha256("bundle")
    preprocessing: Preprocessing = PREPROCESSINGS["head-ct/1"]


def source(**elements: Any) -> Dataset:
    """The header of one CT image of the test study; an element given as None is left out."""
    header = Dataset()
    values = {
        "SpecificCharacterSet": "ISO_IR 100",
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": f"{SERIES}.1",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "Modality": "CT",
        "PatientName": "Doe^Jane",
        "PatientID": "P1",
        "PatientBirthDate": "19500102",
        "PatientSex": "F",
        "StudyDate": "20261124",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "House^Gregory",
        "StudyDescription": "CT head",
    }
    for keyword, value in (values | elements).items():
        if value is not None:
            setattr(header, keyword, value)
    return header


def instances(count: int, series: str = SERIES) -> tuple[tuple[str, str], ...]:
    return tuple((CTImageStorage, f"{series}.{number}") for number in range(1, count + 1))


def prepared(**changes: Any) -> SeriesFate:
    fate = SeriesFate(
        series_instance_uid=SERIES,
        series_number=2,
        modality="CT",
        series_description="Head 5 mm",
        num_instances=28,
        state="prepared",
        instances=instances(28),
    )
    return replace(fate, **changes)


def refused(reason: Reason, *, series: str = "2.25.3000", **changes: Any) -> SeriesFate:
    fate = SeriesFate(
        series_instance_uid=series,
        series_number=1,
        modality="CT",
        series_description="Scout",
        num_instances=1,
        state="refused",
        reason=reason,
    )
    return replace(fate, **changes)


def location(
    *,
    series: str = SERIES,
    sop_instance_uid: str = f"{SERIES}.14",
    sop_class_uid: str = CTImageStorage,
    frame_number: int | None = None,
    row: float = 200.0,
    column: float = 300.0,
) -> Location:
    voxel = SourceVoxel(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=sop_instance_uid,
        frame_number=frame_number,
        row=row,
        column=column,
    )
    return Location(series_instance_uid=series, z=24, y=100, x=150, source=voxel)


def score(
    finding: Finding = ICH,
    *,
    value: float = 0.31,
    threshold: float | None = 0.25,
    probability: float | None = None,
    at: Location | None = None,
) -> FindingScore:
    """A score, positive where it reaches its threshold; a positive one is located."""
    shown = value if probability is None else probability
    positive = threshold is not None and shown >= threshold
    return FindingScore(
        finding=finding,
        score=value,
        probability=probability,
        threshold=threshold,
        positive=positive,
        location=(at or location()) if positive else None,
    )


def assessment(*scores: FindingScore) -> Assessment:
    return Assessment(
        embedding=np.zeros(4, np.float32), findings=scores, thresholds_digest=sha256("thresholds"), device="cpu"
    )


def report(*scores: FindingScore, **changes: Any) -> StudyReport:
    """A report on one series of 28 slices; without scores nothing was assessed."""
    values: dict[str, Any] = {
        "source": source(),
        "series": (prepared(),),
        "assessment": assessment(*scores) if scores else None,
        "bundle": Card(),
        "revision": 1,
        "content_digest": sha256("content"),
        "created": CREATED,
        "installation_uid": "2.25.4000",
    }
    return StudyReport(**(values | changes))


def report_of(files: Sequence[Path], *scores: FindingScore, **changes: Any) -> StudyReport:
    """A report on a real series of single-frame images; positive scores are located in its middle image."""
    headers = [dcmread(file, stop_before_pixels=True) for file in files]
    first = headers[0]
    fate = prepared(
        series_instance_uid=first.SeriesInstanceUID,
        series_number=first.get("SeriesNumber"),
        modality=first.Modality,
        series_description=first.get("SeriesDescription", ""),
        num_instances=len(headers),
        instances=tuple((h.SOPClassUID, h.SOPInstanceUID) for h in headers),
    )
    middle = headers[len(headers) // 2]
    where = location(
        series=middle.SeriesInstanceUID,
        sop_instance_uid=middle.SOPInstanceUID,
        sop_class_uid=middle.SOPClassUID,
    )
    located = [replace(score, location=where) if score.positive else score for score in scores]
    return report(*located, source=dcmread(files[0], stop_before_pixels=True), series=(fate,), **changes)


DCMTK_CANNOT = ("Specific Character Set", "SpecificCharacterSet", "template constraints")
"""What dcmtk 3.6.7 warns of since it cannot do it: check these character sets, check templates of a KO."""


def items(result: Dataset, value_type: str = "", meaning: str = "") -> list[Dataset]:
    """All content items of that value type and concept name meaning, in the order of the tree."""
    found = []
    for item in result.get("ContentSequence", []):
        fits = value_type in ("", item.ValueType)
        if fits and meaning in ("", item.ConceptNameCodeSequence[0].CodeMeaning):
            found.append(item)
        found += items(item, value_type, meaning)
    return found


def texts(result: Dataset) -> list[str]:
    return [item.TextValue for item in items(result, "TEXT")]


def assert_valid(result: Dataset, tmp_path: Path, *, source_errors: Collection[str] = ()) -> None:
    """No error that the source does not have, and dcmtk reads the whole tree if it is a structured report."""
    file = tmp_path / f"{result.SOPInstanceUID}.dcm"
    file.write_bytes(to_bytes(result))
    assert dciodvfy_errors(file) - set(source_errors) == set()
    if result.Modality in ("SR", "KO"):
        command = [needs("dsrdump", "dcmtk"), "+Pl", str(file)]
        dump = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
        said = [line for line in dump.stderr.splitlines() if line.startswith(("E: ", "W: "))]
        assert [line for line in said if not any(known in line for known in DCMTK_CANNOT)] == []
