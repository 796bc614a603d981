"""One study of the plan: fetched whole, or put back, or ended with the reason why."""

import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import structlog

from hlip_core.headers import MALFORMED
from plugin.archive.pace import Pace, wait_seconds
from plugin.archive.selection import Selection
from plugin.archive.source import Denied, Forbidden, FoundSeries, Gone, NotNow, Source, Stopped
from plugin.archive.staging import Staging
from plugin.index import archive_fetch
from plugin.index.archive_fetch import Fetch
from plugin.index.database import Database
from plugin.index.leases import kept_alive
from plugin.sections_archive import ArchiveSettings
from plugin.sop_classes import ACCEPTED
from plugin.spool import Spool

log = structlog.get_logger("hlip.archive")

MENDED = frozenset({"truncated"})
"""What is tried again at once, instance by instance."""

OURS = frozenset({"disk_full"})
"""For what goes wrong with us no study is to blame."""


class _NothingWanted(Exception):
    """The study has nothing to fetch: no series was selected, or they hold nothing that we take."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Tries(NamedTuple):
    """How often a study was tried in this run, and whether others came whole since the first time."""

    times: int
    others_came: bool


class Excuses:
    """Of the studies that could not be fetched in this run, for all its threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: dict[str, tuple[int, int]] = {}

    def count(self, study_uid: str, fetched: int) -> Tries:
        """Once more, when so many studies of the run have come whole."""
        with self._lock:
            tries, before = self._tries.get(study_uid, (0, fetched))
            self._tries[study_uid] = (tries + 1, before)
        return Tries(tries + 1, fetched > before)


@dataclass(frozen=True)
class Fetcher:
    """What fetching a study needs. `bundle_digest`: of the model that is to analyse it."""

    database: Database
    spool: Spool
    source: Source
    selection: Selection
    rules: ArchiveSettings
    pace: Pace
    bundle_digest: str
    max_object_bytes: int
    excuses: Excuses = field(default_factory=Excuses)

    def fetch(self, item: Fetch) -> None:
        """Do all that there is to do with a claimed study.

        Raises Denied or Stopped, and has put it back; IndexUnavailable.
        """
        if item.study_instance_uid in Staging.handed_over(self.spool, item.scan_id):  # and a kill came between
            archive_fetch.end(self.database, item, "whole")
            return
        known = archive_fetch.known(self.database, item, self.bundle_digest)
        if known is not None:
            archive_fetch.end(self.database, item, known.event, reason=known.reason)
            return
        self.pace.begun()
        try:
            staging = self._staging(item)
        except OSError as error:  # the disk
            log.error("no staging", study_instance_uid=item.study_instance_uid, error=type(error).__name__)
            wait = self.rules.first_retry_seconds
            archive_fetch.put_back(self.database, item, reason="disk", wait_seconds=wait, is_to_blame=True)
            return
        seconds = self.rules.lease_seconds
        with kept_alive(partial(archive_fetch.renew, self.database, item, seconds), seconds):
            try:
                self._fetch_into(item, staging)
            finally:
                archive_fetch.note_troubles(self.database, item, +staging.troubles)

    def _staging(self, item: Fetch) -> Staging:
        return Staging(
            self.spool,
            scan_id=item.scan_id,
            study_instance_uid=item.study_instance_uid,
            token=item.token,
            max_object_bytes=self.max_object_bytes,
            pace=self.pace,
        )

    def _fetch_into(self, item: Fetch, staging: Staging) -> None:
        started = time.monotonic()
        try:
            self._all_series(staging)
            count, size = staging.size()
            seconds = time.monotonic() - started
            what = {"reason": None, "instances": count, "megabytes": size / 1e6, "fetch_seconds": seconds}
            self.pace.came_whole()
            stands = archive_fetch.end(self.database, item, "whole", publish=staging.hand_over, **what)
            log.info("fetched" if stands else "lost", study_instance_uid=item.study_instance_uid, instances=count)
        except _NothingWanted as nothing:
            archive_fetch.end(self.database, item, "skipped", reason=nothing.reason)
            staging.discard()
        except Gone:
            archive_fetch.end(self.database, item, "gone", reason="gone")
            staging.discard()
            log.warning("gone", study_instance_uid=item.study_instance_uid)
        except NotNow as trouble:
            self._later(item, staging, trouble)
        except (Denied, Stopped) as end:
            if isinstance(end, Forbidden) and self.pace.fetched:
                self._later(item, staging, NotNow("http_403"))
                return
            archive_fetch.put_back(self.database, item, reason="", wait_seconds=0, is_to_blame=False)
            raise
        except MALFORMED as error:
            self._later(item, staging, NotNow("disk" if isinstance(error, OSError) else "malformed"))

    def _later(self, item: Fetch, staging: Staging, trouble: NotNow) -> None:
        """Put it back for a while, or give it up. While the PACS as a whole has no time, nothing else is begun.

        But where others came whole since it had none for the first time, it is this study that it has no time for.
        """
        staging.troubles[trouble.reason] += 1
        tries = self.excuses.count(item.study_instance_uid, self.pace.fetched)
        is_to_blame = trouble.is_to_blame or (tries.others_came and trouble.reason not in OURS)
        attempts = item.attempts + is_to_blame
        wait = wait_seconds(trouble, attempts if is_to_blame else tries.times, self.rules)
        if not is_to_blame:
            self.pace.leave_alone(wait)
        log.warning("not fetched", study_instance_uid=item.study_instance_uid, reason=trouble.reason, attempts=attempts)
        if attempts >= self.rules.max_attempts:
            archive_fetch.end(self.database, item, "gave up", reason=trouble.reason, attempts=attempts)
            staging.discard()
            return
        archive_fetch.put_back(self.database, item, reason=trouble.reason, wait_seconds=wait, is_to_blame=is_to_blame)

    # ---- from the PACS ---------------------------------------------------------------------------------

    def _all_series(self, staging: Staging) -> None:
        uid = staging.study_instance_uid
        wanted = [series for series in self.source.series(uid) if self.selection.wants(series)]
        if not wanted:
            raise _NothingWanted("not_selected")
        staging.keep_only(series.series_instance_uid for series in wanted)
        for series in wanted:
            try:
                self._series(series, staging)
            except Gone:
                self.source.series(uid)  # raises Gone where it is the whole study
                raise NotNow("incomplete") from None
        staging.keep_only(series.series_instance_uid for series in wanted)
        if not any(staging.has(series.series_instance_uid) for series in wanted):
            raise _NothingWanted("unsupported_class")

    def _series(self, series: FoundSeries, staging: Staging) -> None:
        """One series with all its instances of the classes that we take, if it has any.

        Raises NotNow where some are missing in the end, Gone where all are.
        """
        study_uid, uid = staging.study_instance_uid, series.series_instance_uid
        if not staging.has(uid):
            try:
                self.source.fetch_series(study_uid, uid, staging)
            except NotNow as trouble:
                if trouble.reason not in MENDED and not self._is_for_a_class(trouble, study_uid, uid):
                    raise
                staging.troubles[trouble.reason] += 1
        refused = staging.refused.get(uid, set())
        if series.num_instances and len(staging.has(uid) | refused) >= series.num_instances:
            return
        listed = self.source.instances(study_uid, uid)
        if series.num_instances > len(listed):  # some PACS drop entries
            listed |= self.source.instances(study_uid, uid)
        wanted = {sop_uid for sop_uid, sop_class in listed.items() if _is_taken(sop_class)}
        staging.troubles["unsupported_class"] += len(listed.keys() - wanted - refused)
        for sop_uid in sorted(wanted - staging.has(uid) - refused):
            staging.troubles["asked_again"] += 1
            try:
                self.source.fetch_instance(study_uid, uid, sop_uid, staging)
            except Gone:
                staging.troubles["instance_gone"] += 1
        self._check_is_whole(series, staging, wanted, len(listed))

    def _check_is_whole(self, series: FoundSeries, staging: Staging, wanted: set[str], num_listed: int) -> None:
        """Raises Gone or NotNow where it is not."""
        here = staging.has(series.series_instance_uid)
        refused = staging.refused.get(series.series_instance_uid, set())
        if not here and not refused and (wanted or not num_listed):
            raise Gone
        if wanted - here - refused:
            raise NotNow("incomplete")
        staging.troubles["count_differs"] += bool(series.num_instances) and series.num_instances != num_listed

    def _is_for_a_class(self, trouble: NotNow, study_uid: str, series_uid: str) -> bool:
        """Whether a retrieval by DIMSE failed for an instance whose class was not negotiated: then one by one."""
        if not trouble.reason.startswith("retrieve_"):
            return False
        return not all(map(_is_taken, self.source.instances(study_uid, series_uid).values()))


def _is_taken(sop_class_uid: str) -> bool:
    """Whether we take instances of a class; what is not told excludes nothing."""
    return not sop_class_uid or sop_class_uid in ACCEPTED
