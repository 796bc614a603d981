"""One instance on its way into the spool: written, fsynced, renamed, its folder fsynced; then it is acknowledged."""

import ctypes
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

IOV_MAX = os.sysconf("SC_IOV_MAX")
PART = ".part"
Bytes = bytes | bytearray | memoryview

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h: start, do not wait
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)  # of Linux only
if _sync_file_range is not None:
    _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


class Folder:
    """A folder that is held open: its files are named without a path, and it is fsynced without being opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if (handle := getattr(self, "handle", None)) is not None:
            os.close(handle)


class Incoming:
    """A file that nothing reads until it is kept.

    Args:
        folder: where it is to lie; a hidden name is taken there by `open`, or with the first write.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._unique = uuid.uuid4().hex
        self._part = f".{self._unique}{PART}"
        self._handle: int | None = None
        self._kept = False
        self._started = 0
        self.size = 0

    @property
    def path(self) -> Path:
        """Where it lies while it is written."""
        return self._folder.path / self._part

    def start_writeback(self) -> None:
        """Let the disk begin with what is written, while the rest still comes: then `keep` has less to wait for."""
        if _sync_file_range is not None and self._handle is not None:
            _sync_file_range(self._handle, self._started, self.size - self._started, _SYNC_FILE_RANGE_WRITE)
            self._started = self.size

    def open(self) -> None:
        """Take its name in the folder, empty. Raises OSError."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        self._handle = os.open(self._part, flags, 0o600, dir_fd=self._folder.handle)

    def write(self, buffers: Sequence[Bytes]) -> None:
        """Append, by one system call as a rule. Raises OSError (a full disk): then discard it."""
        if self._handle is None:
            self.open()
        for first in range(0, len(buffers), IOV_MAX):
            self._write_all(buffers[first : first + IOV_MAX])

    def _write_all(self, buffers: Sequence[Bytes]) -> None:
        assert self._handle is not None
        total = sum(map(len, buffers))
        written = os.writev(self._handle, buffers)
        self.size += written
        if written < total:  # beyond 2 GiB, or a disk that is just full: the next call says which
            rest = memoryview(b"".join(buffers))[written:]
            while rest:
                written = os.write(self._handle, rest)
                self.size += written
                rest = rest[written:]

    def keep(self, digest: str = "") -> Path:
        """Make it durable under its own name, which says the digest of its data set where that is known.

        Raises OSError: then it may lie there, and is not to be acknowledged.
        """
        assert self._handle is not None, "nothing was written"
        os.fsync(self._handle)
        self._close()
        name = f"{time.time_ns():020d}-{self._unique}{digest and f'-{digest}'}.dcm"
        folder = self._folder.handle
        os.rename(self._part, name, src_dir_fd=folder, dst_dir_fd=folder)
        self._kept = True
        os.fsync(folder)
        return self._folder.path / name

    def discard(self) -> None:
        """Leave nothing behind, unless it was kept."""
        if self._handle is not None:
            self._close()
        if not self._kept:
            self.path.unlink(missing_ok=True)

    def _close(self) -> None:
        handle, self._handle = self._handle, None
        assert handle is not None
        os.close(handle)


def fsync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
