"""Slices of prepared scans as PNG, through a window; and where the model looked, to lie over them.

What a person sees is the prepared scan, at its size: what the model saw, and no diagnostic image.
"""

import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from PIL import Image

from hlip_core.errors import DamagedScan
from hlip_core.overlay import HIGH, outlines
from hlip_core.preprocessing import WINDOWS
from hlip_core.volume import PreparedScan
from hlip_core.windows import display
from plugin import looks
from plugin.looks import Look
from plugin.spool import Spool

VIEWS = ("brain", "blood", "bone")
"""Windows for people, by name; their values are those of the model's windows."""

SCAN_BYTES = 128 << 20
PICTURE_BYTES = 48 << 20
TINT = (255, 176, 64)
"""Relevance is amber: it differs from grey for every kind of colour sight, and is not the red of an alarm."""

MAX_ALPHA = 150
Value = TypeVar("Value")


class NoImage(LookupError):
    """There is no such picture: never made, removed, or not within the scan."""


class Kept(Generic[Value]):
    """The values that were used last, up to a size; safe between threads.

    Args:
        size: of a value, in bytes.
    """

    def __init__(self, limit: int, size: Callable[[Value], int]) -> None:
        self._limit, self._size = limit, size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()
        self.bytes = 0

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value under `key`, made where it is not kept. What `make` raises is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self.bytes += self._size(value)
            while self.bytes > self._limit and self._values:
                self.bytes -= self._size(self._values.popitem(last=False)[1])
        return value


class Images:
    """The pictures of one spool. A file that was made anew has other pictures: its time is part of each key."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._scans: Kept[PreparedScan] = Kept(SCAN_BYTES, lambda scan: scan.voxels.nbytes)
        self._pictures: Kept[bytes] = Kept(PICTURE_BYTES, len)
        self._loading = threading.Lock()

    def scan(self, study_uid: str, series_uid: str) -> PreparedScan:
        """Both UIDs have passed `check_uid`. Raises NoImage where the series is not prepared, or no longer here."""
        key = self._key(study_uid, series_uid)
        with self._loading:  # a series is asked for by many requests at once, and is read once
            return self._scans.get(key, lambda: self._load(study_uid, series_uid))

    def slice_png(self, study_uid: str, series_uid: str, number: int, view: str) -> bytes:
        """Prepared slice `number` (from 0) through a window of VIEWS. Raises NoImage."""
        key = (*self._key(study_uid, series_uid), number, view)
        return self._pictures.get(key, lambda: self._slice(self.scan(study_uid, series_uid), number, view))

    def look_png(self, study_uid: str, series_uid: str, number: int, label: str, *, revision: int) -> bytes:
        """Relevance of a finding of a revision on that slice, transparent elsewhere. Raises NoImage."""
        scan = self.scan(study_uid, series_uid)
        look = self.looks(study_uid, series_uid, revision=revision).get(label)
        if look is None or not 0 <= number < len(scan.voxels):
            raise NoImage(label)
        key = (*self._key(study_uid, series_uid), number, label, revision)
        return self._pictures.get(key, lambda: _tinted(_on_slice(look, scan, number), scan))

    def looks(self, study_uid: str, series_uid: str, *, revision: int) -> dict[str, Look]:
        """Where the model looked in a series, by finding."""
        return looks.load(looks.looks_path(self._path(study_uid, series_uid)), revision=revision)

    def _path(self, study_uid: str, series_uid: str) -> Path:
        return self._spool.prepared / study_uid / f"{series_uid}.b2nd"

    def _key(self, study_uid: str, series_uid: str) -> tuple[str, str, int]:
        try:
            return study_uid, series_uid, self._path(study_uid, series_uid).stat().st_mtime_ns
        except OSError:
            raise NoImage("not prepared, or no longer here") from None

    def _load(self, study_uid: str, series_uid: str) -> PreparedScan:
        try:
            return PreparedScan.load(self._path(study_uid, series_uid))
        except (OSError, DamagedScan):
            raise NoImage("not prepared, or no longer here") from None

    @staticmethod
    def _slice(scan: PreparedScan, number: int, view: str) -> bytes:
        if view not in VIEWS or not 0 <= number < len(scan.voxels):
            raise NoImage(view)
        window = WINDOWS[view]
        grey = display(scan.voxels[number], center=window.center, width=window.width)
        return _png(Image.fromarray(grey), scan)


def _png(image: Image.Image, scan: PreparedScan) -> bytes:
    """Encoded with square pixels, whatever the scan's are."""
    down, across = scan.spacing[1:]
    if abs(down / across - 1) > 0.01:
        image = image.resize((image.width, round(image.height * down / across)), Image.Resampling.BILINEAR)
    content = io.BytesIO()
    image.save(content, "PNG", compress_level=4)
    return content.getvalue()


def _on_slice(look: Look, scan: PreparedScan, number: int) -> np.ndarray:
    """float32 [rows, columns]: relevance on a prepared slice; linear between cells, 0 where the crop took it off."""
    depth, rows, columns = scan.voxels.shape
    cells = look.relevance.shape[0]
    at = min(max((number + 0.5) * cells / depth - 0.5, 0), cells - 1)
    below = int(at)
    above = min(below + 1, cells - 1)
    plane = look.relevance[below] * (1 - (at - below)) + look.relevance[above] * (at - below)
    crop = min(look.crop, rows, columns)
    grown = Image.fromarray(plane.astype(np.float32)).resize((crop, crop), Image.Resampling.BILINEAR)
    whole = np.zeros((rows, columns), np.float32)
    top, left = (rows - crop) // 2, (columns - crop) // 2
    whole[top : top + crop, left : left + crop] = np.asarray(grown)
    return whole


def _tinted(relevance: np.ndarray, scan: PreparedScan) -> bytes:
    """Amber, the more the more relevant; what is above HIGH of the highest has an edge."""
    tint = np.zeros((*relevance.shape, 4), np.uint8)
    tint[..., :3] = TINT
    tint[..., 3] = np.clip((relevance - 0.15) / 0.85, 0, 1) * MAX_ALPHA
    for line in outlines(relevance >= HIGH):
        at = np.floor(line).astype(int).clip(0, np.array(relevance.shape) - 1)
        tint[at[:, 0], at[:, 1], 3] = 255
    return _png(Image.fromarray(tint, "RGBA"), scan)
