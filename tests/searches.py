"""An archive to search: studies of the tiny bundle with made vectors, put into the index without a road."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hlip_core.bundle import Bundle, load_bundle
from plugin.bootstrap import Plugin
from plugin.index.embeddings import Embedding
from plugin.index.tables import Base, Revision, Study
from plugin.lifecycle import StudyState
from plugin.search.scoring import Scoring
from road import settings, tiny_bundle


@cache
def tiny() -> Bundle:
    return load_bundle(tiny_bundle())


@contextmanager
def archive(folder: Path, **sections: Any) -> Iterator[Plugin]:
    """A plugin with the tiny bundle and an empty index."""
    plugin = Plugin(settings(folder, **{"model": {"bundle": str(tiny_bundle())}, **sections}))
    plugin.bundle = tiny()
    plugin.database.upgrade()
    with plugin.database.write() as session:
        for table in reversed(Base.metadata.sorted_tables):
            session.execute(table.delete())
    yield plugin
    plugin.database.close()


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_vectors(count: int, *, seed: int = 0) -> np.ndarray:
    """[count, E] of unit length."""
    ndim = len(tiny().embeddings.direction("hydrocephalus"))
    return unit(np.random.default_rng(seed).normal(size=(count, ndim)))


def uid(number: int) -> str:
    return f"1.2.{number}"


def add_studies(
    plugin: Plugin, vectors: np.ndarray, *, first: int = 0, rows: Sequence[dict[str, Any]] = (), **everywhere: Any
) -> list[str]:
    """A reported study for each vector; `rows` and `everywhere` set columns of their rows by name."""
    scores = Scoring(plugin.bundle, plugin.settings.thresholds).scores(vectors)
    uids = [uid(first + number) for number in range(len(vectors))]
    with plugin.database.write() as session:
        for place, (study_uid, vector) in enumerate(zip(uids, vectors, strict=True)):
            values = {**everywhere, **(rows[place] if rows else {})}
            study = Study(
                study_instance_uid=study_uid, state=StudyState.REPORTED, revision=1,
                study_date=values.get("study_date", "20260102"), accession_number=values.get("accession_number", ""),
                study_description=values.get("study_description", "CT HEAD"),
            )  # fmt: skip
            session.add(study)
            session.flush()
            revision = Revision(
                study_id=study.id, number=1, inputs_digest="i", content_digest="c", bundle_digest=plugin.bundle.digest,
                preprocessing="tiny-ct/1", created_at=1.0, current=values.get("current", True),
                withdrawn=values.get("withdrawn"), findings=_findings(plugin.bundle, scores, place),
            )  # fmt: skip
            session.add(revision)
            session.flush()
            session.add(
                Embedding(
                    revision_id=revision.id, series_instance_uid=values.get("series_instance_uid", ""),
                    bundle_digest=values.get("bundle_digest", plugin.bundle.digest),
                    encoder_digest=values.get("encoder_digest", plugin.bundle.encoder_digest),
                    preprocessing="tiny-ct/1", modality=values.get("modality", "CT"),
                    station_name=values.get("station_name", "CT1"), patient_age=values.get("patient_age", 50.0),
                    vector=vector.astype("<f4").tobytes(),
                )
            )  # fmt: skip
    return uids


def _findings(bundle: Bundle, scores: Any, place: int) -> list[dict[str, Any]]:
    return [
        {
            "label": label, "score": round(float(scores.scores[place, column]), 6), "probability": None,
            "positive": bool(scores.positive[place, column]),
        }
        for column, label in enumerate(bundle.findings.labels)
    ]  # fmt: skip
