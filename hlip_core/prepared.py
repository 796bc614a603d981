"""The prepared scan: what one specification makes of one series, and the map back to the source.

It is all that later steps need, and a few MB: int16 voxels and one JSON document in a blosc2 file.
"""

from __future__ import annotations

import json
import os
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from hlip_core.errors import DamagedScan
from hlip_core.geometry import Axis

__all__ = ["PreparedScan", "SourceMap", "SourceVoxel"]

FORMAT = "hlip-prepared-scan/1"


@dataclass(frozen=True, slots=True)
class SourceVoxel:
    """A place in a source image.

    `row` and `column` are 0-based, fractional, and whole at pixel centres: the centre of the first pixel is
    (0.0, 0.0). An SCOORD (PS3.3 C.18.6) counts from the corner of that pixel: column + 0.5, row + 0.5.
    """

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None  # 1-based; None for a one-frame image
    row: float
    column: float


@dataclass(frozen=True)
class SourceMap:
    """From prepared indices to the stack of source slices.

    `depth_index[z]` is the index of prepared slice z on the ordered depth axis; `rows` and `columns` are
    (scale, offset) from a prepared index to one on the ordered axis; `axes` say which axis of the stack that
    is; `frames[k]` is (index into `instances`, frame number) of slice k of the stack.
    """

    instances: tuple[tuple[str, str], ...]
    frames: tuple[tuple[int, int | None], ...]
    axes: tuple[Axis, Axis, Axis]
    depth_index: tuple[int, ...]
    rows: tuple[float, float]
    columns: tuple[float, float]

    def source_of(self, z: float, y: float, x: float) -> SourceVoxel:
        """See `PreparedScan.source_of`."""
        nearest = self.depth_index[min(max(round(z), 0), len(self.depth_index) - 1)]
        ordered = (nearest, y * self.rows[0] + self.rows[1], x * self.columns[0] + self.columns[1])
        stack = [0.0, 0.0, 0.0]
        for axis, index in zip(self.axes, ordered, strict=True):
            stack[axis.source] = axis.to_stack(min(max(index, 0.0), axis.length - 1.0))
        instance, frame_number = self.frames[round(stack[0])]
        return SourceVoxel(*self.instances[instance], frame_number, stack[1], stack[2])

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "instances": self.instances,
            "frames": self.frames,
            "axes": [[axis.source, axis.flipped, axis.length, axis.spacing] for axis in self.axes],
            "depth_index": self.depth_index,
            "rows": self.rows,
            "columns": self.columns,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> SourceMap:
        """The inverse of `to_dict`."""
        depth, rows, columns = (Axis(*axis) for axis in value["axes"])
        return cls(
            instances=tuple((str(a), str(b)) for a, b in value["instances"]),
            frames=tuple((int(a), b) for a, b in value["frames"]),
            axes=(depth, rows, columns),
            depth_index=tuple(value["depth_index"]),
            rows=(value["rows"][0], value["rows"][1]),
            columns=(value["columns"][0], value["columns"][1]),
        )


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """One series after one specification.

    `voxels` int16 [D, H, W]: HU in a CT; 0..32767 between the two percentiles in an MR. `spacing` is (depth,
    row, column) in mm of these voxels. `orientation` names the row of `hlip_core.geometry.ORIENTATIONS` that
    says where the axes run. `notes` tell a reader what was found and done; `is_partial` says that slices are
    missing, or were left out, where the volume has no others.
    """

    voxels: np.ndarray
    study_instance_uid: str
    series_instance_uid: str
    frame_of_reference_uid: str
    modality: str
    preprocessing: str
    preprocessing_digest: str
    orientation: str
    spacing: tuple[float, float, float]
    source: SourceMap
    notes: tuple[str, ...]
    series_number: int | None
    series_description: str
    num_instances: int
    is_partial: bool = False  # files of earlier versions do not say

    @property
    def instances(self) -> tuple[tuple[str, str], ...]:
        """(SOPClassUID, SOPInstanceUID) of every instance of the stack, sampled or not, in the order of its slices."""
        return self.source.instances

    def source_of(self, z: float, y: float, x: float) -> SourceVoxel:
        """The source of a prepared voxel (indices before the model's crop; fractional ones lie between centres).

        Depth is taken from the nearest prepared slice. A voxel of the padding gives the nearest pixel of the image.
        """
        return self.source.source_of(z, y, x)

    def save(self, path: Path) -> None:
        """Write one blosc2 file, whole or not at all: a temporary name beside it, fsync, rename."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        voxels = np.ascontiguousarray(self.voxels, dtype=np.int16)
        cparams = blosc2.CParams(codec=blosc2.Codec.ZSTD, clevel=5, filters=[blosc2.Filter.SHUFFLE])
        stored = blosc2.asarray(voxels, cparams=cparams)
        stored.schunk.vlmeta["scan"] = json.dumps(self._metadata(voxels))
        try:
            with temporary.open("wb") as file:
                file.write(stored.to_cframe())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _fsync_folder(path.parent)

    def _metadata(self, voxels: np.ndarray) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("voxels", "source")}
        return {"format": FORMAT, "crc32": zlib.crc32(voxels.tobytes()), "source": self.source.to_dict(), **fields}

    @classmethod
    def load(cls, path: Path) -> PreparedScan:
        """Read what `save` wrote. Raises DamagedScan for a truncated, altered or foreign file, OSError for none."""
        frame = Path(path).read_bytes()
        try:
            stored = blosc2.ndarray_from_cframe(frame)
            metadata = json.loads(stored.schunk.vlmeta["scan"])
            voxels = stored[...]
            if metadata.pop("format") != FORMAT or metadata.pop("crc32") != zlib.crc32(voxels.tobytes()):
                raise DamagedScan("the file is altered, or of another version")
            for name in ("spacing", "notes"):
                metadata[name] = tuple(metadata[name])
            return cls(voxels=voxels, source=SourceMap.from_dict(metadata.pop("source")), **metadata)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise DamagedScan("the file is truncated, or not a prepared scan") from error


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
