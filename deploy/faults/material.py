"""What is sent: synthetic head CTs of a few dozen small slices, and a study that is to be refused. Made once."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom import dcmread

from hlip_core.untrained import write_untrained_bundle
from plugin.spool import dataset_digest
from trainer.phantom import write_study

STUDIES: dict[str, tuple[str, tuple[str, ...]]] = {
    "one": ("head", ("thick",)),
    "two": ("head", ("localizer", "thick")),
    "three": ("head", ("thick", "bone")),
    "four": ("head", ("thick", "coronal")),
    "five": ("head", ("localizer", "thick", "bone")),
    "chest": ("chest", ("thick",)),
}
"""By name: the body, and its series."""


@dataclass(frozen=True)
class Item:
    """One instance to be sent. Two may share their UIDs and differ in content."""

    path: Path = field(compare=False)
    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    digest: str
    """BLAKE3 of the data set."""


@dataclass(frozen=True)
class Study:
    name: str
    uid: str
    items: tuple[Item, ...]
    is_head: bool
    """One that must be reported; the others must be refused."""

    @property
    def series(self) -> list[list[Item]]:
        uids = dict.fromkeys(item.series_uid for item in self.items)
        return [[item for item in self.items if item.series_uid == uid] for uid in uids]


def item_of(path: Path) -> Item:
    header = dcmread(path, stop_before_pixels=True)
    return Item(
        path=path,
        study_uid=str(header.StudyInstanceUID),
        series_uid=str(header.SeriesInstanceUID),
        sop_uid=str(header.SOPInstanceUID),
        sop_class_uid=str(header.SOPClassUID),
        digest=dataset_digest(path),
    )


def studies(folder: Path) -> list[Study]:
    """The studies of the table in `folder`; those that are there already are kept."""
    made = []
    for seed, (name, (body, series)) in enumerate(STUDIES.items(), 1):
        phantom = write_study(folder / name, seed=seed, preset="tiny", body=body, series=series)
        items = tuple(item_of(path) for path in sorted(phantom.folder.rglob("*.dcm")))
        made.append(Study(name, phantom.study_instance_uid, items, is_head=body == "head"))
    return made


def altered(items: Sequence[Item], folder: Path) -> list[Item]:
    """The same instances with other pixels: what a sender must not do, and does."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = []
    for item in items:
        content = bytearray(item.path.read_bytes())
        content[-1] ^= 1
        path = folder / f"{hashlib.sha256(item.sop_uid.encode()).hexdigest()[:16]}.dcm"
        path.write_bytes(content)
        changed.append(replace(item, path=path, digest=dataset_digest(path)))
    return changed


def bundle(folder: Path) -> Path:
    """The untrained model, which takes no time."""
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_untrained_bundle(part).rename(folder)
    return folder
