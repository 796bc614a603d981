"""Which studies a person saw in a list lately, so that a list that refreshes itself does not fill the audit trail."""

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable

from plugin.audit_message import Actor

AGAIN_SECONDS = 3600.0
"""A list names a study to the same person once in this time."""

MAX_SEEN = 100_000


class Seen:
    """Safe for threads; the oldest is forgotten first."""

    def __init__(self) -> None:
        self._at: OrderedDict[tuple[Actor, str], float] = OrderedDict()
        self._lock = threading.Lock()

    def new(self, actor: Actor, study_uids: Iterable[str]) -> list[str]:
        """Those that this person has not just seen."""
        before = time.monotonic() - AGAIN_SECONDS
        with self._lock:
            return [uid for uid in study_uids if self._at.get((actor, uid), -math.inf) <= before]

    def mark(self, actor: Actor, study_uid: str) -> None:
        """This person has seen it, and the trail has been told."""
        with self._lock:
            self._at[actor, study_uid] = time.monotonic()
            self._at.move_to_end((actor, study_uid))
            while len(self._at) > MAX_SEEN:
                self._at.popitem(last=False)
