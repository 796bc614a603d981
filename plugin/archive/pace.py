"""How hard the PACS may be asked: in which hours, how many studies an hour, how many bytes a second."""

import threading
import time
from collections.abc import Sequence
from datetime import datetime, timedelta

from plugin.archive.source import NotNow, Stopped
from plugin.lifecycle import backoff_seconds
from plugin.sections_archive import HOURS, ArchiveSettings

WEEK = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


def _days(first: str | None, last: str | None) -> frozenset[int]:
    if first is None:
        return frozenset(range(7))
    begin = WEEK.index(first)
    length = (WEEK.index(last or first) - begin) % 7
    return frozenset((begin + i) % 7 for i in range(length + 1))


def _since_midnight(clock: str) -> timedelta:
    hours, minutes = map(int, clock.split(":"))
    return timedelta(hours=hours, minutes=minutes)


def closed_until(now: datetime, hours: Sequence[str]) -> datetime | None:
    """When the hours (as in the settings) that `now` lies in are over; None where it lies in none."""
    end = None
    moment = now
    for _ in range(8 * (len(hours) + 1)):  # hours may follow each other, at most for a week
        ends = [until for text in hours if (until := _end_of(moment, text)) is not None]
        if not ends:
            return end
        end = moment = max(ends)
    return end


def _end_of(now: datetime, text: str) -> datetime | None:
    match = HOURS.fullmatch(text)
    assert match is not None, "checked with the settings"
    days = _days(match["first_day"], match["last_day"])
    start, end = _since_midnight(match["start"]), _since_midnight(match["end"])
    if end <= start:
        end += timedelta(days=1)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for day in (midnight - timedelta(days=1), midnight):
        if day.weekday() in days and day + start <= now < day + end:
            return day + end
    return None


def wait_seconds(trouble: NotNow, attempts: int, rules: ArchiveSettings) -> float:
    """How long to wait before the next try: as the PACS wants it, else longer after each failure."""
    if trouble.wait_seconds is not None:
        return max(trouble.wait_seconds, rules.first_retry_seconds)
    return backoff_seconds(attempts, first=rules.first_retry_seconds, longest=rules.longest_retry_seconds)


class Pace:
    """The limits of one scan, kept by all its threads.

    Args:
        stop: set when the scan is to end; every wait ends with it.
    """

    def __init__(
        self, *, hours: Sequence[str], studies_per_hour: float, bytes_per_second: float, stop: threading.Event
    ) -> None:
        self._hours = hours
        self._between_studies = 3600 / studies_per_hour if studies_per_hour else 0.0
        self._bytes_per_second = bytes_per_second
        self._stop = stop
        self._lock = threading.Lock()
        self._next_study = 0.0
        self._paid_until = 0.0
        self._not_before = 0.0
        self.fetched = 0
        """How many studies came whole in this run."""
        self.why = ""
        """What is waited for at the moment, for the person who watches."""

    def may_begin(self) -> bool:
        """Whether a study may be begun now; `why` not."""
        closed = closed_until(datetime.now(), self._hours)
        now = time.monotonic()
        if closed is not None:
            self.why = f"not before {closed:%a %H:%M}"
        elif now < self._not_before:
            self.why = f"the PACS is left alone for {self._not_before - now:.0f} s"
        elif now < self._next_study:
            self.why = "as many studies an hour as are allowed"
        else:
            self.why = ""
            return True
        return False

    def wait_until_open(self) -> None:
        """Until no hours forbid to ask. Raises Stopped."""
        while (closed := closed_until(datetime.now(), self._hours)) is not None:
            self.why = f"not before {closed:%a %H:%M}"
            self.wait(1.0)
        self.check()

    def begun(self) -> None:
        """A study was begun."""
        with self._lock:
            self._next_study = max(self._next_study, time.monotonic()) + self._between_studies

    def came_whole(self) -> None:
        """A study did."""
        with self._lock:
            self.fetched += 1

    def took(self, num_bytes: int) -> None:
        """So much came from the PACS: wait until that is what the limit allows. Raises Stopped."""
        if not self._bytes_per_second:
            self.check()
            return
        with self._lock:
            self._paid_until = max(self._paid_until, time.monotonic()) + num_bytes / self._bytes_per_second
            until = self._paid_until
        self.wait(until - time.monotonic())

    def leave_alone(self, seconds: float) -> None:
        """Begin nothing for so long."""
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + seconds)

    def wait(self, seconds: float) -> None:
        """Raises Stopped."""
        self._stop.wait(max(0.0, seconds))
        self.check()

    def check(self) -> None:
        """Raises Stopped where all is to end."""
        if self._stop.is_set():
            raise Stopped
