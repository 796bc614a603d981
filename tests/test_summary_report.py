"""The Summary SR: valid, readable as text, and complete: found, absent, refused, not assessed."""

from io import BytesIO

import pytest
from highdicom.sr import EnhancedSR
from pydicom import dcmread
from pydicom.uid import EnhancedSRStorage

from hlip_core.reasons import Reason
from peers import dciodvfy_errors
from plugin.results import build_results, to_bytes
from plugin.results.summary_report import LIMITS, NOT_CALIBRATED, result_sentence, summary_report
from reports import (
    FINDINGS,
    FRACTURE,
    ICH,
    SHIFT,
    Card,
    assert_valid,
    items,
    prepared,
    refused,
    report,
    report_of,
    score,
    sha256,
    texts,
)


def section(result, meaning):
    return items(result, "CONTAINER", meaning)[0].ContentSequence


def test_every_study_gets_a_summary_and_only_a_positive_one_a_findings_report():
    assert [r.SOPClassUID.name for r in build_results(report())] == ["Enhanced SR Storage"]
    assert len(build_results(report(score(threshold=0.9)))) == 1
    assert len(build_results(report(score()))) == 2


def test_a_finding_is_a_container_with_presence_number_and_threshold_as_direct_children():
    result = summary_report(report(score(ICH), score(SHIFT, value=0.1)))
    present, absent = section(result, "Findings")
    assert [item.ValueType for item in present.ContentSequence] == ["CODE", "NUM", "NUM", "TEXT"]
    assert present.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning == "Present"
    assert absent.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning == "Absent"
    assert absent.ContentSequence[1].MeasuredValueSequence[0].NumericValue == 0.1
    assert not any("ContentSequence" in item for item in items(result, "CODE") + items(result, "NUM"))


def test_a_finding_whose_code_says_it_in_other_words_is_named_too():
    (finding,) = section(summary_report(report(score(FINDINGS["intraparenchymal_hemorrhage"]))), "Findings")
    assert finding.ConceptNameCodeSequence[0].CodeMeaning == "Cerebral hemorrhage"
    assert finding.ContentSequence[0].TextValue == "Intraparenchymal hemorrhage"


def test_an_uncalibrated_score_is_never_called_a_certainty_or_shown_in_percent():
    result = summary_report(report(score(ICH)))
    assert not items(result, "NUM", "Certainty of Finding")
    measured = [item.MeasuredValueSequence[0] for item in items(result, "NUM")]
    assert {value.MeasurementUnitsCodeSequence[0].CodeValue for value in measured} == {"{score}"}
    assert NOT_CALIBRATED in texts(result)
    assert "%" not in "".join(texts(result))


def test_a_calibrated_probability_is_a_certainty_in_percent():
    result = summary_report(report(score(ICH, probability=0.934, threshold=0.5)))
    (certainty,) = items(result, "NUM", "Certainty of Finding")
    measured = certainty.MeasuredValueSequence[0]
    assert measured.NumericValue == 93.4
    assert measured.MeasurementUnitsCodeSequence[0].CodeValue == "%"
    assert NOT_CALIBRATED not in texts(result)


def test_a_finding_without_threshold_says_that_it_was_not_assessed():
    result = summary_report(report(score(FRACTURE, threshold=None)))
    assert "Not assessed: no threshold." in texts(result)
    assert not items(result, "CODE", "Calvarial fracture")
    assert "No finding was assessed: no thresholds are set." in texts(result)


def test_each_series_is_listed_and_a_refused_one_with_its_reason():
    fates = (prepared(notes=("2 duplicate slices dropped",)), refused(Reason.GEOMETRY, detail="gap of 30 mm"))
    result = summary_report(report(score(), series=fates))
    assert len(section(result, "Series of the study")) == 2
    said = texts(result)
    assert "Analysed." in said
    assert f"Not analysed: {Reason.GEOMETRY.sentence} [geometry]" in said
    assert {"2 duplicate slices dropped", "gap of 30 mm"} <= set(said)


@pytest.mark.parametrize(
    ("series", "flag"),
    [
        ((prepared(),), "COMPLETE"),
        ((prepared(), refused(Reason.LOCALIZER)), "COMPLETE"),
        ((prepared(), refused(Reason.GEOMETRY)), "PARTIAL"),
        ((prepared(is_partial=True),), "PARTIAL"),
    ],
)
def test_only_what_should_have_been_analysed_makes_the_document_partial(series, flag):
    result = summary_report(report(score(), series=series))
    assert result.CompletionFlag == flag
    assert ("CompletionFlagDescription" in result) == (flag == "PARTIAL")
    assert result.VerificationFlag == "UNVERIFIED"


def test_a_series_that_was_analysed_in_part_is_said_to_be():
    part = prepared(is_partial=True, notes=("10 images of another size or orientation left out",))
    result = summary_report(report(score(), series=(part, prepared(series_instance_uid="2.25.7"))))
    said = texts(result)
    assert "PARTIAL: 2 series analysed, 1 of them in part: slices are missing or were left out, see below." in said
    assert {"Analysed.", "Analysed in part: slices are missing or were left out."} <= set(said)
    assert len(result.CompletionFlagDescription) <= 64  # LO
    result = summary_report(report(score(), series=(part, refused(Reason.GEOMETRY))))
    (sentence,) = (said for said in texts(result) if said.startswith("PARTIAL"))
    assert sentence == (
        "PARTIAL: 1 series could not be analysed, see below; "
        "1 analysed, 1 of them in part: slices are missing or were left out."
    )


def test_a_study_of_which_nothing_could_be_analysed_has_a_valid_summary(tmp_path):
    result = summary_report(report(series=(refused(Reason.TOO_FEW_SLICES),)))
    assert "Nothing could be analysed." in texts(result)
    assert "CurrentRequestedProcedureEvidenceSequence" not in result
    assert result.CompletionFlag == "PARTIAL"
    assert_valid(result, tmp_path)


def test_a_series_that_was_prepared_but_not_analysed_makes_the_document_partial():
    assert summary_report(report()).CompletionFlag == "PARTIAL"


@pytest.mark.parametrize(("status", "word"), [("untrained", "UNTRAINED MODEL"), ("phantom", "PHANTOM MODEL")])
def test_a_model_not_trained_on_patients_says_so_in_big_words(status, word):
    result = summary_report(report(score(), bundle=Card(status=status)))
    assert word in section(result, "Summary")[0].TextValue
    assert f"({status.upper()})" in result.SeriesDescription


def test_model_digests_limits_and_the_notice_are_in_every_summary():
    for result in (summary_report(report(score())), summary_report(report())):
        said = texts(result)
        assert "Research software, not for diagnosis." in said
        assert set(LIMITS) <= set(said)
        assert f"weights sha256: {sha256('weights')}" in said
        assert f"prompts sha256: {sha256('prompts')}" in said
        assert "preprocessing: head-ct/1" in said


def test_the_result_sentence_names_what_is_present():
    two = report(score(ICH), score(SHIFT))
    assert result_sentence(two) == "Present: Intracranial hemorrhage, Midline shift."
    assert result_sentence(report(score(value=0.0))) == "No assessed finding reached its threshold."
    some = report(score(value=0.0), score(FRACTURE, threshold=None))
    assert result_sentence(some).endswith("Not assessed, without threshold: 1.")


def test_a_report_without_any_series_is_valid(tmp_path):
    assert_valid(summary_report(report(series=())), tmp_path)


def test_the_summary_is_valid_and_highdicom_reads_it_back_equal(tmp_path):
    crashed = refused(Reason.CRASHED, series_number=None, series="2.25.9")
    scores = (score(ICH), score(SHIFT, value=0.1), score(FRACTURE, threshold=None))
    result = summary_report(report(*scores, series=(prepared(), refused(Reason.LOCALIZER), crashed)))
    assert_valid(result, tmp_path)
    read = dcmread(BytesIO(to_bytes(result)))
    assert read.SOPClassUID == EnhancedSRStorage
    assert read == result
    assert len(EnhancedSR.from_dataset(read).content[0].ContentSequence) == len(result.ContentSequence)


def test_text_outside_the_character_set_of_the_study_becomes_question_marks(tmp_path):
    fates = (prepared(series_description="Schädel 頭部"),)
    result = summary_report(report(score(), series=fates))
    assert "Schädel ??" in texts(dcmread(BytesIO(to_bytes(result))))
    assert_valid(result, tmp_path)


def test_the_real_tilted_head_gets_a_valid_summary(shared, tmp_path):
    files = sorted((shared / "data/ct/ge_hispeed_human_tilt_vargap").iterdir())
    result = summary_report(report_of(files, score(ICH)))
    assert_valid(result, tmp_path, source_errors=dciodvfy_errors(files[0]))
    evidence = result.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert [len(series.ReferencedSOPSequence) for series in evidence] == [28]
