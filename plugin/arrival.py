"""What the index must know of an instance, read from its header without touching a pixel."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, cast

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag

from hlip_core import headers
from hlip_core.files import BoundedFile
from plugin.elements import ENCODINGS, WINDOW, Encoding, Header, find, uid
from plugin.part10 import MAX_META_LENGTH, META_START, NoPart10, read_meta
from plugin.sop_classes import CONTENT, OTHER_IMAGES
from plugin.spool import check_uid, dataset_digest, digest_by_name

KEYWORDS = (
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "SeriesNumber", "SeriesDescription", "StudyDescription", "StudyDate", "AccessionNumber", "PatientID",
    "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientAge", "BodyPartExamined",
)  # fmt: skip

_TAGS = frozenset(int(Tag(keyword)) for keyword in KEYWORDS)
_IDENTITY = {
    keyword: int(Tag(keyword)) for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
}
_IDENTIFYING = frozenset(_IDENTITY.values())
Kind = tuple[bytes | None, ...]
_KIND = sorted(_TAGS - {_IDENTITY["SOPInstanceUID"]})
_BEHIND_ALL = range(0x3000, 0x7FE1)  # groups that none of them is in or behind: contours, functional groups, pixels
MOST_READS = 200_000
"""What the full parser may ask of a header: tens of thousands of elements, some seconds. More is made to take long."""
LONGEST_READ = WINDOW
MOST_BYTES = 64 << 20
"""None of the attributes is nearly so long, and what is not asked for is passed over: more is made to take memory."""
HEAD = META_START + MAX_META_LENGTH + WINDOW
"""Of a file: as much of its data set as was looked at when it came, or more."""
SHORT_HEAD = 1 << 14
"""Of nearly all files that is enough."""


@dataclass(frozen=True)
class Arrival:
    """One accepted instance on its way into the index."""

    path: Path
    study_instance_uid: str
    series_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    elements: Header
    digest: str
    size: int

    @property
    def header(self) -> Dataset:
        """The attributes in `KEYWORDS`."""
        return self.elements.dataset

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

    @cached_property
    def kind(self) -> Kind:
        """All that the header says, undecoded, without the instance's own UID: the same for the slices of a series."""
        found = self.elements.found
        return tuple(found[tag].value if tag in found else None for tag in _KIND)

    def text(self, keyword: str, limit: int = 1024) -> str:
        """An attribute as text that any database and terminal takes, bounded; "" where absent.

        A control character, a mark that turns the direction of writing or a lone surrogate becomes a blank.
        """
        value = headers.text(self.header, keyword)
        return "".join(c if c.isprintable() else " " for c in value).strip()[:limit]

    @property
    def series_number(self) -> int | None:
        number = headers.integer(self.header, "SeriesNumber")
        return number if number is not None and abs(number) < 2**31 else None


def _walk(head: bytes, *, asked: int = HEAD, tags: frozenset[int] = _TAGS) -> Header | None:
    """The attributes in `KEYWORDS` from a Part 10 file's first bytes; None where only more of it, or a full parser,
    can tell.

    Args:
        asked: for how many bytes the file was asked; where there are fewer, they are all of it.
    """
    try:
        meta = read_meta(head)
    except NoPart10:
        return None
    encoding = ENCODINGS.get(meta.transfer_syntax_uid)
    if encoding is None:
        return None
    content = head[meta.end : meta.end + WINDOW]
    found = find(content, encoding, tags, whole=len(head) < asked and meta.end + len(content) == len(head))
    return None if found is None else Header(found, encoding)


def read_elements(source: BinaryIO) -> Header:
    """The attributes in `KEYWORDS` of a Part 10 file. Raises what pydicom raises on a broken one."""
    return _walk(source.read(HEAD)) or _parse(source)


class _Bounded:
    """A file under the full parser, which would read a header for hours and inflate a data set to any size."""

    def __init__(self, source: BinaryIO) -> None:
        source.seek(0)
        self._read, self.seek, self.tell = source.read, source.seek, source.tell
        self._left, self._left_bytes = MOST_READS, MOST_BYTES

    def read(self, size: int = -1) -> bytes:
        if size < 0:  # all that is left: it is asked for only in order to inflate it
            raise ValueError("a deflated data set with a strange header")
        self._left -= 1
        self._left_bytes -= size
        if self._left < 0 or self._left_bytes < 0 or size > LONGEST_READ:
            raise ValueError("a header that does not end")
        return self._read(size)


def _parse(source: BinaryIO) -> Header:
    bounded = cast(BinaryIO, _Bounded(source))
    dataset = read_partial(bounded, lambda tag, vr, length: tag.group in _BEHIND_ALL, specific_tags=sorted(_TAGS))
    found = {tag: _raw(dataset, tag) for tag in _TAGS if tag in dataset}
    return Header(found, Encoding(), dataset)


def _raw(dataset: Dataset, tag: int) -> RawDataElement:
    """An element as it stands in the file; of what pydicom has decoded already (SpecificCharacterSet) the text."""
    element = dataset.get_item(tag)
    if isinstance(element, RawDataElement):
        return element
    value = str(element.value).encode()
    return RawDataElement(BaseTag(tag), element.VR, len(value), value, 0, False, True)


def read_header(source: Path | BinaryIO) -> Dataset:
    """The attributes in `KEYWORDS` of a Part 10 file. Raises what pydicom raises on a broken one."""
    if isinstance(source, Path):
        with BoundedFile(source) as file:
            return read_header(file)
    return read_elements(source).dataset


@dataclass(frozen=True)
class Identity:
    """What tells an instance from all others, and says where it belongs."""

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str

    @classmethod
    def from_elements(cls, found: Mapping[int, RawDataElement]) -> "Identity":
        """Raises plugin.spool.UnsafeUid: one of the UIDs cannot be one."""
        return cls(*(check_uid(uid(found, tag), keyword) for keyword, tag in _IDENTITY.items()))


def find_identity(content: bytes, transfer_syntax_uid: str, *, whole: bool) -> Identity | None:
    """The identity from the beginning of a data set; None where only a full parser can tell.

    Raises:
        plugin.spool.UnsafeUid: one of its UIDs cannot be one.
    """
    encoding = ENCODINGS.get(transfer_syntax_uid)
    if encoding is None:
        return None
    # of a deflated one all, since the full parser will not be asked for the rest
    found = find(content, encoding, _TAGS if encoding.deflated else _IDENTIFYING, whole=whole)
    return None if found is None else Identity.from_elements(found)


def _parse_what_was_accepted(path: Path, known: Header | None) -> Header:
    """All that the full parser finds, and nothing but what is `known` where it fails: the instance is acknowledged."""
    try:
        with BoundedFile(path) as file:
            return _parse(file)
    except headers.MALFORMED as error:
        if known is None or (isinstance(error, OSError) and error.errno is not None):
            raise
        return known


def read_arrival(path: Path) -> Arrival:
    """The arrival that lies at `path`, with the digest of its dataset.

    It is what `find_identity` took it for when it came, whatever stands behind that in its header.

    Raises:
        plugin.spool.UnsafeUid: one of its UIDs cannot be one.
    """
    with path.open("rb", buffering=0) as file:
        head = file.read(SHORT_HEAD)
        size = os.fstat(file.fileno()).st_size
        known = elements = _walk(head, asked=SHORT_HEAD)
        if elements is None:
            head += file.read(HEAD - SHORT_HEAD)
            known = elements = _walk(head)
        if elements is None:
            known = _walk(head, tags=_IDENTIFYING)
            elements = _parse_what_was_accepted(path, known)
        identity = Identity.from_elements((known or elements).found)
        return Arrival(
            path=path,
            study_instance_uid=identity.study_instance_uid,
            series_instance_uid=identity.series_instance_uid,
            sop_instance_uid=identity.sop_instance_uid,
            sop_class_uid=identity.sop_class_uid,
            elements=elements,
            digest=digest_by_name(path) or dataset_digest(file),
            size=size,
        )
