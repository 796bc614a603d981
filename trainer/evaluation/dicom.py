"""Studies that lie as DICOM files: grouped into series, mended where a set needs it, prepared as in serving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from pydicom.dataset import Dataset

from hlip_core.assessment import order_scans
from hlip_core.errors import Refused
from hlip_core.headers import lenient, text
from hlip_core.preprocessing import Preprocessing
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan, open_series, prepare

__all__ = ["prepare_files", "prepare_series"]

Mend = Callable[[Dataset], None]
"""Changes a dataset that a published set stores in a form that no scanner writes. It may raise Refused."""


def prepare_files(paths: Iterable[Path], spec: Preprocessing, *, mend: Mend | None = None) -> list[PreparedScan]:
    """The usable series of one study, in the order in which the encoder sees them.

    Files that are no DICOM are passed over. Raises Refused with the commonest reason when no series is usable.
    """
    series, unread = _group(sorted(paths), mend)
    scans, reasons = prepare_series(series, spec)
    if not scans:
        (reason, _), *_ = (reasons or unread or Counter([Reason.TOO_FEW_SLICES])).most_common()
        raise Refused(reason, "no usable series")
    return order_scans(scans)


def _group(paths: Iterable[Path], mend: Mend | None) -> tuple[list[list[Dataset]], Counter[Reason]]:
    """The datasets of each series, and why other files are in none."""
    series: dict[str, list[Dataset]] = {}
    refused: Counter[Reason] = Counter()
    with lenient():
        for path in paths:
            try:
                (dataset,) = open_series([path])
                if mend is not None:
                    mend(dataset)
            except Refused as refusal:
                refused[refusal.reason] += 1
            else:
                series.setdefault(text(dataset, "SeriesInstanceUID"), []).append(dataset)
    return list(series.values()), refused


def prepare_series(series: Iterable[list[Dataset]], spec: Preprocessing) -> tuple[list[PreparedScan], Counter[Reason]]:
    """The prepared scans of series, and why others have none."""
    scans: list[PreparedScan] = []
    reasons: Counter[Reason] = Counter()
    for datasets in series:
        try:
            scans.append(prepare(datasets, spec))
        except Refused as refusal:
            reasons[refusal.reason] += 1
    return scans, reasons
