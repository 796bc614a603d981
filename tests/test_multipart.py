"""The multipart reader: the same parts as the standard library's parser finds, however the body is cut up."""

import email
import email.policy
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugin.web.multipart import (
    MAX_HEADER_BYTES,
    End,
    Headers,
    MultipartError,
    MultipartReader,
    check_boundary,
    media_type,
)

BOUNDARY = b"b=1"
PIECES = (b"\r\n", b"--", b"-", b" ", b"\t", BOUNDARY, b"b", b"\r\n--b", b"\r\n--" + BOUNDARY, b"DICM", b"\0", b"\xff")
"""What content is made of: it may come near a delimiter, and it may be one."""

contents = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join)
headers = st.sampled_from(
    [b"", b"Content-Type: application/dicom\r\n", b"Content-Type:\r\n text/plain;\r\n\tx=y\r\nA: b\r\n"]
)
paddings = st.sampled_from([b"", b" ", b"\t  "])


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bool]:
    """A body, and whether its parts' contents are free of delimiters."""
    body, is_clean = draw(st.sampled_from([b"", b"\r\n", b"a preamble\r\n", b"--b\r\n"])), True
    for head, content in draw(st.lists(st.tuples(headers, contents), min_size=1, max_size=4)):
        body += b"--" + BOUNDARY + draw(paddings) + b"\r\n" + head + b"\r\n" + content + b"\r\n"
        is_clean &= b"\r\n--" + BOUNDARY not in b"\r\n" + content + b"\r\n"
    end = draw(st.sampled_from([b"", b"\r\n", b"\r\nan epilogue", b"\r\n--" + BOUNDARY + b"\r\n\r\nno part\r\n"]))
    return body + b"--" + BOUNDARY + b"--" + draw(paddings) + end, is_clean


def read(body: bytes, cuts: list[int] | None = None, boundary: bytes = BOUNDARY) -> list[tuple[dict[str, str], bytes]]:
    """The parts of a body that is fed in pieces."""
    reader = MultipartReader(boundary)
    events = []
    for start, end in pairwise([0, *sorted(cuts or []), len(body)]):
        events += [bytes(e) if isinstance(e, memoryview) else e for e in reader.feed(body[start:end])]
    events += [bytes(e) if isinstance(e, memoryview) else e for e in reader.close()]
    parts: list[tuple[dict[str, str], bytes]] = []
    is_open = False
    for event in events:
        if isinstance(event, Headers):
            assert not is_open
            parts.append((event.fields, b""))
        elif isinstance(event, bytes):
            assert is_open and event
            parts[-1] = (parts[-1][0], parts[-1][1] + event)
        is_open = event is not End.PART
    assert not is_open
    return parts


def read_by_the_standard_library(body: bytes) -> list[tuple[dict[str, str], bytes]]:
    head = b'Content-Type: multipart/related; boundary="' + BOUNDARY + b'"\r\n\r\n'
    message = email.message_from_bytes(head + body, policy=email.policy.compat32)
    parts = message.get_payload()
    assert isinstance(parts, list)
    found = []
    for part in parts:
        fields = {name.lower(): " ".join(value.split()) for name, value in part.items()}
        found.append((fields, part.get_payload(decode=True)))
    return found


def squeezed(parts: list[tuple[dict[str, str], bytes]]) -> list[tuple[dict[str, str], bytes]]:
    return [({name: " ".join(value.split()) for name, value in fields.items()}, content) for fields, content in parts]


@given(bodies(), st.data())
def test_parts_are_those_of_the_standard_library(made: tuple[bytes, bool], data: st.DataObject) -> None:
    body, is_clean = made
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=8))
    try:
        parts = squeezed(read(body, cuts))
    except MultipartError:  # headers that are none, after a delimiter in the content: the library lets them pass
        assert not is_clean
        return
    assert parts == read_by_the_standard_library(body)


@given(bodies(), st.data())
def test_a_body_that_is_cut_off_is_never_whole(made: tuple[bytes, bool], data: st.DataObject) -> None:
    body, is_clean = made
    last = body.rindex(b"--" + BOUNDARY + b"--")
    if is_clean and body.count(b"--" + BOUNDARY + b"--") == 1:
        with pytest.raises(MultipartError):
            read(body[: data.draw(st.integers(0, last + len(BOUNDARY) + 3))])


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_are_a_multipart_or_an_error(body: bytes, size: int) -> None:
    try:
        read(body, list(range(size, len(body), size)), boundary=b"-")
    except MultipartError:
        return


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_small_pieces_give_the_same_parts(size: int) -> None:
    body = b"--b=1\r\nA: 1\r\n\r\n\r\n--b=\r\n--b=11\r\n\r\n--b=1 \r\n\r\n\r\n--b=1--"
    cuts = list(range(size, len(body), size))
    assert read(body, cuts) == [({"a": "1"}, b"\r\n--b=\r\n--b=11\r\n"), ({}, b"")]


def test_a_part_may_end_with_its_headers() -> None:
    assert read(b"--b=1\r\nA: 1\r\n\r\n--b=1\r\n\r\nx\r\n--b=1--") == [({"a": "1"}, b""), ({}, b"x")]


def test_giant_headers_are_refused_before_they_end() -> None:
    reader = MultipartReader(BOUNDARY)
    with pytest.raises(MultipartError, match="too long"):
        for piece in (b"--b=1\r\nA: ", *[b"x" * 1000] * 20):
            list(reader.feed(piece))
    assert len(reader._rest) <= MAX_HEADER_BYTES + 10


def test_what_is_held_back_is_small() -> None:
    reader = MultipartReader(BOUNDARY)
    for piece in (b"--b=1\r\n\r\n", *[b"\r\n--b=1" + b" " * 70 + b"x" * 50_000] * 4):
        list(reader.feed(piece))
        assert len(reader._rest) < 200


@pytest.mark.parametrize("head", [b"no colon\r\n", b": nameless\r\n", b"--b=1\r\n"])
def test_headers_that_are_none_are_an_error(head: bytes) -> None:
    with pytest.raises(MultipartError):
        read(b"--b=1\r\n" + head + b"\r\nx\r\n--b=1--\r\n")


def test_the_content_type_is_read_as_clients_write_it() -> None:
    assert media_type('Multipart/Related; type="application/dicom"; boundary="a b"') == (
        "multipart/related", {"type": "application/dicom", "boundary": "a b"},
    )  # fmt: skip
    assert media_type("multipart/related;boundary=x;TYPE=application/dicom")[1]["type"] == "application/dicom"
    assert media_type("rubbish")[0] == "text/plain"


@pytest.mark.parametrize("boundary", [None, "", " ", "x ", "a\r\nb", "ä", "x" * 71, 'a"b'])
def test_a_boundary_that_is_none_is_refused(boundary: str | None) -> None:
    with pytest.raises(MultipartError):
        check_boundary(boundary)
