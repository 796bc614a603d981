"""Mixed load: several senders at once, who do what senders do, for as long as it takes."""

import random
import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.uid import BasicTextSRStorage, ExplicitVRLittleEndian, generate_uid

from .gate import CuttingGate
from .material import Item, Study, altered, item_of
from .senders import Ledger, Sending, send_all
from .stack import Stack

_UID = re.compile(rb"2\.25\.[0-9]+")


def _as_new(uid: bytes, number: int) -> bytes:
    """Another UID of the same length."""
    digits = str(int(sha256(b"%d %s" % (number, uid)).hexdigest(), 16)) * 2
    return b"2.25." + f"1{digits}"[: len(uid) - 5].encode()


def renamed(study: Study, number: int, folder: Path) -> Study:
    """The same study under UIDs of its own, made of `number`: the same bytes for the same one."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for at, item in enumerate(study.items):
        path = folder / f"{at:04}.dcm"
        path.write_bytes(_UID.sub(lambda found: _as_new(found[0], number), item.path.read_bytes()))
        items.append(item_of(path))
    return replace(study, name=f"{study.name} {number}", uid=items[0].study_uid, items=tuple(items))


def text_report(study: Study, folder: Path) -> Item:
    """A report on a study by someone else: an object without images."""
    source = dcmread(study.items[0].path, stop_before_pixels=True)
    report = Dataset()
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                    "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"):  # fmt: skip
        setattr(report, keyword, source.get(keyword, ""))
    report.SOPClassUID, report.SOPInstanceUID, report.SeriesInstanceUID = (
        BasicTextSRStorage, generate_uid(), generate_uid(),
    )  # fmt: skip
    report.Modality, report.SeriesNumber, report.InstanceNumber = "SR", 900, 1
    report.file_meta = FileMetaDataset()
    report.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path = folder / "report.dcm"
    dcmwrite(path, report, enforce_file_format=True)
    return item_of(path)


@dataclass
class Load:
    """The senders' common knowledge, and what they may do."""

    stack: Stack
    folder: Path
    phantoms: Sequence[Study]
    ledger: Ledger = field(default_factory=Ledger)
    gate: CuttingGate | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    studies: list[Study] = field(default_factory=list)
    whole_at: dict[str, float] = field(default_factory=dict)
    """By StudyInstanceUID: when its last instance was acknowledged, by the time of day."""
    done: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def new(self, folder: Path, rng: random.Random, *, is_head: bool = True) -> Study:
        phantom = rng.choice([study for study in self.phantoms if study.is_head is is_head])
        with self.lock:
            study = renamed(phantom, len(self.studies), folder)
            self.studies.append(study)
        return study

    def send(self, items: Sequence[Item], rng: random.Random, way: str = "dcmsend", *, port: int = 0) -> None:
        port = port or (self.stack.port if way == "dcmsend" else self.stack.web_port)
        sending = Sending(tuple(items), way, rng.choice((1, 2, 3)), pause=0.3)
        send_all(sending, port, self.ledger, self.folder / "senders.log", rng, self.stop)

    def sent_whole(self, study: Study) -> None:
        self.whole_at[study.uid] = time.time()


def head_by_dcmsend(load: Load, rng: random.Random, folder: Path) -> None:
    study = load.new(folder, rng)
    load.send(study.items, rng)
    load.sent_whole(study)


def head_by_stow(load: Load, rng: random.Random, folder: Path) -> None:
    study = load.new(folder, rng)
    load.send(study.items, rng, "stow")
    load.sent_whole(study)


def to_be_refused(load: Load, rng: random.Random, folder: Path) -> None:
    load.send(load.new(folder, rng, is_head=False).items, rng)


def with_late_series(load: Load, rng: random.Random, folder: Path) -> None:
    study = load.new(folder, rng)
    *early, last = study.series
    load.send([item for series in early for item in series] or last[:-4], rng)
    load.stop.wait(8)
    load.send(study.items, rng)


def with_report(load: Load, rng: random.Random, folder: Path) -> None:
    study = load.new(folder, rng)
    load.send([*study.items, text_report(study, folder)], rng)


def cut_off(load: Load, rng: random.Random, folder: Path) -> None:
    study = load.new(folder, rng)
    assert load.gate is not None
    load.gate.plan(rng, 1, most_bytes=200_000)
    load.send(study.items, rng, port=load.gate.port)


def once_more(load: Load, rng: random.Random, folder: Path) -> None:
    """A study of before, as it was, or some of it with other pixels."""
    with load.lock:
        known = list(enumerate(load.studies))
    if not known:
        return
    number, before = rng.choice(known[-50:])
    phantom = next(study for study in load.phantoms if study.name == before.name.split()[0])
    study = renamed(phantom, number, folder)
    same = rng.random() < 0.7
    load.send(study.items if same else altered(rng.sample(study.items, 5), folder / "other"), rng)


ACTIONS: dict[str, tuple[float, Callable[[Load, random.Random, Path], None]]] = {
    "head CT by dcmsend": (6, head_by_dcmsend),
    "head CT by STOW-RS": (3, head_by_stow),
    "head CT with a late series": (1, with_late_series),
    "head CT with a report": (1, with_report),
    "head CT, cut off on the way": (1, cut_off),
    "study to be refused": (1, to_be_refused),
    "a study of before once more": (2, once_more),
}
"""What senders do, with weights."""


def sender(load: Load, seed: int, every: float) -> None:
    rng = random.Random(seed)
    names, weights = list(ACTIONS), [weight for weight, _ in ACTIONS.values()]
    while not load.stop.wait(rng.expovariate(1 / every)):
        (name,) = rng.choices(names, weights)
        folder = load.folder / f"sending-{seed}"
        ACTIONS[name][1](load, rng, folder)
        load.done[name] += 1
        shutil.rmtree(folder, ignore_errors=True)
