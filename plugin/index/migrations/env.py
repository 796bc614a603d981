"""Alembic's entry: runs the versions on the engine that `Database.upgrade` hands over."""

from alembic import context
from sqlalchemy import create_engine

from plugin.index import archive_tables, assessments, heartbeats, people  # noqa: F401 (their tables)
from plugin.index.tables import Base


def run() -> None:
    engine = context.config.attributes.get("engine") or create_engine(context.get_x_argument(as_dictionary=True)["url"])
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
        with context.begin_transaction():
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SELECT pg_advisory_xact_lock(4710711)")
            context.run_migrations()
        connection.commit()


run()
