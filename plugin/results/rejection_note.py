"""The rejection note that withdraws our objects: a Key Object Selection as IHE IOCM defines it (RAD TF-3 4.66).

An archive that acts on such notes hides what they reference.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import get_args

from highdicom.ko import KeyObjectSelection
from pydicom import Dataset
from pydicom.uid import ParametricMapStorage, SecondaryCaptureImageStorage, SegmentationStorage

from plugin.lifecycle import Rejection
from plugin.results.codes import code
from plugin.results.document import add_content, observer, references
from plugin.results.identity import REJECTION, common_modules, derived_uid
from plugin.results.report import Predecessor

IMAGES = frozenset({SecondaryCaptureImageStorage, ParametricMapStorage, SegmentationStorage})
REJECTIONS: tuple[Rejection, ...] = get_args(Rejection)
"""Names of `codes.CODES`, titles of PS3.16 CID 7010."""


def rejection_note(
    source: Dataset,
    rejected: Sequence[Predecessor],
    *,
    reason: Rejection = "quality",
    explanation: str = "",
    created: datetime,
    installation_uid: str,
) -> Dataset:
    """A note that rejects `rejected`, objects of the study of `source`, whose patient and study it copies.

    The same objects and reason give the same UIDs. Raises ValueError when nothing is rejected.
    """
    if not rejected:
        raise ValueError("a rejection note needs objects to reject")
    title = code(reason)
    study_instance_uid = str(source.StudyInstanceUID)
    name = ("rejection", study_instance_uid, title.CodeValue, *sorted(instance for _, instance, _ in rejected))
    note = common_modules(
        source,
        REJECTION,
        series_instance_uid=derived_uid("series", *name),
        sop_instance_uid=derived_uid("instance", *name),
        created=created,
        installation_uid=installation_uid,
    )
    note.ReferencedPerformedProcedureStepSequence = []
    instances = [(series, sop_class, instance) for sop_class, instance, series in rejected]
    note.CurrentRequestedProcedureEvidenceSequence = [references(study_instance_uid, instances)]
    content = KeyObjectSelection(
        document_title=title,
        referenced_objects=[_reference(sop_class, instance) for sop_class, instance, _ in rejected],
        observer_device_context=observer(installation_uid),
        description=explanation or title.CodeMeaning,
    )
    add_content(note, content[0])
    return note


def _reference(sop_class_uid: str, sop_instance_uid: str) -> Dataset:
    """What highdicom wants to see of an object: that it has rows makes it an image (TID 2010)."""
    item = Dataset()
    item.SOPClassUID = sop_class_uid
    item.SOPInstanceUID = sop_instance_uid
    if sop_class_uid in IMAGES:
        item.Rows = item.Columns = 1
    return item
