"""The walk through a header: it finds what pydicom finds, or says that it cannot tell."""

import io
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_files
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPIPHTJ2KReferencedDeflate,
)

from hlip_core.headers import MALFORMED, lenient, text
from plugin import elements
from plugin.arrival import KEYWORDS, find_identity, read_arrival
from plugin.elements import ENCODINGS, INFLATED_WINDOW, MOST_HEADERS, MOST_LAYOUTS, Encoding, Found, Header, find, uid
from plugin.spool import UnsafeUid, dataset_digest

TAGS = frozenset(int(Tag(keyword)) for keyword in KEYWORDS)
CHARACTER_SET = 0x00080005
PLAIN = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]


def dataset(**elements: object) -> Dataset:
    made = Dataset()
    made.SpecificCharacterSet = "ISO_IR 100"
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.1", "1.2.2"
    made.PatientName, made.StudyDescription, made.SeriesNumber = "Müller^Jörg", "Schädel", 3
    for keyword, value in elements.items():
        setattr(made, keyword, value)
    if "PixelData" in made:
        made["PixelData"].VR = "OW"
    return made


def written(content: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    target = DicomBytesIO()
    target.is_implicit_VR, target.is_little_endian = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    write_dataset(target, content)
    return target.getvalue()


def nested(depth: int, *, undefined_length: bool) -> Dataset:
    content = dataset()
    at = content
    for _ in range(depth):
        item = Dataset()
        item.ReferencedSOPInstanceUID = "1.2.9"
        item.is_undefined_length_sequence_item = undefined_length
        at.ReferencedImageSequence = Sequence([item])
        at["ReferencedImageSequence"].is_undefined_length = undefined_length
        at = item
    return content


def texts(content: Dataset) -> dict[str, str]:
    return {keyword: text(content, keyword) for keyword in KEYWORDS}


@pytest.mark.parametrize("syntax", PLAIN)
@pytest.mark.parametrize("undefined_length", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_what_is_found_is_what_was_written(syntax: str, undefined_length: bool, depth: int) -> None:
    made = nested(depth, undefined_length=undefined_length)
    found = find(written(made, syntax), ENCODINGS[syntax], TAGS, whole=True)
    assert found is not None
    assert texts(Header(found, ENCODINGS[syntax]).dataset) == texts(made)
    assert uid(found, 0x0020000D) == "1.2.1" and uid(found, 0x00200052) == ""


def test_it_need_not_see_the_end() -> None:
    content = written(dataset(PixelData=bytes(1000)))
    end = content.index(b"\xe0\x7f\x10\x00")
    assert find(content[: end + 12], Encoding(), TAGS, whole=False) is not None
    assert find(content[: end - 20], Encoding(), TAGS, whole=False) is None


def test_the_end_of_a_whole_data_set_is_an_end() -> None:
    content = written(dataset())
    assert find(content, Encoding(), TAGS, whole=True) is not None
    assert find(content, Encoding(), TAGS, whole=False) is None
    assert find(content[:-1], Encoding(), TAGS, whole=True) is None


def test_disorder_and_unknown_ways_to_write_are_left_to_the_full_parser() -> None:
    content = written(dataset())
    again = content + written(dataset())
    assert find(again, Encoding(), frozenset({0x00280010}), whole=True) is None
    assert find(content.replace(b"UI", b"??"), Encoding(), TAGS, whole=True) is None
    assert find(written(nested(40, undefined_length=True)), Encoding(), TAGS, whole=True) is None
    assert find_identity(content, JPIPHTJ2KReferencedDeflate, whole=True) is None


def test_a_deflated_header_is_inflated_no_further_than_needed() -> None:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    content = deflater.compress(written(dataset(PixelData=bytes(50 * INFLATED_WINDOW)))) + deflater.flush()
    found = find_identity(content[:30_000], DeflatedExplicitVRLittleEndian, whole=False)
    assert found is not None and found.series_instance_uid == "1.2.2"
    assert find_identity(b"not deflated", DeflatedExplicitVRLittleEndian, whole=True) is None


def test_an_identity_is_of_safe_uids_only() -> None:
    with pytest.raises(UnsafeUid):
        find_identity(written(dataset()).replace(b"1.2.1", b"../.."), ExplicitVRLittleEndian, whole=True)


def walked(content: bytes, syntax: str) -> Found | None:
    """What is found by one who saw nothing before."""
    elements._layouts.clear()
    return find(content, ENCODINGS[syntax], TAGS, whole=False)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_was_seen_before_changes_nothing_of_what_is_found(data: st.DataObject) -> None:
    syntax = data.draw(st.sampled_from(PLAIN))
    made = nested(data.draw(st.integers(0, 3)), undefined_length=data.draw(st.booleans()))
    made.Rows = made.Columns = 1
    seen = written(made, syntax)
    content = bytearray(seen)
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(len(content) - 20, len(content))) :]
    expected = walked(bytes(content), syntax)
    assert walked(seen, syntax) is not None and len(elements._layouts) == 1
    assert find(bytes(content), ENCODINGS[syntax], TAGS, whole=False) == expected


def test_slices_of_a_series_are_walked_through_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = [dataset(SOPInstanceUID=f"1.2.3.{number}", Rows=1) for number in range(10, 30)]
    assert walked(written(slices[0]), ExplicitVRLittleEndian) is not None
    monkeypatch.setattr(elements, "_found_by", None)
    for each in slices:
        found = find(written(each), Encoding(), TAGS, whole=False)
        assert found is not None and uid(found, 0x00080018) == each.SOPInstanceUID


def test_few_layouts_are_kept_and_none_that_is_huge() -> None:
    elements._layouts.clear()
    for length in range(2, 3 * MOST_LAYOUTS):
        assert find(written(dataset(StudyDescription="x" * 2 * length, Rows=1)), Encoding(), TAGS, whole=False)
    assert [len(kept) for kept in elements._layouts.values()] == [MOST_LAYOUTS]
    huge = dataset(Rows=1, ReferencedImageSequence=Sequence([Dataset() for _ in range(MOST_HEADERS)]))
    for item in huge.ReferencedImageSequence:
        item.ReferencedSOPInstanceUID = "1.2.9"
    huge["ReferencedImageSequence"].is_undefined_length = True
    assert walked(written(huge), ExplicitVRLittleEndian) is not None and not elements._layouts


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_header_gives_nothing_that_pydicom_would_not_give(data: st.DataObject) -> None:
    content = bytearray(written(nested(1, undefined_length=data.draw(st.booleans()))))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = find(bytes(content), Encoding(), TAGS, whole=True)
    if found is None:
        return
    with lenient():
        try:
            whole = dcmread(io.BytesIO(_part10(bytes(content))), stop_before_pixels=True, specific_tags=list(KEYWORDS))
        except MALFORMED:
            return
        for tag, element in found.items():
            assert tag in whole and _raw(whole, tag) == _unpadded(tag, element.value)


def _raw(content: Dataset, tag: int) -> object:
    element = content.get_item(tag)
    if tag == CHARACTER_SET:  # decoded by pydicom at once
        value = element.value
        value = value if isinstance(value, bytes | str) else "\\".join(value)
        return _unpadded(tag, value if isinstance(value, bytes) else value.encode("latin-1"))
    return element.value


def _unpadded(tag: int, value: bytes | None) -> bytes | None:
    """Of the one that is decoded, without what decoding leaves off."""
    return value.rstrip(b" \0") if tag == CHARACTER_SET and value is not None else value


def _part10(content: bytes) -> bytes:
    meta = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    return bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00" + len(meta).to_bytes(4, "little") + meta + content


@pytest.mark.filterwarnings("ignore")
def test_real_files_are_read_as_pydicom_reads_them(shared: Path) -> None:
    paths = [Path(name) for name in get_testdata_files("*.dcm")]
    paths += [path for path in (shared / "data").rglob("*") if path.is_file() and path.stat().st_size < 2_000_000]
    read = 0
    with lenient():
        for path in paths:
            try:
                whole = dcmread(path, stop_before_pixels=True, specific_tags=list(KEYWORDS))
                arrival = read_arrival(path)
            except MALFORMED:
                continue
            assert texts(arrival.header) == texts(whole), path
            assert arrival.digest == dataset_digest(path) and arrival.size == path.stat().st_size
            read += 1
    assert read > 100
