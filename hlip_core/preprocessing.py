"""Preprocessing specifications: everything that turns a series into numbers, named and versioned.

Training and serving read the same row. Its name stands in every bundle, prepared scan and SR; its digest
tells two rows of one name apart. A change of a row, or of the code that obeys it, takes a new name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["PREPROCESSINGS", "WINDOWS", "Preprocessing", "Window"]

# float32 mean and standard deviation of the reference, written exactly
MEAN = float.fromhex("0x1.cbc6a8p-2")
STD = float.fromhex("0x1.ced916p-3")


@dataclass(frozen=True)
class Window:
    """Values `low`..`high` (HU, or stored MR values) become 0..1."""

    low: float
    high: float

    @property
    def center(self) -> float:
        """Window level."""
        return (self.low + self.high) / 2

    @property
    def width(self) -> float:
        """Window width."""
        return self.high - self.low


WINDOWS: dict[str, Window] = {
    "brain": Window(0, 80),  # W80 / L40
    "blood": Window(-20, 180),  # W200 / L80, the subdural window
    "tissue": Window(-10, 110),  # W120 / L50: brain, and blood well below calcification
    "bone": Window(-800, 2000),  # W2800 / L600
    "mr": Window(0, 32767),  # stored value after the percentile clip
    "chest": Window(-1150, 350),  # W1500 / L-400
}


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """One specification.

    The prepared scan has the shape [num_slices, size, size]; a model scan [num_slices, crop, crop].

    - `spacing` None: the whole extent of the series, whatever its spacing, is fitted to that shape: depth by
      nearest slice, rows and columns by square padding and bilinear resizing. `spacing` (depth, row, column)
      in mm: the series is resampled to it, then cropped or padded to that shape.
    - `air`: the value of padding, and the lowest value of a CT (HU). 0 for MR.
    - `percentiles`: MR intensities are clipped to these percentiles of the whole volume and scaled to 0..32767.
    - `depth`: "slice", the axis along the slice normal is the depth; "coarsest", the axis with the largest
      spacing is (the slice axis when they agree within 1 %).
    - `region`: the body part that the model knows, a key of `hlip_core.scope.REGIONS`.

    Raises ValueError for values that cannot be meant.
    """

    name: str
    modality: Literal["CT", "MR"]
    region: Literal["head", "chest"]
    num_slices: int
    size: int
    crop: int
    windows: tuple[str, ...]
    min_slices: int
    air: int
    spacing: tuple[float, float, float] | None = None
    percentiles: tuple[float, float] | None = None
    depth: Literal["slice", "coarsest"] = "slice"
    mean: float = MEAN
    std: float = STD

    def __post_init__(self) -> None:
        rules = {
            "name": bool(self.name),
            "modality": self.modality in ("CT", "MR"),
            "region": self.region in ("head", "chest"),
            "num_slices": 1 <= self.num_slices <= 1024,
            "size": 1 <= self.size <= 1024,
            "crop": 1 <= self.crop <= self.size,
            "windows": bool(self.windows) and all(window in WINDOWS for window in self.windows),
            "min_slices": self.min_slices >= 1,
            "air": -32768 <= self.air <= 32767,
            "spacing": self.spacing is None or (len(self.spacing) == 3 and min(self.spacing) > 0),
            "percentiles": (self.percentiles is not None) == (self.modality == "MR"),
            "depth": self.depth in ("slice", "coarsest"),
            "std": self.std > 0,
        }
        wrong = [field for field, holds in rules.items() if not holds]
        if wrong:
            raise ValueError(f"preprocessing {self.name!r}: {', '.join(wrong)} cannot be meant")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the row and of the limits of its windows."""
        limits = {window: [WINDOWS[window].low, WINDOWS[window].high] for window in self.windows}
        canonical = json.dumps({**self.to_dict(), "limits": limits}, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON-ready values; tuples become lists."""
        row = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in row.items()}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Raises ValueError for missing or unknown keys."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        needed = {name for name, field in known.items() if field.default is dataclasses.MISSING}
        if unknown := sorted(row.keys() - known.keys()):
            raise ValueError(f"preprocessing has unknown keys: {', '.join(unknown)}")
        if missing := sorted(needed - row.keys()):
            raise ValueError(f"preprocessing lacks keys: {', '.join(missing)}")
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in row.items()}
        return cls(**values)


HEAD_CT = Preprocessing(
    name="head-ct/1",
    modality="CT",
    region="head",
    num_slices=48,
    size=256,
    crop=224,
    windows=("brain", "blood", "bone"),
    min_slices=8,
    air=-1024,
)
HEAD_CT_SMALL = dataclasses.replace(
    HEAD_CT, name="head-ct-small/1", num_slices=24, size=64, crop=56, windows=("tissue",)
)
"""For small models, trained on a few thousand studies without a GPU: voxels of about 6 x 4 x 4 mm, one window."""
BRAIN_MRI = Preprocessing(
    name="brain-mri/1",
    modality="MR",
    region="head",
    num_slices=48,
    size=256,
    crop=224,
    windows=("mr",),
    min_slices=8,
    air=0,
    percentiles=(0.5, 99.5),
    depth="coarsest",
)
CHEST_CT = Preprocessing(
    name="chest-ct/1",
    modality="CT",
    region="chest",
    num_slices=112,
    size=336,
    crop=336,
    windows=("chest",),
    min_slices=16,
    air=-1150,
    spacing=(3.0, 1.0, 1.0),
)

PREPROCESSINGS: dict[str, Preprocessing] = {spec.name: spec for spec in (HEAD_CT, HEAD_CT_SMALL, BRAIN_MRI, CHEST_CT)}
