"""The spool: where an instance lies from its acknowledgement on, as plain files.

    incoming/      TIME-UNIQUE[-DIGEST].dcm: accepted, fsynced, not yet in the index (acknowledged means on disk)
    instances/     STUDY/SERIES/INSTANCE.dcm, in the index
    conflicting/   came again under the same UID with other content; the first is kept, these set aside
    commitments/   requests for storage commitment that were taken and not answered yet
    associations/  one folder for each open association: a file per study, holding the series in transit
    fetching/      SCAN/STUDY.<claim>/SERIES/INSTANCE.dcm, what an archive scan has of a study so far
    fetched/       SCAN/STUDY/SERIES/INSTANCE.dcm, whole studies, to be indexed like what arrives
    prepared/      STUDY/SERIES.b2nd, SERIES.header.dcm, SERIES.looks.npz (where the model looked, for the page)
    results/       STUDY/r<revision>/*.dcm

Everything that becomes part of a path is a UID that passed `check_uid`, or was made here.
"""

import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from blake3 import blake3

from plugin.incoming import PART, Folder, Incoming, fsync_folder
from plugin.room import Room

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_ARRIVAL = re.compile(r"(?P<time_ns>\d{20})-[0-9a-f]{32}(-(?P<digest>[0-9a-f]{64}))?\.dcm")
_META_GROUP_LENGTH_AT = 128 + 4 + 8  # preamble, "DICM", tag + VR + length of (0002,0000); PS3.10 section 7.1
_buffers = threading.local()


class UnsafeUid(ValueError):
    """A UID that is no UID (PS3.5 section 9.1), so it must not become a path."""


def check_uid(value: object, keyword: str = "UID") -> str:
    """The UID as text without padding: digits and dots, at most 64 characters.

    Raises:
        UnsafeUid: for anything else; the value itself is not repeated in the message.
    """
    uid = str(value if value is not None else "").rstrip(" \0")
    if len(uid) > 64 or not _UID.fullmatch(uid):
        raise UnsafeUid(f"{keyword} is missing or is not a UID")
    return uid


def write_durably(path: Path, content: bytes) -> None:
    """Write, fsync, rename, fsync the folder: after it returns, the file survives a power cut, whole."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


new_digest = blake3
"""Of an encoded data set: a quarter of what SHA-256 costs each instance that arrives, and as hard to forge."""


def dataset_digest(source: Path | BinaryIO) -> str:
    """`new_digest` (hex) of a Part 10 file's dataset, without preamble and file meta information (PS3.10 7.1)."""
    if isinstance(source, Path):
        with source.open("rb") as file:
            return dataset_digest(file)
    source.seek(_META_GROUP_LENGTH_AT)
    meta_length = int.from_bytes(source.read(4), "little")
    source.seek(_META_GROUP_LENGTH_AT + 4 + meta_length)
    digest, buffer = new_digest(), _own_buffer()
    while length := source.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(buffer[:length])
    return digest.hexdigest()


def digest_by_name(arrival: Path) -> str | None:
    """The digest of an arrival's data set, where the listener took it while the data set came."""
    named = _ARRIVAL.fullmatch(arrival.name)
    return named["digest"] if named else None


def beside(path: Path, token: str) -> Path:
    """A name in the same folder that nothing reads; what is left of it by a kill is swept."""
    return path.with_name(f".{path.name}.{token}{PART}")


def _own_buffer() -> memoryview:
    """This thread's, kept: fresh memory would cost as much as reading into it."""
    if not hasattr(_buffers, "own"):
        _buffers.own = memoryview(bytearray(1 << 18))
    return _buffers.own


@dataclass(frozen=True)
class OpenStudies:
    """What open associations are sending right now."""

    studies: frozenset[str]
    series: frozenset[str]


class Spool:
    """The data folder; safe to share between processes and hosts, since every hand-over is a rename."""

    def __init__(
        self, folder: Path, *, min_free_gigabytes: float = 1.0, worker_min_free_gigabytes: float = 0.5
    ) -> None:
        self.folder = folder.absolute()
        self.incoming = self.folder / "incoming"
        self.instances = self.folder / "instances"
        self.conflicting = self.folder / "conflicting"
        self.associations = self.folder / "associations"
        self.fetching = self.folder / "fetching"
        self.fetched = self.folder / "fetched"
        self.prepared = self.folder / "prepared"
        self.results = self.folder / "results"
        self.broker = self.folder / "broker"
        self.models = self.folder / "models"
        self.room = Room(self.folder, int(min_free_gigabytes * 1e9), waits="C-STORE")
        self.room_for_work = Room(self.folder, int(worker_min_free_gigabytes * 1e9), waits="prepare, analyse")
        for path in (self.folder, self.incoming, self.instances, self.conflicting, self.associations,
                     self.fetching, self.fetched, self.prepared, self.results, self.broker, self.models):  # fmt: skip
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    # ---- the listener's side -------------------------------------------------------------------------

    def has_room(self) -> bool:
        return self.room.is_enough()

    def begin(self) -> Incoming:
        """A new instance, to be written piece by piece; once it is kept, it may be acknowledged."""
        return Incoming(self._incoming_folder)

    @cached_property
    def _incoming_folder(self) -> Folder:
        return Folder(self.incoming)

    def accept(self, part10: bytes) -> Path:
        """Keep one encoded instance (a whole Part 10 file). On return it may be acknowledged."""
        incoming = self.begin()
        try:
            incoming.write([part10])
            return incoming.keep()
        except BaseException:
            incoming.discard()
            raise

    def sweep_incoming(self, *, older_than_seconds: float) -> int:
        """Remove what a killed listener had not finished; nothing of it was acknowledged. How many."""
        oldest, swept = time.time() - older_than_seconds, 0
        for part in self.incoming.glob(f".*{PART}"):
            try:
                if part.stat().st_mtime < oldest:
                    part.unlink()
                    swept += 1
            except FileNotFoundError:  # it was just finished
                continue
        return swept

    def open_association(self, association: str) -> None:
        (self.associations / association).mkdir(mode=0o700, exist_ok=True)

    def mark_series(self, association: str, *, study_instance_uid: str, series_instance_uid: str) -> None:
        """Note which series an open association sends; its study is not complete while that lasts."""
        marker = self.associations / association / study_instance_uid
        try:
            marker.write_text(series_instance_uid)
        except FileNotFoundError:  # someone removed it under us
            self.open_association(association)
            marker.write_text(series_instance_uid)

    def touch_study(self, association: str, *, study_instance_uid: str, series_instance_uid: str) -> None:
        """Note that the association still sends the series that it sent last."""
        try:
            os.utime(self.associations / association / study_instance_uid)
        except FileNotFoundError:
            self.mark_series(
                association, study_instance_uid=study_instance_uid, series_instance_uid=series_instance_uid
            )

    def close_association(self, association: str) -> None:
        shutil.rmtree(self.associations / association, ignore_errors=True)

    def close_all_associations(self, prefix: str) -> None:
        """Markers that a killed listener left behind under its own prefix."""
        for folder in self.associations.glob(f"{prefix}*"):
            self.close_association(folder.name)

    # ---- the scheduler's side ------------------------------------------------------------------------

    def open_studies(self, *, cap_seconds: float) -> OpenStudies:
        """Studies that an open association has sent to within `cap_seconds`, and the latest series of each.

        A fetched study is open, with all its series, until the last of it is indexed.
        """
        studies = {folder.name for folder in self.fetched.glob("*/*")}
        series = {folder.name for folder in self.fetched.glob("*/*/*")}
        oldest = time.time() - cap_seconds
        for marker in self.associations.glob("*/*"):
            try:
                if marker.stat().st_mtime < oldest:
                    continue
                studies.add(marker.name)
                series.add(marker.read_text())
            except FileNotFoundError:  # the association ended while we looked
                continue
        return OpenStudies(frozenset(studies), frozenset(series))

    def arrivals(self, limit: int) -> list[Path]:
        """Accepted files that are not in the index yet, oldest first."""
        return [self.incoming / name for name in sorted(self._arrived())[:limit]]

    def num_arrivals(self) -> int:
        """How many files are accepted and not in the index yet."""
        return len(self._arrived())

    def oldest_arrival_ns(self) -> int | None:
        """When the oldest of them was accepted (`time.time_ns`); a file that someone else put there has no time."""
        named = (_ARRIVAL.fullmatch(name) for name in self._arrived())
        return min((int(arrival["time_ns"]) for arrival in named if arrival), default=None)

    def _arrived(self) -> list[str]:
        return [entry.name for entry in os.scandir(self.incoming) if entry.name.endswith(".dcm")]

    def fetched_arrivals(self, limit: int) -> list[tuple[int, Path]]:
        """Files of whole studies that are not in the index yet, with the archive scan that fetched them."""
        found: list[tuple[int, Path]] = []
        for study in self._fetched_studies():
            files = sorted(study.glob("*/*.dcm"))
            found += [(int(study.parent.name), path) for path in files[: limit - len(found)]]
            if len(found) == limit:
                break
            if not files:
                self._remove_empty(study)
        return found

    def _fetched_studies(self) -> list[Path]:
        """The one that came first, first."""
        dated = []
        for study in self.fetched.glob("*/*"):
            with suppress(FileNotFoundError):  # it was just emptied
                dated.append((study.stat().st_ctime, study))
        return [study for _, study in sorted(dated)]

    def _remove_empty(self, study: Path) -> None:
        with suppress(OSError):  # not empty after all, or gone
            for entry in study.iterdir():
                if entry.is_dir():
                    entry.rmdir()
                else:  # of a fetch that lost its claim, and did not know it yet
                    entry.unlink()
            study.rmdir()

    def instance_path(self, study_uid: str, series_uid: str, sop_uid: str) -> Path:
        return self.instances.joinpath(study_uid, series_uid, f"{sop_uid}.dcm")

    def place(self, arrival: Path, path: Path) -> None:
        """Move an indexed arrival to its place. A cut in between leaves it in incoming/, to be indexed again."""
        try:
            arrival.rename(path)
        except FileNotFoundError:  # the first of its series
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            arrival.rename(path)

    def take_back(self, path: Path) -> None:
        """Put an instance that the index does not know back among the arrivals."""
        path.rename(self.incoming / f"{time.time_ns():020d}-{uuid.uuid4().hex}.dcm")

    def set_aside(self, arrival: Path, study_uid: str, sop_uid: str, digest: str) -> None:
        """Keep an arrival whose UID is taken by other content."""
        self.place(arrival, self.conflicting / study_uid / f"{sop_uid}.{digest[:16]}.dcm")

    # ---- the workers' side ---------------------------------------------------------------------------

    def prepared_path(self, study_uid: str, series_uid: str) -> Path:
        path = self.prepared / study_uid / f"{series_uid}.b2nd"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    def header_path(self, study_uid: str, series_uid: str) -> Path:
        return self.prepared_path(study_uid, series_uid).with_suffix(".header.dcm")

    def publish_prepared(self, staged: Path, place: Path) -> None:
        """Put a scan that was written beside its place there."""
        staged.rename(place)
        fsync_folder(place.parent)

    def results_folder(self, study_uid: str, revision: int) -> Path:
        return self.results / study_uid / f"r{revision}"

    def stage_results(self, study_uid: str, files: Mapping[str, bytes]) -> Path:
        """Write one revision's objects durably, under a name that nothing reads yet."""
        staged = self.results / study_uid / f".{uuid.uuid4().hex}"
        staged.mkdir(mode=0o700, parents=True)
        try:
            for name, content in files.items():
                write_durably(staged / name, content)
        except BaseException:
            self.discard_results(staged)
            raise
        return staged

    def publish_results(self, staged: Path, study_uid: str, revision: int) -> None:
        """Put staged objects in their place. What lies there was never committed to the index, and goes."""
        place = self.results_folder(study_uid, revision)
        shutil.rmtree(place, ignore_errors=True)
        staged.rename(place)
        fsync_folder(place.parent)

    def discard_results(self, staged: Path) -> None:
        shutil.rmtree(staged, ignore_errors=True)

    def installation_uid(self) -> str:
        """The UID of this installation: made once, then the same for all processes on this spool."""
        path = self.folder / "installation"
        if not path.exists():
            draft = path.with_name(f".installation.{uuid.uuid4().hex}.part")
            try:
                write_durably(draft, f"2.25.{uuid.uuid4().int}".encode())
                path.hardlink_to(draft)  # whole, and the first only
            except FileExistsError:
                pass
            finally:
                draft.unlink(missing_ok=True)
        return check_uid(path.read_text(), "installation UID")

    def relative(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def __truediv__(self, relative: str) -> Path:
        return self.folder / relative

    def __iter__(self) -> Iterator[Path]:
        """Every acknowledged instance's file: indexed, waiting or set aside."""
        for folder in (self.incoming, self.instances, self.conflicting):
            yield from folder.rglob("*.dcm")
