"""Who and what our objects are: UIDs that follow from their content, patient and study of the source."""

from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import config, dcmread
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from plugin.results import KINDS, StudyReport, build_results, result_uid, to_bytes
from plugin.results.identity import PATIENT, STUDY, TRIAL, TYPE_2, fit
from reports import Card, assert_valid, report, score, sha256, source

NAMES = {
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Japanese half width": (["ISO 2022 IR 13", "ISO 2022 IR 87"], "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
    "Korean": (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    "Arabic": ("ISO_IR 127", "قباني^لنزار"),
    "Cyrillic": ("ISO_IR 144", "Люкceмбypг"),
    "Hebrew": ("ISO_IR 138", "שרון^דבורה"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "UTF-8": ("ISO_IR 192", "Wang^XiaoDong=王^小東"),
    "Latin": ("ISO_IR 100", "Äneas^Rüdiger"),
    "none": (None, "Doe^Jane"),
}


def stored(header, transfer_syntax=ExplicitVRLittleEndian):
    """The header as it is after a file: text is there as bytes that no one has decoded yet."""
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = transfer_syntax
    buffer = BytesIO()
    header.save_as(buffer, enforce_file_format=True)
    return dcmread(BytesIO(buffer.getvalue()))


def raw(data: bytes, keyword: str) -> bytes:
    return dcmread(BytesIO(data)).get_item(keyword).value


@pytest.mark.parametrize("transfer_syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("script", NAMES)
def test_the_name_is_copied_byte_for_byte_with_its_character_set(script, transfer_syntax, tmp_path):
    character_set, name = NAMES[script]
    header = stored(source(SpecificCharacterSet=character_set, PatientName=name), transfer_syntax)
    expected = header.get_item("PatientName").value
    for result in build_results(report(score(), source=header)):
        data = to_bytes(result)
        assert raw(data, "PatientName") == expected
        assert dcmread(BytesIO(data)).PatientName == name
        assert dcmread(BytesIO(data)).get("SpecificCharacterSet") == header.get("SpecificCharacterSet")
        assert_valid(result, tmp_path)


def test_a_name_that_was_decoded_before_is_the_same():
    character_set, name = NAMES["Japanese"]
    header = stored(source(SpecificCharacterSet=character_set, PatientName=name))
    expected = header.get_item("PatientName").value
    assert str(header.PatientName) == name
    (summary,) = build_results(report(source=header))
    assert raw(to_bytes(summary), "PatientName") == expected


def test_patient_and_study_equal_the_source_and_nothing_else_is_copied():
    header = source(
        PatientAge="076Y", PatientWeight="70.5", OtherPatientIDs=["X1", "X2"], AdmissionID="V7",
        ClinicalTrialSubjectID="S9", StudyDescription="Schädel", InstitutionName="General", KVP="120",
    )  # fmt: skip
    (summary,) = build_results(report(source=stored(header)))
    modules = {*PATIENT, *STUDY, *TRIAL}
    for element in header:
        if element.keyword in modules:
            assert summary[element.keyword] == element
    assert "InstitutionName" not in summary
    assert "KVP" not in summary


@pytest.mark.parametrize("keyword", TYPE_2)
def test_a_missing_type_2_element_is_there_and_empty(keyword, tmp_path):
    (summary,) = build_results(report(source=stored(source(**{keyword: None}))))
    assert not summary[keyword].value
    assert_valid(summary, tmp_path)


def test_wrong_demographics_are_copied_as_they_are():
    header = source(PatientSex="X", PatientBirthDate=None)
    with config.disable_value_validation():
        header.PatientAge, header.PatientBirthDate = "old", "1950/01/02"
        header = stored(header)
    (summary,) = build_results(report(source=header))
    data = to_bytes(summary)
    assert [raw(data, keyword).strip() for keyword in ("PatientSex", "PatientAge", "PatientBirthDate")] == [
        b"X",
        b"old",
        b"1950/01/02",
    ]


def test_values_of_maximum_length_fit(tmp_path):
    name = "^".join(["A" * 12] * 5)[:64]
    header = source(
        PatientName=name, PatientID="1" * 64, StudyDescription="D" * 64, StudyID="S" * 16,
        AccessionNumber="B" * 16, ReferringPhysicianName="C" * 64, StudyInstanceUID="1." + "2" * 62,
    )  # fmt: skip
    card = Card(name="n" * 80, version="v" * 80)
    for result in build_results(report(score(), source=stored(header), bundle=card)):
        assert_valid(result, tmp_path)
        assert result.PatientName == name


def test_the_same_report_gives_the_same_bytes():
    first, second = ([to_bytes(result) for result in build_results(report(score()))] for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "change",
    [
        {"revision": 2},
        {"installation_uid": "2.25.4001"},
        {"run": "2026-11-24T13:05:07+01:00"},
        {"content_digest": sha256("other content")},
        {"bundle": Card(digest=sha256("other bundle"))},
        {"source": source(StudyInstanceUID="2.25.1001")},
    ],
)
def test_whatever_changes_the_result_changes_every_uid(change):
    def uids(of: StudyReport) -> set[str]:
        results = build_results(of)
        return {result.SOPInstanceUID for result in results} | {result.SeriesInstanceUID for result in results}

    assert not uids(report(score())) & uids(report(score(), **change))


def test_the_time_of_creation_is_not_part_of_the_identity():
    later = datetime(2027, 1, 1, tzinfo=UTC)
    assert result_uid("series", report(), "x") == result_uid("series", report(created=later), "x")


def test_uids_are_uuid_derived_and_differ_by_kind_and_part():
    uids = [result_uid(*parts) for parts in (("a", report()), ("b", report()), ("a", report(), "b"))]
    assert len(set(uids)) == 3
    assert all(uid.startswith("2.25.") and uid.is_valid for uid in uids)


def test_every_kind_has_a_series_of_its_own():
    assert len({kind.series_number for kind in KINDS}) == len(KINDS)
    summary, findings = build_results(report(score()))
    assert summary.SeriesInstanceUID != findings.SeriesInstanceUID
    assert (summary.SeriesNumber, findings.SeriesNumber) == (9101, 9102)


def test_content_date_and_time_come_from_the_report_with_their_zone():
    (summary,) = build_results(report())
    assert (summary.ContentDate, summary.ContentTime) == ("20261124", "130507.120000")
    assert summary.TimezoneOffsetFromUTC == "+0100"


def test_the_zone_of_the_source_wins_since_its_dates_are_copied():
    (summary,) = build_results(report(source=source(TimezoneOffsetFromUTC="-0330")))
    assert (summary.ContentTime, summary.TimezoneOffsetFromUTC) == ("083507.120000", "-0330")


@pytest.mark.parametrize("offset", ["+9999", "-2400", "+1500", "+0160", "+01", "0100", "+٠١٠٠", "UTC"])
def test_an_offset_that_cannot_be_is_as_good_as_none(offset):
    header = source()
    with config.disable_value_validation():
        header.TimezoneOffsetFromUTC = offset
    (summary,) = build_results(report(source=header))
    assert (summary.ContentTime, summary.TimezoneOffsetFromUTC) == ("130507.120000", "+0100")


def test_a_time_without_zone_is_refused():
    with pytest.raises(ValueError, match="timezone"):
        report(created=datetime(2026, 11, 24, 12, 0))


def test_the_installation_is_the_observing_device():
    for result in build_results(report(score())):
        uids = [item.UID for item in result.ContentSequence if item.ValueType == "UIDREF"]
        assert uids == ["2.25.4000"]
        assert result.DeviceSerialNumber == "2.25.4000"


def test_a_later_revision_names_its_predecessors(tmp_path):
    before = ("1.2.840.10008.5.1.4.1.1.88.22", "2.25.9", "2.25.8")
    key_image = ("1.2.840.10008.5.1.4.1.1.7", "2.25.11", "2.25.10")
    (summary,) = build_results(report(revision=2, predecessors=(before, key_image)))
    (series,) = summary.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
    assert series.SeriesInstanceUID == "2.25.8"
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == "2.25.9"
    assert_valid(summary, tmp_path)


def test_a_report_does_not_print_the_patient():
    assert "Doe" not in repr(report(score()))


def test_fit_knows_the_default_repertoire_and_unknown_character_sets():
    assert fit("a\u00e4", source(SpecificCharacterSet=None)) == "a?"
    assert fit("aä頭", source(SpecificCharacterSet="ISO_IR 100")) == "aä?"
    assert fit("aä頭", source(SpecificCharacterSet="ISO_IR 192")) == "aä頭"
    assert fit("ä頭", source(SpecificCharacterSet=["", "ISO 2022 IR 87"])) == "?頭"
    assert fit("a", source(SpecificCharacterSet="ISO_IR 999")) == "a"
    assert fit("one\n\x1b$Btwo", source()) == "one\n?$Btwo"


def test_names_in_files_of_other_programs_are_kept(shared):
    folder: Path = shared / "data/nasty/pydicom_charset"
    for file in sorted(folder.glob("chr*.dcm")):
        header = dcmread(file)
        if "PatientName" not in header:
            continue
        expected = header.get_item("PatientName").value
        header.StudyInstanceUID = header.get("StudyInstanceUID") or "2.25.1"
        (summary,) = build_results(report(source=header))
        assert raw(to_bytes(summary), "PatientName").rstrip(b" ") == expected.rstrip(b" "), file.name
