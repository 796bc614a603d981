"""What an evaluation asks in words: retrieval, paraphrases, a denial; and what it leaves out without a text tower."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import tiny
from evaluations import run
from hlip_core.bundle import bundle_files, load_bundle, write_bundle
from hlip_core.findings import DEFAULT
from hlip_core.making import Description, bundle_model
from trainer.evaluation.benchmarks import Benchmark
from trainer.evaluation.phantoms import leaked_paraphrases
from trainer.evaluation.vectors import Vectors
from trainer.evaluation.words import Words, directions
from trainer.phantom.reports import HELD_OUT

pytestmark = pytest.mark.usefixtures("one_thread")


def test_retrieval_uses_the_reports_that_there_are(evaluation):
    found = evaluation.document["retrieval"]
    assert found["studies"] == 8
    assert found["chance"] == {1: 0.125, 5: 0.625, 10: 1.0}
    for way in ("image_to_report", "report_to_image"):
        assert 0 <= found[way][1] <= found[way][5] <= found[way][10] == 1.0


def test_a_bundle_with_a_report_head_retrieves_by_it(phantom_cohort, tmp_path):
    tokenizer = tiny.write_tokenizer(tmp_path / "words")
    description = Description(name="joint", version="1", status="phantom", preprocessing=tiny.SPEC)
    model = tiny.model(tiny.JOINT, tokenizer=tokenizer)
    folder = bundle_model(model, tmp_path / "joint", description, findings=DEFAULT.read_bytes(), tokenizer=tokenizer)
    joint = load_bundle(folder)
    document = run(joint, phantom_cohort, out=tmp_path).document
    assert document["retrieval"]["studies"] == 8
    assert "nothing about patients" in document["notice"]
    assert {rows.shape for rows in Vectors(joint, tmp_path).of.values()} == {(2, 16)}


def test_without_a_text_tower_what_needs_words_is_left_out(phantom_cohort, bundle, evaluation, tmp_path):
    files = {name: path for name, path in bundle_files(bundle).items() if not name.startswith(("text.", "tokenizer/"))}
    mute = load_bundle(write_bundle(tmp_path / "mute", files))
    document = run(mute, phantom_cohort).document
    assert document["retrieval"] is None
    assert "paraphrases" not in document["phantoms"]
    assert document["classes"].keys() == evaluation.document["classes"].keys()


def test_paraphrases_go_through_the_templates_of_the_bundle(bundle, evaluation):
    found = evaluation
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


def test_the_denial_ranks_normals_by_its_own_sentence(bundle, phantom_cohort, evaluation):
    found = evaluation
    denial = found.document["phantoms"]["denial"]
    assert denial["texts"] == ["This study shows: no intracranial hemorrhage."]
    direction = bundle.model(text=True).encode_text(denial["texts"]).detach().numpy()[0]
    normal = np.array([not any(row.labels.values()) for row in phantom_cohort.rows])
    bleeds = np.array([row.labels["intracranial_hemorrhage"] for row in phantom_cohort.rows])
    chosen = normal | bleeds
    expected = roc_auc_score(normal[chosen], found.scored.score(direction)[chosen])
    assert denial["normals"][0] == pytest.approx(expected, abs=1e-6)
    assert denial["normals_studies"] == normal.sum()


def test_classes_without_finding_or_words_are_named(bundle, phantoms, tmp_path):
    classes = Benchmark.named("cq500").classes
    known, skipped = directions(bundle, classes, Words.of(bundle))
    assert {"left", "right"} <= known.keys() and not skipped
    files = {name: path for name, path in bundle_files(bundle).items() if not name.startswith(("text.", "tokenizer/"))}
    mute = load_bundle(write_bundle(tmp_path / "mute", files))
    known, skipped = directions(mute, classes, Words.of(mute))
    assert skipped.keys() == {"left", "right"}
    assert "no text tower" in skipped["left"]
