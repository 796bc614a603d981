"""A child of the sandbox in which a series' description says how it goes wrong; run as `python poison.py FD BYTES`."""

import ctypes
import os
import time

import numpy as np
from pydicom import dcmread

from hlip_core.volume import PreparedScan
from plugin import sandbox
from plugin.preparation import Job, keep_header, prepare_series


def _segfault() -> None:
    ctypes.string_at(1)


def _eat() -> None:
    kept = [np.ones(1 << 23) for _ in range(2000)]
    raise AssertionError(f"{len(kept)} times 64 MB, and no limit")


def _grow() -> None:
    """A child that has served before has no memory left for this one; a fresh one has."""
    if SERVED:
        raise MemoryError


def _let_go() -> None:
    """Takes memory as a series does: a volume, then slices; and frees all of it."""
    np.ones(3 << 20)
    slices = [np.ones(1 << 13) for _ in range(600)]
    slices.clear()


def _hang() -> None:
    while True:
        time.sleep(1)


def _fill_the_disk() -> None:
    raise OSError(28, "No space left on device")


def _trip() -> None:
    raise RuntimeError("Canary^Jane")


SERVED: list[Job] = []
POISONS = {
    "abort": os.abort, "segfault": _segfault, "eat": _eat, "hang": _hang, "exit": lambda: os._exit(3),
    "disk": _fill_the_disk, "trip": _trip, "grow": _grow, "let-go": _let_go,
}  # fmt: skip


def prepare(job: Job) -> PreparedScan:
    first = dcmread(job.paths[0])
    keep_header(first, job.header_path)
    description = first.get("SeriesDescription")
    POISONS.get(str(description), lambda: None)()
    SERVED.append(job)
    return prepare_series(job)


if __name__ == "__main__":
    sandbox.main(prepare)
