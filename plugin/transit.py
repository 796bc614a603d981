"""What an open association or request sends, noted in the spool: its study is not complete while that lasts."""

import time

from plugin.arrival import Identity
from plugin.spool import Spool

TOUCH_SECONDS = 1.0


class Transit:
    """The notes of one association; `name` is unique in the spool."""

    def __init__(self, spool: Spool, name: str) -> None:
        self._spool = spool
        self._name = name
        self._noted: dict[str, tuple[str, float]] = {}
        """By study: its latest series, and when that was written down (monotonic)."""

    def open(self) -> None:
        self._spool.open_association(self._name)

    def close(self) -> None:
        self._spool.close_association(self._name)

    def note(self, identity: Identity) -> None:
        """Before an instance is kept: a scheduler that sees it must see that its study is still being sent."""
        study_uid, series_uid, now = identity.study_instance_uid, identity.series_instance_uid, time.monotonic()
        noted, at = self._noted.get(study_uid, ("", 0.0))
        if noted != series_uid:
            self._spool.mark_series(self._name, study_instance_uid=study_uid, series_instance_uid=series_uid)
        elif now - at >= TOUCH_SECONDS:
            self._spool.touch_study(self._name, study_instance_uid=study_uid, series_instance_uid=series_uid)
        else:
            return
        self._noted[study_uid] = series_uid, now
