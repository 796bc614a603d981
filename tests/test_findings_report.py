"""The Findings SR: one TID 1501 group a positive finding, by which a viewer finds slice, point and label."""

from dataclasses import replace
from io import BytesIO

import pytest
from highdicom.sr import Comprehensive3DSR
from pydicom import dcmread
from pydicom.uid import EnhancedCTImageStorage

from peers import dciodvfy_errors
from plugin.results import build_results, to_bytes
from plugin.results.findings_report import ARROW, findings_report
from reports import (
    FINDINGS,
    FRACTURE,
    ICH,
    SHIFT,
    Card,
    assert_valid,
    items,
    location,
    prepared,
    report,
    report_of,
    score,
    sha256,
    texts,
)


def groups(result):
    return items(result, "CONTAINER", "Measurement Group")


def test_there_is_one_group_for_each_positive_finding_and_none_for_the_others():
    scores = (score(ICH), score(SHIFT, value=0.1), score(FRACTURE, threshold=None), score(FRACTURE, value=0.9))
    result = findings_report(report(*scores))
    findings = [items(group, "CODE", "Finding")[0].ConceptCodeSequence[0] for group in groups(result)]
    assert [code.CodeMeaning for code in findings] == ["Intracranial hemorrhage", "Calvarial fracture"]


def test_without_a_positive_finding_there_is_no_document():
    assert findings_report(report(score(value=0.0))) is None
    assert findings_report(report()) is None


def test_a_positive_finding_without_a_location_makes_no_group_since_viewers_crash_on_it():
    lost = replace(score(SHIFT), location=None)
    assert findings_report(report(lost)) is None
    assert len(groups(findings_report(report(score(ICH), lost)))) == 1


def test_every_group_has_the_arrow_identifier_and_a_tracking_uid_of_its_own():
    result = findings_report(report(score(ICH), score(SHIFT)))
    assert [item.TextValue for item in items(result, "TEXT", "Tracking Identifier")] == [ARROW, ARROW]
    uids = [item.UID for group in groups(result) for item in items(group, "UIDREF")]
    assert len(set(uids)) == len(uids) == 2


def test_every_number_reaches_a_point_on_an_image():
    result = findings_report(report(score(ICH, at=location(row=12.0, column=34.25))))
    (number,) = items(groups(result)[0], "NUM")
    (point,) = number.ContentSequence
    (image,) = point.ContentSequence
    assert (point.ValueType, point.GraphicType) == ("SCOORD", "POINT")
    assert point.RelationshipType == "INFERRED FROM"
    assert (image.ValueType, image.RelationshipType) == ("IMAGE", "SELECTED FROM")
    assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == location().source.sop_instance_uid
    assert "ReferencedFrameNumber" not in image.ReferencedSOPSequence[0]


def test_graphic_data_counts_from_the_corner_of_the_first_pixel_column_first():
    result = findings_report(report(score(ICH, at=location(row=0.0, column=2.0))))
    assert list(items(result, "SCOORD")[0].GraphicData) == [2.5, 0.5]


def test_a_multi_frame_source_is_referenced_by_frame_number(tmp_path):
    at = location(sop_class_uid=EnhancedCTImageStorage, sop_instance_uid="2.25.5", frame_number=17)
    fate = prepared(instances=((EnhancedCTImageStorage, "2.25.5"),), num_instances=1)
    result = findings_report(report(score(ICH, at=at), series=(fate,)))
    assert items(result, "IMAGE")[0].ReferencedSOPSequence[0].ReferencedFrameNumber == 17
    assert_valid(result, tmp_path)


def test_an_uncalibrated_score_is_named_a_score():
    result = findings_report(report(score(ICH, value=0.3142)))
    assert not items(result, "NUM", "Certainty of Finding")
    (number,) = items(result, "NUM", "Zero-shot similarity score, not calibrated")
    assert number.MeasuredValueSequence[0].NumericValue == 0.3142
    assert "Intracranial hemorrhage: AI score 0.31" in texts(result)


def test_a_calibrated_probability_is_the_certainty_in_percent():
    result = findings_report(report(score(ICH, probability=0.934, threshold=0.5)))
    (number,) = items(result, "NUM", "Certainty of Finding")
    assert number.MeasuredValueSequence[0].NumericValue == 93.4
    assert "Intracranial hemorrhage: AI score 93%" in texts(result)
    assert "threshold: 50.0%" in texts(result)


def test_the_label_of_an_untrained_model_says_so_on_the_slice():
    result = findings_report(report(score(ICH), bundle=Card(status="untrained")))
    (label,) = [text for text in texts(result) if "AI score" in text]
    assert label.startswith("UNTRAINED - ")


def test_every_group_names_the_algorithm_with_its_digests():
    group = groups(findings_report(report(score(ICH), score(SHIFT))))[1]
    said = texts(group)
    assert "test-model" in said
    for what in ("weights", "prompts", "thresholds", "bundle"):
        assert f"{what} sha256: {sha256(what)}" in said
    assert items(group, "CODE", "Algorithm Family")[0].ConceptCodeSequence[0].CodeValue == "123110"


def test_the_notice_is_in_the_document():
    assert "Research software, not for diagnosis." in texts(findings_report(report(score())))


@pytest.mark.parametrize("count", [1, 5])
def test_the_document_is_valid_and_highdicom_reads_it_back_equal(tmp_path, count):
    scores = [score(finding, at=location(row=row)) for row, finding in enumerate(FINDINGS.findings[:count])]
    result = findings_report(report(*scores))
    assert_valid(result, tmp_path)
    read = dcmread(BytesIO(to_bytes(result)))
    assert read == result
    document = Comprehensive3DSR.from_dataset(read)
    measured = document.content.get_image_measurement_groups()
    assert len(measured) == count
    assert measured[0].tracking_identifier == ARROW


def test_the_real_tilted_head_gets_a_valid_findings_report(shared, tmp_path):
    files = sorted((shared / "data/ct/ge_hispeed_human_tilt_vargap").iterdir())
    summary, findings = build_results(report_of(files, score(ICH)))
    assert_valid(findings, tmp_path, source_errors=dciodvfy_errors(files[0]))
    image = items(findings, "IMAGE")[0].ReferencedSOPSequence[0]
    assert image.ReferencedSOPInstanceUID == dcmread(files[14]).SOPInstanceUID
    assert summary.SeriesInstanceUID != findings.SeriesInstanceUID
