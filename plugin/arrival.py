"""What the index must know of an instance, read from its header without touching a pixel."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, dcmread

from hlip_core import headers
from hlip_core.files import BoundedFile
from plugin.sop_classes import CONTENT, OTHER_IMAGES
from plugin.spool import check_uid, dataset_digest

KEYWORDS = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "SeriesNumber", "SeriesDescription", "StudyDescription", "StudyDate", "AccessionNumber", "PatientID",
    "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientAge", "BodyPartExamined",
)  # fmt: skip


@dataclass(frozen=True)
class Arrival:
    """One accepted instance on its way into the index."""

    path: Path
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    header: Dataset
    digest: str
    size: int

    @property
    def is_content(self) -> bool:
        return self.sop_class_uid in CONTENT

    @property
    def is_image(self) -> bool:
        return self.is_content or self.sop_class_uid in OTHER_IMAGES

    @property
    def patient_digest(self) -> str:
        """Tells patients apart (ID and issuer) without naming them."""
        identity = f"{self.text('PatientID')}\n{self.text('IssuerOfPatientID')}"
        return hashlib.sha256(identity.encode()).hexdigest()

    def text(self, keyword: str, limit: int = 1024) -> str:
        """An attribute as text that any database takes: no NUL, no lone surrogates, bounded; "" where absent."""
        value = headers.text(self.header, keyword).replace("\0", "").strip()
        return value.encode("utf-8", "replace").decode()[:limit]

    @property
    def series_number(self) -> int | None:
        number = headers.integer(self.header, "SeriesNumber")
        return number if number is not None and abs(number) < 2**31 else None


def read_header(source: Path | BinaryIO) -> Dataset:
    """The attributes in `KEYWORDS` of a Part 10 file. Raises what pydicom raises on a broken one."""
    if isinstance(source, Path):
        with BoundedFile(source) as file:
            return read_header(file)
    return dcmread(source, stop_before_pixels=True, specific_tags=list(KEYWORDS))


def check_instance(part10: bytes) -> tuple[Dataset, str, str]:
    """Read an encoded instance's header, and its (StudyInstanceUID, SeriesInstanceUID).

    Raises:
        plugin.spool.UnsafeUid: one of its UIDs cannot be one.
    """
    header = read_header(io.BytesIO(part10))
    check_uid(header.get("SOPInstanceUID"), "SOPInstanceUID")
    check_uid(header.get("SOPClassUID"), "SOPClassUID")
    study = check_uid(header.get("StudyInstanceUID"), "StudyInstanceUID")
    return header, study, check_uid(header.get("SeriesInstanceUID"), "SeriesInstanceUID")


def read_arrival(path: Path) -> Arrival:
    """The arrival that lies at `path`, with the digest of its dataset.

    Raises:
        plugin.spool.UnsafeUid: one of its UIDs cannot be one.
    """
    header = read_header(path)
    return Arrival(
        path=path,
        study_instance_uid=check_uid(header.get("StudyInstanceUID"), "StudyInstanceUID"),
        series_instance_uid=check_uid(header.get("SeriesInstanceUID"), "SeriesInstanceUID"),
        sop_instance_uid=check_uid(header.get("SOPInstanceUID"), "SOPInstanceUID"),
        sop_class_uid=check_uid(header.get("SOPClassUID"), "SOPClassUID"),
        header=header,
        digest=dataset_digest(path),
        size=path.stat().st_size,
    )
