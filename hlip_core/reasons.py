"""Why a series is not analysed: one code each, with a sentence for the radiologist who reads it.

The codes stand in the index, the status page and the summary SR, and never change their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

__all__ = ["REASONS", "Kind", "Reason", "ReasonRow"]

Kind = Literal["out_of_scope", "defect"]


class Reason(StrEnum):
    """The code of a refusal; `sentence` and `kind` come from the table REASONS."""

    LOCALIZER = "localizer"
    DOSE_PAGE = "dose_page"
    SCREEN_SAVE = "screen_save"
    SECONDARY_CAPTURE = "secondary_capture"
    COLOUR = "colour"
    NON_HU = "non_hu"
    DERIVED_MAP = "derived_map"
    MOSAIC = "mosaic"
    OTHER_BODY_PART = "other_body_part"
    NOT_A_HEAD = "not_a_head"
    NOT_ROUTED = "not_routed"
    MODALITY = "modality"
    NON_IMAGE = "non_image"
    TOO_FEW_SLICES = "too_few_slices"
    GEOMETRY = "geometry"
    HEADER = "header"
    INCONSISTENT = "inconsistent"
    MISSING_PIXELS = "missing_pixels"
    UNDECODABLE = "undecodable"
    TOO_LARGE = "too_large"
    OVER_LIMIT = "over_limit"
    CRASHED = "crashed"
    REMOVED = "removed"

    @property
    def sentence(self) -> str:
        """One sentence that a radiologist can read."""
        return REASONS[self].sentence

    @property
    def kind(self) -> Kind:
        """Either "out_of_scope" (nothing is missing) or "defect" (the series should have been analysed)."""
        return REASONS[self].kind


@dataclass(frozen=True)
class ReasonRow:
    """One row of the table."""

    kind: Kind
    sentence: str


REASONS: dict[Reason, ReasonRow] = {
    # not meant for the model: a study with only these beside its scans is complete
    Reason.LOCALIZER: ReasonRow("out_of_scope", "The series is a localizer (scout, topogram)."),
    Reason.DOSE_PAGE: ReasonRow("out_of_scope", "The series is a dose report or protocol page."),
    Reason.SCREEN_SAVE: ReasonRow("out_of_scope", "The series holds saved screens."),
    Reason.SECONDARY_CAPTURE: ReasonRow("out_of_scope", "The series holds secondary captures, not scanner images."),
    Reason.COLOUR: ReasonRow("out_of_scope", "The images are in colour."),
    Reason.NON_HU: ReasonRow("out_of_scope", "The pixel values are not CT numbers (Hounsfield units)."),
    Reason.DERIVED_MAP: ReasonRow("out_of_scope", "The series is a computed map (perfusion, material, ...)."),
    Reason.MOSAIC: ReasonRow("out_of_scope", "The images are mosaics of many small slices."),
    Reason.OTHER_BODY_PART: ReasonRow("out_of_scope", "The images are of another body part."),
    Reason.NOT_A_HEAD: ReasonRow(
        "out_of_scope", "No known body part is named, and the images do not look like a head."
    ),
    Reason.NOT_ROUTED: ReasonRow("out_of_scope", "The routing rules of this site leave the series out."),
    Reason.MODALITY: ReasonRow("out_of_scope", "The images are of another modality than the model's."),
    Reason.NON_IMAGE: ReasonRow("out_of_scope", "The objects are not images."),
    # should have been analysed and was not: the study's result is partial
    Reason.TOO_FEW_SLICES: ReasonRow("defect", "The series has too few slices."),
    Reason.GEOMETRY: ReasonRow("defect", "The slices do not form one regular stack."),
    Reason.HEADER: ReasonRow("defect", "The headers are incomplete or contradict themselves."),
    Reason.INCONSISTENT: ReasonRow("defect", "The series mixes patients, studies or frames of reference."),
    Reason.MISSING_PIXELS: ReasonRow("defect", "Pixel data is missing."),
    Reason.UNDECODABLE: ReasonRow("defect", "The pixel data cannot be decoded."),
    Reason.TOO_LARGE: ReasonRow("defect", "The images are larger than the limit."),
    Reason.OVER_LIMIT: ReasonRow("defect", "The study has more scans than the limit; this one was left out."),
    Reason.CRASHED: ReasonRow("defect", "The analysis of the series failed repeatedly."),
    Reason.REMOVED: ReasonRow(
        "defect", "Images of the series are no longer kept here, so it could not be analysed again."
    ),
}
