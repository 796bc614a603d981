"""Data sets, Part 10 files and series that no honest peer sends: tricks played on good ones.

Each is made from its number alone, so one that did harm is made again by its number; as many numbers as there are
tricks play each once. The tricks with elements are in `hostile_elements`; what is said on the wire about all of them
is in `hostile_wire`.
"""

import random
import struct
import zlib
from dataclasses import dataclass
from functools import cache

from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from hostile_elements import (
    ELEMENT_TRICKS,
    KINDS,
    MAGIC,
    PIXEL_DATA,
    Draw,
    Element,
    Elements,
    encapsulation,
    good,
    replaced,
    written,
)
from plugin.storage import preamble

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEGLSLossless,
            JPEG2000Lossless, DeflatedExplicitVRLittleEndian)  # fmt: skip


def draw_for(kind: str, number: int) -> Draw:
    """Chance that is the same whenever and wherever it is asked."""
    return random.Random(f"{kind} {number}")


# ---- tricks with bytes -------------------------------------------------------------------------------------


def flipped(draw: Draw, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 2, 5, 50))):
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
    return bytes(damaged)


def flipped_in_front(draw: Draw, content: bytes) -> bytes:
    return flipped(draw, content[:400]) + content[400:]


def truncated(draw: Draw, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def overwritten(draw: Draw, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        at = draw.randrange(max(1, min(len(damaged) - 4, draw.choice((300, len(damaged))))))
        damaged[at : at + 4] = struct.pack(draw.choice("<>") + "L", draw.choice(MAGIC))
    return bytes(damaged)


def spliced(draw: Draw, content: bytes) -> bytes:
    """Pieces taken out, repeated, or put elsewhere."""
    for _ in range(draw.randint(1, 4)):
        a, b, c = (draw.randrange(len(content) + 1) for _ in range(3))
        piece = content[min(a, b) : max(a, b)]
        content = draw.choice((content[:c] + piece + content[c:], content[: min(a, b)] + content[max(a, b) :] or b"x"))
    return content


def noise(draw: Draw, content: bytes) -> bytes:
    return draw.choice((b"", draw.randbytes(draw.randint(1, 5000)), content[:100] + draw.randbytes(3000)))


@cache
def zeros() -> bytes:
    """50 MB, deflated: what may follow a full flush of any deflater."""
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return b"".join(deflater.compress(bytes(1 << 20)) for _ in range(50)) + deflater.flush()


def bomb(draw: Draw, content: bytes) -> bytes:
    """To be inflated: a good or a strange header, then zeros without end."""
    number, pixels = Element(0x00200011, draw.choice((b"IS", b"XX")), b"2 "), Element(PIXEL_DATA, b"OW", b"", 50 << 20)
    strange = [*(each for each in good("CT")[0][0] if each.tag < 0x00200011), number, pixels]
    front = draw.choice((content[:-2], content[:400], b"", written(strange), written(strange)))
    deflater = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return deflater.compress(front) + deflater.flush(zlib.Z_FULL_FLUSH) + zeros()[: draw.choice((None, 40_000))]


BYTE_TRICKS = (flipped, flipped_in_front, truncated, overwritten, spliced, noise, bomb)
NUM_TRICKS = len(ELEMENT_TRICKS) + len(BYTE_TRICKS)

# ---- samples -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A data set as it is sent, and what is said of it: transfer syntax, SOP class and instance."""

    content: bytes
    syntax: str
    sop_class_uid: bytes
    sop_instance_uid: bytes

    @property
    def part10(self) -> bytes:
        named = (self.sop_class_uid, self.sop_instance_uid)
        sop_class_uid, sop_instance_uid = (uid.decode("ascii", "replace")[:1000] for uid in named)
        head = preamble(sop_class_uid=sop_class_uid, sop_instance_uid=sop_instance_uid, transfer_syntax_uid=self.syntax)
        return head + self.content


def damaged(trick: int, draw: Draw, elements: Elements, syntax: str) -> Sample:
    """A trick by its number, played on a data set."""
    if trick < len(ELEMENT_TRICKS):
        elements = ELEMENT_TRICKS[trick](draw, elements)
        content = written(elements)
        if syntax == ExplicitVRLittleEndian and draw.random() < 0.1:
            syntax, content = DeflatedExplicitVRLittleEndian, deflated(content)
    else:
        play = BYTE_TRICKS[trick - len(ELEMENT_TRICKS)]
        content = play(draw, written(elements))
        if play is bomb:
            syntax = DeflatedExplicitVRLittleEndian
        elif draw.random() < 0.2:
            syntax = draw.choice(SYNTAXES)  # than that in which it is written
    named = {each.tag: each.value for each in reversed(elements)}
    return Sample(content, str(syntax), named.get(0x00080016, b""), named.get(0x00080018, b""))


def deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    squeezed = deflater.compress(content) + deflater.flush()
    return squeezed + bytes(len(squeezed) % 2)


def sample(number: int) -> Sample:
    """One instance, with a UID and a study of its own number."""
    draw = draw_for("sample", number)
    images, syntax = good(draw.choice(KINDS))
    uids = {0x00080018: b"2.25.%d" % (number + 10), 0x0020000D: b"1.2.1.%d" % (number % 7)}
    return damaged(number % NUM_TRICKS, draw, replaced(draw.choice(images), uids), syntax)


def honest(number: int, kind: str = "CT") -> Sample:
    """An instance that nothing is wrong with."""
    images, syntax = good(kind)
    elements = replaced(images[0], {0x00080018: b"1.3.%d" % number})
    return Sample(written(elements), syntax, CTImageStorage.encode(), b"1.3.%d" % number)


# ---- files -------------------------------------------------------------------------------------------------


def with_strange_meta(draw: Draw, part10: bytes) -> bytes:
    """The File Meta Information lies, or is in disorder."""
    end = 144 + int.from_bytes(part10[140:144], "little")
    meta, content = part10[144:end], part10[end:]
    again = written([Element(0x00020010, b"UI", draw.choice((DeflatedExplicitVRLittleEndian, "1.2.3")).encode())])
    meta = draw.choice((meta, meta + again, again + meta, meta[14:] + meta[:14], again, b"", flipped(draw, meta)))
    length = draw.choice((len(meta), len(meta), len(meta), len(meta) + 8, 0, *MAGIC))
    start = draw.choice((part10[:140], part10[:140], part10[:128] + b"DCIM" + part10[132:140], b""))
    return start + struct.pack("<L", length) + meta + content


def part10(number: int) -> bytes:
    """A Part 10 file: a hostile data set, hostile meta information, or both."""
    draw = draw_for("part10", number)
    made = sample(number) if number % 4 else honest(number)
    return made.part10 if number % 4 in (1, 2) else with_strange_meta(draw, made.part10)


def series_files(number: int) -> list[bytes]:
    """The files of a series of which one, some or all are damaged, all in the same way or each in its own."""
    draw = draw_for("series", number)
    trick = number % NUM_TRICKS
    kinds = ("RLE", "JPEG-LS", "JPEG 2000") if trick < NUM_TRICKS and _is_encapsulation(trick) else KINDS
    images, syntax = good(draw.choice(kinds))
    hit = set(draw.sample(range(len(images)), draw.choice((1, len(images), len(images))) if len(images) > 1 else 1))
    alike = draw.random() < 0.5
    files = []
    for k, elements in enumerate(images):
        chance = draw_for("slice", number * 100 + (0 if alike else k))
        made = (
            damaged(trick, chance, elements, syntax) if k in hit else Sample(written(elements), syntax, b"1.2", b"1.2")
        )
        files.append(made.part10)
    return files


def _is_encapsulation(trick: int) -> bool:
    return trick < len(ELEMENT_TRICKS) and ELEMENT_TRICKS[trick] is encapsulation
