"""What hostile peers say: associations, messages, conversations, HTTP requests, each made from its number alone."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from pydicom.uid import CTImageStorage, ImplicitVRLittleEndian
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]

from associations import ABORT, P_DATA, RELEASE_RQ, associate_rq, command, pdu, pdv, store_rq
from hostile import (
    SYNTAXES,
    draw_for,
    flipped,
    honest,
    overwritten,
    part10,
    sample,
    spliced,
)
from hostile_elements import EVIL_UIDS, MAGIC, TEXTS, Draw
from web import BOUNDARY, TYPE

CONTEXTS = [(CTImageStorage, syntax) for syntax in SYNTAXES]
"""Presentation context 1 is the first of SYNTAXES, 3 the second, and so on."""
COMMITMENT = (StorageCommitmentPushModel, ImplicitVRLittleEndian)
ECHO = command(AffectedSOPClassUID=Verification, CommandField=0x0030, MessageID=7, CommandDataSetType=0x0101)
CANCEL = command(CommandField=0x0FFF, MessageIDBeingRespondedTo=1, CommandDataSetType=0x0101)
RELEASE, ABORTED = pdu(RELEASE_RQ, bytes(4)), pdu(ABORT, bytes(4))


def message(context_id: int, command_set: bytes, content: bytes | None = None) -> bytes:
    sent = pdu(P_DATA, pdv(context_id, command_set, command=True, last=True))
    if content is None:
        return sent
    pieces = [content[at : at + 60_000] for at in range(0, len(content), 60_000)] or [b""]
    return sent + b"".join(pdu(P_DATA, pdv(context_id, each, last=each is pieces[-1])) for each in pieces)


@cache
def store(number: int) -> bytes:
    """An honest C-STORE on context 1."""
    made = honest(number)
    return message(1, store_rq(CTImageStorage, made.sop_instance_uid.decode()), made.content)


@cache
def opening(*more: tuple[str, str], max_pdu_length: int = 16384) -> bytes:
    return associate_rq([*CONTEXTS, *more], max_pdu_length=max_pdu_length)


def segments(draw: Draw, stream: bytes) -> list[bytes]:
    """A stream cut anywhere, a few times or not."""
    cuts = sorted(draw.randrange(len(stream) + 1) for _ in range(draw.choice((0, 1, 3, 9))))
    return [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]


# ---- requests for an association ---------------------------------------------------------------------------


def item(kind: int, content: bytes, length: int | None = None) -> bytes:
    return struct.pack(">BxH", kind, (len(content) if length is None else length) & 0xFFFF) + content


def _uid(draw: Draw) -> bytes:
    return draw.choice(EVIL_UIDS) if draw.random() < 0.05 else draw.choice((CTImageStorage, *SYNTAXES[:3])).encode()


def _context(draw: Draw) -> bytes:
    syntaxes = b"".join(item(0x40, _uid(draw)) for _ in range(draw.choice((0, 1, 1, 3, 3, 3, 40))))
    named = CTImageStorage.encode() if draw.random() < 0.8 else _uid(draw)
    abstract = item(0x30, named) * draw.choice((1,) * 20 + (0, 2))
    head = bytes((draw.choice((1,) * 9 + (0, 2, 3, 5, 255)), 0, draw.choice((0, 0xFF)), 0))
    return item(0x20, (head + abstract + syntaxes)[:65000], draw.choice((None,) * 200 + MAGIC))


def _user_item(draw: Draw) -> bytes:
    kind = draw.choice((*range(0x51, 0x5A), *range(0x51, 0x5A), 0x00, 0xFF))
    content = draw.choice(
        (b"", b"\0\0\0\0", struct.pack(">L", draw.choice(MAGIC)), draw.randbytes(20), _uid(draw)[:999],
         struct.pack(">H", draw.choice(MAGIC) & 0xFFFF) + _uid(draw)[:64], b"\1\1\0\4user\0\4pass", b"\x02" + bytes(9))
    )  # fmt: skip
    return item(kind, content, draw.choice((None,) * 60 + MAGIC))


def _title(draw: Draw) -> bytes:
    odd = draw.choice((b"", b"\0" * 16, b"\\" * 16, b"\x1b[2J", *TEXTS))
    return draw.choice((b"RAW",) * 9 + (b"HLIP", b"../../escaped", b"<&\"'>]]>", odd))[:16].ljust(16)


def made_up_request(draw: Draw) -> bytes:
    """Items that are what they should be, or not, in any number and order."""
    length = item(0x51, struct.pack(">L", draw.choice((16384, *MAGIC))))
    user = item(0x50, (length + b"".join(_user_item(draw) for _ in range(draw.choice((0, 0, 0, 1, 3)))))[:65000])
    application = item(0x10, draw.choice((b"1.2.840.10008.3.1.1.1",) * 9 + (b"", _uid(draw))))
    items = [application, *(_context(draw) for _ in range(draw.choice((0, 1, 2, 20)))), user]
    if draw.random() < 0.1:
        draw.shuffle(items)
    version = draw.choice((b"\0\1",) * 9 + (b"\0\0", b"\xff\xff", b"\0\2"))
    return version + bytes(2) + _title(draw) + _title(draw) + bytes(32) + b"".join(items)


def many_contexts(draw: Draw) -> bytes:
    whole = opening()[6:]
    context = whole[whole.index(b"\x20\x00", 70) :][:80]
    return (whole[:91] + context * draw.choice((200, 6000)) + whole[91:])[: (1 << 19) - 10]


REQUESTS: tuple[Callable[[Draw], bytes], ...] = (
    lambda draw: flipped(draw, opening()[6:]),
    lambda draw: opening()[6:74] + flipped(draw, opening()[74:]),
    lambda draw: opening()[6:74] + overwritten(draw, opening()[74:]),
    lambda draw: spliced(draw, opening()[6:]),
    lambda draw: opening()[6:][: draw.randrange(len(opening()))],
    lambda draw: draw.randbytes(draw.choice((0, 1, 67, 68, 69, 5000))),
    many_contexts,
    *[made_up_request] * 6,
)


def request(number: int) -> list[bytes]:
    """A request for an association, and what an honest peer would say after it."""
    draw = draw_for("request", number)
    content = REQUESTS[number % len(REQUESTS)](draw)
    kind = draw.choice((1,) * 60 + (2, 3, 7, 0, 255))
    length = draw.choice((len(content),) * 60 + MAGIC)
    said = struct.pack(">BxL", kind, length) + content
    return segments(draw, said + store(number % 50) + message(1, ECHO) + RELEASE)


# ---- conversations -----------------------------------------------------------------------------------------


def _utterance(draw: Draw) -> bytes:
    """One PDU or message, right or wrong."""
    data, odd = store(draw.randrange(50)), draw.choice((1, 3, 5, 0, 2, 99, 255))
    control = draw.randrange(256)
    value = struct.pack(">LBB", draw.choice(MAGIC), odd, control) + draw.randbytes(draw.choice((0, 5, 200)))
    crumbs = b"".join(pdv(1, bytes((each,)), command=True) for each in ECHO[:-1])
    return draw.choice(
        (data, data, message(1, ECHO), message(odd, ECHO), message(1, CANCEL), RELEASE, ABORTED, opening(),
         pdu(P_DATA, b""), pdu(P_DATA, value), pdu(draw.randrange(256), draw.randbytes(9)),
         data[: draw.randrange(len(data))], pdu(P_DATA, crumbs + pdv(1, ECHO[-1:], command=True, last=True)),
         message(1, store_rq(CTImageStorage, "1.3.1")), pdu(P_DATA, pdv(1, b"", command=True)) * 9,
         struct.pack(">BxL", draw.choice((4, 5, 7)), draw.choice(MAGIC)), pdu(6, bytes(4)))
    )  # fmt: skip


def _talk(draw: Draw) -> bytes:
    return b"".join(_utterance(draw) for _ in range(draw.choice((1, 2, 5, 12))))


CONVERSATIONS: tuple[Callable[[Draw], bytes], ...] = (
    _talk,
    _talk,
    lambda draw: message(1, ECHO) + flipped(draw, store(draw.randrange(50))) + RELEASE,
    lambda draw: store(1)[:300] + overwritten(draw, store(2)) + RELEASE,
    lambda draw: spliced(draw, store(3) + message(1, ECHO) + store(4) + RELEASE),
    lambda draw: store(5)[: draw.randrange(len(store(5)))] + draw.choice((RELEASE, ABORTED, b"")),
    lambda draw: (message(1, ECHO) * 100 + store(6) * 3)[: draw.randrange(20_000)],
)


def conversation(number: int) -> list[bytes]:
    """A good association, and what should not follow on it."""
    draw = draw_for("conversation", number)
    opened = opening(max_pdu_length=draw.choice((16384, 16384, 0, 1, 7, 13, 0x7FFFFFFF)))
    return segments(draw, opened + CONVERSATIONS[number % len(CONVERSATIONS)](draw))


# ---- command sets ------------------------------------------------------------------------------------------

FIELDS = (
    0x0001,
    0x0010,
    0x0020,
    0x0021,
    0x0030,
    0x0100,
    0x0110,
    0x0120,
    0x0130,
    0x0140,
    0x0150,
    0x0FFF,
    0x8001,
    0,
    0xFFFF,
)


def command_set(draw: Draw, *, field: int = 1, uid: bytes = b"1.3.1", sop_class: str = CTImageStorage) -> bytes:
    """A command set with some lies in it."""
    elements: list[tuple[int, int, bytes]] = [
        (0, 0x0002, sop_class.encode() + b"\0"), (0, 0x0003, sop_class.encode() + b"\0"),
        (0, 0x0100, struct.pack("<H", field)), (0, 0x0110, b"\1\0"), (0, 0x0120, b"\1\0"), (0, 0x0700, b"\0\0"),
        (0, 0x0800, draw.choice((b"\0\0", b"\0\0", b"\1\1", b"\xff\xff"))), (0, 0x1000, uid), (0, 0x1001, uid),
        (0, 0x1008, b"\1\0"),
    ]  # fmt: skip
    for _ in range(draw.choice((0, 0, 1, 3))):
        at = draw.randrange(len(elements))
        group, number, value = elements[at]
        lie = draw.choice((b"", draw.randbytes(draw.choice((1, 2, 3, 64))), draw.choice(EVIL_UIDS), *TEXTS[:3]))
        elements[at] = draw.choice(
            ((group, number, lie), (draw.choice((0, 2, 8)), number, value), (0, draw.choice(MAGIC) & 0xFFFF, value))
        )
    elements += draw.sample(elements, draw.choice((0, 0, 0, 2, 5)))
    if draw.random() < 0.1:
        draw.shuffle(elements)
    body = b"".join(struct.pack("<HHL", group, number, len(value)) + value for group, number, value in elements)
    body = struct.pack("<HHLL", 0, 0, 4, draw.choice((len(body), len(body), *MAGIC))) + body
    return draw.choice(
        (body, body, body, body, overwritten(draw, body), flipped(draw, body), body[: draw.randrange(len(body))])
    )


def dimse(number: int) -> list[bytes]:
    """Command sets of every service, between an honest store and an honest echo."""
    draw = draw_for("dimse", number)
    field = FIELDS[number % len(FIELDS)] if number % 2 else 1
    made = honest(number)
    uid = draw.choice((made.sop_instance_uid, made.sop_instance_uid, draw.choice(EVIL_UIDS)))
    content = made.content if draw.random() < 0.8 else None
    said = message(1, command_set(draw, field=field, uid=uid), content)
    return segments(draw, opening() + said + message(1, ECHO) + RELEASE)


def stored(number: int) -> list[bytes]:
    """A hostile data set in a C-STORE whose request fits it."""
    draw = draw_for("stored", number)
    made = sample(number)
    context_id = 2 * SYNTAXES.index(made.syntax) + 1
    uid, sop_class = made.sop_instance_uid[:40_000], made.sop_class_uid[:20_000]
    elements = ((0x0002, sop_class), (0x0100, b"\1\0"), (0x0110, b"\1\0"), (0x0800, b"\0\0"), (0x1000, uid))
    request_set = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements)
    return segments(draw, opening() + message(context_id, request_set, made.content) + message(1, ECHO) + RELEASE)


def committed(number: int) -> list[bytes]:
    """On an association that asks for storage commitment too, so that the general DIMSE provider serves it."""
    draw = draw_for("committed", number)
    context_id = 2 * len(CONTEXTS) + 1
    action = command_set(draw, field=draw.choice((0x0130, 0x0130, *FIELDS)), uid=b"1.2.840.10008.1.20.1.1",
                         sop_class=StorageCommitmentPushModel)  # fmt: skip
    made = sample(number)
    said = draw.choice(
        (message(context_id, action, made.content), message(context_id, action, made.content), _talk(draw),
         message(1, command_set(draw, uid=made.sop_instance_uid[:999]), made.content), store(number % 50))
    )  # fmt: skip
    return [opening(COMMITMENT), *segments(draw, said + message(1, ECHO) + RELEASE)]


# ---- HTTP --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Post:
    """A POST to the store service. `study` is what follows in the path."""

    body: bytes
    content_type: str = TYPE
    study: str = ""


def part(content: bytes, head: bytes = b"Content-Type: application/dicom\r\n") -> bytes:
    return b"--" + BOUNDARY.encode() + b"\r\n" + head + b"\r\n" + content + b"\r\n"


LAST = b"--" + BOUNDARY.encode() + b"--\r\n"
HEADS = (
    b"", b"Content-Type: application/dicom\r\n", b"X: " + b"x" * 20_000 + b"\r\n", b": nameless\r\n",
    b"no colon\r\n", b"\0\r\n", b"Content-Type: multipart/related; boundary=inner\r\n", b"A:\r\n \r\n\t\r\n",
    b"Content-Length: 99999999999\r\n", b"Content-Location: ../../escaped\r\n", b"Content-Type: \xff\xfe\r\n",
    b"a: b\r\n" * 2000, b"Content-Transfer-Encoding: base64\r\n",
)  # fmt: skip
TYPES = (
    TYPE, TYPE, TYPE, TYPE, f"multipart/related; boundary={BOUNDARY}", "multipart/related; boundary=" + "b" * 71, "",
    f"multipart/related; boundary*{'9' * 5000}=x", f"multipart/related; boundary*={BOUNDARY}",
    'multipart/related; boundary="', "multipart/related; type*=zlib'x'%ff; boundary=x", ";" * 5000,
    "multipart/related; boundary=--", f"{TYPE}; {TYPE}", "multipart/mixed; boundary=x", "application/dicom",
    f"multipart/related; boundary=other; boundary={BOUNDARY}",
)  # fmt: skip
LINES = ("POST /dicom-web/studies HTTP/1.1",) * 4 + ("POST /../../etc HTTP/1.1", "PRI * HTTP/2.0", "GET / HTTP/9.9")
STUDIES = (
    "",
    "",
    "",
    "",
    "1.2.1",
    "..",
    "%2e%2e%2fescaped",
    "1.2%00",
    "9" * 65,
    "1.2.1/",
    "%ff",
    "1.2.1?x=../..",
    "//",
)


def _honest_body(draw: Draw) -> bytes:
    return b"".join(part(honest(900 + draw.randrange(50)).part10) for _ in range(draw.choice((1, 2, 4)))) + LAST


def _odd_body(draw: Draw) -> bytes:
    """Parts with strange headers, near-delimiters in their content, parts in parts."""
    near = (
        b"\r\n--" + BOUNDARY.encode()[:-1],
        b"\r\n" + LAST[:-2] + b"x",
        b"\r\n--",
        b"\r",
        b"\r\n\r\n",
        b"--" + BOUNDARY.encode(),
    )
    content = draw.choice(
        (honest(draw.randrange(50)).part10, b"", draw.randbytes(2000), part(b"x") + LAST, draw.choice(near) * 500)
    )
    parts = [
        part(draw.choice((content, part10(draw.randrange(1000)))), draw.choice(HEADS))
        for _ in range(draw.randint(1, 5))
    ]
    return (
        draw.choice((b"", b"preamble\r\n", draw.randbytes(99)))
        + b"".join(parts)
        + draw.choice((LAST, LAST, b"", LAST * 2))
    )


BODIES: tuple[Callable[[Draw], bytes], ...] = (
    lambda draw: flipped(draw, _honest_body(draw)),
    lambda draw: spliced(draw, _honest_body(draw)),
    lambda draw: (body := _honest_body(draw))[: draw.randrange(len(body))],
    lambda draw: overwritten(draw, _honest_body(draw)),
    _odd_body,
    _odd_body,
    lambda draw: draw.randbytes(draw.choice((0, 1, 5000))),
    lambda draw: (
        b"--"
        + BOUNDARY.encode()
        + b"\r\n\r\n"
        + (b"\r\n--" + BOUNDARY.encode() + b"\r\n\r\n") * draw.choice((3, 3000))
        + LAST
    ),
)


def post(number: int) -> Post:
    """A body that is no good multipart, under a type that may not be one."""
    draw = draw_for("post", number)
    return Post(BODIES[number % len(BODIES)](draw), draw.choice(TYPES), draw.choice(STUDIES))


def posted(number: int) -> Post:
    """A good multipart of hostile files."""
    return Post(b"".join(part(part10(4 * number + k)) for k in range(4)) + LAST)


def http(number: int) -> list[bytes]:
    """A request whose head is damaged or lies about its body."""
    draw = draw_for("http", number)
    body = _honest_body(draw)
    length = draw.choice(
        (str(len(body)), "0", "-1", "1e9", "99999999999999999999", "\u0663", "1, 1", str(len(body) * 2))
    )
    more = draw.choice(
        ("Transfer-Encoding: chunked", "Expect: 100-continue", "Content-Encoding: gzip", "X: " + "x" * 70_000, "X:\0",
         "Accept: application/dicom+xml;q=nan", "Authorization: Bearer \xff", "Host: evil.example", "Range: bytes=0-1")
    )  # fmt: skip
    rows = (
        draw.choice(LINES), "Host: 127.0.0.1", f"Content-Type: {draw.choice(TYPES)}", f"Content-Length: {length}", more,
    )  # fmt: skip
    head = "".join(f"{row}\r\n" for row in (*rows, "")).encode("latin-1", "replace")
    head = draw.choice((head, head, head, flipped(draw, head), spliced(draw, head), overwritten(draw, head)))
    return segments(draw, head + draw.choice((body, body, b"5\r\nhello\r\n0\r\n\r\n", b"ffffffffffffffffff\r\n", b"")))
