"""Retention: what is delivered and old goes, a study at a time; what anything still waits for stays.

The index marks first (`plugin.index.retention`), then the files go: a kill in between is made good at the next step.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from plugin import looks
from plugin.audit import Trail
from plugin.audit_message import StudyObjects
from plugin.index import retention as index
from plugin.index.database import Database
from plugin.index.retention import SECONDS_A_DAY, Due, Job, Marked
from plugin.settings import RetentionSettings
from plugin.spool import Spool

log = structlog.get_logger("hlip.retention")

KINDS = ("conflicting", "prepared", "instances", "results")
"""The folders of the spool that have a rule, in the order in which they go."""

PREPARED_SUFFIXES = (".b2nd", ".header.dcm", looks.SUFFIX)
"""What lies of a series in the folder of prepared scans."""

LOOK_SECONDS = 60.0
PAUSE_SECONDS = 1.0
"""Between two studies, so that the disk and the index stay with the road."""


@dataclass(frozen=True)
class Going:
    """What goes of one study, or what went."""

    kind: str
    study_instance_uid: str
    files: int
    bytes: int


def remove_files(paths: Iterable[Path], *, below: Path) -> tuple[int, int]:
    """Unlink what is there, then the folders below `below` that this leaves empty. How many files and bytes."""
    files, size = 0, 0
    folders: set[Path] = set()
    for path in paths:
        try:
            length = path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        files, size = files + 1, size + length
        folders.update(folder for folder in path.parents if below in folder.parents)
    for folder in sorted(folders, reverse=True):  # the deepest first
        remove_if_empty(folder)
    return files, size


def remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # not empty, or gone already
        folder.rmdir()


class Retention:
    """The rules on a spool and its index.

    Args:
        days: by kind, after how many quiet days it goes; a kind that is not there never goes.
        audit: told what is removed for good.
    """

    def __init__(self, days: dict[str, float], spool: Spool, database: Database, *, audit: Trail | None = None) -> None:
        self._audit = audit
        self.days = {kind: days[kind] for kind in KINDS if kind in days}
        self._spool = spool
        self._database = database
        self._next_look = 0.0

    @classmethod
    def from_settings(
        cls, settings: RetentionSettings, spool: Spool, database: Database, *, audit: Trail | None = None
    ) -> "Retention":
        days = {kind: getattr(settings, f"{kind}_days") for kind in KINDS}
        return cls({kind: value for kind, value in days.items() if value}, spool, database, audit=audit)

    # ---- what would go ---------------------------------------------------------------------------------

    def plan(self, but: Collection[str] = ()) -> Iterator[Going]:
        """All that may go now; `but` are StudyInstanceUIDs that are being sent."""
        for kind in self.days:
            if kind == "conflicting":
                for study_uid, paths in self._conflicting():
                    yield Going(kind, study_uid, len(paths), _size(paths))
                continue
            for item in index.due(self._database, kind, days=self.days[kind], but=but):
                paths = [path for path in self._files(item) if path.is_file()]
                yield Going(kind, item.study_instance_uid, len(paths), _size(paths))

    def kept(self) -> dict[str, dict[str, int]]:
        """By kind and reason: how many studies are old enough and stay."""
        return {
            kind: index.kept(self._database, kind, days=days)
            for kind, days in self.days.items()
            if kind != "conflicting"
        }

    def _files(self, item: Due) -> list[Path]:
        rows = index.lying(self._database, item.kind, item.study_id)
        return [path for row in rows for path in self._paths(item.kind, item.study_instance_uid, row)]

    def _paths(self, kind: str, study_uid: str, row: Marked) -> list[Path]:
        spool = self._spool
        if kind == "instances":
            return [spool.instance_path(study_uid, row.series_instance_uid, row.name)]
        if kind == "prepared":
            folder = spool.prepared / study_uid
            return [folder / f"{row.series_instance_uid}{suffix}" for suffix in PREPARED_SUFFIXES]
        return [spool / row.name]

    def _conflicting(self) -> Iterator[tuple[str, list[Path]]]:
        oldest = time.time() - self.days["conflicting"] * SECONDS_A_DAY
        for folder in sorted(self._spool.conflicting.iterdir()):
            paths = [path for path in folder.glob("*.dcm") if path.stat().st_mtime < oldest]
            if paths:
                yield folder.name, paths

    # ---- removing --------------------------------------------------------------------------------------

    def run(self, open_studies: Callable[[], Collection[str]], *, limit: int | None = None) -> Iterator[Going]:
        """Remove what may go, a study after the other, when the next one is asked for; at most `limit` of a kind."""
        yield from self.take_up()
        for kind in self.days:
            if kind == "conflicting":
                yield from self._remove_conflicting()
                continue
            for item in index.due(self._database, kind, days=self.days[kind], limit=limit, but=open_studies()):
                marked = index.mark(self._database, item, days=self.days[kind])
                if marked is not None:
                    yield self._sweep(marked)

    def take_up(self) -> Iterator[Going]:
        """Go on with the removals that a kill has cut."""
        for job in index.unfinished(self._database):
            yield self._sweep(job)

    def step(self, open_studies: Callable[[], Collection[str]]) -> bool:
        """Remove what may go of one study, if it is time for a look; whether something went."""
        now = time.monotonic()
        if now < self._next_look:
            return False
        went = next(self.run(open_studies, limit=1), None)
        self._next_look = now + (PAUSE_SECONDS if went else LOOK_SECONDS)
        return went is not None

    def release(self, study_id: int, kinds: Iterable[str]) -> Iterator[Going]:
        """Remove now what an archive scan fetched of a study that is done, and what was prepared of it."""
        for kind in kinds:
            if (job := index.release(self._database, study_id, kind)) is not None:
                yield self._sweep(job)

    def _sweep(self, job: Job) -> Going:
        def remove(rows: Sequence[Marked]) -> tuple[int, int]:
            paths = [path for row in rows for path in self._paths(job.kind, job.study_instance_uid, row)]
            return remove_files(paths, below=self._spool / job.kind)

        files, size = index.sweep(self._database, job, remove)
        return self._gone(Going(job.kind, job.study_instance_uid, files, size))

    def _remove_conflicting(self) -> Iterator[Going]:
        for study_uid, paths in self._conflicting():
            size = _size(paths)
            if index.note_conflicting(self._database, study_uid, files=len(paths), size=size):
                remove_files(paths, below=self._spool.conflicting)
                yield self._gone(Going("conflicting", study_uid, len(paths), size))

    def _gone(self, went: Going) -> Going:
        log.info("removed", **asdict(went))
        if self._audit is not None:
            self._audit.deleted(StudyObjects(went.study_instance_uid, {}))
        return went


def _size(paths: Iterable[Path]) -> int:
    return sum(path.stat().st_size for path in paths)
