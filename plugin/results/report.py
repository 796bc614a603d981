"""What is to be said about one study: the only input of every result object.

A `StudyReport` is a plain value. The builders read nothing else (no clock, no settings, no file), so one
report always gives the same bytes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from pydicom import Dataset

if TYPE_CHECKING:
    from hlip_core.assessment import Assessment, FindingScore
    from hlip_core.reasons import Reason

Instance = tuple[str, str]
"""(SOPClassUID, SOPInstanceUID)"""

Predecessor = tuple[str, str, str]
"""(SOPClassUID, SOPInstanceUID, SeriesInstanceUID)"""


class PreprocessingCard(Protocol):
    """The versioned specification that made the prepared scans."""

    @property
    def name(self) -> str: ...
    @property
    def modality(self) -> str: ...
    @property
    def region(self) -> Literal["head", "chest"]: ...
    @property
    def digest(self) -> str: ...


class ModelCard(Protocol):
    """The part of a model bundle that its results must name."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def weights_digest(self) -> str: ...
    @property
    def prompts_digest(self) -> str: ...
    @property
    def calibration_digest(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def preprocessing(self) -> PreprocessingCard: ...


@dataclass(frozen=True, kw_only=True)
class SeriesFate:
    """What became of one series: prepared and analysed, or refused with a reason.

    `instances` holds what went into the analysis; it is empty for a refused series. Of a series `is_partial` slices
    are missing, or were left out, and no others show what they would.
    """

    series_instance_uid: str
    series_number: int | None
    modality: str
    series_description: str
    num_instances: int
    state: Literal["prepared", "refused"]
    reason: "Reason | None" = None
    detail: str = ""
    instances: tuple[Instance, ...] = ()
    notes: tuple[str, ...] = ()
    is_partial: bool = False

    def __post_init__(self) -> None:
        if (self.state == "refused") != (self.reason is not None):
            raise ValueError("a refused series has a reason, a prepared one has none")


@dataclass(frozen=True, kw_only=True, eq=False)
class KeySlice:
    """The source slice on which the model looked for a finding, as a person is to see it.

    `grey` is uint8 [rows, columns], windowed. Each contour is [points, 2]: (row, column), 0-based and whole at
    pixel centres, as in `SourceVoxel`. `lossy` holds what the source says of lossy compression (PS3.3 C.7.6.1).
    `orientation` (along a row, then down a column; LPS) and `spacing` (between rows, columns; mm) are None where they
    are not known.
    """

    label: str
    grey: np.ndarray = field(repr=False)
    orientation: tuple[float, float, float, float, float, float] | None = None
    spacing: tuple[float, float] | None = None
    contours: tuple[np.ndarray, ...] = field(default=(), repr=False)
    lossy: Dataset = field(default_factory=Dataset, repr=False)

    def __post_init__(self) -> None:
        if self.grey.ndim != 2 or self.grey.dtype != np.uint8:
            raise ValueError("a key slice is uint8 [rows, columns]")


@dataclass(frozen=True, kw_only=True)
class SourceFrame:
    """One source slice and where it lies (LPS, mm; PS3.3 C.7.6.2). `orientation`: along a row, then down a column."""

    sop_class_uid: str
    sop_instance_uid: str
    frame_number: int | None
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    thickness: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RelevanceMap:
    """Where the model looked for a finding, on slices of the series in which it is located.

    `values` float32 [frames, rows, columns], 0..1, on the pixels of `frames`.
    """

    label: str
    frame_of_reference_uid: str
    frames: tuple[SourceFrame, ...] = field(repr=False)
    values: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or len(self.values) != len(self.frames):
            raise ValueError("a relevance map has a plane for each frame")

    @property
    def is_upright(self) -> bool:
        """Whether the frames are stacked along their normal in equal steps: no tilted gantry, no varying gap."""
        across, down = np.array(self.frames[0].orientation).reshape(2, 3)
        positions = np.array([frame.position for frame in self.frames])
        steps = np.diff(positions, axis=0)
        along = np.outer(steps @ np.cross(across, down), np.cross(across, down))
        level = all(frame.orientation == self.frames[0].orientation for frame in self.frames)
        return level and bool(np.allclose(steps, along, atol=0.05) and np.allclose(steps, steps[:1], atol=0.05))


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """Everything that the result objects of one revision of one study say.

    Attributes
    ----------
    source
        Header of one image of the study: its patient and study modules and character set are copied.
    assessment
        None when nothing could be analysed.
    content_digest
        Hex digest of the study's content: with the model's digests and `revision` it gives all UIDs.
    predecessors
        The objects of the revision before this one; its SRs become the predecessor documents.
    created
        Timezone aware; it becomes ContentDate and ContentTime. Dates copied from the source that carry no
        offset are taken to be in the same zone (PS3.3 C.12.1.1.8), so give it in the zone of the site.
    installation_uid
        Names this installation as the device that observed. No two make the same UIDs.
    run
        Where no index counts revisions, what sets the objects of this run apart from those of another; else empty.
    key_slices
        One for each key image that is wanted, of findings that are positive and located.
    relevance_map
        Of one such finding, for the Parametric Map and the Segmentation, where they are wanted.
    """

    source: Dataset = field(repr=False)
    series: tuple[SeriesFate, ...]
    assessment: "Assessment | None"
    bundle: ModelCard
    revision: int
    content_digest: str
    created: datetime
    installation_uid: str
    run: str = ""
    predecessors: tuple[Predecessor, ...] = ()
    key_slices: tuple[KeySlice, ...] = ()
    relevance_map: RelevanceMap | None = None

    def __post_init__(self) -> None:
        if self.created.utcoffset() is None:
            raise ValueError("StudyReport.created needs a timezone")
        if self.revision < 1:
            raise ValueError("revisions count from 1")
        for score in self.scores():
            if score.location is not None:
                self.series_of(score.location.series_instance_uid)
        located = {score.finding.label for score in self.located}
        pictured = {picture.label for picture in (*self.key_slices, self.relevance_map) if picture is not None}
        if lost := pictured - located:
            raise ValueError(f"pictures of findings that are not located: {', '.join(sorted(lost))}")

    @property
    def analysed(self) -> tuple[SeriesFate, ...]:
        """The series that the assessment rests on."""
        return tuple(fate for fate in self.series if fate.state == "prepared")

    @property
    def missing(self) -> tuple[SeriesFate, ...]:
        """Series that should have been analysed and were not; localizers and the like do not count."""
        return tuple(fate for fate in self.series if fate.reason is not None and fate.reason.kind == "defect")

    @property
    def partial(self) -> tuple[SeriesFate, ...]:
        """The series that were analysed, but not as a whole."""
        return tuple(fate for fate in self.analysed if fate.is_partial)

    @property
    def is_partial(self) -> bool:
        return bool(self.missing or self.partial) or (self.assessment is None and bool(self.analysed))

    @property
    def thresholds_digest(self) -> str:
        return "" if self.assessment is None else self.assessment.thresholds_digest

    def scores(self) -> Iterator["FindingScore"]:
        if self.assessment is not None:
            yield from self.assessment.findings

    @property
    def located(self) -> tuple["FindingScore", ...]:
        """The positive findings that a viewer can be sent to."""
        return tuple(score for score in self.scores() if score.positive and score.location is not None)

    def series_of(self, series_instance_uid: str) -> SeriesFate:
        """Raises ValueError for a series that is not of this study."""
        for fate in self.series:
            if fate.series_instance_uid == series_instance_uid:
                return fate
        raise ValueError(f"series {series_instance_uid} is not in the report")
