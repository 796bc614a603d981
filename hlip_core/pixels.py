"""Decoding one frame, and only that frame, into values that mean something.

A frame is read from its place in the file, so a series of hundreds of slices costs what the sampled ones cost.
"""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import get_decoder

from hlip_core.errors import Refused
from hlip_core.files import pixel_stream
from hlip_core.frames import Frame
from hlip_core.headers import MALFORMED, integer, number, text, transfer_syntax
from hlip_core.reasons import Reason

__all__ = ["stored_values", "values"]

# Which plugin decodes, the quickest of those that can be trusted with a malformed stream (CPU ms a 512 x 512
# slice: RLE 0.8 pylibjpeg, 4 pydicom; JPEG-LS 5 pyjpegls, 18 pylibjpeg; JPEG lossless 13 pylibjpeg). Never gdcm:
# it aborts the process. Never pylibjpeg for JPEG-LS: it gives a picture for a stream that is broken.
PLUGINS: dict[str, tuple[str, ...]] = {
    uid.RLELossless: ("pylibjpeg", "pydicom"),
    uid.JPEGBaseline8Bit: ("pylibjpeg",),
    uid.JPEGExtended12Bit: ("pylibjpeg",),
    uid.JPEGLossless: ("pylibjpeg",),
    uid.JPEGLosslessSV1: ("pylibjpeg",),
    uid.JPEGLSLossless: ("pyjpegls",),
    uid.JPEGLSNearLossless: ("pyjpegls",),
    uid.JPEG2000Lossless: ("pylibjpeg",),
    uid.JPEG2000: ("pylibjpeg",),
}
TISSUE = -200  # HU; padding written as a value above it counts only where it reaches a corner of the image


def values(dataset: Dataset, frame: Frame, *, air: float, modality: str) -> np.ndarray:
    """The frame as float32 [rows, columns]: rescaled once; in a CT, padding and all below `air` become `air` (HU).

    In an MR, MONOCHROME1 is turned round, so that more is brighter, and padding is as dark as the darkest pixel, and
    not above `air`. Raises Refused(undecodable).
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
        out[padded] = air if modality == "CT" else out.min(where=~padded, initial=air)
    return np.maximum(out, np.float32(air), out=out) if modality == "CT" else out


def stored_values(dataset: Dataset, index: int) -> np.ndarray:
    """The stored values of one frame (0-based) [rows, columns]. Raises Refused(undecodable)."""
    syntax = transfer_syntax(dataset)
    if syntax is None or not syntax.is_transfer_syntax:
        raise Refused(Reason.UNDECODABLE, "no transfer syntax")
    options = _options(dataset)
    with pixel_stream(dataset) as stream:
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
    failure: BaseException | None = None
    for plugin in PLUGINS.get(decoder.UID, ("",)):
        stream.seek(start)
        try:
            array, _ = decoder.as_array(stream, index=index, raw=True, decoding_plugin=plugin, **options)
            return np.asarray(array)
        except (RuntimeError, *MALFORMED) as error:
            failure = error
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # how the decoders written in Rust give up
                raise
            failure = error
    raise ValueError("no plugin decodes the frame") from failure


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
    """Refuse what a decoder would not: a size other than Rows x Columns, before memory is taken for it, and a
    JPEG or JPEG-LS stream without its end, of which some make a picture.
    """
    size = _codestream_size(frame)
    if size is not None and size != (options["rows"], options["columns"]):
        raise ValueError("the compressed image has another size than the header says")
    if frame[:2] == b"\xff\xd8" and b"\xff\xd9" not in frame[-64:]:
        raise ValueError("the compressed image is truncated")


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
