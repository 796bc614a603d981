"""The index as a database: its schema, its clock, its errors; in SQLite, and in PostgreSQL where it is installed."""

import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import ProgrammingError

from indexes import KINDS, add, arrivals, empty_database
from peers import free_port
from plugin.index import overview
from plugin.index.database import Database, IndexUnavailable, clock
from plugin.index.tables import Base, Study


@pytest.fixture(params=KINDS)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with empty_database(request, tmp_path) as made:
        yield made


def test_the_schema_is_what_the_tables_say(database: Database) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    assert database.is_current()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": False})
        assert compare_metadata(context, Base.metadata) == []


def test_the_databases_clock_tells_the_time(database: Database) -> None:
    with database.read() as session:
        assert session.scalar(select(clock())) == pytest.approx(time.time(), abs=2)


def test_no_error_of_the_database_quotes_a_value(database: Database) -> None:
    canary = "^".join(["Quillfeather", "Zebulona"])  # not in the lines that a traceback quotes
    with pytest.raises((IndexUnavailable, ProgrammingError)) as wrong, database.write() as session:
        session.execute(text("SELECT :name FROM nowhere"), {"name": canary})
    assert canary not in "".join(traceback.format_exception(wrong.value))


def test_the_overview_names_no_patient(database: Database, tmp_path: Path) -> None:
    add(database, arrivals(tmp_path, PatientName="Canary^Jane", PatientID="CANARY-1", AccessionNumber="CANARY-2"))
    with database.read() as session:
        assert session.scalar(select(Study.patient_name)) == "Canary^Jane"
    assert "canary" not in str(overview.overview(database, findings=True)).lower()


def test_a_database_that_is_away_is_said_to_be(tmp_path: Path) -> None:
    away = Database(f"postgresql+psycopg://hlip@127.0.0.1:{free_port()}/x", lock=tmp_path / "lock")
    with pytest.raises(IndexUnavailable), away.read() as session:
        session.scalar(select(clock()))
    away.close()
