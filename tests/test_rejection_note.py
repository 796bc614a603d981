"""The rejection note: a valid Key Object Selection that references exactly what is withdrawn."""

from io import BytesIO

import pytest
from highdicom.ko import KeyObjectSelectionDocument
from pydicom import dcmread
from pydicom.uid import SecondaryCaptureImageStorage

from plugin.results import REJECTIONS, build_results, page_of, rejection_note, to_bytes
from reports import CREATED, assert_valid, items, report, score, source

MEANINGS = {
    "quality": ("113001", "Rejected for Quality Reasons"),
    "patient-safety": ("113037", "Rejected for Patient Safety Reasons"),
    "worklist": ("113038", "Incorrect Modality Worklist Entry"),
    "retention": ("113039", "Data Retention Policy Expired"),
}


def withdrawn():
    objects = [
        (str(result.SOPClassUID), str(result.SOPInstanceUID), str(result.SeriesInstanceUID))
        for result in build_results(report(score()))
    ]
    return [*objects, (SecondaryCaptureImageStorage, "2.25.71", "2.25.70")]


def note(rejected=None, **changes):
    values = {"created": CREATED, "installation_uid": "2.25.4000"} | changes
    return rejection_note(source(), withdrawn() if rejected is None else rejected, **values)


@pytest.mark.parametrize("reason", REJECTIONS)
def test_the_title_is_the_code_of_the_reason_and_the_note_is_valid(tmp_path, reason):
    made = note(reason=reason)
    title = made.ConceptNameCodeSequence[0]
    assert (title.CodeValue, title.CodeMeaning) == MEANINGS[reason]
    assert title.CodingSchemeDesignator == "DCM"
    assert made.Modality == "KO"
    assert made.ContentTemplateSequence[0].TemplateIdentifier == "2010"
    assert_valid(made, tmp_path)


def test_it_references_exactly_the_withdrawn_objects_in_tree_and_evidence():
    made = note()
    tree = {
        (ref.ReferencedSOPClassUID, ref.ReferencedSOPInstanceUID)
        for item in items(made, "COMPOSITE") + items(made, "IMAGE")
        for ref in item.ReferencedSOPSequence
    }
    (study,) = made.CurrentRequestedProcedureEvidenceSequence
    evidence = {
        (ref.ReferencedSOPClassUID, ref.ReferencedSOPInstanceUID, series.SeriesInstanceUID)
        for series in study.ReferencedSeriesSequence
        for ref in series.ReferencedSOPSequence
    }
    assert study.StudyInstanceUID == source().StudyInstanceUID
    assert evidence == set(withdrawn())
    assert tree == {(sop_class, instance) for sop_class, instance, _ in withdrawn()}
    assert len(items(made, "IMAGE")) == 1


def test_it_is_of_the_same_patient_and_study():
    made = note()
    assert (made.PatientID, made.StudyInstanceUID) == (source().PatientID, source().StudyInstanceUID)
    assert made.SeriesNumber == 9109


def test_the_same_withdrawal_has_the_same_uids_and_another_reason_others():
    assert to_bytes(note()) == to_bytes(note())
    assert note().SOPInstanceUID != note(reason="patient-safety").SOPInstanceUID
    assert note().SOPInstanceUID != note(withdrawn()[:1]).SOPInstanceUID


def test_the_explanation_can_be_read():
    made = note(explanation="superseded by revision 2")
    (said,) = (item for item in page_of(made).items if item.name == "Key Object Description")
    assert said.value == "superseded by revision 2"


def test_highdicom_reads_it_back():
    read = dcmread(BytesIO(to_bytes(note())))
    assert read == note()
    references = KeyObjectSelectionDocument.from_dataset(read).content.get_references()
    assert len(references) == len(withdrawn())


def test_nothing_to_withdraw_is_refused():
    with pytest.raises(ValueError, match="objects to reject"):
        note([])
