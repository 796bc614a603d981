"""Datasets whose pixel data stays in the file until a frame of it is asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, Literal

from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from hlip_core.errors import Refused
from hlip_core.headers import MALFORMED, is_deflated, lenient
from hlip_core.reasons import Reason

__all__ = ["BoundedFile", "open_series", "pixel_stream"]

DEFER = 4096  # bytes; longer values stay in the file
MOST_ELEMENTS = 100_000  # of one dataset, those in its sequences not counted; real ones have some hundreds


class BoundedFile(io.BufferedReader):
    """A file for reading that takes no more memory than it has bytes left, whatever length a header claims."""

    def __init__(self, path: str | os.PathLike[str], mode: Literal["rb"] = "rb") -> None:
        raw = io.FileIO(os.fspath(path), mode)
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to `size` bytes; all that are left for None or -1."""
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


class _Limit:
    """Counts elements while a dataset is read, since some megabytes may hold, or be inflated to, millions of them."""

    def __init__(self) -> None:
        self._left = MOST_ELEMENTS

    def __call__(self, tag: BaseTag, vr: str | None, length: int) -> bool:
        self._left -= 1
        if self._left < 0:
            raise ValueError("too many elements")
        return False


def open_series(paths: Sequence[str | os.PathLike[str]]) -> list[Dataset]:
    """The datasets of one series with their pixel data left in the files, to be read slice by slice.

    Raises Refused(undecodable) for a file that is not DICOM, FileNotFoundError or PermissionError for one that
    cannot be opened. The files must stay where they are until the series is prepared.
    """
    with lenient():
        return [_open(path, f"file {i} of {len(paths)}") for i, path in enumerate(paths, start=1)]


def _open(path: str | os.PathLike[str], which: str) -> Dataset:
    with BoundedFile(path) as file:
        try:
            dataset = read_partial(file, _Limit(), defer_size=DEFER)
            if is_deflated(dataset):
                file.seek(0)
                dataset = read_partial(file, _Limit())
        except MALFORMED as error:
            detail = f"{which} cannot be read as DICOM: {type(error).__name__}"
            raise Refused(Reason.UNDECODABLE, detail) from error
    dataset.fileobj_type = BoundedFile  # with which pydicom reads what was left in the file
    return dataset


@contextmanager
def pixel_stream(dataset: Dataset) -> Iterator[BinaryIO]:
    """A stream at the first byte of the pixel data's value, which is not loaded when it was left in the file."""
    element = dataset.get_item("PixelData", keep_deferred=True)
    if isinstance(element, RawDataElement) and element.value is None:
        with BoundedFile(str(dataset.filename)) as stream:
            stream.seek(element.value_tell)
            yield stream
    else:
        yield io.BytesIO(element.value)
