"""Multipart bodies as a stream (RFC 2046 section 5.1): bytes in, in any pieces; parts out, in pieces.

What is held back between two pieces is at most a part's headers, or what may turn out to be a delimiter.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from enum import Enum, auto

MAX_HEADER_BYTES = 16384
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=? ]{0,69}[0-9A-Za-z'()+_,\-./:=?]")  # RFC 2046 section 5.1.1
_TAIL = re.compile(rb"(--)?[ \t]{0,64}(\r\n)?")
"""What follows the boundary on a delimiter line: the mark of the last one, padding, the line's end."""


class MultipartError(ValueError):
    """The body is no multipart, or is cut off."""


class End(Enum):
    PART = auto()


@dataclass(frozen=True)
class Headers:
    """The start of a part. Names are in lower case."""

    fields: dict[str, str]

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case; "" where there is none."""
        return self.fields.get("content-type", "").partition(";")[0].strip().lower()


Event = Headers | memoryview | End


def media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """A Content-Type header as the media type and its parameters; names in lower case.

    Raises:
        MultipartError: its parameters are numbered (RFC 2231 section 3) beyond all reason.
    """
    message = Message()
    message["content-type"] = content_type
    try:
        parameters = message.get_params(failobj=[])[1:]
    except ValueError:  # Python turns no number of thousands of digits into an integer
        raise MultipartError("the Content-Type is not one") from None
    return message.get_content_type(), {name.lower(): str(value) for name, value in parameters}


def check_boundary(boundary: str | None) -> bytes:
    """Raises MultipartError where it is missing or not one."""
    if boundary is None or not _BOUNDARY.fullmatch(boundary):
        raise MultipartError("the Content-Type has no valid boundary")
    return boundary.encode("ascii")


def _headers(block: bytes) -> Headers:
    fields = {}
    for line in re.sub(rb"\r\n[ \t]+", b" ", block).split(b"\r\n"):
        name, colon, value = line.partition(b":")
        if line and not (colon and name.strip()):
            raise MultipartError("a part's header is not one")
        fields[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
    fields.pop("", None)
    return Headers(fields)


class _State(Enum):
    PREAMBLE = auto()
    HEAD = auto()
    CONTENT = auto()
    EPILOGUE = auto()


class MultipartReader:
    """Takes a body piece by piece, and gives what is in it.

    A part comes as its `Headers`, its content as views on what was fed, and `End.PART`.
    """

    def __init__(self, boundary: bytes) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._rest = b"\r\n"  # so that a delimiter on the first line is one
        self._skip = 0
        self._state = _State.PREAMBLE

    def feed(self, piece: bytes) -> Iterator[Event]:
        """What the next piece of the body brings; to be exhausted before the next call. Raises MultipartError."""
        data, at = self._rest + piece if self._rest else piece, 0
        while self._state is not _State.EPILOGUE:
            if self._state is _State.HEAD:
                end = self._end_of_headers(data, at)
                if end < 0:
                    self._rest = data[at:]
                    return
                yield _headers(data[at + 2 : end])
                # the line break of the empty line may be the beginning of the next delimiter
                self._state, self._skip, at = _State.CONTENT, 2, end + 2
                continue
            found, after, is_last = self._find_delimiter(data, at)
            if self._state is _State.CONTENT:
                if found > at + self._skip:
                    yield memoryview(data)[at + self._skip : found]
                if found > at:
                    self._skip = 0
                if after >= 0:
                    yield End.PART
            if after < 0:
                self._rest = data[found:]
                return
            self._state, at = _State.EPILOGUE if is_last else _State.HEAD, after
        self._rest = b""

    def close(self) -> Iterator[Event]:
        """The body is over. Raises MultipartError where it is cut off."""
        yield from self.feed(b"\r\n")
        if self._state is not _State.EPILOGUE:
            raise MultipartError("the body ends before its last boundary")

    def _end_of_headers(self, data: bytes, at: int) -> int:
        """Where the empty line after a part's headers begins; -1 where it is still to come.

        `at` is the line break that ends the delimiter line: a part may have no headers at all.
        """
        end = data.find(b"\r\n\r\n", at)
        if (end if end >= 0 else len(data)) - at > MAX_HEADER_BYTES:
            raise MultipartError("a part's headers are too long")
        return end

    def _find_delimiter(self, data: bytes, at: int) -> tuple[int, int, bool]:
        """Where the content ends, where the delimiter line's own line break is, and whether it is the last delimiter.

        Without a whole delimiter the second is -1, and from the first on `data` may be the beginning of one.
        """
        start = at
        while (found := data.find(self._delimiter, start)) >= 0:
            tail = _TAIL.match(data, found + len(self._delimiter))
            assert tail is not None  # it matches nothing too
            if tail[2]:
                return found, tail.start(2), tail[1] is not None
            if data[tail.end() :] in (b"", b"-", b"\r"):
                return found, -1, False
            start = found + 2
        start = max(at, len(data) - len(self._delimiter) + 1)
        while (found := data.find(b"\r", start)) >= 0:
            if self._delimiter.startswith(data[found:]):
                return found, -1, False
            start = found + 1
        return len(data), -1, False
