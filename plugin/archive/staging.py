"""One study on its way from the PACS, until it is whole; then it is handed over by a single rename.

What a killed scan had of a study is taken over by the next claim of that study: nothing is fetched twice.
"""

import errno
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hlip_core.headers import MALFORMED
from plugin.archive.pace import Pace
from plugin.archive.source import NotNow, Stopped
from plugin.arrival import Identity, read_elements
from plugin.incoming import Folder, Incoming, fsync_folder
from plugin.part10 import MAX_META_LENGTH, META_START, read_meta
from plugin.sop_classes import ACCEPTED
from plugin.spool import Spool


def read_identity(path: Path) -> Identity:
    """Of a Part 10 file. Raises what is in MALFORMED, and plugin.spool.UnsafeUid."""
    with path.open("rb") as file:
        read_meta(file.read(META_START + MAX_META_LENGTH))
        file.seek(0)
        return Identity.from_elements(read_elements(file).found)


class Staging:
    """A study's instances, in a folder that only the holder of the claim knows. A `plugin.archive.source.Sink`.

    Args:
        token: of the claim.
        max_object_bytes: a larger instance is not taken.
        pace: told of every byte.
    """

    def __init__(
        self, spool: Spool, *, scan_id: int, study_instance_uid: str, token: str, max_object_bytes: int, pace: Pace
    ) -> None:
        self.study_instance_uid = study_instance_uid
        self.troubles: Counter[str] = Counter()
        self.refused: dict[str, set[str]] = {}
        """By SeriesInstanceUID, the SOPInstanceUIDs that came and are of a class that we do not take."""
        self._max_object_bytes = max_object_bytes
        self._pace = pace
        self._place = spool.fetched / str(scan_id) / study_instance_uid
        self.folder = spool.fetching / str(scan_id) / f"{study_instance_uid}.{token}"
        self._take_over()
        self._handle = Folder(self.folder)
        self._part: Incoming | None = None
        self._is_too_large = False

    @staticmethod
    def handed_over(spool: Spool, scan_id: int) -> frozenset[str]:
        """Studies of a scan that are whole and not all in the index yet."""
        return frozenset(folder.name for folder in (spool.fetched / str(scan_id)).glob("*"))

    def _take_over(self) -> None:
        self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        left = sorted(self.folder.parent.glob(f"{self.study_instance_uid}.*"))
        for index, folder in enumerate(path for path in left if path.stem == self.study_instance_uid):
            if index == 0:
                folder.rename(self.folder)
            else:
                shutil.rmtree(folder)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self._drop_parts()

    def _drop_parts(self) -> None:
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()

    # ---- instances come --------------------------------------------------------------------------------

    def begin(self) -> None:
        self._part, self._is_too_large = Incoming(self._handle), False

    def write(self, piece: bytes | memoryview) -> None:
        """Raises NotNow where the disk is full, Stopped."""
        assert self._part is not None
        if self._part.size + len(piece) > self._max_object_bytes:
            self._is_too_large = True
        if not self._is_too_large:
            with _disk():
                self._part.write([piece])
        self._pace.took(len(piece))

    def end(self) -> None:
        part, self._part = self._part, None
        assert part is not None
        if self._is_too_large or not part.size:
            self.troubles["too_large" if self._is_too_large else "empty_part"] += 1
            part.discard()
            return
        with _disk():
            self._sort_in(part.keep())

    def abandon(self) -> None:
        if self._part is not None:
            self._part.discard()
            self._part = None

    def took(self, num_bytes: int) -> None:
        self._pace.took(num_bytes)

    def adopt(self, path: Path) -> None:
        """Take a file that lies elsewhere on the same disk."""
        with _disk():
            self._sort_in(path)

    def _sort_in(self, path: Path) -> None:
        """To its place; what is no instance of this study goes, and is counted."""
        trouble = ""
        try:
            identity = read_identity(path)
        except MALFORMED as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            trouble = "malformed"
        else:
            place = self.folder / identity.series_instance_uid / f"{identity.sop_instance_uid}.dcm"
            if identity.study_instance_uid != self.study_instance_uid:
                trouble = "other_study"
            elif identity.sop_class_uid not in ACCEPTED:
                trouble = "unsupported_class"
                self.refused.setdefault(identity.series_instance_uid, set()).add(identity.sop_instance_uid)
            elif place.exists():
                trouble = "repeated"
        if trouble:
            self.troubles[trouble] += 1
            path.unlink()
            return
        place.parent.mkdir(mode=0o700, exist_ok=True)
        path.rename(place)

    # ---- the whole -------------------------------------------------------------------------------------

    def has(self, series_uid: str) -> frozenset[str]:
        """SOPInstanceUIDs of a series that are here."""
        return frozenset(path.stem for path in (self.folder / series_uid).glob("*.dcm"))

    def keep_only(self, series_uids: Iterable[str]) -> None:
        """Leave out series that were not asked for."""
        wanted = set(series_uids)
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder.name not in wanted:
                self.troubles["other_series"] += 1
                shutil.rmtree(folder)

    def size(self) -> tuple[int, int]:
        """How many instances and bytes."""
        sizes = [path.stat().st_size for path in self.folder.glob("*/*.dcm")]
        return len(sizes), sum(sizes)

    def hand_over(self) -> None:
        """From here on the study goes the way of all that arrives. Durable when it returns."""
        self._drop_parts()
        for folder in (*self.folder.iterdir(), self.folder):
            fsync_folder(folder)
        self._place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.rename(self._place)
        fsync_folder(self._place.parent)

    def discard(self) -> None:
        """It will not be fetched, or another way."""
        self.abandon()
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def _disk() -> Iterator[None]:
    """What the disk says, as what a fetch can end with."""
    try:
        yield
    except FileNotFoundError:  # another claim has taken the folder over
        raise Stopped from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NotNow("disk_full", wait_seconds=60, is_to_blame=False) from None
        raise
