"""`hlip-train evaluate`: a bundle on a cohort of phantoms, from scans to tables."""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import tiny
from hlip_core.assessment import order_scans
from hlip_core.bundle import Bundle, bundle_files, load_bundle, write_bundle
from hlip_core.calibration import Calibration
from hlip_core.errors import InputError
from hlip_core.findings import DEFAULT
from hlip_core.making import Description, bundle_model, replace_calibrations
from hlip_core.prepared import SourceVoxel
from hlip_core.volume import open_series, prepare
from test_evaluation_benchmarks import write_reads, write_rsna
from trainer.cli import app
from trainer.evaluation import pointing as pointing_module
from trainer.evaluation import vectors as vectors_module
from trainer.evaluation.benchmarks import Benchmark
from trainer.evaluation.evaluation import Evaluation, Options, evaluate
from trainer.evaluation.phantoms import leaked_paraphrases
from trainer.evaluation.pointing import Pointing, patient_point, pointing_rows
from trainer.evaluation.thresholds import read_thresholds
from trainer.evaluation.vectors import Vectors
from trainer.evaluation.words import Words, directions
from trainer.manifest import Cohort, StudyRow, read_cohort, write_cohort
from trainer.phantom import LABELS, LesionMask, read_study, write_study
from trainer.phantom.generate import MANIFEST, write_manifest
from trainer.phantom.reports import HELD_OUT

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [[], ["subdural"], ["epidural"], ["intraparenchymal"], [], ["subdural", "infarct"], ["subdural"], []]
HERE = SourceVoxel("", "", None, 0, 0)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Eight small phantoms with their manifest."""
    folder = tmp_path_factory.mktemp("phantoms")
    studies = [
        write_study(folder / f"phantom-{seed}", seed=seed, preset="tiny", lesions=kinds, series=["localizer", "thick"])
        for seed, kinds in enumerate(KINDS)
    ]
    write_manifest(folder / MANIFEST, studies)
    return folder


@pytest.fixture(scope="module")
def cohort(phantoms, tmp_path_factory) -> Cohort:
    """The phantoms as a cohort, under other UIDs; the first two are validation studies."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "scans").mkdir()
    rows = []
    for index in range(len(KINDS)):
        study = read_study(phantoms / f"phantom-{index}")
        scan = prepare(open_series(sorted((study.folder / "2-thick").iterdir())), tiny.SPEC)
        scan.save(folder / f"scans/{index}.b2nd")
        rows.append(
            StudyRow(
                study=f"2.25.{index}", patient=str(index), split="validation" if index < 2 else "test",
                scans=(f"scans/{index}.b2nd",), sentences=study.sentences, labels=study.labels,
                conspicuity=study.conspicuity, source=study.folder.name,
            )
        )  # fmt: skip
    return write_cohort(folder, preprocessing=tiny.SPEC, rows=rows, facts={})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Bundle:
    return load_bundle(tiny.write_bundle(tmp_path_factory.mktemp("bundle") / "tiny"))


@pytest.fixture(scope="module")
def whole(bundle, cohort) -> Evaluation:
    """All eight studies."""
    return run(bundle, cohort)


def lines(found: Evaluation) -> list[dict[str, str]]:
    """The table of scores."""
    return list(csv.DictReader(io.StringIO(found.table())))


def run(bundle: Bundle, cohort: Cohort, **options) -> Evaluation:
    return evaluate(bundle, "manifest", cohort.folder, Options(**{"split": "all", **options}))


# ---- scores ------------------------------------------------------------------------------------------------------


def test_the_scores_are_those_that_the_bundle_gives_when_it_serves(bundle, cohort):
    table = lines(run(bundle, cohort, batch=3))
    assert [row["study"] for row in table] == [row.study for row in cohort.rows]
    for line, row in zip(table, cohort.rows, strict=True):
        scans = [vectors_module.PreparedScan.load(cohort.folder / name) for name in row.scans]
        for score in bundle.assess(scans).findings:
            assert float(line[f"{score.finding.label}:score"]) == pytest.approx(score.score, abs=2e-5)
            assert line[f"{score.finding.label}:truth"] == str(int(row.labels[score.finding.label]))


def test_aucs_are_those_of_scikit_learn_and_the_macro_their_mean(whole):
    found, table = whole, lines(whole)
    measured = {}
    for label, row in found.document["classes"].items():
        truth = [int(line[f"{label}:truth"]) for line in table]
        if row["auc"]:
            measured[label] = roc_auc_score(truth, [float(line[f"{label}:score"]) for line in table])
            assert row["auc"][0] == pytest.approx(measured[label], abs=1e-6)
            assert row["auc"][1] <= row["auc"][0] <= row["auc"][2]
        assert row["positives"] == sum(truth)
    (whole,) = found.document["macro"].values()
    assert set(whole["classes"]) == set(measured)
    assert whole["auc"][0] == pytest.approx(np.mean(list(measured.values())), abs=1e-6)
    assert "hydrocephalus" in whole["missing"]
    assert found.document["classes"]["hydrocephalus"]["auc"] is None


def test_the_same_evaluation_gives_the_same_numbers(bundle, cohort, whole):
    assert run(bundle, cohort).document == whole.document


def test_a_split_is_kept_apart(bundle, cohort):
    assert run(bundle, cohort, split="test").document["studies"] == 6
    with pytest.raises(InputError, match=r"no studies in the split 'train'; it has: test 6, validation 2"):
        run(bundle, cohort, split="train")


def test_a_limit_takes_the_first_studies_and_says_so(bundle, cohort):
    document = run(bundle, cohort, limit=3).document
    assert document["studies"] == 3
    assert "only the first 3 of 8 studies" in document["benchmark"]["notes"]


def test_only_the_first_series_says_so_and_gives_other_scores_where_there_are_more(bundle, cohort, whole, tmp_path):
    first = run(bundle, cohort, series=1)
    assert "only the first 1 series of each study" in first.document["benchmark"]["notes"]
    assert lines(first) == lines(whole)  # these studies have one each
    pair = replace(cohort.rows[0], scans=(*cohort.rows[0].scans, *cohort.rows[2].scans))
    two = write_cohort(tmp_path, preprocessing=tiny.SPEC, rows=[pair, *cohort.rows[1:]], facts={})
    (tmp_path / "scans").symlink_to(cohort.folder / "scans")
    both, one = lines(run(bundle, two)), lines(run(bundle, two, series=1))
    assert both[0] != one[0] and both[1:] == one[1:]
    assert bundle.max_scans > 2, "the bundle itself is as it was"


def test_a_cohort_of_another_preprocessing_is_refused(bundle, cohort, tmp_path):
    write_cohort(tmp_path, preprocessing=replace(tiny.SPEC, name="other"), rows=cohort.rows, facts={})
    with pytest.raises(InputError, match="make the cohort again"):
        evaluate(bundle, "manifest", tmp_path, Options(split="all"))


def test_scans_that_are_damaged_or_missing_are_counted(bundle, cohort, tmp_path):
    shutil.copytree(cohort.folder, tmp_path / "c")
    (tmp_path / "c/scans/0.b2nd").write_bytes(b"no scan")
    (tmp_path / "c/scans/1.b2nd").unlink()
    document = evaluate(bundle, "manifest", tmp_path / "c", Options(split="all", out=tmp_path)).document
    assert Vectors(bundle, tmp_path).refused == {}  # whoever mends them need not clear anything
    assert document["refused"] == {"the prepared scan is damaged": 1, "the prepared scan is missing": 1}
    assert document["studies"] == 6


# ---- thresholds --------------------------------------------------------------------------------------------------


def test_rates_at_thresholds_are_those_of_the_table(bundle, cohort, whole, tmp_path):
    label = "subdural_hemorrhage"
    table = lines(whole)
    scores = np.array([float(line[f"{label}:score"]) for line in table])
    truth = np.array([line[f"{label}:truth"] == "1" for line in table])
    middle = float(np.median(scores))
    at = run(bundle, cohort, site={label: middle}).document["classes"][label]["at_threshold"]
    assert at["on"] == "score"
    assert at["sensitivity"][0] == pytest.approx((scores[truth] >= middle).mean())
    assert at["specificity"][0] == pytest.approx((scores[~truth] < middle).mean())
    slope = Calibration(
        method="platt", scores=(10.0,), probabilities=(-10 * middle,), threshold=0.5,
        class_digest=bundle.embeddings.digest(label),
    )  # fmt: skip
    calibrated = replace_calibrations(bundle, {label: slope}, tmp_path / "calibrated", diagrams={})
    again = run(calibrated, cohort).document["classes"][label]["at_threshold"]
    assert (again["on"], again["threshold"]) == ("probability", 0.5)
    assert again["sensitivity"] == at["sensitivity"]


def test_thresholds_come_from_options_and_from_settings(tmp_path):
    settings = tmp_path / "hlip.toml"
    settings.write_text("[thresholds]\nmass_effect = 0.5\nhydrocephalus = 0.2\nfracture = 'off'\n")
    assert read_thresholds([str(settings), "mass_effect=0.7"]) == {"mass_effect": 0.7, "hydrocephalus": 0.2}
    for wrong, said in (("mass_effect=x", "not a number"), ("nowhere.toml", "neither")):
        with pytest.raises(InputError, match=said):
            read_thresholds([wrong])


def test_a_threshold_of_an_unknown_finding_is_an_error(bundle, cohort):
    with pytest.raises(InputError, match="does not have: wart"):
        run(bundle, cohort, site={"wart": 0.1})


# ---- vectors that are kept ---------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_where_it_was(bundle, cohort, whole, tmp_path):
    class Interruption(Exception):
        pass

    def interrupted(things, what):
        yield from things[:3]
        raise Interruption

    seen = []

    def counted(things, what):
        seen.append((what, len(things)))
        return things

    with pytest.raises(Interruption):
        run(bundle, cohort, out=tmp_path, track=interrupted)
    kept = len(Vectors(bundle, tmp_path).of)
    assert 0 < kept < 8
    again = run(bundle, cohort, out=tmp_path, track=counted)
    assert seen == [("studies", 8 - kept)]
    assert again.document == whole.document


def test_vectors_of_other_weights_are_not_taken(bundle, cohort, tmp_path):
    run(bundle, cohort, out=tmp_path)
    assert len(Vectors(bundle, tmp_path).of) == 8
    other = load_bundle(tiny.write_bundle(tmp_path / "other", drop_air=True))
    assert not Vectors(other, tmp_path).of
    (tmp_path / "embeddings.safetensors").write_bytes(b"cut off")
    assert not Vectors(bundle, tmp_path).of


# ---- with words --------------------------------------------------------------------------------------------------


def test_retrieval_uses_the_reports_that_there_are(whole):
    found = whole.document["retrieval"]
    assert found["studies"] == 8
    assert found["chance"] == {1: 0.125, 5: 0.625, 10: 1.0}
    for way in ("image_to_report", "report_to_image"):
        assert 0 <= found[way][1] <= found[way][5] <= found[way][10] == 1.0


def test_a_bundle_with_a_report_head_retrieves_by_it(cohort, tmp_path):
    tokenizer = tiny.write_tokenizer(tmp_path / "words")
    description = Description(name="joint", version="1", status="phantom", preprocessing=tiny.SPEC)
    model = tiny.model(tiny.JOINT, tokenizer=tokenizer)
    folder = bundle_model(model, tmp_path / "joint", description, findings=DEFAULT.read_bytes(), tokenizer=tokenizer)
    joint = load_bundle(folder)
    document = run(joint, cohort, out=tmp_path).document
    assert document["retrieval"]["studies"] == 8
    assert "nothing about patients" in document["notice"]
    assert {rows.shape for rows in Vectors(joint, tmp_path).of.values()} == {(2, 16)}


def test_without_a_text_tower_what_needs_words_is_left_out(cohort, bundle, whole, tmp_path):
    files = {name: path for name, path in bundle_files(bundle).items() if not name.startswith(("text.", "tokenizer/"))}
    mute = load_bundle(write_bundle(tmp_path / "mute", files))
    document = run(mute, cohort).document
    assert document["retrieval"] is None
    assert "paraphrases" not in document["phantoms"]
    assert document["classes"].keys() == whole.document["classes"].keys()


# ---- phantoms ----------------------------------------------------------------------------------------------------


def test_terciles_of_conspicuity_are_measured_against_all_negatives(cohort, whole):
    found = whole
    scored, label = found.scored, "subdural_hemorrhage"
    graded = found.document["phantoms"]["conspicuity"]["findings"][label]
    scores, truth = scored.score(scored.directions[label]), scored.truth(label)[1]
    positives = sorted(np.flatnonzero(truth), key=lambda place: cohort.rows[place].conspicuity[label])
    assert len(positives) == 3
    for place, name in zip(positives, ("lowest", "middle", "highest"), strict=True):
        expected = (scores[place] > scores[~truth]).mean()
        assert graded[name]["auc"][0] == pytest.approx(expected, abs=1e-6)
        assert graded[name]["up_to"] == cohort.rows[place].conspicuity[label]
    assert set(found.document["phantoms"]["conspicuity"]["macro"]) == {"lowest", "middle", "highest"}


def test_paraphrases_go_through_the_templates_of_the_bundle(bundle, whole):
    found = whole
    told = found.document["phantoms"]["paraphrases"]
    assert set(told["findings"]) == {label for label, row in found.document["classes"].items() if row["auc"]}
    label = "epidural_hemorrhage"
    model = bundle.model(text=True)
    texts = [template.format(phrase) for phrase in HELD_OUT[label] for template in bundle.findings.templates]
    direction = model.encode_text(texts).detach().numpy().mean(axis=0)
    expected = roc_auc_score(found.scored.truth(label)[1], found.scored.score(direction))
    assert told["findings"][label][0] == pytest.approx(expected, abs=1e-6)
    assert told["in_reports"] == []


def test_a_held_out_phrase_in_a_report_is_found():
    assert leaked_paraphrases(["Normal.", "There is an Extradural Bleed."]) == ["extradural bleed"]


def test_the_denial_ranks_normals_by_its_own_sentence(bundle, cohort, whole):
    found = whole
    denial = found.document["phantoms"]["denial"]
    assert denial["texts"] == ["This study shows: no intracranial hemorrhage."]
    direction = bundle.model(text=True).encode_text(denial["texts"]).detach().numpy()[0]
    normal = np.array([not any(row.labels.values()) for row in cohort.rows])
    bleeds = np.array([row.labels["intracranial_hemorrhage"] for row in cohort.rows])
    chosen = normal | bleeds
    expected = roc_auc_score(normal[chosen], found.scored.score(direction)[chosen])
    assert denial["normals"][0] == pytest.approx(expected, abs=1e-6)
    assert denial["normals_studies"] == normal.sum()


def test_a_pixel_is_a_point_in_the_patient(phantoms):
    (path, *_) = sorted((phantoms / "phantom-1" / "2-thick").iterdir())
    (header,) = open_series([path])
    here = np.array(header.ImagePositionPatient, float)
    spacing = float(header.PixelSpacing[0])
    row, column = np.array(header.ImageOrientationPatient[:3]), np.array(header.ImageOrientationPatient[3:])
    np.testing.assert_allclose(patient_point(header, replace(HERE, row=0, column=0)), here)
    expected = here + 3 * spacing * column + 7 * spacing * row
    np.testing.assert_allclose(patient_point(header, replace(HERE, row=3, column=7)), expected)
    del header.ImagePositionPatient
    with pytest.raises(InputError, match="no position"):
        patient_point(header, HERE)


def test_a_point_on_the_lesion_is_near_and_one_across_the_head_is_not(phantoms):
    """The masks, the preparation and the way back to the patient agree: a dense clot lies where its mask says."""
    study = next(s for s in map(read_study, sorted(phantoms.glob("phantom-*"))) if s.labels["epidural_hemorrhage"])
    mask = LesionMask.load(study.folder / "lesions.npz")
    series = [open_series(sorted((study.folder / record.folder).iterdir())) for record in study.series]
    (scan,) = order_scans(pointing_module.prepare_series(series, tiny.SPEC)[0])
    headers = {str(dataset.SOPInstanceUID): dataset for datasets in series for dataset in datasets}
    lesion = mask.points("epidural_hemorrhage")
    voxels = [(z, y, x) for z in range(8) for y in range(40) for x in range(40)]
    sources = [scan.source_of(*voxel) for voxel in voxels]
    points = np.array([patient_point(headers[source.sop_instance_uid], source) for source in sources])
    away = np.array([mask.distance("epidural_hemorrhage", point) for point in points[::37]])
    expected = [np.linalg.norm(lesion - point, axis=1).min() for point in points[::37]]
    np.testing.assert_allclose(away, expected)
    nearest = voxels[int(np.argmin(np.linalg.norm(points - lesion.mean(axis=0), axis=1)))]
    assert scan.voxels[nearest] > 25  # HU: blood, not air or the other side's bone edge
    assert away.max() > 50


def test_pointing_counts_true_positives_only_and_says_what_chance_would_reach(bundle, cohort, phantoms, tmp_path):
    found = run(bundle, cohort, phantoms=phantoms, out=tmp_path).document["phantoms"]["pointing"]
    assert found["true_positives"] == sum(row["true_positives"] for row in found["findings"].values()) > 0
    assert 0 <= found["share"][0] <= 1 and 0 <= found["chance"] < 1
    assert set(found["thresholds"].values()) == {"Youden's, chosen on these studies"}
    none = run(bundle, cohort, phantoms=phantoms, out=tmp_path, site=dict.fromkeys(LABELS, 9.0))
    assert none.document["phantoms"]["pointing"]["true_positives"] == 0
    assert none.document["phantoms"]["pointing"]["share"] is None


def test_the_point_is_that_of_the_findings_report(bundle, phantoms):
    """What the check measures is the location that the bundle reports for the same study."""
    study = read_study(phantoms / "phantom-1")
    scan = prepare(open_series(sorted((study.folder / "2-thick").iterdir())), tiny.SPEC)
    label = "subdural_hemorrhage"
    score = next(s for s in bundle.assess([scan], thresholds={label: -9}).findings if s.finding.label == label)
    source = score.location.source
    images = open_series(sorted((study.folder / "2-thick").iterdir()))
    (header,) = (image for image in images if image.SOPInstanceUID == source.sop_instance_uid)
    expected = LesionMask.load(study.folder / "lesions.npz").distance(label, patient_point(header, source))
    (distance, chance), *_ = pointing_module._look(bundle, study.folder, [label], "cpu").values()
    assert distance == pytest.approx(expected, abs=0.01)
    assert 0 <= chance < 0.5


def test_pointing_is_kept_and_shares_are_counted_by_hand(bundle, cohort, phantoms, tmp_path):
    pointing = Pointing(bundle, phantoms, device="cpu", folder=tmp_path)
    pointing.of = {"a": {"x": [3.0, 0.1]}, "b": {"x": [10.5, 0.3], "y": [None, 0.0]}, "c": {"x": [10.0, 0.2]}}
    rows = pointing_rows(pointing, {"x": ["a", "b", "c", "unseen"], "y": ["b"], "z": []})
    assert rows["findings"]["x"]["share"][0] == pytest.approx(2 / 3)
    assert rows["findings"]["x"]["chance"] == pytest.approx(0.2)
    assert rows["findings"]["y"]["share"][0] == 0
    assert (rows["true_positives"], rows["share"][0], rows["chance"], rows["not_looked_at"]) == (4, 0.5, 0.15, 1)
    pointing._save()
    assert Pointing(bundle, phantoms, device="cpu", folder=tmp_path).of == pointing.of
    assert Pointing(bundle, tmp_path, device="cpu", folder=tmp_path).of == {}


def test_phantoms_of_another_folder_are_an_error(bundle, cohort, tmp_path):
    with pytest.raises(InputError, match="none of the cohort's phantoms"):
        run(bundle, cohort, phantoms=tmp_path)


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_writes_numbers_scores_and_a_picture(bundle, cohort, phantoms, tmp_path):
    arguments = ["evaluate", str(bundle.path), "--data", str(cohort.folder), "--split", "all", "-o", str(tmp_path)]
    arguments += ["--phantoms", str(phantoms), "--histogram", "--threads", "1", "--threshold", "mass_effect=0.1"]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for said in ("macro: all findings", "lowest third", "Retrieval among 8", "point of relevance", "ranks normals"):
        assert said in result.output
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["bundle"]["digest"] == bundle.digest
    assert document["phantoms"]["histogram"] == {"findings": {}, "macro": None}
    with Image.open(tmp_path / "roc.png") as picture:
        assert picture.width > 400
    assert len((tmp_path / "scores.csv").read_text().splitlines()) == 9


def test_the_public_sets_are_printed_beside_what_others_published(bundle, phantoms, tmp_path):
    write_reads(tmp_path / "reads.csv", {"CQ500-CT-0": {"SDH": "111", "ICH": "111"}, "CQ500-CT-4": {}})
    for number, phantom in ((0, 1), (4, 4)):
        folder = tmp_path / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / "CT Plain"
        shutil.copytree(phantoms / f"phantom-{phantom}" / "2-thick", folder)
    arguments = ["evaluate", str(bundle.path), "--benchmark", "cq500", "--data", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "83.1" in result.output and "they are no ranking" in result.output
    assert "nine, with calvarial fracture (2, 7 missing)" in result.output


def test_rsna_goes_the_same_way(bundle, phantoms, tmp_path):
    write_rsna(tmp_path, read_study(phantoms / "phantom-1"), {"ID_aaaa": {5: "subdural"}, "ID_bbbb": {}})
    document = evaluate(bundle, "rsna", tmp_path, Options()).document
    assert document["studies"] == 2
    assert document["classes"]["any"]["auc"][0] == 0.5  # two copies of one study
    assert document["published"][0]["auc"] == "85.7"


def test_classes_without_finding_or_words_are_named(bundle, phantoms, tmp_path):
    classes = Benchmark.named("cq500").classes
    known, skipped = directions(bundle, classes, Words.of(bundle))
    assert {"left", "right"} <= known.keys() and not skipped
    files = {name: path for name, path in bundle_files(bundle).items() if not name.startswith(("text.", "tokenizer/"))}
    mute = load_bundle(write_bundle(tmp_path / "mute", files))
    known, skipped = directions(mute, classes, Words.of(mute))
    assert skipped.keys() == {"left", "right"}
    assert "no text tower" in skipped["left"]


def test_the_command_explains_a_histogram_without_phantoms(bundle, cohort):
    result = CliRunner().invoke(app, ["evaluate", str(bundle.path), "--data", str(cohort.folder), "--histogram"])
    assert result.exit_code == 2
    assert "needs" in result.output


def test_the_command_explains_what_it_cannot_do(bundle, tmp_path):
    result = CliRunner().invoke(app, ["evaluate", str(bundle.path), "--data", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 1
    assert "no cohort in" in result.output and "Traceback" not in result.output


def test_the_cohort_fixture_is_what_a_cohort_is(cohort):
    assert read_cohort(cohort.folder) == cohort
