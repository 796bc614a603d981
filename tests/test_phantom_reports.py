"""The reports of synthetic studies say what is there, deny only what is not, and keep some words back."""

from __future__ import annotations

import re

import pytest

from trainer.phantom import LABELS, Examination
from trainer.phantom.reports import HELD_OUT, SENTENCES

ABSENT = SENTENCES["absent"]
EXAMS = [Examination(seed=seed, preset="tiny") for seed in range(40)]

NAMED = {
    "intraparenchymal_hemorrhage": r"parenchymal|intracerebral|intra-axial hematoma",
    "intraventricular_hemorrhage": r"ventric",
    "subarachnoid_hemorrhage": r"subarachnoid|within the sulci and cisterns",
    "subdural_hemorrhage": r"subdural",
    "epidural_hemorrhage": r"epidural|extradural",
    "mass_effect": r"mass effect|effacement",
    "midline_shift": r"midline|septum",
    "hydrocephalus": r"hydrocephalus",
    "cerebral_infarction": r"infarct|ischemic stroke",
    "skull_fracture": r"fracture",
}


@pytest.mark.parametrize("exam", EXAMS, ids=lambda exam: str(exam.seed))
def test_a_report_names_what_is_present_and_denies_only_what_is_absent(exam: Examination) -> None:
    sentences = exam.report()
    for label in exam.findings:
        assert not set(sentences) & set(ABSENT[label]), label
        if label in NAMED:
            assert any(re.search(NAMED[label], s, re.IGNORECASE) and s not in ABSENT[label] for s in sentences), label


@pytest.mark.parametrize("exam", EXAMS, ids=lambda exam: str(exam.seed))
def test_a_report_reads_as_sentences(exam: Examination) -> None:
    sentences = exam.report()
    assert sentences
    for sentence in sentences:
        assert re.fullmatch(r"[A-Z0-9][^{}]*\.", sentence), sentence
        assert "  " not in sentence


def test_a_report_is_the_same_each_time() -> None:
    assert Examination(seed=3, preset="tiny").report() == Examination(seed=3, preset="tiny").report()


def test_reports_differ_in_their_words() -> None:
    assert len({exam.report() for exam in EXAMS}) == len(EXAMS)


def test_a_side_is_named_as_it_is() -> None:
    for seed in range(10):
        exam = Examination(seed=seed, kinds=["epidural"], preset="tiny")
        other = {"left": "right", "right": "left"}[exam.lesions[0].side]
        told = [s.lower() for s in exam.report() if re.search("epidural|extradural|extra-axial hem", s.lower())]
        assert not any(f"{other} " in sentence for sentence in told)


def test_held_out_words_never_occur_in_training() -> None:
    rows = [row[key] for row in SENTENCES["present"].values() for key in ("names", "sentences")]
    texts = [sentence.lower() for row in (*rows, *ABSENT.values()) for sentence in row]
    for label in LABELS:
        assert len(HELD_OUT[label]) >= 3
        for phrase in HELD_OUT[label]:
            assert not any(phrase.lower() in text for text in texts), phrase
