"""A study on its way into the cohort: what a source found, and the record of what became of it. Plain values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .reasons import CohortReason

__all__ = ["FoundSeries", "FoundStudy", "Phantom", "Record", "RefusedSeries", "StoredScan", "Unavailable"]


class Unavailable(Exception):
    """An archive does not answer, or does not give what it lists."""


@dataclass(frozen=True, kw_only=True)
class FoundSeries:
    """One series of a source: its files, or nothing but its UID where an archive holds it."""

    series_instance_uid: str
    modality: str = ""
    series_number: int | None = None
    num_instances: int = 0
    files: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[bool, int, str]:
        """By SeriesNumber, unnumbered last: the order in which serving shows the scans to the encoder."""
        return self.series_number is None, self.series_number or 0, self.series_instance_uid


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """What is known of a synthetic study: its folder's name, sentences, labels and conspicuity."""

    source: str
    sentences: tuple[str, ...]
    labels: Mapping[str, bool]
    conspicuity: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FoundStudy:
    """One study of a source, before anything of it is read but a header; series: none yet where an archive holds it."""

    study_instance_uid: str
    patient_id: str
    accession_number: str = ""
    series: tuple[FoundSeries, ...] = ()
    num_instances: int = 0
    phantom: Phantom | None = None

    @property
    def content(self) -> str:
        """Differs when series or instances came or went."""
        if not self.series:
            return str(self.num_instances)
        return json.dumps(
            [[s.series_instance_uid, s.num_instances] for s in sorted(self.series, key=lambda s: s.order)]
        )


@dataclass(frozen=True, kw_only=True)
class StoredScan:
    """A prepared scan that was written: its path in the cohort's folder, and its size to tell a truncated one."""

    path: str
    size: int


@dataclass(frozen=True, kw_only=True)
class RefusedSeries:
    """A series that is not in the cohort. reason: of `hlip_core.reasons`, or of `trainer.cohort.reasons`."""

    study: str
    series: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What became of one study, de-identified. The study is done when its record and all its scans are there.

    report: where its report came from, empty for none; removed: identifying passages that were taken out of it;
    inputs: a token of everything the record was made from.
    """

    study: str
    patient: str
    inputs: str
    scans: tuple[StoredScan, ...] = ()
    refused: tuple[RefusedSeries, ...] = ()
    sentences: tuple[str, ...] = ()
    labels: Mapping[str, bool] = field(default_factory=dict)
    conspicuity: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    report: str = ""
    removed: int = 0

    def save(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        part = path.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, ensure_ascii=False)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Record | None:
        """A record that was saved; None where there is none, or a damaged one."""
        try:
            return cls._from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any]) -> Record:
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(
            **{
                **known,
                "sentences": tuple(values["sentences"]),
                "scans": tuple(StoredScan(**scan) for scan in values["scans"]),
                "refused": tuple(RefusedSeries(**series) for series in values["refused"]),
            }
        )

    @property
    def is_to_retry(self) -> bool:
        """Whether a series could not be read this time."""
        return any(series.reason == CohortReason.GONE for series in self.refused)

    def is_whole(self, folder: Path) -> bool:
        """Whether all scans lie in the cohort's folder with the size they were written with."""
        try:
            return all((folder / scan.path).stat().st_size == scan.size for scan in self.scans)
        except OSError:
            return False
