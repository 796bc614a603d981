"""`hlip archive search | rescore | compare`: what they show, write and change."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import select
from typer.testing import CliRunner, Result

import tiny as model
from hlip_core.bundle import load_bundle
from hlip_core.errors import InputError
from hlip_core.findings import DEFAULT
from hlip_core.making import replace_findings
from plugin import cli_archive
from plugin.bootstrap import Plugin
from plugin.cli_search import app
from plugin.index.tables import Series, Study
from plugin.search import SearchError
from plugin.search.agreement import read_reports
from plugin.search.scoring import Scoring
from searches import add_studies, archive, random_vectors, tiny, uid

LABEL = "hydrocephalus"
THRESHOLDS = {"thresholds": {LABEL: 0.1}}


@pytest.fixture(params=["sqlite", "postgresql"])
def plugin(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    index = {} if request.param == "sqlite" else {"index": {"url": request.getfixturevalue("postgresql")}}
    with archive(tmp_path, **index, **THRESHOLDS) as made:
        monkeypatch.setattr("plugin.cli_search.plugin_with_index", lambda config: made)
        yield made


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Plugin]:
    with archive(tmp_path, **THRESHOLDS) as made:
        monkeypatch.setattr("plugin.cli_search.plugin_with_index", lambda config: made)
        yield made


def hlip_archive(*arguments: object, fails: type[Exception] | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "220"})
    if fails is None:
        assert result.exit_code == 0, result.output
    else:
        assert isinstance(result.exception, fails), result.exception
    return result


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def prepared(plugin: Plugin, study_uid: str) -> None:
    """A prepared scan of a study, and its series in the index."""
    scan = model.scan(seed=1)
    scan.save(plugin.spool.prepared_path(study_uid, scan.series_instance_uid))
    with plugin.database.write() as session:
        study = session.scalars(select(Study).where(Study.study_instance_uid == study_uid)).one()
        study.series.append(
            Series(series_instance_uid=scan.series_instance_uid, modality="CT", series_number=1, state="prepared")
        )


def test_search_shows_and_writes_what_it_finds(plugin: Plugin, tmp_path: Path) -> None:
    add_studies(plugin, random_vectors(30), study_description="[red]CT HEAD")
    prepared(plugin, uid(3))
    sheet = tmp_path / "sheet.png"
    asked = ("search", "subdural hematoma", "--limit", 5, "--pictures", sheet)
    shown = hlip_archive(*asked, "--out", tmp_path / "hits.csv").output
    assert "[red]CT HEAD" in shown and "30 vectors searched" in shown and "not for diagnosis" in shown
    rows = read(tmp_path / "hits.csv")
    found = json.loads(hlip_archive(*asked, "--json", "--out", tmp_path / "hits.json").stdout)
    assert [row["study_instance_uid"] for row in rows] == [hit["study_instance_uid"] for hit in found["hits"]]
    assert json.loads((tmp_path / "hits.json").read_text())[0]["rank"] == 1
    with Image.open(sheet) as picture:
        assert picture.size == (2 * (3 * 224 + 12) + 12, 3 * 30 + 3 * (2 * 22 + 224 + 12))


def test_a_contact_sheet_shows_slices_of_what_is_kept(local: Plugin, tmp_path: Path) -> None:
    add_studies(local, random_vectors(2))
    prepared(local, uid(0))
    hlip_archive(
        "search", "fracture", "--limit", 1, "--like", uid(1), "--pictures", tmp_path / "a.png", fails=SearchError
    )
    hlip_archive("search", "--limit", 1, "--like", uid(1), "--pictures", tmp_path / "with.png")
    hlip_archive("search", "--limit", 1, "--like", uid(0), "--pictures", tmp_path / "gone.png")
    with_scan, gone = (np.asarray(Image.open(tmp_path / name))[150:] for name in ("with.png", "gone.png"))
    assert with_scan.std() > 2 * gone.std()


def test_parquet_holds_the_same_rows_and_a_strange_ending_is_refused_first(local: Plugin, tmp_path: Path) -> None:
    from pyarrow import parquet

    add_studies(local, random_vectors(30))
    hlip_archive("rescore", "--scores", tmp_path / "all.parquet")
    table = parquet.read_table(tmp_path / "all.parquet")
    assert (table.num_rows, table.column("prompts_digest")[0].as_py()) == (30, tiny().prompts_digest)
    hlip_archive("search", "fracture", "--out", tmp_path / "hits.xlsx", fails=SearchError)


def test_a_cell_is_no_formula(local: Plugin, tmp_path: Path) -> None:
    add_studies(local, random_vectors(1), study_description="=1+1")
    hlip_archive("search", "fracture", "--out", tmp_path / "hits.csv")
    assert read(tmp_path / "hits.csv")[0]["study_description"] == "'=1+1"


# ---- rescore -----------------------------------------------------------------------------------------------


def test_scores_of_many_are_those_of_one_by_one(tmp_path: Path) -> None:
    vectors = random_vectors(20)
    scores = Scoring(tiny(), {LABEL: 0.1}).scores(vectors)
    for place, label in enumerate(tiny().findings.labels):
        singly = [tiny().embeddings.score(vector, label) for vector in vectors]
        assert scores.scores[:, place] == pytest.approx(singly, abs=1e-9)
    at = tiny().findings.labels.index(LABEL)
    assert (scores.positive[:, at] == (scores.values[:, at] >= 0.1)).all() and scores.positive.sum(axis=0)[at] > 0


def test_the_same_bundle_changes_no_side(plugin: Plugin) -> None:
    add_studies(plugin, random_vectors(50))
    said = json.loads(hlip_archive("rescore", "--json").stdout)
    assert (said["studies"], said["changes"]) == (50, [])
    assert all(row["reported"] == row["now"] and not row["not_reported_on"] for row in said["findings"])


def test_other_prompts_change_sides_and_only_a_reissue_makes_studies_due(plugin: Plugin, tmp_path: Path) -> None:
    vectors = random_vectors(40)
    add_studies(plugin, vectors)
    other = DEFAULT.read_text().replace('"hydrocephalus", "enlarged', '"fracture of the dens", "enlarged')
    replace_findings(tiny(), other.encode(), tmp_path / "new")
    new = load_bundle(tmp_path / "new")
    assert new.encoder_digest == tiny().encoder_digest and new.prompts_digest != tiny().prompts_digest
    before, now = (vectors @ bundle.embeddings.direction(LABEL) >= 0.1 for bundle in (tiny(), new))
    asked = ("rescore", "--bundle", tmp_path / "new")
    said = json.loads(hlip_archive(*asked, "--json").stdout)
    changed = {row["study_instance_uid"]: row["positive"] for row in said["changes"]}
    assert changed == {uid(int(place)): bool(now[place]) for place in np.flatnonzero(before != now)} and changed
    assert "What was reported stands" in hlip_archive(*asked, "--changes", tmp_path / "changes.csv").output
    assert len(read(tmp_path / "changes.csv")) == len(changed)
    hlip_archive(*asked, "--reissue", fails=SearchError)
    plugin.bundle = new
    hlip_archive(*asked, "--reissue", "--dry-run")
    assert due(plugin) == set()
    with plugin.database.write() as session:
        gone = session.scalars(select(Study).where(Study.study_instance_uid == min(changed))).one()
        gone.series.append(Series(series_instance_uid="1.7", state="prepared", prepared_removed_at=1.0))
    hlip_archive(*asked, "--reissue")
    assert due(plugin) == set(changed) - {min(changed)}


def due(plugin: Plugin) -> set[str]:
    with plugin.database.read() as session:
        return set(session.scalars(select(Study.study_instance_uid).where(Study.state == "receiving")))


def test_other_weights_cannot_be_scored_from_what_is_kept(local: Plugin) -> None:
    add_studies(local, random_vectors(3), encoder_digest="other", bundle_digest="other")
    hlip_archive("rescore", fails=SearchError)


# ---- compare -----------------------------------------------------------------------------------------------


def reports(folder: Path, rows: list[dict[str, str]], columns: tuple[str, ...]) -> Path:
    with (folder / "reports.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return folder / "reports.csv"


def test_the_model_is_compared_with_the_reports(plugin: Plugin, tmp_path: Path) -> None:
    vectors = random_vectors(60)
    scores = vectors @ tiny().embeddings.direction(LABEL)
    add_studies(plugin, vectors, rows=[{"accession_number": f"A{number}"} for number in range(60)])
    texts = ["Obstructive hydrocephalus." if score > 0.1 else "No hydrocephalus." for score in scores]
    best, worst = int(scores.argmax()), int(scores.argmin())
    texts[best], texts[worst] = "No hydrocephalus is seen.", "Hydrocephalus."
    path = reports(
        tmp_path,
        [
            {"Study Instance UID": uid(n) if n % 2 else "", "accession_number": f"A{n}", "Report": texts[n]}
            for n in range(60)
        ],
        ("Study Instance UID", "accession_number", "Report"),
    )
    out = tmp_path / "disagreements.csv"
    said = json.loads(hlip_archive("compare", path, "--json", "--out", out, "--pictures", tmp_path / "a.png").stdout)
    row = next(row for row in said["findings"] if row["label"] == LABEL)
    assert (said["reports"], said["linked"], said["disagreements"]) == (60, 60, 2)
    assert row["false_positive"] == row["false_negative"] == 1
    assert row["true_positive"] + row["true_negative"] == 58
    value, low, high = row["auc"]
    assert 0.8 < value < 1 and low <= value <= high
    found = {(line["study_instance_uid"], line["model"], line["sentence"]) for line in read(out)}
    assert found == {(uid(best), "positive", texts[best]), (uid(worst), "negative", texts[worst])}
    assert "2 disagreements" in hlip_archive("compare", path).output


def test_a_finding_without_threshold_has_an_auc_and_no_table(local: Plugin, tmp_path: Path) -> None:
    add_studies(local, random_vectors(4))
    rows = [{"study": uid(n), "text": "Skull fracture." if n % 2 else "Possible skull fracture."} for n in range(3)]
    path = reports(tmp_path, [*rows, {"study": uid(3), "text": "Normal."}], ("study", "text"))
    said = json.loads(hlip_archive("compare", path, "--json").stdout)
    row = next(row for row in said["findings"] if row["label"] == "skull_fracture")
    assert (row["present"], row["absent"], row["uncertain"], row["true_positive"]) == (1, 1, 2, None)
    said = json.loads(hlip_archive("compare", path, "--json", "--unmentioned", "unknown").stdout)
    row = next(row for row in said["findings"] if row["label"] == "skull_fracture")
    assert (row["absent"], row["auc"]) == (0, None)


def test_an_empty_column_hides_none_that_means_the_same(tmp_path: Path) -> None:
    columns = ("StudyInstanceUID", "Study", "report", "text")
    path = reports(tmp_path, [dict(zip(columns, (uid(1), "", "", "No fracture."), strict=True))], columns)
    assert read_reports(path).of(uid(1), "") == "No fracture."


def test_a_number_of_several_reports_links_nothing_and_a_useless_file_is_refused(local: Plugin, tmp_path: Path) -> None:
    add_studies(local, random_vectors(2), rows=[{"accession_number": "A0"}, {"accession_number": "A1"}])
    rows = [{"accession": number, "findings": "No fracture."} for number in ("A0", "A0", "A1")]
    said = json.loads(hlip_archive("compare", reports(tmp_path, rows, ("accession", "findings")), "--json").stdout)
    assert (said["linked"], said["ambiguous"]) == (1, 1)
    for name, useless in {"no.csv": "a,b\n1,2\n", "deep.jsonl": "[" * 100_000}.items():
        (tmp_path / name).write_text(useless)
        hlip_archive("compare", tmp_path / name, fails=InputError)
    hlip_archive("compare", reports(tmp_path, rows[:2], ("accession", "findings")), fails=InputError)


def test_all_commands_of_the_archive_explain_themselves() -> None:
    for command in ("search", "rescore", "compare"):
        text = hlip_archive(command, "--help").output
        assert f"hlip archive {command}" in text or f"archive {command}" in text
    assert app is cli_archive.app
