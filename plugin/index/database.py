"""The engine under the index: SQLite or PostgreSQL, its clock, its transactions, its schema."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Float


class clock(FunctionElement[float]):  # noqa: N801 (reads as the SQL function that it is)
    """Seconds since 1970 by the database's clock, so that hosts need not agree on the time."""

    type = Float()
    inherit_cache = True


@compiles(clock, "sqlite")
def _clock_sqlite(element: clock, compiler: Any, **kw: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(clock, "postgresql")
def _clock_postgresql(element: clock, compiler: Any, **kw: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def _lower(text: str | None) -> str | None:
    """SQLite's own knows the letters of ASCII only, so that a search in any case would miss others."""
    return None if text is None else str(text).lower()


def _configure_sqlite(engine: Engine) -> None:
    """WAL and full synchronisation; writers take their turn at BEGIN, so none fails halfway."""

    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        connection.create_function("lower", 1, _lower, deterministic=True)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


class IndexUnavailable(OSError):
    """The database cannot be reached or is locked; what it holds is safe, and the same call may work later."""


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        raise IndexUnavailable(type(error.orig).__name__) from error


class Database:
    """Sessions on the index's database.

    Args:
        url: an SQLAlchemy URL, ``sqlite:///...`` or ``postgresql+psycopg://...``.
        lock: a file that serialises schema changes between the processes of one host.
    """

    def __init__(self, url: str, *, lock: Path) -> None:
        self.engine = create_engine(
            url, pool_pre_ping=not url.startswith("sqlite"), json_deserializer=from_json, hide_parameters=True
        )
        self._reading = self.engine.execution_options(reading=True)
        self._lock = lock
        if self.engine.dialect.name == "sqlite":
            _configure_sqlite(self.engine)

    @contextmanager
    def write(self) -> Iterator[Session]:
        with _translated(), Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        with _translated(), Session(self._reading, expire_on_commit=False) as session, session.begin():
            yield session

    def _alembic(self) -> Config:
        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["engine"] = self.engine
        return config

    def upgrade(self) -> None:
        """Create the tables, or bring them to this version."""
        with self._lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            command.upgrade(self._alembic(), "head")

    def is_current(self) -> bool:
        """Whether the schema is the one that this version of the code works with. Raises IndexUnavailable."""
        with _translated(), self.engine.connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
        return found == ScriptDirectory.from_config(self._alembic()).get_current_head()

    def close(self) -> None:
        self.engine.dispose()
