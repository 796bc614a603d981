"""Room on the disk: a mark below which something stops, and the higher one from which on it goes on."""

import shutil
import time
from pathlib import Path
from typing import Literal

import structlog

log = structlog.get_logger("hlip.room")

ASK_SECONDS = 0.01
"""How long a yes stands: every piece of every instance asks, and no disk fills in that time."""
RESUME = 1.25
"""Going on only with a quarter more than the mark: else each file that goes lets one in, and studies come in bits."""


class Room:
    """Whether a disk has more than `min_free_bytes` left.

    Once it had less, it has none until there is `RESUME` times as much. What it says first of either is logged.
    """

    def __init__(self, folder: Path, min_free_bytes: int, *, waits: str) -> None:
        self._folder = folder
        self.min_free_bytes = min_free_bytes
        self._waits = waits
        self._is_short = False
        self._enough_until = 0.0

    @property
    def resume_bytes(self) -> int:
        return int(self.min_free_bytes * RESUME)

    def state(self, free_bytes: int) -> Literal["ok", "recovering", "stopped"]:
        """As far as it can be told from outside; ``recovering``: stopped if it was stopped before."""
        if free_bytes < self.min_free_bytes:
            return "stopped"
        return "recovering" if free_bytes < self.resume_bytes else "ok"

    def is_enough(self) -> bool:
        now = time.monotonic()
        if now < self._enough_until:
            return True
        free = shutil.disk_usage(self._folder).free
        short = free < (self.resume_bytes if self._is_short else self.min_free_bytes)
        if short != self._is_short:
            self._is_short = short
            say = log.error if short else log.info
            say("the disk is nearly full" if short else "room on the disk again", waits=self._waits, free_bytes=free)
        self._enough_until = 0.0 if short else now + ASK_SECONDS
        return not short
