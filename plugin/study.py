"""A study between the steps: what the index, or a folder, says of it. Plain values."""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class InstanceView:
    sop_class_uid: str
    sop_instance_uid: str
    is_content: bool
    patient_digest: str
    removed: bool = False
    """Its file is gone, by the rules of retention."""


@dataclass(frozen=True)
class SeriesView:
    """A series and its fate so far; `state` is a `plugin.lifecycle.SeriesState`."""

    study_instance_uid: str
    series_instance_uid: str
    modality: str
    series_number: int | None
    series_description: str
    state: str
    reason: str | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    instances: tuple[InstanceView, ...] = ()

    @property
    def has_content(self) -> bool:
        return any(instance.is_content for instance in self.instances)

    @property
    def order(self) -> tuple[bool, int, str]:
        """By SeriesNumber, unnumbered last."""
        return self.series_number is None, self.series_number or 0, self.series_instance_uid


@dataclass(frozen=True)
class ResultView:
    """A result object; `path` is relative to the data folder."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: str


@dataclass(frozen=True)
class RevisionView:
    """What was said last of a study; `withdrawn` since then, perhaps; `reissue`: to be said again.

    `standing` holds results of earlier revisions that no rejection note has named yet.
    """

    number: int
    inputs_digest: str
    content_digest: str
    results: tuple[ResultView, ...]
    withdrawn: bool = False
    reissue: bool = False
    standing: tuple[ResultView, ...] = ()

    def stands(self, *, inputs_digest: str, content_digest: str) -> bool:
        """Whether no other revision is due: the inputs are the same; of one withdrawn for good, the images are."""
        if self.reissue:
            return False
        if self.withdrawn:
            return self.content_digest == content_digest
        return self.inputs_digest == inputs_digest


@dataclass(frozen=True)
class StudyView:
    """A study, its series in the order of their numbers, and its last revision."""

    study_instance_uid: str
    series: tuple[SeriesView, ...]
    last: RevisionView | None = None

    @property
    def revision(self) -> int:
        """The number of the last revision, 0 where there is none."""
        return 0 if self.last is None else self.last.number

    @property
    def content_digest(self) -> str:
        """SHA-256 over the images' SOPInstanceUIDs: who sends, in which order or encoding, changes nothing.

        A UID stands for one content (PS3.3 C.12.1); of two contents under one UID the spool keeps the first.
        """
        uids = sorted(
            instance.sop_instance_uid for series in self.series for instance in series.instances if instance.is_content
        )
        return hashlib.sha256("\n".join(uids).encode()).hexdigest()

    @property
    def patients(self) -> frozenset[str]:
        """One digest for each patient that the images name: one, or something is badly wrong."""
        return frozenset(
            instance.patient_digest for series in self.series for instance in series.instances if instance.is_content
        )
