"""Where the model looked, kept beside the prepared scan for the page: a file a series, of the revision that stands.

It is a by-product: where it is missing or of another revision, the page shows the images without it.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plugin.spool import write_durably

if TYPE_CHECKING:
    from hlip_core.assessment import Assessment

SUFFIX = ".looks.npz"


@dataclass(frozen=True, eq=False)
class Look:
    """The most relevant place (indices of the prepared scan), and relevance [d, h, w] of what the model sees, 0..1.

    Its cells cover the middle `crop` rows and columns of every slice.
    """

    z: int
    y: int
    x: int
    crop: int
    relevance: np.ndarray


def looks_path(prepared: Path) -> Path:
    """Beside a prepared scan's file."""
    return prepared.with_suffix(SUFFIX)


def looks_of(assessment: "Assessment | None", *, crop: int) -> dict[str, dict[str, Look]]:
    """By SeriesInstanceUID, then by finding: the positive ones that have a place."""
    found: dict[str, dict[str, Look]] = {}
    for score in () if assessment is None else assessment.positive:
        at = score.location
        if at is not None and score.relevance is not None:
            highest = max(float(score.relevance.max()), 1e-12)
            relevance = (score.relevance / highest).clip(0, 1).astype(np.float16)
            found.setdefault(at.series_instance_uid, {})[score.finding.label] = Look(at.z, at.y, at.x, crop, relevance)
    return found


def save(path: Path, looks: Mapping[str, Look], *, revision: int) -> None:
    """Write the looks at one series, whole or not at all. Raises OSError."""
    places = {label: [look.z, look.y, look.x, look.crop] for label, look in looks.items()}
    about = np.frombuffer(json.dumps({"revision": revision, "places": places}).encode(), np.uint8)
    content = io.BytesIO()
    arrays: dict[str, Any] = {label: look.relevance for label, look in looks.items()}
    np.savez_compressed(content, about=about, **arrays)
    write_durably(path, content.getvalue())


def load(path: Path, *, revision: int) -> dict[str, Look]:
    """The looks at one series, by finding; empty where there are none of this revision."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes())
            if about["revision"] != revision:
                return {}
            return {
                label: Look(int(z), int(y), int(x), int(crop), stored[label].astype(np.float32))
                for label, (z, y, x, crop) in about["places"].items()
            }
    except (OSError, ValueError, LookupError, TypeError):
        return {}
