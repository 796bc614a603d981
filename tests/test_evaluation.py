"""A bundle on a cohort of phantoms: scores, rates at thresholds, and vectors that are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import tiny
from evaluations import lines, run
from hlip_core.bundle import load_bundle
from hlip_core.calibration import Calibration
from hlip_core.errors import InputError
from hlip_core.making import replace_calibrations
from trainer.evaluation import vectors as vectors_module
from trainer.evaluation.evaluation import Options, evaluate
from trainer.evaluation.thresholds import read_thresholds
from trainer.evaluation.vectors import Vectors
from trainer.manifest import read_cohort, write_cohort

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_cohort_fixture_is_what_a_cohort_is(phantom_cohort):
    assert read_cohort(phantom_cohort.folder) == phantom_cohort


# ---- scores ------------------------------------------------------------------------------------------------------


def test_the_scores_are_those_that_the_bundle_gives_when_it_serves(bundle, phantom_cohort):
    table = lines(run(bundle, phantom_cohort, batch=3))
    assert [row["study"] for row in table] == [row.study for row in phantom_cohort.rows]
    for line, row in zip(table, phantom_cohort.rows, strict=True):
        scans = [vectors_module.PreparedScan.load(phantom_cohort.folder / name) for name in row.scans]
        for score in bundle.assess(scans).findings:
            assert float(line[f"{score.finding.label}:score"]) == pytest.approx(score.score, abs=2e-5)
            assert line[f"{score.finding.label}:truth"] == str(int(row.labels[score.finding.label]))


def test_aucs_are_those_of_scikit_learn_and_the_macro_their_mean(evaluation):
    found, table = evaluation, lines(evaluation)
    measured = {}
    for label, row in found.document["classes"].items():
        truth = [int(line[f"{label}:truth"]) for line in table]
        if row["auc"]:
            measured[label] = roc_auc_score(truth, [float(line[f"{label}:score"]) for line in table])
            assert row["auc"][0] == pytest.approx(measured[label], abs=1e-6)
            assert row["auc"][1] <= row["auc"][0] <= row["auc"][2]
        assert row["positives"] == sum(truth)
    (macro,) = found.document["macro"].values()
    assert set(macro["classes"]) == set(measured)
    assert macro["auc"][0] == pytest.approx(np.mean(list(measured.values())), abs=1e-6)
    assert "hydrocephalus" in macro["missing"]
    assert found.document["classes"]["hydrocephalus"]["auc"] is None


def test_the_same_evaluation_gives_the_same_numbers(bundle, phantom_cohort, evaluation):
    assert run(bundle, phantom_cohort).document == evaluation.document


def test_a_split_is_kept_apart(bundle, phantom_cohort):
    assert run(bundle, phantom_cohort, split="test").document["studies"] == 6
    with pytest.raises(InputError, match=r"no studies in the split 'train'; it has: test 6, validation 2"):
        run(bundle, phantom_cohort, split="train")


def test_a_limit_takes_the_first_studies_and_says_so(bundle, phantom_cohort):
    document = run(bundle, phantom_cohort, limit=3).document
    assert document["studies"] == 3
    assert "only the first 3 of 8 studies" in document["benchmark"]["notes"]


def test_only_the_first_series_says_so_and_gives_other_scores_where_there_are_more(
    bundle, phantom_cohort, evaluation, tmp_path
):
    first = run(bundle, phantom_cohort, series=1)
    assert "only the first 1 series of each study" in first.document["benchmark"]["notes"]
    assert lines(first) == lines(evaluation)  # these studies have one each
    pair = replace(phantom_cohort.rows[0], scans=(*phantom_cohort.rows[0].scans, *phantom_cohort.rows[2].scans))
    two = write_cohort(tmp_path, preprocessing=tiny.SPEC, rows=[pair, *phantom_cohort.rows[1:]], facts={})
    (tmp_path / "scans").symlink_to(phantom_cohort.folder / "scans")
    both, one = lines(run(bundle, two)), lines(run(bundle, two, series=1))
    assert both[0] != one[0] and both[1:] == one[1:]
    assert bundle.max_scans > 2, "the bundle itself is as it was"


def test_a_cohort_of_another_preprocessing_is_refused(bundle, phantom_cohort, tmp_path):
    write_cohort(tmp_path, preprocessing=replace(tiny.SPEC, name="other"), rows=phantom_cohort.rows, facts={})
    with pytest.raises(InputError, match="make the cohort again"):
        evaluate(bundle, "manifest", tmp_path, Options(split="all"))


def test_scans_that_are_damaged_or_missing_are_counted(bundle, phantom_cohort, tmp_path):
    shutil.copytree(phantom_cohort.folder, tmp_path / "c")
    (tmp_path / "c/scans/0.b2nd").write_bytes(b"no scan")
    (tmp_path / "c/scans/1.b2nd").unlink()
    document = evaluate(bundle, "manifest", tmp_path / "c", Options(split="all", out=tmp_path)).document
    assert Vectors(bundle, tmp_path).refused == {}  # whoever mends them need not clear anything
    assert document["refused"] == {"the prepared scan is damaged": 1, "the prepared scan is missing": 1}
    assert document["studies"] == 6


# ---- thresholds --------------------------------------------------------------------------------------------------


def test_rates_at_thresholds_are_those_of_the_table(bundle, phantom_cohort, evaluation, tmp_path):
    label = "subdural_hemorrhage"
    table = lines(evaluation)
    scores = np.array([float(line[f"{label}:score"]) for line in table])
    truth = np.array([line[f"{label}:truth"] == "1" for line in table])
    middle = float(np.median(scores))
    at = run(bundle, phantom_cohort, site={label: middle}).document["classes"][label]["at_threshold"]
    assert at["on"] == "score"
    assert at["sensitivity"][0] == pytest.approx((scores[truth] >= middle).mean())
    assert at["specificity"][0] == pytest.approx((scores[~truth] < middle).mean())
    slope = Calibration(
        method="platt", scores=(10.0,), probabilities=(-10 * middle,), threshold=0.5,
        class_digest=bundle.embeddings.digest(label),
    )  # fmt: skip
    calibrated = replace_calibrations(bundle, {label: slope}, tmp_path / "calibrated", diagrams={})
    again = run(calibrated, phantom_cohort).document["classes"][label]["at_threshold"]
    assert (again["on"], again["threshold"]) == ("probability", 0.5)
    assert again["sensitivity"] == at["sensitivity"]


def test_thresholds_come_from_options_and_from_settings(tmp_path):
    settings = tmp_path / "hlip.toml"
    settings.write_text("[thresholds]\nmass_effect = 0.5\nhydrocephalus = 0.2\nfracture = 'off'\n")
    assert read_thresholds([str(settings), "mass_effect=0.7"]) == {"mass_effect": 0.7, "hydrocephalus": 0.2}
    for wrong, said in (("mass_effect=x", "not a number"), ("nowhere.toml", "neither")):
        with pytest.raises(InputError, match=said):
            read_thresholds([wrong])


def test_a_threshold_of_an_unknown_finding_is_an_error(bundle, phantom_cohort):
    with pytest.raises(InputError, match="does not have: wart"):
        run(bundle, phantom_cohort, site={"wart": 0.1})


# ---- vectors that are kept ---------------------------------------------------------------------------------------


def test_an_interrupted_evaluation_goes_on_where_it_was(bundle, phantom_cohort, evaluation, tmp_path):
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
        run(bundle, phantom_cohort, out=tmp_path, track=interrupted)
    kept = len(Vectors(bundle, tmp_path).of)
    assert 0 < kept < 8
    again = run(bundle, phantom_cohort, out=tmp_path, track=counted)
    assert seen == [("studies", 8 - kept)]
    assert again.document == evaluation.document


def test_vectors_of_other_weights_are_not_taken(bundle, phantom_cohort, tmp_path):
    run(bundle, phantom_cohort, out=tmp_path)
    assert len(Vectors(bundle, tmp_path).of) == 8
    other = load_bundle(tiny.write_bundle(tmp_path / "other", drop_air=True))
    assert not Vectors(other, tmp_path).of
    (tmp_path / "embeddings.safetensors").write_bytes(b"cut off")
    assert not Vectors(bundle, tmp_path).of


# ---- phantoms ----------------------------------------------------------------------------------------------------


def test_terciles_of_conspicuity_are_measured_against_all_negatives(phantom_cohort, evaluation):
    found = evaluation
    scored, label = found.scored, "subdural_hemorrhage"
    graded = found.document["phantoms"]["conspicuity"]["findings"][label]
    scores, truth = scored.score(scored.directions[label]), scored.truth(label)[1]
    positives = sorted(np.flatnonzero(truth), key=lambda place: phantom_cohort.rows[place].conspicuity[label])
    assert len(positives) == 3
    for place, name in zip(positives, ("lowest", "middle", "highest"), strict=True):
        expected = (scores[place] > scores[~truth]).mean()
        assert graded[name]["auc"][0] == pytest.approx(expected, abs=1e-6)
        assert graded[name]["up_to"] == phantom_cohort.rows[place].conspicuity[label]
    assert set(found.document["phantoms"]["conspicuity"]["macro"]) == {"lowest", "middle", "highest"}
