"""The matrix of studies whose results must be valid, storable and visible: images and the report on them."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from pydicom import Dataset, dcmwrite
from pydicom.uid import generate_uid

from hlip_core.assessment import FindingScore, Location
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.reasons import Reason
from hlip_core.volume import prepare
from plugin.pictures import with_pictures
from plugin.results import StudyReport, key_findings, key_slice
from plugin.settings import ResultsSettings
from reports import FINDINGS, FRACTURE, ICH, Card, location, prepared, refused, report, score
from series import CORONAL, ENHANCED_CT, MR, enhanced, head, series


@dataclass(frozen=True)
class Study:
    """Images and the report on them."""

    images: Sequence[Dataset]
    report: StudyReport


def study(images: Sequence[Dataset], *scores: FindingScore, on: Sequence[int] = (), **changes: object) -> Study:
    """A study of one series. Each positive score lies on the slice, or frame, of that index."""
    first = images[0]
    frames = [
        (image, number if "NumberOfFrames" in image else None)
        for image in images
        for number in range(1, int(image.get("NumberOfFrames", 1)) + 1)
    ]
    fate = prepared(
        series_instance_uid=first.SeriesInstanceUID,
        num_instances=len(images),
        instances=tuple((image.SOPClassUID, image.SOPInstanceUID) for image in images),
    )
    places = iter(on)
    located = [_at(each, *frames[next(places)]) if each.positive else each for each in scores]
    values: dict[str, object] = {"source": first, "series": (fate,)} | changes
    made = report(*located, **values)
    by_uid = {image.SOPInstanceUID: image for image in images}
    slices = tuple(
        key_slice(by_uid[each.location.source.sop_instance_uid], each) for each in key_findings(made) if each.location
    )
    return Study(images, replace(made, key_slices=slices))


def overlaid(images: Sequence[Dataset], cell: tuple[int, int, int] = (3, 6, 8)) -> Study:
    """A positive study with a relevance map on its source frames, as the pipeline makes it from one patch."""
    spec = PREPROCESSINGS["head-ct/1"]
    scan = prepare(list(images), spec)
    relevance = np.zeros((6, 14, 14), np.float32)
    relevance[cell] = 1
    relevance[cell[0], cell[1], cell[2] - 1] = 0.7
    z, y, x = (round((i + 0.5) * side) + o for i, side, o in zip(cell, (8, 16, 16), (0, 16, 16), strict=True))
    where = Location(scan.series_instance_uid, z, y, x, scan.source_of(z, y, x))
    fate = prepared(series_instance_uid=scan.series_instance_uid, instances=scan.instances)
    made = report(replace(score(ICH, at=where), relevance=relevance), source=images[0], series=(fate,))
    with tempfile.TemporaryDirectory() as name:
        paths = {str(image.SOPInstanceUID): Path(name) / f"{number}.dcm" for number, image in enumerate(images)}
        for image in images:
            paths[str(image.SOPInstanceUID)].write_bytes(encoded(image))
        made = with_pictures(
            made,
            {scan.series_instance_uid: scan},
            spec,
            lambda _, uid: paths[uid],
            ResultsSettings(parametric_map=True),
        )
    return Study(images, made)


def _at(each: FindingScore, image: Dataset, frame_number: int | None) -> FindingScore:
    at = location(
        series=image.SeriesInstanceUID,
        sop_class_uid=image.SOPClassUID,
        sop_instance_uid=image.SOPInstanceUID,
        frame_number=frame_number,
        row=0.4 * image.Rows,
        column=0.6 * image.Columns,
    )
    return replace(each, location=at)


def head_series(num_slices: int = 12, **elements: object) -> list[Dataset]:
    """A simple head with UIDs of its own."""
    study_uid, series_uid = generate_uid(), generate_uid()
    values = {"StudyInstanceUID": study_uid, "SeriesInstanceUID": series_uid, "FrameOfReferenceUID": generate_uid()}
    images = series(head(num_slices), **(values | elements))
    for image in images:
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return images


def multi_frame() -> list[Dataset]:
    image = enhanced(head_series(), ENHANCED_CT)
    image.InstanceNumber = 1
    return [image]


def brain_mr() -> list[Dataset]:
    values = (head(12) + 1000) * 10
    uids = {keyword: generate_uid() for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    images = series(values, sop_class_uid=MR, intercept=0, **uids)
    for image in images:
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    return images


def named(character_set: str | list[str], name: str) -> list[Dataset]:
    return head_series(4, SpecificCharacterSet=character_set, PatientName=name)


FIVE = tuple(score(finding, value=0.3 + 0.01 * n) for n, finding in enumerate(FINDINGS.findings[:5]))
LONGEST = {"PatientID": "1" * 64, "PatientName": "N" * 64, "StudyDescription": "D" * 64, "AccessionNumber": "A" * 16}

EARLIER = ("1.2.840.10008.5.1.4.1.1.88.22", "2.25.9", "2.25.8")

QUICK: dict[str, Callable[[], Study]] = {
    "multi-frame": lambda: study(multi_frame(), score(ICH), score(FRACTURE), on=(4, 9)),
    "all negative": lambda: study(head_series(), score(ICH, value=0.1), score(FRACTURE, threshold=None)),
}
FULL: dict[str, Callable[[], Study]] = {
    "five findings": lambda: study(head_series(), *FIVE, on=(1, 3, 5, 7, 9)),
    "two on one point": lambda: study(head_series(), score(ICH), score(FRACTURE), on=(6, 6)),
    "calibrated": lambda: study(head_series(), score(ICH, probability=0.93, threshold=0.5), on=(6,)),
    "partial": lambda: study(
        images := head_series(),
        score(ICH),
        on=(6,),
        series=(
            prepared(
                series_instance_uid=images[0].SeriesInstanceUID,
                instances=tuple((image.SOPClassUID, image.SOPInstanceUID) for image in images),
            ),
            refused(Reason.GEOMETRY),
        ),
    ),
    "re-run": lambda: study(
        head_series(),
        score(ICH),
        on=(6,),
        revision=2,
        predecessors=(("1.2.840.10008.5.1.4.1.1.88.22", "2.25.9", "2.25.8"),),
    ),
    "untrained": lambda: study(head_series(), score(ICH), on=(6,), bundle=Card(status="untrained")),
    "reversed": lambda: study(head_series()[::-1], score(ICH), on=(2,)),
    "thick": lambda: study(head_series(1), score(ICH), on=(0,)),
    "mr": lambda: study(brain_mr(), score(ICH), on=(6,), bundle=Card(preprocessing=PREPROCESSINGS["brain-mri/1"])),
    "Japanese": lambda: study(named(["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), score(ICH), on=(2,)),
    "Arabic": lambda: study(named("ISO_IR 127", "قباني^لنزار"), score(ICH), on=(2,)),
    "Cyrillic": lambda: study(named("ISO_IR 144", "Люкceмбypг"), score(ICH), on=(2,)),
    "empty": lambda: study(
        head_series(4, PatientName="", PatientID="", StudyDate="", SeriesDescription=""), score(ICH), on=(2,)
    ),
    "relevance": lambda: overlaid(head_series(24)),
    "relevance of a multi-frame": lambda: overlaid(multi_frame()),
    "relevance of a coronal": lambda: overlaid(head_series(96, directions=CORONAL, spacing=(2.5, 2.5, 2.5))),
    "longest": lambda: study(head_series(4, **LONGEST), score(ICH), on=(2,)),
}


def encoded(image: Dataset) -> bytes:
    buffer = BytesIO()
    dcmwrite(buffer, image, enforce_file_format=True)
    return buffer.getvalue()
