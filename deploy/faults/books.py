"""The books: what must hold once everything is quiet, whatever happened before.

sent = acknowledged = kept = in the index = reported once = in the PACS; each compared by the digest of the data set.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from plugin import orphans
from plugin.index.database import Database
from plugin.index.overview import study_view
from plugin.index.tables import Delivery, Instance, Result, Revision, Series, Study
from plugin.lifecycle import DELIVERY_DONE, SERIES_DONE, STUDY_DONE, DeliveryState, StudyState
from plugin.spool import Spool, dataset_digest

from . import material
from .senders import Ledger
from .servers import Orthanc

Where = tuple[str, str]
"""StudyInstanceUID, SOPInstanceUID."""
NO_FAULT = (None, "localizer", "non_image")
"""Reasons of series that none of the bench's heads need be ashamed of."""
PLACES: tuple[tuple[Any, frozenset], ...] = ((Study, STUDY_DONE), (Series, SERIES_DONE), (Delivery, DELIVERY_DONE))


@dataclass
class Books:
    """What was counted, and a sentence for each thing that does not balance."""

    sent: int = 0
    acknowledged: int = 0
    lost: int = 0
    """Acknowledged instances that are nowhere, or not in the index."""
    unreported: int = 0
    """Studies without their one current result set in the index and in the PACS."""
    duplicated: int = 0
    """Result sets too many, and objects in the PACS that no result set has."""
    in_progress: int = 0
    """Rows that still wait, leases that nobody holds any more, files that nobody will take."""
    debris: int = 0
    """Half-written files that a kill left and nothing reads; `hlip clean --orphans` removes them. No fault."""
    revisions: int = 0
    """The most that any study has: each interruption of a sender may make one."""
    problems: list[str] = field(default_factory=list)

    @property
    def balance(self) -> bool:
        return not self.problems

    def wrong(self, what: str, count: int, sentence: str) -> None:
        if count:
            setattr(self, what, getattr(self, what) + count)
            self.problems.append(f"{count} {sentence}")


def is_quiet(database: Database, spool: Spool) -> bool:
    """Nothing waits, nothing is under way."""
    if spool.arrivals(1):
        return False
    with database.read() as session:
        return not any(_count(session, table, done) for table, done in PLACES)


def _count(session: Session, table: Any, done: frozenset) -> int:
    return session.scalar(select(func.count()).select_from(table).where(table.state.not_in(done))) or 0


def check(ledger: Ledger, studies: Sequence[material.Study], database: Database, spool: Spool, pacs: Orthanc) -> Books:
    """Look at everything. Leaves the spool without debris."""
    books = Books(sent=len(ledger.sent), acknowledged=len(ledger.acknowledged))
    books.wrong("lost", len(ledger.sent.keys() - ledger.acknowledged.keys()), "instances never acknowledged")
    with database.read() as session:
        _check_instances(books, ledger, session, spool)
        _check_progress(books, session, spool)
        _check_results(books, studies, session, spool, pacs)
    _check_content(books, ledger, studies, database)
    _sweep(books, spool, database)
    return books


# ---- acknowledged = kept = indexed -------------------------------------------------------------------------------


def _kept(spool: Spool) -> Counter[str]:
    """The digests of all instances that lie in the spool, read anew from the disk."""
    return Counter(dataset_digest(path) for path in spool)


def _check_instances(books: Books, ledger: Ledger, session: Session, spool: Spool) -> None:
    kept = _kept(spool)
    books.wrong("lost", sum(item.digest not in kept for item in ledger.acknowledged), "acknowledged, not on the disk")
    rows = session.execute(
        select(Study.study_instance_uid, Series.series_instance_uid, Instance.sop_instance_uid, Instance.digest)
        .join(Series, Series.study_id == Study.id)
        .join(Instance, Instance.series_id == Series.id)
    ).all()
    indexed = {(study, sop): digest for study, _, sop, digest in rows}
    missing = [item for item in ledger.acknowledged if (item.study_uid, item.sop_uid) not in indexed]
    books.wrong("lost", len(missing), "acknowledged, not in the index")
    sent = {(item.study_uid, item.sop_uid, item.digest) for item in ledger.sent}
    strange = [where for where, digest in indexed.items() if (*where, digest) not in sent]
    books.wrong("duplicated", len(strange), "in the index, and never sent so")
    books.wrong("duplicated", len(rows) - len(indexed), "in the index twice")
    for study, series, sop, digest in rows:
        path = spool.instance_path(study, series, sop)
        if not path.is_file() or dataset_digest(path) != digest:
            books.wrong("lost", 1, f"in the index, and not at its place as it was: {sop}")


# ---- reported once = in the PACS ---------------------------------------------------------------------------------


def _in_pacs(pacs: Orthanc) -> dict[Where, str]:
    return {(study, sop): dataset_digest(BytesIO(content)) for study, sop, content in pacs.objects()}


def _check_results(
    books: Books, studies: Sequence[material.Study], session: Session, spool: Spool, pacs: Orthanc
) -> None:
    stored, known = _in_pacs(pacs), set()
    rows = {row.study_instance_uid: row for row in session.scalars(select(Study))}
    for study in studies:
        row = rows.get(study.uid)
        if row is None:
            books.wrong("unreported", 1, f"study not in the index: {study.name}")
            continue
        wanted = StudyState.REPORTED if study.is_head else StudyState.REFUSED
        if row.state != wanted:
            books.wrong("unreported", 1, f"study {row.state} ({row.reason}), not {wanted}: {study.name}")
        current = [revision for revision in row.revisions if revision.current]
        books.revisions = max(books.revisions, len(row.revisions))
        books.wrong("duplicated", max(0, len(current) - study.is_head), f"current results too many: {study.name}")
        books.wrong("unreported", max(0, study.is_head - len(current)), f"study without a result set: {study.name}")
        for revision in row.revisions:
            known |= {(study.uid, result.sop_instance_uid) for result in revision.results}
            for result in revision.results:
                _check_result(books, study.uid, result, revision, spool, stored)
    strangers = stored.keys() - known
    books.wrong("duplicated", len(strangers), "objects in the PACS that no result set has")


def _check_result(
    books: Books, study_uid: str, result: Result, revision: Revision, spool: Spool, stored: dict[Where, str]
) -> None:
    """A result of the current revision, and each that counts as delivered, is in the PACS as it is here."""
    path = spool / result.path
    must_be_there = revision.current or result.is_note
    ours = dataset_digest(path) if path.is_file() else ""
    if not ours:
        books.wrong("lost", 1, f"result without its file: {result.description}")
    delivered = any(delivery.state == DeliveryState.DELIVERED for delivery in result.deliveries)
    theirs = stored.get((study_uid, result.sop_instance_uid))
    if delivered and theirs is None:
        books.wrong("unreported", 1, f"result that counts as delivered and is not in the PACS: {result.description}")
    elif must_be_there and not delivered:
        books.wrong("unreported", 1, f"result not delivered: {result.description}")
    elif theirs is not None and ours and theirs != ours:
        books.wrong("duplicated", 1, f"result with other content in the PACS: {result.description}")


def _check_content(books: Books, ledger: Ledger, studies: Sequence[material.Study], database: Database) -> None:
    """The current result set is about all instances, not about those that came before an interruption."""
    sent: dict[str, set[str]] = defaultdict(set)
    for item in ledger.acknowledged:
        sent[item.study_uid].add(item.sop_uid)
    with database.read() as session:
        ids = {uid: id_ for uid, id_ in session.execute(select(Study.study_instance_uid, Study.id))}
    for study in studies:
        if study.uid not in ids or not study.is_head:
            continue
        view = study_view(database, ids[study.uid])
        seen = {instance.sop_instance_uid for series in view.series for instance in series.instances}
        if view.last is None or view.last.content_digest != view.content_digest or seen != sent[study.uid]:
            books.wrong("unreported", 1, f"study whose current results do not cover all its images: {study.name}")
        unprepared = [s.reason for s in view.series if s.reason not in NO_FAULT]
        books.wrong("unreported", len(unprepared), f"series refused ({', '.join(map(str, unprepared))}): {study.name}")


# ---- nothing in progress -----------------------------------------------------------------------------------------


def _check_progress(books: Books, session: Session, spool: Spool) -> None:
    for table, done in PLACES:
        books.wrong("in_progress", _count(session, table, done), f"rows of {table.__tablename__} not done")
        leases = session.scalar(select(func.count()).select_from(table).where(table.lease_owner.is_not(None)))
        books.wrong("in_progress", leases or 0, f"leases on {table.__tablename__}")
    books.wrong("in_progress", len(spool.arrivals(1000)), "arrivals not indexed")
    books.wrong("in_progress", len(list(spool.associations.iterdir())), "associations that count as open")


def _sweep(books: Books, spool: Spool, database: Database) -> None:
    """What `hlip clean --orphans` finds: debris of kills goes, and then nothing is left over."""
    for orphan in orphans.find(spool, database, min_age_seconds=0):
        if orphan.fate == "index again":
            books.wrong("lost", 1, f"{orphan.what}: {orphan.path.name}")
        elif orphan.path.is_file():
            books.debris += 1
        orphans.settle(spool, database, orphan)
    for left in _unfinished(spool):
        books.wrong("in_progress", 1, f"left over that no sweep takes: {spool.relative(left)}")


def _unfinished(spool: Spool) -> Iterator[Path]:
    for folder in (spool.incoming, spool.prepared, spool.results, spool.broker):
        yield from (path for path in folder.rglob(".*") if path.is_file())
    yield from spool.incoming.iterdir()
