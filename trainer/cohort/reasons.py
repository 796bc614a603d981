"""Why a series or study is not in a cohort, beside the reasons of `hlip_core.reasons`."""

from __future__ import annotations

from enum import StrEnum

from hlip_core.reasons import Reason

__all__ = ["CohortReason", "sentence"]


class CohortReason(StrEnum):
    """Reasons that only the making of a cohort knows."""

    BURNED_IN = "burned_in"
    GONE = "gone"


SENTENCES: dict[CohortReason, str] = {
    CohortReason.BURNED_IN: "The pixels may show who the patient is (BurnedInAnnotation is YES).",
    CohortReason.GONE: "The files or the archive could not be read; start again to retry.",
}


def sentence(code: str) -> str:
    """One sentence on a reason code of either table."""
    return SENTENCES[CohortReason(code)] if code in set(CohortReason) else Reason(code).sentence
