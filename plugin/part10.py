"""The head of a Part 10 file: preamble, prefix and File Meta Information (PS3.10 section 7.1), held to the letter.

`plugin.spool.dataset_digest` trusts the group length that stands there, so a file whose group length is missing or
wrong must not get in by a way on which we do not write the head ourselves.
"""

import struct
from dataclasses import dataclass

META_START = 128 + 4 + 12  # preamble, "DICM", and the element (0002,0000) itself
MAX_META_LENGTH = 1 << 15
_GROUP_LENGTH = b"DICM" + b"\x02\x00\x00\x00UL\x04\x00"
_LONG_VRS = frozenset((b"OB", b"OW", b"OD", b"OF", b"OL", b"OV", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))


class NoPart10(ValueError):
    """It is no Part 10 file, or its File Meta Information is not what its group length says."""


@dataclass(frozen=True)
class Meta:
    """Where a file's data set begins, and how it is encoded."""

    transfer_syntax_uid: str
    end: int


def read_meta(content: bytes) -> Meta:
    """The File Meta Information of a file that begins with `content`.

    Raises:
        NoPart10: see there.
    """
    if content[128 : META_START - 4] != _GROUP_LENGTH or len(content) < META_START:
        raise NoPart10("no Part 10 file")
    end = META_START + int.from_bytes(content[META_START - 4 : META_START], "little")
    if end > min(len(content), MAX_META_LENGTH):
        raise NoPart10("the File Meta Information is cut off")
    transfer_syntax_uid, at = "", META_START
    while at + 8 <= end:
        group, element, vr, length = struct.unpack_from("<HH2sH", content, at)
        start = at + 8
        if vr in _LONG_VRS:
            length, start = int.from_bytes(content[at + 8 : at + 12], "little"), at + 12
        if group != 2:
            break
        if element == 0x0010:
            transfer_syntax_uid = content[start : start + length].rstrip(b" \0").decode("ascii", "replace")
        at = start + length
    if at != end or content[end : end + 2] == b"\x02\x00":
        raise NoPart10("the File Meta Information is not as long as its group length says")
    return Meta(transfer_syntax_uid, end)
