"""Vectors in PostgreSQL, by the extension pgvector: a table a space, half precision, HNSW over it once it is large.

The table is no part of the schema: it is made again from `embedding` whenever it is missing, and where the extension
is not installed nothing of it is ever asked for.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, Column, MetaData, Table, func, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from plugin.index import search as index_search
from plugin.index.database import Database
from plugin.index.embeddings import Embedding
from plugin.index.filters import Filters, SearchError
from plugin.index.search import Space, searched
from plugin.search.nearest import SLACK, Least, Track, untracked

__all__ = ["HalfvecVectors"]

PREFIX = "search_vectors"
LOCK = 4710712
RECHECKED = 10_000
GRAPH_BYTES = 1000
"""Of each vector besides its numbers while the graph is built. Where memory ends, pgvector is twenty times slower."""
LEAST_MEGABYTES, MOST_MEGABYTES = 64, 16_384
"""Of PostgreSQL's memory for building."""
LEAST_SCANNED, SCAN_MEMORY = 20_000, 16
"""Vectors that a scan of the graph may see, pgvector's own number, and its memory in units of work_mem."""
NOT_THERE = (
    "search.engine is pgvector, but it cannot be used: the index must be a PostgreSQL with the extension pgvector 0.8 "
    "or newer (as a superuser: CREATE EXTENSION vector), and Python needs hlip-pacs[server]"
)


class HalfvecVectors:
    """Implements `plugin.search.nearest.Vectors` on a table of halfvec. Raises SearchError without pgvector."""

    name = "pgvector"

    def __init__(self, database: Database, space: Space, *, ndim: int, exact_below: int, effort: int) -> None:
        try:
            from pgvector.sqlalchemy import HALFVEC
        except ImportError as error:
            raise SearchError(NOT_THERE) from error
        if database.engine.dialect.name != "postgresql":
            raise SearchError(NOT_THERE)
        self._database, self._space = database, space
        self._exact_below, self._effort = exact_below, effort
        self._ndim = ndim
        self.table_name = f"{PREFIX}_{space.level}_{space.encoder_digest[:16]}"
        self._table = Table(
            self.table_name,
            MetaData(),
            Column("id", BigInteger, primary_key=True),
            Column("vector", HALFVEC(ndim), nullable=False),
        )
        self.graph_name = f"ix_{self.table_name}"
        self._count = 0
        self._has_graph = False

    def __len__(self) -> int:
        return self._count

    @property
    def is_exact(self) -> bool:
        return not self._has_graph

    @property
    def wants_graph(self) -> bool:
        return not self._has_graph and len(self) > self._exact_below

    def refresh(self) -> None:
        """Take up what is new in the index. Raises SearchError where pgvector is not there."""
        with self._database.write() as session:
            session.execute(select(func.pg_advisory_xact_lock(LOCK)))
            if not inspect(session.connection()).has_table(self.table_name):
                self._begin(session)
            new = self._new_ids(session)
        if len(new):
            self._append(new)
        with self._database.read() as session:
            self._count = session.scalar(select(func.count()).select_from(self._table)) or 0
            self._has_graph = bool(session.scalar(select(func.to_regclass(self.graph_name))))

    def _begin(self, session: Session) -> None:
        """Make the table, and drop those of encoders that were in use before."""
        try:
            session.execute(text("CREATE EXTENSION IF NOT EXISTS vector"))
        except DBAPIError as error:
            raise SearchError(NOT_THERE) from error
        for name in inspect(session.connection()).get_table_names():
            if name.startswith(f"{PREFIX}_{self._space.level}_"):
                Table(name, MetaData()).drop(session.connection())
        self._table.create(session.connection())

    def _new_ids(self, session: Session) -> np.ndarray:
        """Transactions end in another order than their ids were given, so the last are asked for again."""
        last = session.scalar(select(func.max(self._table.c.id))) or 0
        known = select(self._table.c.id).where(self._table.c.id == Embedding.id).exists()
        statement = searched(self._space, Filters(), Embedding.id).where(Embedding.id > last - RECHECKED, ~known)
        return np.fromiter(session.scalars(statement.order_by(Embedding.id)), np.int64)

    def _append(self, ids: np.ndarray) -> None:
        from pgvector import HalfVector
        from pgvector.psycopg import register_vector

        with self._database.write() as session:
            session.execute(select(func.pg_advisory_xact_lock(LOCK)))
            known = set(session.scalars(select(self._table.c.id).where(self._table.c.id >= int(ids[0]))))
            connection: Any = session.connection().connection.driver_connection
            register_vector(connection)
            rows = f"COPY {self.table_name} (id, vector) FROM STDIN WITH (FORMAT BINARY)"
            with connection.cursor() as cursor, cursor.copy(rows) as copy:
                copy.set_types(["int8", "halfvec"])
                for keys, vectors in index_search.vectors(self._database, self._space, ids):
                    for key, vector in zip(keys, vectors, strict=True):
                        if int(key) not in known:
                            copy.write_row((int(key), HalfVector(vector)))

    def build(self, track: Track = untracked) -> None:
        """Build the graph. Minutes for a million; rows can be written meanwhile only when it is done.

        Takes about 2 GB of the server's memory for a million vectors of 512 numbers.
        """
        for _ in track([None], "building the vector index in PostgreSQL"):
            with self._database.write() as session:
                count = session.scalar(select(func.count()).select_from(self._table)) or 0
                wanted = count * (2 * self._ndim + GRAPH_BYTES) // 1_000_000
                megabytes = min(max(wanted, LEAST_MEGABYTES), MOST_MEGABYTES)
                session.execute(text(f"SET LOCAL maintenance_work_mem = '{megabytes}MB'"))
                session.execute(
                    text(
                        f"CREATE INDEX IF NOT EXISTS {self.graph_name} ON {self.table_name} "
                        "USING hnsw (vector halfvec_ip_ops)"
                    )
                )
                self._has_graph = True

    def nearest(self, query: np.ndarray, count: int, filters: Filters, least: Iterable[Least] = ()) -> list[int]:
        """Ids of about the `count` nearest that fit, the nearest first."""
        least = tuple(least)
        vector = self._table.c.vector
        distance = vector.max_inner_product(query)
        statement = searched(self._space, filters, self._table.c.id).join(self._table, self._table.c.id == Embedding.id)
        for row in least:
            product = -vector.max_inner_product(row.direction)
            statement = statement.where(product >= row.score - SLACK)
        with self._database.read() as session:
            for name, value in self._how(count, is_filtered=bool(filters.by_rows or least)).items():
                session.execute(text(f"SET LOCAL {name} = {value}"))
            return list(session.scalars(statement.order_by(distance).limit(count)))

    def _how(self, count: int, *, is_filtered: bool) -> dict[str, str | int]:
        """PostgreSQL's settings for a search: one with filters compares all that fit, as the embedded engine does.

        The graph's iterative scans end after so many vectors, whether enough of them fit, and still stand, or not.
        """
        if is_filtered:
            return {"enable_indexscan": "off"}
        return {
            "hnsw.ef_search": max(self._effort, min(count, 1000)),
            "hnsw.iterative_scan": "strict_order",
            "hnsw.max_scan_tuples": max(LEAST_SCANNED, len(self)),
            "hnsw.scan_mem_multiplier": SCAN_MEMORY,
        }
