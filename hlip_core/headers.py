"""Reading elements that may be absent, empty, malformed or hostile: a value, or None, never an exception.

Nothing here logs or quotes a value, since a header may hold a name where a number belongs.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from pydicom import config
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

__all__ = [
    "MALFORMED",
    "first_item",
    "integer",
    "items",
    "lenient",
    "number",
    "numbers",
    "text",
    "transfer_syntax",
    "words",
]

MALFORMED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BytesLengthException,
    EOFError,
    InvalidDicomError,
    LookupError,
    NotImplementedError,
    OSError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What pydicom and the decoders raise on elements and pixel data that are not what they claim to be."""


@contextmanager
def lenient() -> Iterator[None]:
    """Within it pydicom neither warns nor raises when a value breaks the rules of its VR."""
    with config.disable_value_validation():
        yield


def _value(dataset: Dataset, keyword: str) -> object:
    try:
        return dataset.get(keyword)
    except MALFORMED:
        return None


def _values(dataset: Dataset, keyword: str) -> list[object]:
    value = _value(dataset, keyword)
    if value is None or isinstance(value, Sequence):
        return []
    return list(value) if isinstance(value, MultiValue | list | tuple) else [value]


def words(dataset: Dataset, keyword: str) -> tuple[str, ...]:
    """All values as upper-case text without outer blanks; () when absent."""
    return tuple(str(value).strip().strip("\0").upper() for value in _values(dataset, keyword))


def text(dataset: Dataset, keyword: str) -> str:
    """The first value as text without outer blanks; "" when absent or empty."""
    values = _values(dataset, keyword)
    return str(values[0]).strip().strip("\0") if values and values[0] is not None else ""


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...] | None:
    """All values as finite floats; None when absent, empty or any is not a finite number."""
    try:
        values = tuple(float(str(value)) for value in _values(dataset, keyword))
    except MALFORMED:
        return None
    return values if values and all(math.isfinite(value) for value in values) else None


def number(dataset: Dataset, keyword: str) -> float | None:
    """The only value as a finite float, or None."""
    values = numbers(dataset, keyword)
    return values[0] if values is not None and len(values) == 1 else None


def integer(dataset: Dataset, keyword: str) -> int | None:
    """The only value as an integer, or None."""
    value = number(dataset, keyword)
    return int(value) if value is not None and value == int(value) else None


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence; [] when absent or not a sequence."""
    value = _value(dataset, keyword)
    return list(value) if isinstance(value, Sequence) else []


def first_item(dataset: Dataset, keyword: str) -> Dataset:
    """The first item of a sequence; an empty dataset when there is none."""
    found = items(dataset, keyword)
    return found[0] if found else Dataset()


def transfer_syntax(dataset: Dataset) -> UID | None:
    """The transfer syntax of the file meta information, or None."""
    file_meta = getattr(dataset, "file_meta", None)
    uid = text(file_meta, "TransferSyntaxUID") if file_meta is not None else ""
    return UID(uid) if uid else None


def is_deflated(dataset: Dataset) -> bool:
    """Whether the file is one deflated stream, in which no element has a place of its own."""
    return transfer_syntax(dataset) == DeflatedExplicitVRLittleEndian
