"""Small good series as lists of elements, and a table of tricks that damage elements.

What is made of them, and tricks with their bytes, are in `hostile`.
"""

import random
import struct
from collections.abc import Callable, Sequence
from functools import cache
from io import BytesIO
from typing import NamedTuple

from pydicom import Dataset, dcmread
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from plugin.elements import LONG_VRS
from series import MR, enhanced, head, series
from studies import encoded

MAGIC = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0"
PIXEL_DATA, NUMBER_OF_FRAMES = 0x7FE00010, 0x00280008

Draw = random.Random


class Element(NamedTuple):
    """In Explicit VR Little Endian. `length` is what is claimed; None: the truth."""

    tag: int
    vr: bytes
    value: bytes
    length: int | None = None


Elements = list[Element]


def written(elements: Sequence[Element]) -> bytes:
    parts = []
    for tag, vr, value, claimed in elements:
        length = len(value) if claimed is None else claimed
        long = struct.pack("<HL", 0, length & UNDEFINED) if vr in LONG_VRS else struct.pack("<H", length & 0xFFFF)
        parts.append(struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr) + long + value)
    return b"".join(parts)


def elements_of(image: Dataset) -> Elements:
    whole = dcmread(BytesIO(encoded(image)))
    raws = ((int(raw.tag), raw.VR.encode(), raw.value or b"") for raw in whole.elements())  # type: ignore[union-attr]
    found = [Element(tag, vr, value if isinstance(value, bytes) else str(value).encode()) for tag, vr, value in raws]
    if whole.file_meta.TransferSyntaxUID.is_encapsulated:
        found[-1] = found[-1]._replace(value=found[-1].value + SEQUENCE_END + bytes(4), length=UNDEFINED)
    return found


# ---- what is damaged ---------------------------------------------------------------------------------------


NAME = "Canary^Jane"


@cache
def good(kind: str) -> tuple[list[Elements], str]:
    """A small series, and its transfer syntax."""
    elements = {"PatientName": NAME, "SpecificCharacterSet": "ISO_IR 192", "ReferencedStudySequence": [Dataset()]}
    elements["ReferencedStudySequence"][0].ReferencedSOPInstanceUID = "1.2.9"  # type: ignore[index]
    values = head(6, 32)
    images = series(values, **elements) if kind != "MR" else series(
        (values + 1000) * 10, sop_class_uid=MR, intercept=0, **elements
    )  # fmt: skip
    syntax = {"RLE": RLELossless, "JPEG-LS": JPEGLSLossless, "JPEG 2000": JPEG2000Lossless}.get(kind)
    if kind == "enhanced":
        images = [enhanced(images)]
    for image in images if syntax else ():
        image.compress(syntax, generate_instance_uid=False)
    return [elements_of(image) for image in images], str(syntax or ExplicitVRLittleEndian)


KINDS = ("CT", "RLE", "JPEG-LS", "JPEG 2000", "enhanced", "MR")


def replaced(elements: Elements, values: dict[int, bytes]) -> Elements:
    return [each._replace(value=values.get(each.tag, each.value)) for each in elements]


# ---- tricks with elements ----------------------------------------------------------------------------------


EVIL_UIDS = (
    b"../../escaped", b"..", b"/tmp/../escaped", b"1.2.3/../../escaped", b"1.2\x003", b"\0\0", b"", b"1..2", b".1.2",
    b"1.2.", b"1.2.3\\1.2.4", b" 1.2.3", b"1.2.3\n", b"9" * 65, b"1." * 32, b"1.2.%2e%2e%2f", b"con", b"1.2.3;rm -rf",
    b"'; DROP TABLE study; --", b"<script>alert(1)</script>", "1.2.\u0663".encode(), b"1.2.\xff", b"-1.2", b"1.2.3\t",
    b"1.2.*", b"~", b"$HOME", b"1.2.3" + b" " * 60000, b"9" * 60000,
)  # fmt: skip
NUMBERS = (
    b"nan", b"NaN", b"inf", b"-inf", b"1e308", b"-1e308", b"1e-320", b"1e999", b"0", b"-0", b"-1", b"", b" ", b"\\\\",
    b"1\\2", b"0x10", b"1_000", b"\xd9\xa3", b"9" * 5000, b"1." + b"0" * 60000, b"1e5", b"2147483648", b"-2147483649",
    b"1,5", b"\0\0", b"1e5\\1e5\\1e5", b"1\\0\\0\\1\\0\\0", b"1e308\\1e308\\1e308\\-1e308\\1e308\\1e308",
)  # fmt: skip
CHARSETS = (
    b"ISO_IR 999", b"\\ISO 2022 IR 87", b"ISO 2022 IR 149\\ISO 2022 IR 87", b"GBK", b"utf-16", b"zlib", b"\xff\xfe",
    b"idna", b"unicode_escape", b"\\" * 5000, b"ISO_IR 192\0", b"rot13", b"../../x",
)  # fmt: skip
TEXTS = (b"\x1b$B\x1b", b"\xff" * 99, b"=" * 999, b"^" * 999, b"\xed\xa0\x80", b"\0" * 64, b"\x1b]0;x\x07", b"%s%n{0}",
         "\u202egnp.exe".encode(), b"A" * 65535)  # fmt: skip
UIDS = (0x00080016, 0x00080018, 0x0020000D, 0x0020000E, 0x00200052)
GEOMETRY = (0x00200032, 0x00200037, 0x00280030, 0x00180050, 0x00281052, 0x00281053, 0x00200013, 0x00200011)
PIXELS = (0x00280002, 0x00280010, 0x00280011, 0x00280100, 0x00280101, 0x00280102, 0x00280103)


def evil_uid(draw: Draw, elements: Elements) -> Elements:
    return replaced(elements, {draw.choice(UIDS): draw.choice(EVIL_UIDS)})


def wild_number(draw: Draw, elements: Elements) -> Elements:
    return replaced(elements, {tag: draw.choice(NUMBERS) for tag in draw.sample(GEOMETRY, draw.randint(1, 2))})


def far_away(draw: Draw, elements: Elements) -> Elements:
    """Positions and directions that can be computed with, and lead nowhere."""
    size = draw.choice((1e-30, 1e-3, 99999.0, 1e5, 1e20, 1e200, 1.7e308))
    position = "\\".join(f"{draw.uniform(-size, size):.6g}" for _ in range(3)).encode()
    turned = "\\".join(f"{draw.uniform(-1.01, 1.01):.4f}" for _ in range(6)).encode()
    return replaced(elements, {0x00200032: position} | ({0x00200037: turned} if draw.random() < 0.3 else {}))


def lying_pixels(draw: Draw, elements: Elements) -> Elements:
    lies = {tag: struct.pack("<H", draw.choice(MAGIC) & 0xFFFF) for tag in draw.sample(PIXELS, draw.randint(1, 3))}
    return replaced(elements, lies)


def lying_frames(draw: Draw, elements: Elements) -> Elements:
    count = draw.choice((b"0", b"-1", b"2", b"7", b"20001", b"2147483647", b"99999999999999", b"nan"))
    others = [each for each in elements if each.tag != NUMBER_OF_FRAMES]
    return sorted([*others, Element(NUMBER_OF_FRAMES, b"IS", count)], key=lambda each: each.tag)


def wrong_charset(draw: Draw, elements: Elements) -> Elements:
    names = {tag: draw.choice(TEXTS) for tag in draw.sample((0x00100010, 0x0008103E, 0x00100020, 0x00180015), 2)}
    return replaced(elements, {0x00080005: draw.choice(CHARSETS)} | names)


def lying_length(draw: Draw, elements: Elements) -> Elements:
    at = draw.randrange(len(elements))
    return [*elements[:at], elements[at]._replace(length=draw.choice(MAGIC)), *elements[at + 1 :]]


def giant(draw: Draw, elements: Elements) -> Elements:
    vr = draw.choice((b"UT", b"OB", b"UN", b"UC", b"OD", b"OV", b"SQ", b"UR"))
    return inserted(
        draw, elements, Element(0x00091001, vr, b"x" * 8, draw.choice((0x7FFFFFF0, 0xFFFFFFF0, 0xFFFFFFFE)))
    )


def undefined(draw: Draw, elements: Elements) -> Elements:
    vr = draw.choice((b"OB", b"OW", b"UN", b"UT", b"SQ", b"OF"))
    value = draw.choice((b"", SEQUENCE_END + bytes(4), ITEM + bytes(4), ITEM + b"\xff" * 4, b"x" * 999))
    return inserted(draw, elements, Element(0x00091001, vr, value, UNDEFINED))


def duplicates(draw: Draw, elements: Elements) -> Elements:
    again = [*draw.sample(elements, 3), Element(draw.choice(UIDS), b"UI", b"1.2.66")]
    return draw.choice((sorted([*elements, *again], key=lambda each: each.tag), [*again, *elements], elements * 2))


def shuffled(draw: Draw, elements: Elements) -> Elements:
    return draw.sample(elements, len(elements))


def private(draw: Draw, elements: Elements) -> Elements:
    groups = [draw.randrange(1, 0xFFFF, 2) for _ in range(20)]
    made = [
        Element(group << 16 | draw.choice((0x10, 0xFF, 0x1001, 0, 1)), draw.choice((b"LO", b"UN", b"SQ", b"PN")), text)
        for group in groups
        for text in draw.sample(TEXTS, 2)
    ]
    return sorted([*elements, *made], key=lambda each: each.tag) if draw.random() < 0.5 else [*made, *elements]


def unknown_vr(draw: Draw, elements: Elements) -> Elements:
    at = draw.randrange(len(elements))
    vr = draw.choice((b"XX", b"??", b"\0\0", b"ob", b"ZZ", b"\xff\xff", b"SQ", b"UN", b"AT", b"FD", b"US"))
    return [*elements[:at], elements[at]._replace(vr=vr), *elements[at + 1 :]]


def deep(draw: Draw, elements: Elements) -> Elements:
    depth = draw.choice((15, 16, 17, 100, 400, 2000, 20000))
    level = written([Element(draw.choice((0x00081140, 0x00091001)), b"SQ", b"", UNDEFINED)]) + ITEM + b"\xff" * 4
    value = level * depth + (ITEM_END + bytes(4) + SEQUENCE_END + bytes(4)) * draw.choice((0, depth, depth + 3))
    return inserted(draw, elements, Element(0x00091001, b"SQ", ITEM + b"\xff" * 4 + value, UNDEFINED))


def deep_and_measured(draw: Draw, elements: Elements) -> Elements:
    value = b""
    for _ in range(draw.choice((10, 100, 700))):
        value = written([Element(0x00081140, b"SQ", ITEM + struct.pack("<L", len(value)) + value)])
    return inserted(draw, elements, Element(0x00081140, b"SQ", ITEM + struct.pack("<L", len(value)) + value))


def wide(draw: Draw, elements: Elements) -> Elements:
    count = draw.choice((1000, 20_000))
    item = draw.choice((ITEM + bytes(4), ITEM + b"\xff" * 4 + ITEM_END + bytes(4)))
    end = draw.choice((SEQUENCE_END + bytes(4), b""))
    made = Element(0x00091001, draw.choice((b"SQ", b"OB", b"UN")), item * count + end, UNDEFINED)
    return inserted(draw, elements, made)


def endless(draw: Draw, elements: Elements) -> Elements:
    """More elements than a header has, where only a full parser goes on."""
    many = [Element(0x00090010 + n % 0xFF, b"LO", b"") for n in range(30_000)]
    return inserted(draw, elements, Element(0x00090001, b"XX", b""), *many)


def inserted(draw: Draw, elements: Elements, *made: Element) -> Elements:
    """Before the identifying attributes, between them, or after all."""
    at = draw.choice((0, 2, len(elements) // 2, len(elements)))
    return [*elements[:at], *made, *elements[at:]]


def encapsulation(draw: Draw, elements: Elements) -> Elements:
    """Offset tables and fragments that lie, of frames that are good or not."""
    frame = bytearray(next(each.value for each in elements if each.tag == PIXEL_DATA)[16:-8] or b"\xff\xd8\xff\xd9")
    for _ in range(draw.choice((0, 0, 3, 30))):
        frame[draw.randrange(len(frame))] = draw.randrange(256)
    table = b"".join(struct.pack("<L", draw.choice(MAGIC)) for _ in range(draw.choice((0, 1, 2, 500))))
    claimed = draw.choice((len(frame), *MAGIC))
    fragment = ITEM + struct.pack("<L", claimed) + bytes(frame)
    end = draw.choice((SEQUENCE_END + bytes(4), b"", ITEM_END + bytes(4)))
    value = ITEM + struct.pack("<L", draw.choice((len(table), len(table), 3, UNDEFINED))) + table
    pixels = Element(PIXEL_DATA, b"OB", value + fragment * draw.choice((0, 1, 1, 3)) + end, UNDEFINED)
    offsets = [
        Element(tag, b"OV", b"".join(struct.pack("<Q", draw.choice((*MAGIC, 2**64 - 1))) for _ in range(3)))
        for tag in (0x7FE00001, 0x7FE00002)
    ]
    others = [each for each in elements if each.tag != PIXEL_DATA]
    return [*others, *(offsets if draw.random() < 0.5 else ()), pixels]


def groups(draw: Draw, elements: Elements) -> Elements:
    """Functional groups whose items were meant for something else, or nested in themselves."""
    inner = written(draw.sample(elements[:-1], 5))
    for tag in draw.sample((0x00209113, 0x00209116, 0x00289110, 0x00289145, 0x00209111), 3):
        inner += written([Element(tag, b"SQ", ITEM + struct.pack("<L", len(inner)) + inner)])
    item = ITEM + struct.pack("<L", len(inner)) + inner
    made = [Element(0x52009229, b"SQ", item), Element(0x52009230, b"SQ", item * draw.choice((0, 1, 6, 300)))]
    others = [each for each in elements if each.tag not in (0x52009229, 0x52009230)]
    return lying_frames(draw, sorted([*others, *made], key=lambda each: each.tag))


ELEMENT_TRICKS: tuple[Callable[[Draw, Elements], Elements], ...] = (
    evil_uid, wild_number, far_away, lying_pixels, lying_frames, wrong_charset, lying_length, giant, undefined,
    duplicates, shuffled, private, unknown_vr, deep, deep_and_measured, wide, endless, encapsulation, groups,
)  # fmt: skip
