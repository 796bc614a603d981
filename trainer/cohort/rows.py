"""The end of the making: records become rows of studies.jsonl, refused.jsonl, and the facts of cohort.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.manifest import SPLITS, Split, StudyRow

from .headers import TABLE
from .pseudonyms import Pseudonyms
from .study import Record

__all__ = ["REFUSED", "facts_of", "rows_of", "split_of", "write_refused"]

REFUSED = "refused.jsonl"
METHOD = (
    "UIDs and patients are salted pseudonyms; series descriptions are dropped; names and identifying numbers are "
    "removed from reports, by what headers say and by rules; headers, if written, are de-identified by PS3.15 "
    f"Annex E (dicom-anonymizer, {TABLE}). Voxels are not altered: a face can be rendered from a head scan."
)


def split_of(fraction: float, *, validation: float, test: float) -> Split:
    """The split of a patient whose number in [0, 1) is `fraction`."""
    if fraction < test:
        return "test"
    return "validation" if fraction < test + validation else "train"


def rows_of(
    records: Iterable[Record], pseudonyms: Pseudonyms, *, validation: float, test: float, forced: Split | None
) -> list[StudyRow]:
    """The rows of the studies that have a scan: phantoms by their names, others by their pseudonyms."""
    rows = [
        StudyRow(
            study=record.study,
            patient=record.patient,
            split=forced or split_of(pseudonyms.fraction(record.patient), validation=validation, test=test),
            scans=tuple(scan.path for scan in record.scans),
            sentences=record.sentences,
            labels=dict(record.labels),
            conspicuity=dict(record.conspicuity),
            source=record.source,
        )
        for record in records
        if record.scans
    ]
    return sorted(rows, key=lambda row: (row.source, row.study))


def write_refused(out: Path, records: Iterable[Record]) -> None:
    """One JSON line for each series that is not in the cohort: study, series, reason, detail."""
    lines = sorted(json.dumps(asdict(series)) for record in records for series in record.refused)
    part = out / f".{REFUSED}.part"
    part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    part.replace(out / REFUSED)


def facts_of(records: Sequence[Record], rows: Sequence[StudyRow]) -> dict[str, Any]:
    """What can be counted: of studies, series and reports. No path and no address: they may name someone."""
    with_scans = [record for record in records if record.scans]
    return {
        "studies": {
            "found": len(records),
            "in_cohort": len(rows),
            "without_a_scan": len(records) - len(with_scans),
            **{name: sum(row.split == name for row in rows) for name in SPLITS},
        },
        "patients": len({row.patient for row in rows}),
        "scans": sum(len(row.scans) for row in rows),
        "refused_series": dict(Counter(one.reason for record in records for one in record.refused).most_common()),
        "reports": {
            **Counter(f"from_{record.report}" for record in with_scans if record.report),
            "studies_without": sum(not record.report for record in with_scans),
            "of_studies_without_a_scan": sum(bool(record.report) for record in records if not record.scans),
            "sentences": sum(len(row.sentences) for row in rows),
            "passages_removed": sum(record.removed for record in records),
        },
        "versions": {name: version(name) for name in ("hlip-pacs", "pydicom", "dicom-anonymizer")},
    }
