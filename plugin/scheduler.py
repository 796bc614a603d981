"""The scheduler: arrivals into the index, what is complete made ready, work announced. One tick does it all.

Whatever a tick leaves undone, the next one does: it keeps no state that a restart would miss.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from hlip_core.headers import MALFORMED
from plugin import metrics
from plugin.arrival import Arrival, Kind, read_arrival
from plugin.audit import Trail
from plugin.index import future, intake, leases, settling
from plugin.index.database import Database
from plugin.index.intake import Fate, Intake, NotTaken
from plugin.retention import Retention
from plugin.routing import route
from plugin.sections_archive import LONGEST_RETRY_AFTER_SECONDS
from plugin.settings import Settings
from plugin.spool import OpenStudies, Spool

log = structlog.get_logger("hlip.scheduler")

BATCH = 200
LOOK_SECONDS = 0.25
"""How long an arrival waits at most for others to be indexed with: a batch costs the same for one as for ten."""
PAUSE_SECONDS = 0.02
"""If so long no other comes, it waits no longer."""
RING_AGAIN_SECONDS = 5.0
AWAY_SECONDS = 2.0
CLOCK_SECONDS = 5.0
"""How often it is seen to that nothing waits for a time that a clock set back has made distant."""
LONGEST_WAIT_SECONDS = 60.0
"""After a failure of prepare or analyse; that of a delivery is a setting."""
UNROUTED_PRIORITY = 90


@dataclass
class Scheduler:
    """Args: `ring` announces one piece of work on a queue; losing a ring costs time, never work. It says whether it
    rang: where it did not, it is asked again at the next tick.
    """

    settings: Settings
    spool: Spool
    database: Database
    ring: Callable[[str], bool | None]
    audit: Trail | None = None

    def __post_init__(self) -> None:
        self._rung: dict[tuple[str, int], float] = {}
        self._clock_checked = -CLOCK_SECONDS
        self.retention = Retention.from_settings(self.settings.retention, self.spool, self.database, audit=self.audit)

    def run(self, stop: threading.Event) -> None:
        """Tick until stopped; between two ticks only look for arrivals."""
        next_tick = 0.0
        gc.freeze()  # what was imported stays: the collector need not look at it again with every batch
        while not stop.is_set():
            try:
                is_due = time.monotonic() >= next_tick
                full = self.tick() if is_due else self.index_arrivals() == BATCH
                if is_due:
                    next_tick = time.monotonic() + self.settings.settle.tick_seconds
                if not full:
                    self._await_arrivals(stop)
            except OSError as error:  # IndexUnavailable among them
                log.error("the index or the spool is away", cause=type(error).__name__, errno=error.errno)
                stop.wait(AWAY_SECONDS)

    def _await_arrivals(self, stop: threading.Event) -> None:
        """Let arrivals gather while more of them come."""
        end = time.monotonic() + min(LOOK_SECONDS, self.settings.settle.tick_seconds)
        before = 0
        while (left := end - time.monotonic()) > 0 and not stop.wait(min(PAUSE_SECONDS, left)):
            waiting = self.spool.num_arrivals()
            if waiting and waiting == before:
                return
            before = waiting

    def tick(self) -> bool:
        """One round; True when more arrivals wait already."""
        cap_seconds = self.settings.settle.association_cap_seconds
        # looked at before the arrivals: all that an association sent which has ended since is among them
        open_studies = self.spool.open_studies(cap_seconds=cap_seconds)
        full = self.index_arrivals() == BATCH
        self._bring_back_the_future()
        if not full:  # nothing settles while more arrivals wait
            self.settle(open_studies)
            self.retention.step(self._open_studies)
        leases.drop_past(self.database)
        given_up = leases.give_up(self.database, max_attempts=self.settings.workers.max_attempts)
        if given_up:
            log.error("gave up", items=given_up)
            metrics.GIVEN_UP.inc(given_up)
        self.announce()
        metrics.TICKED.set_to_current_time()
        return full

    # ---- arrivals --------------------------------------------------------------------------------------

    def index_arrivals(self) -> int:
        """Take one batch of arrivals into the index and to their places. How many.

        What an archive scan fetched fills the batch where room is left, and does not count.
        """
        paths = self.spool.arrivals(BATCH)
        fetched = self.spool.fetched_arrivals(BATCH - len(paths))
        scans = {path: scan_id for scan_id, path in fetched}
        arrivals = [arrival for path in [*paths, *scans] if (arrival := self._read(path)) is not None]
        priorities: dict[Kind, int] = {}  # by header: the slices of a series share theirs
        for arrival in arrivals:
            if arrival.kind not in priorities:
                priorities[arrival.kind] = self._priority(arrival)
        batch = [
            Intake(arrival, self.settings.archive.priority, scans[arrival.path])
            if arrival.path in scans
            else Intake(arrival, priorities[arrival.kind])
            for arrival in arrivals
        ]
        if batch:
            for item, fate in self._add(batch):
                self._put_away(item.arrival, fate)
                metrics.INDEXED.labels(fate.name.lower()).inc()
        return len(paths)

    def _add(self, batch: Sequence[Intake]) -> Iterator[tuple[Intake, Fate]]:
        """What becomes of each. One that the database takes for wrong is set aside by itself."""
        try:
            yield from zip(batch, intake.add_instances(self.database, batch), strict=True)
        except NotTaken as error:
            if len(batch) == 1:
                self._set_aside_unread(batch[0].arrival.path, cause=str(error))
                return
            for item in batch:
                yield from self._add([item])

    def _set_aside_unread(self, path: Path, *, cause: str) -> None:
        metrics.INDEXED.labels("unreadable").inc()
        log.error("unreadable arrival set aside", file=path.name, cause=cause)
        self.spool.set_aside(path, "unreadable", path.stem, "")

    def _read(self, path: Path) -> Arrival | None:
        """An arrival that the listener could read and we cannot is kept apart, so that it does not block the rest.

        Raises OSError where it is the disk that fails, not the file: then all of it waits.
        """
        try:
            return read_arrival(path)
        except MALFORMED as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self._set_aside_unread(path, cause=type(error).__name__)
            return None

    def _priority(self, arrival: Arrival) -> int:
        rule = route(arrival.header, self.settings.routing.rules)
        return rule.priority if rule else UNROUTED_PRIORITY

    def _put_away(self, arrival: Arrival, fate: Fate) -> None:
        place = self.spool.instance_path(
            arrival.study_instance_uid, arrival.series_instance_uid, arrival.sop_instance_uid
        )
        if fate is Fate.SET_ASIDE:
            log.warning("same UID, other content: first kept", study_instance_uid=arrival.study_instance_uid)
            self.spool.set_aside(arrival.path, arrival.study_instance_uid, arrival.sop_instance_uid, arrival.digest)
        elif fate is Fate.PLACE or not place.exists():  # a cut between index and move left it here
            self.spool.place(arrival.path, place)
        else:
            arrival.path.unlink()

    # ---- settling and announcing -----------------------------------------------------------------------

    def settle(self, open_studies: OpenStudies) -> None:
        if not settling.has_unsettled(self.database):
            return
        rules = self.settings.settle
        settling.settle_series(self.database, quiet_seconds=rules.series_quiet_seconds, open_studies=open_studies)
        settling.prepare_again(self.database)
        settling.settle_studies(self.database, quiet_seconds=rules.study_quiet_seconds, open_studies=open_studies)

    def _bring_back_the_future(self) -> None:
        now = time.monotonic()
        if now - self._clock_checked < CLOCK_SECONDS:
            return
        self._clock_checked = now
        settings = self.settings
        corrected = future.bring_back(
            self.database,
            lease_seconds=settings.workers.lease_seconds,
            longest_wait_seconds=max(
                LONGEST_WAIT_SECONDS,
                settings.delivery.longest_retry_seconds,
                settings.delivery.timeout_seconds + settings.workers.lease_seconds,
                settings.workers.prepare_timeout_seconds,
            ),
            fetch_lease_seconds=settings.archive.lease_seconds,
            longest_fetch_wait_seconds=max(LONGEST_RETRY_AFTER_SECONDS, settings.archive.longest_retry_seconds),
        )
        if corrected:
            log.warning("the clock was set back", times_corrected=corrected)

    def _open_studies(self) -> frozenset[str]:
        return self.spool.open_studies(cap_seconds=self.settings.settle.association_cap_seconds).studies

    def announce(self) -> None:
        """Ring once for each item that waits, and again for those that no one took."""
        now = time.monotonic()
        waiting: set[tuple[str, int]] = set()
        for queue in leases.QUEUES:
            ids = leases.claimable(self.database, queue, max_attempts=self.settings.workers.max_attempts)
            waiting.update((queue, item) for item in ids)
        for item in waiting:
            is_due = now - self._rung.get(item, -RING_AGAIN_SECONDS) >= RING_AGAIN_SECONDS
            if is_due and self.ring(item[0]) is not False:
                self._rung[item] = now
        self._rung = {item: at for item, at in self._rung.items() if item in waiting}
