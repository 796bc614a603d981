"""What of an analysis is kept, to be searched and scored again: the vectors, and what they are chosen by."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from hlip_core.headers import text
from hlip_core.scope import age_years
from plugin.index.embeddings import NewEmbedding
from plugin.results import StudyReport

if TYPE_CHECKING:
    from hlip_core.bundle import Bundle
    from hlip_core.volume import PreparedScan

__all__ = ["new_embeddings", "series_vectors"]


def series_vectors(
    report: StudyReport, scans: Mapping[str, "PreparedScan"], bundle: "Bundle", *, device: str
) -> dict[str, np.ndarray]:
    """[E] the vector of each analysed series by itself; the model runs once more for each, unless there is only one."""
    used = [fate.series_instance_uid for fate in report.series if fate.state == "prepared"]
    if report.assessment is not None and len(used) == 1:
        return {used[0]: report.assessment.embedding}
    return {uid: bundle.embed([scans[uid]], device=device) for uid in used}


def new_embeddings(
    report: StudyReport, bundle: "Bundle", of_series: Mapping[str, np.ndarray] | None = None
) -> list[NewEmbedding]:
    """Rows for the vector of a study, if it has one, and for those of its series."""
    if report.assessment is None:
        return []
    modalities = {fate.series_instance_uid: fate.modality for fate in report.series if fate.state == "prepared"}
    vectors = {"": report.assessment.embedding, **(of_series or {})}
    return [
        NewEmbedding(
            series_instance_uid=uid,
            bundle_digest=bundle.digest,
            encoder_digest=bundle.encoder_digest,
            preprocessing=bundle.preprocessing.name,
            modality=modalities.get(uid) or min(modalities.values()),
            station_name=_printable(text(report.source, "StationName")),
            patient_age=age_years(report.source),
            vector=np.ascontiguousarray(vector, dtype="<f4").tobytes(),
        )
        for uid, vector in vectors.items()
    ]


def _printable(value: str) -> str:
    """As `plugin.arrival.Arrival.text` has it: what any database and terminal takes."""
    return "".join(c if c.isprintable() else " " for c in value).strip()[:64]
