"""Searching the archive: words and studies to studies, by the vectors in the index, with filters."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event, select, update

from hlip_core.calibration import Calibration
from hlip_core.errors import InputError
from hlip_core.zero_shot import class_vector
from plugin.bootstrap import Plugin
from plugin.index import rescoring, search
from plugin.index.embeddings import Embedding
from plugin.index.tables import Revision, Series, Study
from plugin.scheduler import Scheduler
from plugin.search import Filters, Searcher, SearchError
from plugin.search.rescore import rescore
from plugin.work import work_once
from road import head_ct, sandbox, settings, tiny_bundle, untrained_bundle
from searches import add_studies, archive, random_vectors, tiny, uid, unit


@pytest.fixture(params=["sqlite", "postgresql"])
def plugin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Plugin]:
    index = {} if request.param == "sqlite" else {"index": {"url": request.getfixturevalue("postgresql")}}
    with archive(tmp_path, **index) as made:
        yield made


def found(searcher: Searcher, words: str = "", **asked: object) -> list[str]:
    return [hit.study_instance_uid for hit in searcher.search(words, **asked).hits]  # type: ignore[arg-type]


def nearest(vectors: np.ndarray, query: np.ndarray, count: int) -> list[str]:
    return [uid(int(place)) for place in np.argsort(-(vectors @ query))[:count]]


def test_words_find_the_studies_whose_vectors_are_nearest(plugin: Plugin) -> None:
    vectors = random_vectors(300)
    add_studies(plugin, vectors)
    words = "acute subdural hematoma with midline shift"
    texts = [template.format(words) for template in tiny().findings.templates]
    query = class_vector(lambda texts: tiny().model(text=True).encode_text(texts).detach().numpy(), texts)
    answer = Searcher(plugin).search(f" {words}. ", limit=10)
    assert [hit.study_instance_uid for hit in answer.hits] == nearest(vectors, query, 10)
    assert [hit.score for hit in answer.hits] == pytest.approx(np.sort(vectors @ query)[::-1][:10], abs=1e-6)
    assert (answer.exact, answer.searched, answer.engine) == (True, 300, "embedded")
    assert "not for diagnosis" in answer.caution


def test_a_study_finds_those_like_it_and_not_itself(plugin: Plugin) -> None:
    vectors = random_vectors(50)
    vectors[7] = unit(vectors[3] + 0.1 * vectors[7])
    add_studies(plugin, vectors)
    assert found(Searcher(plugin), like=uid(3), limit=1) == [uid(7)]
    with pytest.raises(SearchError, match="analysed no study"):
        Searcher(plugin).search(like="1.2.999")


def test_what_was_added_or_superseded_or_withdrawn_counts_at_the_next_search(plugin: Plugin) -> None:
    vectors = random_vectors(40)
    add_studies(plugin, vectors[:30])
    searcher = Searcher(plugin)
    query = vectors[35]
    add_studies(plugin, query[None], first=900)
    assert found(searcher, like=uid(900), limit=30) == nearest(vectors[:30], query, 30)
    add_studies(plugin, vectors[30:], first=30)
    assert found(searcher, like=uid(900), limit=1) == [uid(35)]
    with plugin.database.write() as session:
        of_study = select(Study.id).where(Study.study_instance_uid == uid(35))
        session.execute(update(Revision).where(Revision.study_id.in_(of_study)).values(withdrawn="quality"))
    assert uid(35) not in found(searcher, like=uid(900), limit=39)
    assert uid(35) not in found(Searcher(plugin), like=uid(900), limit=39)


def test_a_description_is_found_in_any_case_in_any_language(plugin: Plugin) -> None:
    rows = [{"study_description": text, "station_name": "Étage"} for text in ("CT SCHÄDEL", "ct schädel", "CT HEAD")]
    add_studies(plugin, random_vectors(3), rows=rows)
    filters = Filters.parse(description="Schädel", station="étage")
    assert sorted(found(Searcher(plugin), "fracture", filters=filters)) == [uid(0), uid(1)]


def test_only_vectors_of_the_encoder_in_use_are_compared(plugin: Plugin) -> None:
    vectors = random_vectors(6)
    rows = [
        {},
        {"encoder_digest": "other", "bundle_digest": "other"},
        {"encoder_digest": "", "bundle_digest": "other"},
        {"encoder_digest": ""},
        {"bundle_digest": "other prompts"},
        {"current": False},
    ]
    add_studies(plugin, vectors, rows=rows)
    assert set(found(Searcher(plugin), "fracture")) == {uid(0), uid(3), uid(4)}


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({"since": "2026-01-02"}, {1, 2}),
        ({"until": "20260101"}, {0}),
        ({"modality": "mr"}, {1}),
        ({"age": "60-80"}, {2}),
        ({"age": "60-70"}, {2}),
        ({"age": "71-80"}, set()),
        ({"age": "70-70"}, {2}),
        ({"age": "child"}, {0}),
        ({"station": "2"}, {2}),
        ({"station": "_"}, {1}),
        ({"description": "TRAUMA"}, {0}),
        ({"description": "trauma", "age": "senior"}, set()),
    ],
)
def test_filters_leave_what_fits(plugin: Plugin, asked: dict[str, str], kept: set[int]) -> None:
    rows = [
        {"study_date": "20260101", "patient_age": 4.0, "study_description": "CT head trauma", "station_name": "CT1"},
        {"study_date": "20260102", "patient_age": None, "modality": "MR", "station_name": "CT_3"},
        {"study_date": "20260103", "patient_age": 70.5, "station_name": "CT2"},
    ]
    add_studies(plugin, random_vectors(3), rows=rows)
    hits = found(Searcher(plugin), "fracture", filters=Filters.parse(**asked))  # type: ignore[arg-type]
    assert set(hits) == {uid(number) for number in kept}


def test_findings_are_asked_for_by_value_or_as_positive(tmp_path: Path) -> None:
    with archive(tmp_path, thresholds={"hydrocephalus": 0.1}) as plugin:
        vectors = random_vectors(200)
        add_studies(plugin, vectors)
        scores = vectors @ tiny().embeddings.direction("hydrocephalus")
        searcher = Searcher(plugin)
        positive = found(searcher, filters=Filters.parse(findings=["hydrocephalus"]), limit=200)
        assert positive == [uid(int(place)) for place in np.argsort(-scores) if scores[place] >= 0.1]
        both = Filters.parse(findings=["hydrocephalus>=0.2", "mass_effect >= 0"])
        other = vectors @ tiny().embeddings.direction("mass_effect")
        assert set(found(searcher, "shift", filters=both, limit=200)) == {
            uid(int(place)) for place in np.flatnonzero((scores >= 0.2) & (other >= 0))
        }
        hit = searcher.search(filters=Filters.parse(findings=["hydrocephalus"])).hits[0]
        assert hit.positive == ("hydrocephalus",)
        assert hit.values == {"hydrocephalus": pytest.approx(hit.score, abs=1e-6)}
        for wrong, says in (("dream", "knows no finding"), ("mass_effect", "no threshold"), ("Mass!", "asked for as")):
            with pytest.raises(SearchError, match=says):
                searcher.search(filters=Filters.parse(findings=[wrong]))


def test_a_graph_finds_what_comparing_all_finds(tmp_path: Path) -> None:
    with archive(tmp_path, search={"exact_below": 100}) as plugin:
        vectors = random_vectors(400)
        add_studies(plugin, vectors)
        searcher = Searcher(plugin, background=False)
        exact = searcher.search("fracture", limit=10)
        assert exact.exact and searcher.build()
        near = searcher.search("fracture", limit=10)
        assert not near.exact and not searcher.build()
        assert near.hits == exact.hits
        query = searcher.words.vector("fracture")
        add_studies(plugin, query[None], first=400)  # behind the graph
        assert found(searcher, "fracture", limit=1) == [uid(400)]
        assert found(Searcher(plugin), "fracture", limit=1) == [uid(400)]
        assert Searcher(plugin).search("fracture", filters=Filters.parse(age="adult"), limit=10).hits[1:] != ()


def test_a_graph_is_built_in_the_background_while_searches_go_on(tmp_path: Path) -> None:
    with archive(tmp_path, search={"exact_below": 10}) as plugin:
        add_studies(plugin, random_vectors(50))
        searcher = Searcher(plugin)
        assert searcher.search("fracture").exact
        assert searcher._builder is not None
        searcher._builder.join()
        assert not searcher.search("fracture").exact


def test_a_folder_that_was_lost_cut_or_is_of_another_index_is_made_again(tmp_path: Path) -> None:
    with archive(tmp_path) as plugin:
        vectors = random_vectors(30)
        add_studies(plugin, vectors)
        before = found(Searcher(plugin), "fracture")
        (folder,) = (plugin.spool / "search").iterdir()
        (keys,) = folder.glob("*.keys")
        for harm in (
            lambda: keys.write_bytes(keys.read_bytes()[:43]),  # killed while it was appended
            lambda: next(folder.glob("*.vectors")).unlink(),
            lambda: (folder / "current").write_text("{"),
        ):
            harm()
            assert found(Searcher(plugin), "fracture") == before
        with plugin.database.write() as session:  # the same ids, other studies
            for embedding in session.scalars(select(Embedding)):
                embedding.vector = vectors[(embedding.id + 7) % 30].tobytes()
        query = Searcher(plugin).words.vector("fracture")
        again = Searcher(plugin).search("fracture", limit=1).hits[0].score
        assert again == pytest.approx(float((vectors @ query).max()), abs=1e-6)


def test_a_generation_that_has_grown_leaves_out_what_no_longer_stands(tmp_path: Path) -> None:
    with archive(tmp_path) as plugin:
        add_studies(plugin, random_vectors(20), current=False)
        add_studies(plugin, random_vectors(5, seed=1), first=20)
        searcher = Searcher(plugin)
        assert searcher.search("fracture").searched == 5
        with plugin.database.write() as session:
            session.execute(update(Revision).values(current=False))
        add_studies(plugin, random_vectors(1100, seed=2), first=100)
        assert searcher.search("fracture").searched == 1100


def test_series_are_searched_where_their_vectors_are_kept(tmp_path: Path) -> None:
    with archive(tmp_path) as plugin:
        add_studies(plugin, random_vectors(3))
        with pytest.raises(SearchError, match="series_embeddings"):
            Searcher(plugin).search("fracture", level="series")
        add_studies(plugin, random_vectors(2, seed=1), first=3, series_instance_uid="1.9")
        hits = Searcher(plugin).search("fracture", level="series").hits
        assert [hit.series_instance_uid for hit in hits] == ["1.9", "1.9"]
        assert len(Searcher(plugin).search("fracture").hits) == 3


def test_a_question_that_cannot_be_answered_says_what_to_do(tmp_path: Path) -> None:
    with archive(tmp_path) as plugin:
        searcher = Searcher(plugin)
        assert searcher.search("fracture").hits == ()
        for words, asked, says in (
            ("", {}, "search with words"),
            ("  ", {"like": "1.2"}, "analysed no study"),
            ("a", {"like": "1.2"}, "not both"),
            ("a", {"limit": 0}, "can be asked for"),
            ("...", {}, "say in words"),
            ("a" * 3000, {}, "characters"),
        ):
            with pytest.raises(SearchError, match=says):
                searcher.search(words, **asked)  # type: ignore[arg-type]
        for field, text in (("since", "yesterday"), ("age", "old"), ("age", "80-60"), ("until", "20261301")):
            with pytest.raises(SearchError, match=r"is written|is one of"):
                Filters.parse(**{field: text})
    with (
        archive(tmp_path / "pg", search={"engine": "pgvector"}) as plugin,
        pytest.raises(SearchError, match="pgvector"),
    ):
        Searcher(plugin).search("fracture")


def test_a_bundle_without_a_text_tower_says_so_and_an_untrained_one_too(tmp_path: Path) -> None:
    from hlip_core.bundle import load_bundle

    with archive(tmp_path) as plugin:
        plugin.bundle = load_bundle(untrained_bundle())
        searcher = Searcher(plugin)
        assert "never trained" in searcher.caution
        with pytest.raises(SearchError, match="no text tower"):
            searcher.search("fracture")


def test_old_vectors_are_taken_over_by_the_migration(tmp_path: Path) -> None:
    from alembic import command

    plugin = Plugin(settings(tmp_path, model={"bundle": str(tiny_bundle())}))
    command.upgrade(plugin.database._alembic(), "0004")
    (vector,) = random_vectors(1)
    with plugin.database.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO study (id, study_instance_uid, patient_id, patient_name, accession_number, study_date, "
            "study_description, priority, revision, conflicts, state, attempts, next_try_at, detail) "
            "VALUES (1, '1.2.3', '', '', '', '', '', 20, 1, 0, 'reported', 0, 0, '')"
        )
        connection.exec_driver_sql(
            "INSERT INTO revision (study_id, number, inputs_digest, content_digest, bundle_digest, preprocessing, "
            "embedding, findings, created_at, current, reissue) "
            "VALUES (1, 1, '', '', ?, 'tiny-ct/1', ?, '[]', 1, 1, 0)",
            (tiny().digest, vector.tobytes()),
        )
    plugin.database.upgrade()
    assert found(Searcher(plugin), "fracture") == ["1.2.3"]
    plugin.database.close()


@pytest.mark.parametrize("series_embeddings", [False, True])
def test_an_analysed_study_is_found_with_what_its_header_says(tmp_path: Path, series_embeddings: bool) -> None:
    sections = {
        "search": {"series_embeddings": series_embeddings},
        "thresholds": {"intracranial_hemorrhage": -1.0},
        "results": {"key_images": False},  # the tiny bundle is of no body part
    }
    with archive(tmp_path, **sections) as plugin:
        plugin.sandbox = sandbox()
        scheduler = Scheduler(plugin.settings, plugin.spool, plugin.database, lambda queue: None)
        told = {"PatientAge": "071Y", "StationName": "CT1"}
        for path in [*head_ct(tmp_path / "in", number=2, **told), *head_ct(tmp_path / "in", number=3, **told)]:
            plugin.spool.accept(path.read_bytes())
        scheduler.tick()
        with plugin.database.write() as session:
            session.execute(update(Series).values(last_image_at=1.0))
            session.execute(update(Study).values(last_image_at=1.0))
        for _ in range(3):
            scheduler.tick()
            while work_once(plugin, "prepare") or work_once(plugin, "analyse"):
                pass
        filters = Filters.parse(age="senior", station="ct1", modality="CT", findings=["intracranial_hemorrhage"])
        (hit,) = Searcher(plugin).search("fracture", filters=filters).hits
        assert (hit.patient_age, hit.station_name, hit.positive) == (71.0, "CT1", ("intracranial_hemorrhage",))
        difference = rescore(plugin.database, Searcher(plugin).space(), Searcher(plugin).scoring)
        assert (difference.studies, difference.sides) == (1, [])
        with plugin.database.read() as session:
            vectors = [np.frombuffer(row.vector, "<f4") for row in session.scalars(select(Embedding))]
            (findings,) = session.scalars(select(Revision.findings))
        assert len(vectors) == (3 if series_embeddings else 1)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
        assert findings[0]["location"]["series_instance_uid"] and findings[1]["location"] is None


def test_parts_of_a_large_archive_are_read_by_their_ids_and_nothing_is_sorted_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plugin.index.rescoring.CHUNK", 4)
    monkeypatch.setattr("plugin.index.search.CHUNK", 4)
    asked: list[tuple[str, object]] = []
    with archive(tmp_path) as plugin:
        uids = add_studies(plugin, random_vectors(10))
        space = Searcher(plugin).space()
        event.listen(plugin.database.engine, "before_cursor_execute", lambda *each: asked.append((each[2], each[3])))
        parts = [part.study_instance_uids for part in rescoring.reported(plugin.database, space)]
        ids = search.chosen_ids(plugin.database, space, Filters())
        assert sum(len(part) for part, _ in search.vectors(plugin.database, space, ids)) == 10
        assert [len(part) for part in parts] == [4, 4, 2] and [uid for part in parts for uid in part] == uids
        with plugin.database.engine.connect() as connection:
            plans = [
                " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values))
                for statement, values in list(asked)
                if "BETWEEN" in statement
            ]
    assert len(plans) == 6
    assert all("INTEGER PRIMARY KEY" in plan and "TEMP B-TREE" not in plan for plan in plans), plans


def test_a_probability_is_asked_for_as_the_lowest_score_that_has_it() -> None:
    platt = Calibration(method="platt", scores=(12.0,), probabilities=(-2.0,), class_digest="")
    points = Calibration(
        method="isotonic", scores=(0.0, 0.1, 0.2, 0.3), probabilities=(0.1, 0.1, 0.6, 0.9), class_digest=""
    )
    for curve in (platt, points):
        for wanted in (0.2, 0.6, 0.75):
            score = curve.lowest_score(wanted)
            assert curve.probability(score) == pytest.approx(wanted)
            assert curve.probability(score - 1e-3) < wanted
    assert points.lowest_score(0.05) == -np.inf and points.lowest_score(0.95) == np.inf
    assert platt.lowest_score(0.0) == -np.inf and platt.lowest_score(1.0) == np.inf
    falling = Calibration(method="platt", scores=(-1.0,), probabilities=(0.0,), class_digest="")
    with pytest.raises(InputError, match="falls"):
        falling.lowest_score(0.5)
    many = np.linspace(-1, 1, 7)
    for curve in (platt, points):
        assert curve.probabilities_of(many) == pytest.approx([curve.probability(score) for score in many])
