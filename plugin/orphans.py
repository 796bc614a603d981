"""What lies in the spool and no one knows of: left behind by kills, or older than an index that was put back.

An instance that the index does not know was acknowledged all the same, so it goes back to ``incoming/``, to be indexed.
All else of this kind can be made again, or never was whole, and goes.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plugin.index import retention as index
from plugin.index.database import Database
from plugin.retention import PREPARED_SUFFIXES, remove_if_empty
from plugin.spool import Spool

LEFT_OVER = "left over by a removal"
MIN_AGE_SECONDS = 86400.0
"""Younger things may be someone's work of this moment."""


@dataclass(frozen=True)
class Orphan:
    path: Path
    what: str
    fate: Literal["index again", "remove"]

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0


def _is_old(path: Path, min_age_seconds: float) -> bool:
    try:
        return path.stat().st_mtime <= time.time() - min_age_seconds
    except FileNotFoundError:
        return False


def find(spool: Spool, database: Database, *, min_age_seconds: float = MIN_AGE_SECONDS) -> Iterator[Orphan]:
    """Orphans older than `min_age_seconds`: files first, then folders without files."""
    for orphan in (*_instances(spool, database), *_prepared(spool, database), *_results(spool, database)):
        if _is_old(orphan.path, min_age_seconds):
            yield orphan
    for path in spool.fetching.glob("*/*/*/*.dcm"):
        if _is_old(path, min_age_seconds):
            yield Orphan(path, "left over by an archive scan", "remove")
    for part in spool.folder.rglob(".*.part"):
        if _is_old(part, min_age_seconds):
            yield Orphan(part, "half-written file", "remove")
    for root in _of_studies(spool):
        for folder in sorted((p for p in root.rglob("*") if p.is_dir()), reverse=True):
            if not any(folder.iterdir()) and _is_old(folder, min_age_seconds):
                yield Orphan(folder, "empty folder", "remove")


def _of_studies(spool: Spool) -> tuple[Path, ...]:
    """Folders with a folder for each study, which may go; the others are what processes hold on to."""
    return spool.instances, spool.prepared, spool.results, spool.conflicting


def _instances(spool: Spool, database: Database) -> Iterator[Orphan]:
    for study in spool.instances.iterdir():
        rows = index.known(database, "instances", study.name)
        for path in study.glob("*/*.dcm"):
            lies_here = rows.get((path.parent.name, path.stem))
            if lies_here is None:
                yield Orphan(path, "instance that the index does not know", "index again")
            elif not lies_here:
                yield Orphan(path, LEFT_OVER, "remove")


def _prepared(spool: Spool, database: Database) -> Iterator[Orphan]:
    for study in spool.prepared.iterdir():
        rows = index.known(database, "prepared", study.name)
        for path in study.iterdir():
            ending = next((suffix for suffix in PREPARED_SUFFIXES if path.name.endswith(suffix)), "")
            series_uid = path.name.removesuffix(ending)
            if not path.name.startswith(".") and not rows.get((series_uid, series_uid)):
                yield Orphan(path, "prepared scan that the index does not know", "remove")


def _results(spool: Spool, database: Database) -> Iterator[Orphan]:
    for study in spool.results.iterdir():
        lying = {name for (_, name), lies_here in index.known(database, "results", study.name).items() if lies_here}
        for path in study.glob("*/*"):
            if not path.name.startswith(".") and spool.relative(path) not in lying:
                yield Orphan(path, "result that the index does not know", "remove")


def settle(spool: Spool, database: Database, orphan: Orphan) -> None:
    """Do what is to be done with an orphan; one that is gone is no error."""
    if orphan.fate == "index again":
        spool.take_back(orphan.path)
    elif orphan.path.is_dir():
        remove_if_empty(orphan.path)
    else:
        if orphan.what != LEFT_OVER:
            orphan.path.unlink(missing_ok=True)
        else:
            _unlink_unless_back(database, orphan.path)
        if any(root in orphan.path.parent.parents for root in _of_studies(spool)):
            remove_if_empty(orphan.path.parent)


def _unlink_unless_back(database: Database, path: Path) -> None:
    """It may have been sent again since it was found."""
    series = path.parent
    with index.known_and_held(database, "instances", series.parent.name) as rows:
        if rows.get((series.name, path.stem)) is False:
            path.unlink(missing_ok=True)
