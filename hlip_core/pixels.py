"""Decoding one frame, and only that frame, into values that mean something.

A frame is read from its place in the file, so a series of hundreds of slices costs what the sampled ones cost.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from hlip_core.errors import Refused
from hlip_core.frames import Frame
from hlip_core.headers import MALFORMED, integer, number, text, transfer_syntax
from hlip_core.reasons import Reason

__all__ = ["stored_values", "values"]

# The quickest plugin first, by measurement (CPU ms a 512 x 512 slice: JPEG lossless 8 gdcm, 13 pylibjpeg;
# JPEG-LS 5 pyjpegls, 9 gdcm, 18 pylibjpeg; RLE 0.8 pylibjpeg, 4 pydicom); the others where it fails.
PLUGINS: dict[str, tuple[str, ...]] = {
    uid.RLELossless: ("pylibjpeg", "pydicom"),
    uid.JPEGBaseline8Bit: ("pylibjpeg", "gdcm"),
    uid.JPEGExtended12Bit: ("pylibjpeg", "gdcm"),
    uid.JPEGLossless: ("gdcm", "pylibjpeg"),
    uid.JPEGLosslessSV1: ("gdcm", "pylibjpeg"),
    uid.JPEGLSLossless: ("pyjpegls", "gdcm", "pylibjpeg"),
    uid.JPEGLSNearLossless: ("pyjpegls", "gdcm", "pylibjpeg"),
    uid.JPEG2000Lossless: ("pylibjpeg", "gdcm"),
    uid.JPEG2000: ("pylibjpeg", "gdcm"),
}


TISSUE = -200  # HU; padding written as a value above it counts only where it reaches a corner of the image


def values(dataset: Dataset, frame: Frame, *, air: float, modality: str) -> np.ndarray:
    """The frame as float32 [rows, columns]: rescaled once; in a CT, padding and all below `air` become `air` (HU).

    MONOCHROME1 is turned round, so that more is brighter. Raises Refused(undecodable).
    """
    stored = stored_values(dataset, (frame.number or 1) - 1)
    out = stored.astype(np.float32)
    if frame.slope != 1:
        out *= np.float32(frame.slope)
    if frame.intercept:
        out += np.float32(frame.intercept)
    if modality != "CT" and text(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1":
        np.negative(out, out=out)
    padded = _padded(dataset, stored)
    if padded is not None and (out[padded].max(initial=air) < TISSUE or _has_corner(padded)):
        out[padded] = air
    return np.maximum(out, np.float32(air), out=out) if modality == "CT" else out


def stored_values(dataset: Dataset, index: int) -> np.ndarray:
    """The stored values of one frame (0-based) [rows, columns]. Raises Refused(undecodable)."""
    syntax = transfer_syntax(dataset)
    if syntax is None or not syntax.is_transfer_syntax:
        raise Refused(Reason.UNDECODABLE, "no transfer syntax")
    options = _options(dataset)
    with _pixel_stream(dataset) as stream:
        try:
            if syntax.is_encapsulated:
                start = stream.tell()
                _check_codestream(get_frame(stream, index, number_of_frames=options["number_of_frames"]), options)
                stream.seek(start)
            return _decode(get_decoder(syntax), stream, index, options)
        except MALFORMED as error:
            raise Refused(Reason.UNDECODABLE, f"{syntax.name}: {type(error).__name__}") from error


def _decode(decoder: Any, stream: BinaryIO, index: int, options: dict[str, Any]) -> np.ndarray:
    start = stream.tell()
    failure: Exception | None = None
    for plugin in PLUGINS.get(decoder.UID, ("",)):
        stream.seek(start)
        try:
            array, _ = decoder.as_array(stream, index=index, raw=True, decoding_plugin=plugin, **options)
        except (RuntimeError, *MALFORMED) as error:
            failure = error
        else:
            return np.asarray(array)
    raise ValueError("no plugin decodes the frame") from failure


class _BoundedFile(io.BufferedReader):
    """A file that takes no more memory for a read than it has bytes left, whatever length a header claims."""

    def __init__(self, raw: io.FileIO) -> None:
        super().__init__(raw)
        self.size = os.fstat(raw.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self.size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


@contextmanager
def _pixel_stream(dataset: Dataset) -> Iterator[BinaryIO]:
    """A stream at the first byte of the pixel data's value, without loading what was deferred."""
    element = dataset.get_item("PixelData", keep_deferred=True)
    if isinstance(element, RawDataElement) and element.value is None:
        with _BoundedFile(Path(str(dataset.filename)).open("rb", buffering=0)) as stream:
            stream.seek(element.value_tell)
            yield stream
    else:
        yield io.BytesIO(element.value)


def _options(dataset: Dataset) -> dict[str, Any]:
    element = dataset.get_item("PixelData", keep_deferred=True)
    return {
        "rows": integer(dataset, "Rows"),
        "columns": integer(dataset, "Columns"),
        "samples_per_pixel": 1,
        "photometric_interpretation": "MONOCHROME2",
        "number_of_frames": integer(dataset, "NumberOfFrames") or 1,
        "bits_allocated": integer(dataset, "BitsAllocated"),
        "bits_stored": integer(dataset, "BitsStored"),
        "pixel_representation": integer(dataset, "PixelRepresentation"),
        "pixel_keyword": "PixelData",
        "pixel_vr": element.VR or "OW",
    }


def _check_codestream(frame: bytes, options: dict[str, Any]) -> None:
    """Refuse a compressed image that claims another size than Rows x Columns, before memory is taken for it."""
    size = _codestream_size(frame)
    if size is not None and size != (options["rows"], options["columns"]):
        raise ValueError("the compressed image has another size than the header says")


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) by the SIZ marker of JPEG 2000 or the SOF marker of JPEG and JPEG-LS; None if there is none."""
    siz = frame.find(b"\xff\x4f\xff\x51", 0, 512)
    if siz >= 0:
        width, height, left, top = struct.unpack_from(">4I", frame, siz + 8)
        return height - top, width - left
    if frame[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(frame):
        marker, length = struct.unpack_from(">HH", frame, at)
        is_frame = 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC)
        if is_frame or marker == 0xFFF7:
            rows, columns = struct.unpack_from(">HH", frame, at + 5)
            return rows, columns
        at += 2 + length
    return None


def _padded(dataset: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """The pixels outside the scanner's field (PS3.3 C.7.5.1.1.2): their value is read with the sign of the pixels."""
    value = number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(dataset, "PixelPaddingRangeLimit")
    bits = integer(dataset, "BitsAllocated") or 16
    ends = [value, value if limit is None else limit]
    if integer(dataset, "PixelRepresentation") == 1:
        ends = [end - 2**bits if end >= 2 ** (bits - 1) else end for end in ends]
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))


def _has_corner(mask: np.ndarray) -> bool:
    return bool(mask[[0, 0, -1, -1], [0, -1, 0, -1]].any())
