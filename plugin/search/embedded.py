"""Vectors in the data folder: files that grow, read where they lie, and a graph (HNSW, usearch) over most of them.

    search/<encoder>-<level>/current            which generation is read, and what it began with
                             <n>.keys           int64: ids of the index's rows
                             <n>.vectors        float16: a vector for each key
                             <n>.graph          nearest neighbours of the first of them, by their place in the files

All of it is made again from the index whenever it does not fit. New vectors are appended, and compared one by one until
the next generation, which takes them into the graph and leaves out what no longer stands.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from usearch.index import Index, MetricKind, search

from plugin.index import search as index_search
from plugin.index.database import Database
from plugin.index.filters import Filters
from plugin.index.search import Space
from plugin.search.nearest import SLACK, Least, Track, untracked

__all__ = ["EmbeddedVectors", "Graph"]

CONNECTIVITY = 16
EXPANSION_ADD = 128
GROWS_BY = 1.25
AND_BY = 1000
"""A generation that has grown so far is made anew."""
RECHECKED = 10_000
"""So many of the last ids are asked for again: transactions end in another order than their ids were given."""
ROWS = 65_536


class Graph:
    """Approximate nearest neighbours by inner product; keys are places 0 .. n - 1."""

    def __init__(self, path: Path, *, ndim: int, effort: int) -> None:
        self._index = _new_index(ndim, effort)
        self._index.view(str(path))
        self._index.expansion_search = effort  # type: ignore[misc]

    def __len__(self) -> int:
        return len(self._index)

    @staticmethod
    def write(path: Path, vectors: np.ndarray, *, track: Track = untracked) -> None:
        """Build the graph of vectors [n, E] float16 and write it, whole or not at all."""
        index = _new_index(vectors.shape[1], EXPANSION_ADD)
        for start in track(range(0, len(vectors), ROWS // 8), "building the vector index"):
            part = np.asarray(vectors[start : start + ROWS // 8])
            index.add(np.arange(start, start + len(part), dtype=np.uint64), part)
        draft = path.with_suffix(".part")
        index.save(str(draft))
        draft.replace(path)

    def nearest(self, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(places, scores) of about the nearest."""
        found = self._index.search(query.astype(np.float16), count)
        return found.keys.astype(np.int64), 1 - found.distances


def _new_index(ndim: int, effort: int) -> Index:
    return Index(
        ndim=ndim, metric="ip", dtype="f16", connectivity=CONNECTIVITY, expansion_add=EXPANSION_ADD,
        expansion_search=effort,
    )  # fmt: skip


def _exact(vectors: np.ndarray, query: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(places, scores) of the nearest of vectors [n, E] float16."""
    if not len(vectors):
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    found = search(
        np.ascontiguousarray(vectors), query.astype(np.float16), min(count, len(vectors)), MetricKind.IP, exact=True
    )
    return np.asarray(found.keys).reshape(-1).astype(np.int64), 1 - np.asarray(found.distances).reshape(-1)


@dataclass(frozen=True)
class _Generation:
    """What `current` says."""

    number: int
    ndim: int
    began_with: int

    @property
    def is_full(self) -> int:
        return int(self.began_with * GROWS_BY) + AND_BY


class EmbeddedVectors:
    """Implements `plugin.search.nearest.Vectors` on files. Not safe for threads: the searcher takes care of that."""

    name = "embedded"

    def __init__(
        self, database: Database, space: Space, folder: Path, *, ndim: int, exact_below: int, effort: int
    ) -> None:
        self._database, self._space = database, space
        self._folder = folder / f"{space.encoder_digest[:16]}-{space.level}"
        self._ndim, self._exact_below, self._effort = ndim, exact_below, effort
        self._generation: _Generation | None = None
        self._graph: Graph | None = None
        self._keys = np.zeros(0, np.int64)
        self._vectors = np.zeros((0, ndim), np.float16)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def is_exact(self) -> bool:
        return self._graph is None

    # ---- files ---------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take up what is new in the index; cheap where nothing is."""
        with self._locked():
            self._open()
            if self._generation is None or not self._fits():
                self._begin()
            new = self._new_ids()
            if self._generation is not None and len(self._keys) + len(new) > self._generation.is_full:
                self._begin()
                new = self._new_ids()
            self._append(new)

    @property
    def wants_graph(self) -> bool:
        """Whether there are enough vectors for a graph, and none is built of this generation."""
        return self._graph is None and len(self) > self._exact_below

    def build(self, track: Track = untracked) -> None:
        """Build the graph of the vectors that are there. Minutes for a million; searches go on meanwhile."""
        generation, vectors = self._generation, self._vectors
        if generation is None or not len(vectors):
            return
        with (self._folder / ".building").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another process does
                return
            Graph.write(self._path(generation.number, "graph"), vectors, track=track)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _path(self, number: int, what: str) -> Path:
        return self._folder / f"{number}.{what}"

    def _open(self) -> None:
        """Read what lies there, as far as both files are whole."""
        try:
            found = _Generation(**json.loads((self._folder / "current").read_bytes()))
            keys = np.fromfile(self._path(found.number, "keys"), np.int64)
            path = self._path(found.number, "vectors")
            whole = path.stat().st_size // (2 * found.ndim)
        except (OSError, ValueError, TypeError):
            self._generation = None
            return
        self._keys = keys[:whole]
        self._vectors = _mapped(path, len(self._keys), found.ndim)
        if found != self._generation:
            self._graph = None
        self._generation = found
        graph = self._path(found.number, "graph")
        if self._graph is None and graph.is_file():
            self._graph = Graph(graph, ndim=found.ndim, effort=self._effort)

    def _fits(self) -> bool:
        """Whether the files are of this index: a restored one gives the same ids to other studies."""
        if self._generation is None or self._generation.ndim != self._ndim:
            return False
        if self._graph is not None and len(self._graph) > len(self._keys):
            return False
        ends = np.unique(self._keys[[0, -1]]) if len(self._keys) else self._keys
        for end in ends:
            kept = self._vectors[np.flatnonzero(self._keys == end)[0]].astype(np.float32)
            for _, found in index_search.vectors(self._database, self._space, np.array([end])):
                if not np.allclose(kept, found[0], atol=SLACK):
                    return False
        return True

    def _begin(self) -> None:
        """A new generation of all that stands; what others still read of the old one stays open to them."""
        ids = index_search.chosen_ids(self._database, self._space, Filters())
        number = 1 + (self._generation.number if self._generation else self._last_number())
        for what in ("keys", "vectors"):
            self._path(number, what).write_bytes(b"")
        generation = _Generation(number, self._ndim, len(ids))
        draft = self._folder / "current.part"
        draft.write_text(json.dumps(vars(generation)))
        draft.replace(self._folder / "current")
        for path in self._folder.glob("[0-9]*.*"):
            if not path.name.startswith(f"{number}."):
                path.unlink(missing_ok=True)
        self._open()
        self._append(ids)

    def _last_number(self) -> int:
        names = (path.name.partition(".")[0] for path in self._folder.glob("[0-9]*.*"))
        return max((int(name) for name in names if name.isdigit()), default=0)

    def _new_ids(self) -> np.ndarray:
        last = int(self._keys.max()) if len(self._keys) else 0
        ids = index_search.chosen_ids(self._database, self._space, Filters(), after=max(0, last - RECHECKED))
        return np.setdiff1d(ids, self._keys)

    def _append(self, ids: np.ndarray) -> None:
        if self._generation is None or not len(ids):
            return
        number = self._generation.number
        with self._path(number, "vectors").open("r+b") as vectors, self._path(number, "keys").open("r+b") as keys:
            whole = len(self._keys)  # what a kill left half-written goes
            vectors.seek(whole * 2 * self._ndim)
            keys.seek(whole * 8)
            for part, found in index_search.vectors(self._database, self._space, ids):
                vectors.write(found.astype(np.float16).tobytes())
                keys.write(part.astype(np.int64).tobytes())
            for file in (vectors, keys):
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        self._open()

    # ---- searching -----------------------------------------------------------------------------------

    def nearest(self, query: np.ndarray, count: int, filters: Filters, least: Iterable[Least] = ()) -> list[int]:
        """Ids of about the `count` nearest that fit, the nearest first."""
        least = tuple(least)
        if filters.by_rows or least:
            return self._nearest_of(self._fitting(filters, least), query, count)
        built = len(self._graph) if self._graph is not None else 0
        places, scores = _exact(self._vectors[built:], query, count)
        places = places + built
        if self._graph is not None:
            of_graph, graph_scores = self._graph.nearest(query, min(count, built))
            places, scores = np.append(of_graph, places), np.append(graph_scores, scores)
        best = np.argsort(-scores, kind="stable")[:count]
        return [int(key) for key in self._keys[places[best]]]

    def _nearest_of(self, chosen: np.ndarray, query: np.ndarray, count: int) -> list[int]:
        places, _ = _exact(self._vectors[chosen], query, count)
        return [int(key) for key in self._keys[chosen[places]]]

    def _fitting(self, filters: Filters, least: tuple[Least, ...]) -> np.ndarray:
        """Places of the vectors that fit."""
        chosen = np.arange(len(self._keys))
        if filters.by_rows:
            ids = index_search.chosen_ids(self._database, self._space, filters)
            chosen = np.flatnonzero(np.isin(self._keys, ids))
        if not least:
            return chosen
        directions = np.stack([row.direction for row in least], axis=1).astype(np.float32)  # [e, n]
        lowest = np.array([row.score for row in least], np.float32) - SLACK
        kept = [np.zeros(0, np.int64)]
        for start in range(0, len(chosen), ROWS):
            part = chosen[start : start + ROWS]
            scores = self._vectors[part].astype(np.float32) @ directions
            kept.append(part[(scores >= lowest).all(axis=1)])
        return np.concatenate(kept)


def _mapped(path: Path, rows: int, ndim: int) -> np.ndarray:
    if not rows:
        return np.zeros((0, ndim), np.float16)
    return np.memmap(path, np.float16, "r", shape=(rows, ndim))
