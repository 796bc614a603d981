"""Parameters and inputs by formula, to compare models without carrying weights (numpy streams of PCG64).

A name gives the seed; the seed and the shape give standard normal numbers. Profile "plain" keeps everything small, so
that the epsilon of the layer norms shows; profile "sharp" makes attention peaked, so that the token layout shows.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

FIXTURES = Path(__file__).parent / "fixtures"
TABLES = ("spatial_posemb", "sequential_posemb")  # position tables keep what they were built with


def load_json(name: str) -> dict:
    return json.loads((FIXTURES / name).read_text())


def seed(name: str) -> int:
    return zlib.crc32(name.encode())


def normal(name: str, shape: Iterable[int]) -> np.ndarray:
    """Standard normal numbers, float64."""
    return _normal(name, tuple(shape))


@lru_cache(maxsize=512)
def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(seed(name))).standard_normal(shape)


def parameter(name: str, shape: Sequence[int], profile: str) -> np.ndarray:
    """The value of a parameter, float32."""
    *path, leaf = name.split(".")
    norm = bool(path) and "norm" in path[-1].lower()
    numbers = normal(name, shape)
    if profile == "plain":
        values = 0.02 * numbers + (1.0 if norm and leaf == "weight" else 0.0)
    elif norm:
        values = 0.1 * numbers + (1.0 if leaf == "weight" else 0.0)
    elif leaf == "weight" and len(shape) >= 2:
        gain = 2.0 if any(part in name for part in ("qkv", ".query.", ".key.")) else 1.0
        values = numbers * (gain / np.sqrt(float(np.prod(shape[1:]))))
    else:
        values = numbers * (0.1 if leaf == "bias" else 1.0)
    return values.astype(np.float32)


def filled(state: dict[str, torch.Tensor], profile: str) -> dict[str, torch.Tensor]:
    """A state dict of the same shapes with values by the formula; position tables stay."""
    return {
        name: value
        if name.rsplit(".", 1)[-1] in TABLES
        else torch.from_numpy(np.ascontiguousarray(parameter(name, value.shape, profile))).view(value.shape)
        for name, value in state.items()
    }


def image(name: str, shape: Sequence[int]) -> np.ndarray:
    """Studies [B, N, 1, D, H, W], float32: noise on a wave that differs in each study, scan and slice."""
    study, scan, _, z, y, x = np.ogrid[tuple(slice(size) for size in shape)]
    wave = np.sin(0.9 * study + 0.7 * scan + 0.11 * z + 0.05 * y - 0.03 * x + 0.3)
    return (0.5 * normal(name, shape) + wave).astype(np.float32)


def probe(stage: str, values: np.ndarray) -> float:
    """A checksum that sees the order of the values."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return float(flat @ normal(f"probe:{stage}", flat.shape) / np.sqrt(flat.size))
