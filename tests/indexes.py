"""An index in SQLite and in PostgreSQL, and the short ways to fill it, to claim work of it and to report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import update

from plugin.arrival import Arrival, read_arrival
from plugin.index import intake, leases, outcomes, overview, settling
from plugin.index.database import Database
from plugin.index.intake import Fate, Intake
from plugin.index.leases import Claim
from plugin.index.tables import Base, Delivery, Series, Study
from plugin.spool import OpenStudies
from road import head_ct

NOBODY = OpenStudies(frozenset(), frozenset())
KINDS = ["sqlite", "postgresql"]


@contextmanager
def empty_database(request: pytest.FixtureRequest, folder: Path) -> Iterator[Database]:
    """An index without a row, in the kind of database that the fixture's parameter names."""
    sqlite = f"sqlite:///{folder / 'index.sqlite'}"
    url = sqlite if request.param == "sqlite" else request.getfixturevalue("postgresql")
    made = Database(url, lock=folder / "lock")
    made.upgrade()
    with made.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    yield made
    made.close()


def arrivals(folder: Path, **kwargs: object) -> list[Arrival]:
    return [read_arrival(path) for path in head_ct(folder, **kwargs)]  # type: ignore[arg-type]


def add(database: Database, batch: list[Arrival], priority: int = 20) -> list[Fate]:
    return intake.add_instances(database, [Intake(arrival, priority) for arrival in batch])


def claim(database: Database, queue: str, *, owner: str = "me", lease_seconds: float = 30) -> Claim | None:
    return leases.claim(database, queue, owner=owner, lease_seconds=lease_seconds, max_attempts=3)


def states(database: Database) -> tuple[dict, dict]:
    seen = overview.overview(database)
    return seen["series_by_state"], seen["studies_by_state"]


def settle(database: Database, open_studies: OpenStudies = NOBODY) -> None:
    settling.settle_series(database, quiet_seconds=0, open_studies=open_studies)
    settling.settle_studies(database, quiet_seconds=0, open_studies=open_studies)


def prepared(database: Database) -> None:
    """Every series of the index, as if its work was done."""
    settle(database)
    while (item := claim(database, "prepare")) is not None:
        assert outcomes.series_prepared(database, item, notes=["a note"], seconds=0.1)
    settle(database)


def report(database: Database, item: Claim, *, number: int = 1, publish=lambda: None, hold: bool = False) -> bool:  # type: ignore[no-untyped-def]
    result = outcomes.NewResult("1.2", f"1.2.{item.id}.{number}", "1.3", "Summary", f"results/{number}.dcm")
    revision = outcomes.NewRevision(
        number=number, inputs_digest=f"{number}", content_digest="c", bundle_digest="b", preprocessing="p",
        created_at=1.0, findings=[{"label": "x"}], results=[result],
    )  # fmt: skip
    return outcomes.study_reported(
        database, item, revision, destinations=["pacs"], hold=hold, seconds=1.0, publish=publish
    )


def reported(database: Database, number: int = 1, *, hold: bool = False) -> None:
    item = claim(database, "analyse")
    assert item is not None and report(database, item, number=number, hold=hold)


def shift(database: Database, table: type[Series | Study | Delivery], column: str, *, seconds: float = 3600) -> None:
    with database.write() as session:
        session.execute(update(table).values({column: getattr(table, column) + seconds}))
