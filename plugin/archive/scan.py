"""The process of `hlip archive scan`: finds, fetches a few studies ahead, and clears away behind the road.

All that it knows is in the index and the spool, so that it may be killed at any point.
"""

import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from plugin.archive.fetch import Fetcher
from plugin.archive.listing import Listing
from plugin.archive.pace import Pace, wait_seconds
from plugin.archive.selection import Selection
from plugin.archive.source import Answer, Denied, Gone, NotNow, Query, Source, Stopped
from plugin.archive.staging import Staging
from plugin.bootstrap import Plugin
from plugin.index import archive as index
from plugin.index import archive_fetch
from plugin.index.archive import ScanView, Standing
from plugin.index.database import Database, IndexUnavailable
from plugin.lifecycle import FetchState, ScanState
from plugin.retention import Retention
from plugin.sections_archive import ArchiveSettings

log = structlog.get_logger("hlip.archive")

LOOK_SECONDS = 0.25
AWAY_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
"""Without anything analysed for so long, someone should look whether `hlip serve` runs."""


@dataclass(frozen=True)
class Wishes:
    """What becomes of a scan's results and images; `options` stand in place of the settings' [archive]."""

    store: bool = False
    keep_instances: bool = False
    keep_prepared: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How a run ended; `why` it is not at its end, "" where it is."""

    why: str = ""
    exit_code: int = 0


class GaveUp(Exception):
    """The PACS does not say which studies it has."""


def open_scan(database: Database, selection: Selection, wishes: Wishes, *, name: str = "") -> ScanView:
    """The unfinished scan of this selection, or a new one. Raises ValueError for a name that is taken."""
    if name and not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise ValueError("--name takes letters, digits, dots, dashes and underscores")
    return index.open_scan(database, name, selection.as_json(), **vars(wishes))


@contextmanager
def open_source(plugin: Plugin, rules: ArchiveSettings) -> Iterator[Source]:
    """The PACS of the settings. Raises ValueError where none is named, plugin.tls.TlsError, OSError."""
    way = rules.way
    source: Source
    if way == "dicomweb":
        from plugin.archive.dicomweb import Dicomweb

        source = Dicomweb(rules)
    else:
        from plugin.archive.dimse import Dimse, Landing

        folder = plugin.spool.folder / "landing"
        landing = Landing(rules, plugin.settings.listener, folder, plugin.audit) if way == "move" else None
        source = Dimse(rules, landing=landing)
    try:
        yield source
    finally:
        source.close()


class Patient:
    """Asks which studies there are, again where the PACS has no time. `facts` counts the tries.

    Args:
        over: nothing more is asked, and nothing waited for, once it is set.
    """

    def __init__(self, source: Source, rules: ArchiveSettings, pace: Pace, over: threading.Event | None = None) -> None:
        self._source, self._rules, self._pace = source, rules, pace
        self._over = over or threading.Event()
        self.facts: Counter[str] = Counter()

    def __call__(self, query: Query, limit: int, offset: int) -> Answer:
        """Raises Denied, GaveUp, Stopped."""
        for attempt in count(1):
            self._wait(0)
            self._pace.wait_until_open()
            try:
                return self._source.studies(query, limit=limit, offset=offset)
            except Gone:
                raise GaveUp("the url of the settings' section [archive] is not that of a DICOMweb service") from None
            except NotNow as trouble:
                self.facts[trouble.reason] += 1
                if trouble.is_to_blame and attempt >= self._rules.max_attempts:
                    raise GaveUp(f"the PACS does not say which studies it has ({trouble.reason})") from None
                self._wait(wait_seconds(trouble, attempt, self._rules))
        raise AssertionError("unreachable")

    def _wait(self, seconds: float) -> None:
        """Raises Stopped."""
        until = time.monotonic() + seconds
        while not self._over.is_set():
            if (left := until - time.monotonic()) <= 0:
                return
            self._pace.wait(min(left, LOOK_SECONDS))
        raise Stopped

    def once(self, query: Query, limit: int, offset: int) -> Answer:
        """Without patience. Raises Denied, Gone, NotNow, Stopped."""
        self._pace.wait_until_open()
        return self._source.studies(query, limit=limit, offset=offset)


class Run:
    """One process' work on a scan."""

    def __init__(
        self, plugin: Plugin, rules: ArchiveSettings, scan: ScanView, source: Source, stop: threading.Event
    ) -> None:
        self._plugin, self._rules, self._scan, self._source, self._stop = plugin, rules, scan, source, stop
        self._selection = Selection.from_json(scan.selection)
        self._draining = threading.Event()
        self.pace = Pace(
            hours=rules.not_during,
            studies_per_hour=rules.studies_per_hour,
            bytes_per_second=rules.megabytes_per_second * 1e6,
            stop=stop,
        )
        settings = plugin.settings
        self._fetcher = Fetcher(
            database=plugin.database,
            spool=plugin.spool,
            source=source,
            selection=self._selection,
            rules=rules,
            pace=self.pace,
            bundle_digest=plugin.bundle.digest,
            max_object_bytes=int(settings.listener.max_object_gigabytes * 1e9),
        )
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._retention = Retention.from_settings(settings.retention, plugin.spool, plugin.database)
        self._kinds = [
            kind for kind, kept in (("instances", scan.keep_instances), ("prepared", scan.keep_prepared)) if not kept
        ]

    def run(self, show: "Show") -> End:
        """Until all is done, or it is paused, stopped, or turned away."""
        database, scan = self._plugin.database, self._scan
        freed = archive_fetch.free_dead(database, scan.id, self._is_dead)
        log.info("scanning", scan=scan.name, taken_over=freed)
        for _ in self._retention.take_up():
            pass
        with ThreadPoolExecutor(self._rules.parallel + 1, thread_name_prefix="archive") as threads:
            work = [threads.submit(self._work) for _ in range(self._rules.parallel)]
            if scan.listed_at is None:
                work.append(threads.submit(self._list))
            try:
                return self._watch(work, show)
            finally:
                self._draining.set()
                if any(future.done() and future.exception() for future in work):
                    self._stop.set()

    def _is_dead(self, owner: str) -> bool:
        """Whether a process of this host, by the name that it claims under, is no more."""
        host, _, pid = owner.rpartition("-")
        if host != socket.gethostname() or not pid.isdecimal():
            return False
        if owner == self._owner:  # an earlier one with our number
            return True
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    # ---- in threads ------------------------------------------------------------------------------------

    def _list(self) -> None:
        patient = Patient(self._source, self._rules, self.pace, self._draining)
        listing = Listing(self._source, self._selection, page=self._rules.page, ask=patient, check=patient.once)
        database, scan_id = self._plugin.database, self._scan.id
        for batch in listing:
            found = [(study.study_instance_uid, study.num_instances) for study in batch]
            self._patiently(partial(index.plan, database, scan_id, found))
        self._patiently(lambda: index.set_listed(database, scan_id, dict(+(listing.facts + patient.facts))))

    def _patiently(self, write: Callable[[], object]) -> None:
        """Write to the index, again while it is away. Raises Stopped where no more is to be begun."""
        while not self._draining.is_set():
            self.pace.check()
            try:
                write()
                return
            except IndexUnavailable:
                log.error("the index is away")
                self._stop.wait(AWAY_SECONDS)
        raise Stopped

    def _work(self) -> None:
        rules = self._rules
        while not (self._stop.is_set() or self._draining.is_set()):
            try:
                if not self.pace.may_begin():
                    self._stop.wait(LOOK_SECONDS)
                    continue
                if not self._plugin.spool.has_room():
                    self.pace.why = "no room on the disk"
                    self._stop.wait(AWAY_SECONDS)
                    continue
                item = archive_fetch.claim(
                    self._plugin.database,
                    self._scan.id,
                    owner=self._owner,
                    lease_seconds=rules.lease_seconds,
                    look_ahead=rules.look_ahead,
                )
                if item is None:
                    self._stop.wait(LOOK_SECONDS)
                    continue
                self._fetcher.fetch(item)
            except IndexUnavailable:
                log.error("the index is away")
                self._stop.wait(AWAY_SECONDS)
            except Stopped:  # all of it, or another process has taken this study over
                continue

    # ---- in the main thread ----------------------------------------------------------------------------

    def _watch(self, work: list[Future], show: "Show") -> End:
        database, scan = self._plugin.database, self._scan
        while True:
            try:
                self._clear_away()
                standing = index.standing(database, scan.id)
                show(standing, self.pace.why)
                if standing.state == ScanState.PAUSED:
                    return End(f"{scan.name} is paused: `hlip archive resume {scan.name}` goes on", 3)
                if index.finish(database, scan.id):
                    return End()
            except IndexUnavailable:
                log.error("the index is away")
            for future in work:
                if future.done() and (error := future.exception()) is not None:
                    return self._turned_away(error)
            if self._stop.wait(LOOK_SECONDS):
                return End(f"stopped: `hlip archive resume {scan.name}` goes on", 3)

    def _turned_away(self, error: BaseException) -> End:
        goes_on = f"`hlip archive resume {self._scan.name}` goes on"
        if isinstance(error, Denied):
            return End(f"{error}. Then {goes_on}", 2)
        if isinstance(error, GaveUp):
            return End(f"{error}. Later {goes_on}", 3)
        if isinstance(error, Stopped):
            return End(f"stopped: {goes_on}", 3)
        raise error

    def _clear_away(self) -> None:
        """End what the road is through with; what was fetched of it and made of it goes."""
        database, scan_id = self._plugin.database, self._scan.id
        for fate in archive_fetch.done(database, scan_id, lambda: Staging.handed_over(self._plugin.spool, scan_id)):
            if fate.study_id is not None:
                for _ in self._retention.release(fate.study_id, self._kinds):
                    pass
            archive_fetch.conclude(database, fate)


class Show:
    """The progress in a terminal."""

    def __init__(self, bars: Progress, scan: ScanView) -> None:
        self._bars = bars
        self._task = bars.add_task(scan.name, total=None, what="")
        self._done, self._since = -1, 0.0

    def __call__(self, standing: Standing, why: str) -> None:
        counts = standing.counts
        if standing.done != self._done:
            self._done, self._since = standing.done, self._bars.get_time()
        waits = counts.get(FetchState.FETCHED, 0)
        if waits and self._bars.get_time() - self._since > PATIENCE_SECONDS:
            why = "fetched studies wait: does `hlip serve` run on this data folder?"
        parts = [f"{counts[state]} {state}" for state in FetchState if counts.get(state)]
        self._bars.update(
            self._task,
            completed=standing.done,
            total=standing.total,
            what=", ".join(parts) + (f" ({why})" if why else ""),
        )


def run(plugin: Plugin, rules: ArchiveSettings, scan: ScanView, *, console: Console, stop: threading.Event) -> End:
    """Work on a scan until it ends, or until `stop` is set. Raises ValueError where no PACS is named, OSError."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[what]}"),
    )  # fmt: skip
    with open_source(plugin, rules) as source, plugin.audit.running(), Progress(*columns, console=console) as bars:
        return Run(plugin, rules, scan, source, stop).run(Show(bars, scan))
