"""From a question to studies: the words or a study as a vector, the nearest vectors, scored in full precision."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import structlog

from hlip_core.errors import InputError
from plugin.index import search as index_search
from plugin.index.filters import Filters, SearchError
from plugin.index.search import Level, SearchRow, Space
from plugin.search.nearest import Least, Track, Vectors, untracked
from plugin.search.scoring import Scoring
from plugin.search.words import Words

if TYPE_CHECKING:
    from hlip_core.bundle import Bundle
    from plugin.bootstrap import Plugin

__all__ = ["CAUTION", "Found", "Hit", "Searcher"]

log = structlog.get_logger("hlip.search")

MOST_HITS = 1000
MORE = 20
"""Asked for beyond what is wanted, since some may no longer stand."""

CAUTION = {
    "untrained": "The model was never trained: this order means nothing.",
    "phantom": "The model was trained on synthetic phantoms only: this order says nothing reliable about patients.",
    "trained": "Nearest in the model's own terms, not proof of a finding. Research software, not for diagnosis.",
}
"""What to say beside any hits, by the status of the bundle."""


@dataclass(frozen=True)
class Hit:
    """A study (or one of its series) that was found; names no patient.

    `score` is the cosine with the words or the other study, or the score of the finding that was asked for.
    `values` are today's values of the findings that are positive or were asked for: the probability where one is
    calibrated, else the score.
    """

    rank: int
    score: float
    study_instance_uid: str
    series_instance_uid: str
    study_date: str
    study_description: str
    modality: str
    station_name: str
    patient_age: float | None
    positive: tuple[str, ...]
    values: dict[str, float]


@dataclass(frozen=True)
class Found:
    """The answer to a question; `caution` is to be shown with it. `exact`: every vector was compared."""

    question: str
    hits: tuple[Hit, ...]
    caution: str
    engine: str
    exact: bool
    searched: int
    seconds: float


class Searcher:
    """Answers questions about the archive; one a process, safe for threads.

    The text tower is loaded with the first words, the vectors are taken up before each search. With `background` a
    graph that is due is built by a thread meanwhile (a web server); without, `build` does it when it is called.

    Raises SearchError from its methods for what cannot be answered, IndexUnavailable where the database is away.
    """

    def __init__(self, plugin: "Plugin", *, background: bool = True) -> None:
        self._plugin = plugin
        self._background = background
        self._lock = threading.Lock()
        self._engines: dict[Level, Vectors] = {}
        self._builder: threading.Thread | None = None

    @property
    def bundle(self) -> "Bundle":
        return self._plugin.bundle

    @cached_property
    def words(self) -> Words:
        return Words(self.bundle)

    @cached_property
    def scoring(self) -> Scoring:
        return Scoring(self.bundle, self._plugin.settings.thresholds)

    @property
    def caution(self) -> str:
        return CAUTION[self.bundle.status]

    def space(self, level: Level = "study") -> Space:
        """The vectors that the bundle in use can be compared with."""
        return Space(self.bundle.encoder_digest, self.bundle.digest, level)

    def search(
        self,
        words: str = "",
        *,
        like: str = "",
        filters: Filters | None = None,
        limit: int = 20,
        level: Level = "study",
    ) -> Found:
        """The studies (or series) nearest to words, or to the study `like` (its UID), the nearest first.

        With neither, those with the findings of the filters, in the order of the first of them.
        """
        started = time.monotonic()
        filters = filters or Filters()
        if not 0 < limit <= MOST_HITS:
            raise SearchError(f"1 to {MOST_HITS} hits can be asked for")
        try:
            least = [self.scoring.least(asked) for asked in filters.findings]
        except InputError as error:
            raise SearchError(str(error)) from error
        query, question = self._query(words, like, least)
        with self._lock:
            vectors = self._engine(level)
            vectors.refresh()
            rows = self._nearest(vectors, query, filters, least, limit=limit, without=like, level=level)
            exact, searched = vectors.is_exact, len(vectors)
            self._build_if_due(vectors)
        if level == "series" and not searched and index_search.count(self._plugin.database, self.space()):
            raise SearchError("no vectors of series are kept: set search.series_embeddings = true for new studies")
        hits = self._hits(rows, query, [row.label for row in least])
        return Found(question, hits, self.caution, vectors.name, exact, searched, time.monotonic() - started)

    def build(self, track: Track = untracked, *, level: Level = "study") -> bool:
        """Build what makes searches fast, where there are enough vectors for it; whether it was built."""
        with self._lock:
            vectors = self._engine(level)
            vectors.refresh()
            if not vectors.wants_graph:
                return False
            vectors.build(track)
            vectors.refresh()
            return True

    def _query(self, words: str, like: str, least: Sequence[Least]) -> tuple[np.ndarray, str]:
        if words.strip() and like:
            raise SearchError("search with words or for studies like another, not both")
        if words.strip():
            return self.words.vector(words), words.strip()
        if like:
            vector = index_search.vector_of(self._plugin.database, self.space(), like)
            if vector is None:
                raise SearchError("the model in use has analysed no study of this UID, or its results are withdrawn")
            return vector, f"like {like}"
        if not least:
            raise SearchError("search with words, for studies like another, or for a finding")
        return least[0].direction, least[0].label

    def _engine(self, level: Level) -> Vectors:
        if level not in self._engines:
            settings = self._plugin.settings.search
            options = {
                "ndim": len(next(iter(self.bundle.embeddings.positive.values()))),
                "exact_below": settings.exact_below,
                "effort": settings.effort,
            }
            database, space = self._plugin.database, self.space(level)
            if settings.engine == "pgvector":
                from plugin.index.halfvec import HalfvecVectors

                self._engines[level] = HalfvecVectors(database, space, **options)
            else:
                from plugin.search.embedded import EmbeddedVectors

                self._engines[level] = EmbeddedVectors(database, space, self._plugin.spool / "search", **options)
        return self._engines[level]

    def _nearest(
        self,
        vectors: Vectors,
        query: np.ndarray,
        filters: Filters,
        least: Sequence[Least],
        *,
        limit: int,
        without: str,
        level: Level,
    ) -> list[SearchRow]:
        """Rows that stand, in the order of their scores in full precision."""
        count = limit + MORE
        while True:
            ids = vectors.nearest(query, count, filters, least)
            found = index_search.rows(self._plugin.database, self.space(level), ids)
            rows = [row for row in found.values() if row.study_instance_uid != without and _has(row, least)]
            if len(rows) >= limit or len(ids) < count:
                return sorted(rows, key=lambda row: (-float(row.vector @ query), row.study_instance_uid))[:limit]
            count *= 4

    def _hits(self, rows: Sequence[SearchRow], query: np.ndarray, asked: Sequence[str]) -> tuple[Hit, ...]:
        if not rows:
            return ()
        scores = self.scoring.scores(np.stack([row.vector for row in rows]))
        return tuple(
            self._hit(rank, row, query, asked, values, positive)
            for rank, (row, values, positive) in enumerate(
                zip(rows, scores.values, scores.positive, strict=True), start=1
            )
        )

    def _hit(
        self,
        rank: int,
        row: SearchRow,
        query: np.ndarray,
        asked: Sequence[str],
        values: np.ndarray,
        positive: np.ndarray,
    ) -> Hit:
        named = dict(zip(self.scoring.labels, values, strict=True))
        found = [label for label, is_positive in zip(self.scoring.labels, positive, strict=True) if is_positive]
        shown = dict.fromkeys([*asked, *sorted(found, key=lambda label: -named[label])])
        return Hit(
            rank=rank,
            score=float(row.vector @ query),
            study_instance_uid=row.study_instance_uid,
            series_instance_uid=row.series_instance_uid,
            study_date=row.study_date,
            study_description=row.study_description,
            modality=row.modality,
            station_name=row.station_name,
            patient_age=row.patient_age,
            positive=tuple(found),
            values={label: round(float(named[label]), 6) for label in shown},
        )

    def _build_if_due(self, vectors: Vectors) -> None:
        if self._background and vectors.wants_graph and (self._builder is None or not self._builder.is_alive()):
            log.info("building the vector index", vectors=len(vectors))
            self._builder = threading.Thread(target=vectors.build, daemon=True)
            self._builder.start()


def _has(row: SearchRow, least: Sequence[Least]) -> bool:
    """Whether it has all findings that are asked for, in full precision."""
    return all(row.vector @ asked.direction >= asked.score for asked in least)
