"""Reports of a cohort: read from tables, documents and messages, cleaned of identities, split into sentences."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from canaries import identified
from hlip_core.errors import InputError
from hlip_core.sentences import sentences
from trainer.cohort.cleaning import DROPPED, Identities, clean
from trainer.cohort.documents import read_document, standing
from trainer.cohort.headers import identities_of
from trainer.cohort.messages import read_messages
from trainer.cohort.reports import Book, Report, read_labels, read_table, written
from trainer.phantom.study import Examination

MESSAGE = "\r".join((
    "MSH|^~\\&|RIS|Mirkwooden Infirmary|PACS||20240726150000||ORU^R01|1|P|2.3.1",
    "PID|1||PZ77140923^^^MRN||Quillfeather^Zebulona^Ypsi||19410726|F|||12 Wigglesworthy Road^^Tumbleton||0711 4477190",
    "PV1|1|O|||||4711^Grumblethorpe^Xanthus^^^Dr.",
    "OBR|1|PLZ52113|FIZ88201|CT^CT HEAD|||20240726|||||||||||AKZ5530018|||||||F",
    "OBX|1|ST|113014^DICOM Study^DCM||1.2.840.99.1||||||F",
    "OBX|2|TX|CTH&GDT^CT HEAD||Mrs. Quillfeather has a 5.2 mm\\.br\\subdural hematoma \\T\\ no fracture.||||||F",
    "OBX|3|TX|CTH&GDT^CT HEAD||Seen with Grumblethorpe.||||||F",
    "OBX|4|TX|CTH&IMP^CT HEAD||1. Subdural hematoma.~2. No shift.||||||F",
    "OBX|5|TX|CTH&IMP^CT HEAD||Withdrawn nonsense.||||||X",
    "OBX|6|NM|DLP^dose||812||||||F",
))  # fmt: skip


# ---- sentences -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("There is a 5.2 x 3.1 mm. hematoma. No shift.", ["There is a 5.2 x 3.1 mm. hematoma.", "No shift."]),
        ("It measures 5 mm. The midline is central.", ["It measures 5 mm.", "The midline is central."]),
        ("Seen by Dr. Smith. Normal.", ["Seen by Dr. Smith.", "Normal."]),
        ("Approx. 5 mm shift, e.g. Subfalcine. See image No. 5.", None),
        ("1. No bleed.\n2. No shift\n3. Atrophy", ["No bleed.", "No shift", "Atrophy"]),
        ("- No bleed\n- No fracture", ["No bleed", "No fracture"]),
        (
            "Hematoma in the left\nMCA territory with\nmild edema.",
            ["Hematoma in the left MCA territory with mild edema."],
        ),
        ("No bleed\nNo fracture", ["No bleed", "No fracture"]),
        ("Ventricles:\nnormal in size.", ["Ventricles: normal in size."]),
        ("No bleed.No fracture.", ["No bleed.", "No fracture."]),
        ("no bleed. no fracture.", ["no bleed.", "no fracture."]),
        ("NO BLEED. NO FRACTURE.", ["NO BLEED.", "NO FRACTURE."]),
        ("Is there a bleed? No! Normal.", ["Is there a bleed?", "Normal."]),
        ("Normal. Normal. 12.", ["Normal."]),
    ],
)
def test_a_text_becomes_sentences(text: str, expected: list[str] | None) -> None:
    found = list(sentences(text))
    assert found == (expected or ["Approx. 5 mm shift, e.g. Subfalcine.", "See image No. 5."])


def test_sections_that_are_not_of_the_images_are_left_out() -> None:
    text = (
        "CLINICAL HISTORY: Fall.\nTechnique\nAxial images.\nFINDINGS: Hematoma. Impression: No shift. COMPARISON: None."
    )
    assert sentences(text) == ("Hematoma.", "No shift.")
    assert "Fall." in sentences(text, all_sections=True)


def test_a_heading_within_a_sentence_is_none() -> None:
    assert sentences("Small study of 5 slices, contrast - none given.") == (
        "Small study of 5 slices, contrast - none given.",
    )


@pytest.mark.parametrize(
    "text",
    [
        "(",
        "A. ",
        "1",
        "A",
        "Dr. ",
        "\n",
        "J. ",
        "A ",
        "1.",
        "00",
        "+1 ",
        "of A ",
        "Findings",
        "5 ",
        "van de ",
        "tel ",
        "on ",
    ],
)
def test_hostile_text_takes_no_time(text: str) -> None:
    begin = time.process_time()
    sentences(clean(text * (40_000 // len(text)), Identities(names=frozenset({"A^B"}))).text)
    assert time.process_time() - begin < 5


# ---- cleaning ------------------------------------------------------------------------------------------------

KNOWN = Identities(
    names=frozenset({"Müller^Anna Lena^^Dr.", "No^An", "山田^太郎", "Ng^Bo", "Will^May"}),
    numbers=frozenset({"PID-12-3456", "ACC0099", "19590307"}),
    places=frozenset({"General Hospital of Nowhere", "Ward"}),
)


@pytest.mark.parametrize(
    "text",
    [
        "Mueller",
        "MÜLLER",
        "Muller's",
        "anna",
        "Anna Lena Müller",
        "山田太郎",
        "Bo",
        "An No",
        "May, Will",
        "PID123456",
        "pid 12 3456",
        "acc0099",
        "1959-03-07",
        "07.03.1959",
        "03/07/1959",
        "7 March 1959",
        "March 7th, 1959",
        "7-Mar-59",
        "14:52",
        "3 p.m.",
        "Dr. Jane R. Roe",
        "dr roe",
        "DR. ROE",
        "Prof. van der Roe",
        "Jane Roe, MD",
        "Jane Roe MD",
        "Mrs. Roe",
        "Herr Roe",
        "(555) 123-4567",
        "+49 7071 555-8812",
        "tel. 5558",
        "jane.mueller@here.example",
        "MRN: 5512",
        "Accession Number 77-12",
        "SSN 123-45-6789",
        "1.2.840.113619.2.55",
        "22 Baker Street, London",
        "Hauptstraße 12",
        "Springfield, IL 62704",
        "St. Elsewhere Hospital",
        "12345678",
        "AB1234567",
        "https://pacs.example/1",
        "General Hospital of Nowhere",
        "3rd of May",
        "555-0137",
        "123 Main St, Springfield",
        "May 3, 2024",
        "20240503",
    ],
)
def test_identities_are_removed(text: str) -> None:
    cleaned = clean(f"There is, with {text} it says, a bleed.", KNOWN)
    assert cleaned.removed
    left = cleaned.text.removeprefix("There is, with ").removesuffix(" it says, a bleed.")
    assert left.replace("'s", "").startswith("[") and left.rstrip(".").endswith("]"), cleaned.text


@pytest.mark.parametrize(
    "text",
    [
        "No acute intracranial hemorrhage.",
        "Level C5 may be fractured.",
        "A 5.2 x 3.1 x 4.0 cm mass.",
        "MR angiography is advised.",
        "MS lesions.",
        "Midline shift of 12 mm.",
        "HU of 55 to 70.",
        "Segment 5 may bleed.",
        "Grade 3/4 injury.",
        "Strength 5/5.",
        "Old infarct in the left MCA territory.",
        "Hunt and Hess 2.",
        "The ward of the brain will be normal.",
        "Circle of Willis is normal.",
        "T1 and T2 hyperintense, 10-15 mm.",
        "He will not see an abscess.",
        "Volume of 12000 mm3.",
        "65-year-old.",
        "Chiari I malformation.",
    ],
)
def test_findings_stay_as_they_are(text: str) -> None:
    known = Identities(names=KNOWN.names, numbers=KNOWN.numbers, places=frozenset({"General Hospital of Nowhere"}))
    assert clean(text, known).text == text


def test_ages_over_89_are_removed() -> None:
    assert clean("A 93-year-old with a bleed.", Identities()).text == "A [age]-year-old with a bleed."


@pytest.mark.parametrize(
    "text",
    ["Discussed with Jane Roe by phone.", "Electronically signed by [name].", "I have reviewed the images.",
     "The team was notified.", "Results were called to the ward."],
)  # fmt: skip
def test_sentences_that_say_who_told_whom_are_dropped(text: str) -> None:
    assert DROPPED.search(text)


def test_no_sentence_of_a_phantom_is_changed() -> None:
    header = Dataset()
    header.PatientName, header.InstitutionName, header.PatientID = "Phantom^Head", "No hospital", "PHANTOM-1"
    known = identities_of(header)
    for seed in range(40):
        for sentence in Examination(seed=seed, preset="tiny").report():
            assert clean(sentence, known).text == sentence
            assert not DROPPED.search(sentence)


@pytest.mark.parametrize("character_set", ["ISO_IR 100", "ISO_IR 192"])
def test_names_are_known_in_any_character_set(character_set: str, tmp_path: Path) -> None:
    study = identified(tmp_path, 1, slices=1)
    image = study.images[0]
    image.SpecificCharacterSet = character_set
    image.PatientName = "Übermäßig^Çelik"
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    known = identities_of(dcmread(tmp_path / "a.dcm"))
    assert clean("Mr. ÜBERMÄSSIG, Uebermaessig, Übermäßig, celik", known).text.count("[name]") == 1
    assert "lik" not in clean("ÜBERMÄSSIG, celik", known).text


# ---- documents -----------------------------------------------------------------------------------------------


def _document(uid: str, text: str, **elements: object) -> Dataset:
    document = Dataset()
    document.SOPClassUID, document.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.33", uid
    document.ContentSequence = [_item("TEXT", "Findings", TextValue=text)]
    for keyword, value in elements.items():
        setattr(document, keyword, value)
    return document


def _item(value_type: str, meaning: str, **elements: object) -> Dataset:
    item, name = Dataset(), Dataset()
    name.CodeValue, name.CodingSchemeDesignator, name.CodeMeaning = "1", "99X", meaning
    item.ValueType, item.RelationshipType, item.ConceptNameCodeSequence = value_type, "CONTAINS", [name]
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def test_a_document_keeps_its_headings() -> None:
    document = _document("1", "Hematoma.")
    history = _item("CONTAINER", "Clinical History", ContentSequence=[_item("TEXT", "Text", TextValue="Fall.")])
    document.ContentSequence = [history, *document.ContentSequence, _item("TEXT", "Impressions", TextValue="No shift.")]
    found = read_document(document)
    assert found is not None
    assert sentences(found.text) == ("Hematoma.", "No shift.")


def test_what_an_algorithm_wrote_is_no_report() -> None:
    document = _document("1", "Hematoma.")
    observer = _item("CODE", "Observer Type", RelationshipType="HAS OBS CONTEXT")
    observer.ConceptNameCodeSequence[0].CodeValue = "121005"
    device = Dataset()
    device.CodeValue, device.CodingSchemeDesignator, device.CodeMeaning = "121007", "DCM", "Device"
    observer.ConceptCodeSequence = [device]
    document.ContentSequence = [observer, *document.ContentSequence]
    assert read_document(document) is None


def test_dose_reports_are_no_reports() -> None:
    assert read_document(_document("1", "812", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.67")) is None


def test_a_document_replaces_its_predecessor_and_a_complete_one_a_partial_one() -> None:
    study, series, reference = Dataset(), Dataset(), Dataset()
    reference.ReferencedSOPInstanceUID = "1"
    series.ReferencedSOPSequence, study.ReferencedSeriesSequence = [reference], [series]
    documents = [
        _document("1", "First."),
        _document("2", "Second.", PredecessorDocumentsSequence=[study]),
        _document("3", "Third.", CompletionFlag="PARTIAL"),
    ]
    found = [document for one in documents if (document := read_document(one)) is not None]
    assert [document.sop_instance_uid for document in standing(found)] == ["2"]


# ---- messages ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["{}", "\x0b{}\x1c\r", "FHS|^~\\&\rBHS|^~\\&\r{}\rBTS|1\rFTS|1\r"])
def test_a_message_becomes_a_report(framing: str, tmp_path: Path) -> None:
    (tmp_path / "a.hl7").write_bytes(framing.format(MESSAGE).encode())
    (report,), unread = read_messages(tmp_path / "a.hl7")
    assert unread == 0
    assert report.study_instance_uid == "1.2.840.99.1"
    assert report.accession_numbers == ("AKZ5530018", "FIZ88201", "PLZ52113")
    cleaned = clean(report.text, report.identities).text
    assert sentences(cleaned) == (
        "Mrs. [name] has a 5.2 mm subdural hematoma & no fracture.",
        "Seen with [name].",
        "Subdural hematoma.",
        "No shift.",
    )


def test_line_feeds_and_latin_1_are_read_too(tmp_path: Path) -> None:
    text = MESSAGE.replace("\r", "\r\n").replace("Quillfeather", "Müller")
    (tmp_path / "a.hl7").write_bytes(text.encode("latin-1"))
    (report,), _ = read_messages(tmp_path / "a.hl7")
    assert "Müller" not in clean(report.text, report.identities).text


def test_messages_that_are_no_reports_are_counted(tmp_path: Path) -> None:
    other = MESSAGE.replace("ORU^R01", "ADT^A01")
    (tmp_path / "a.hl7").write_text(f"{other}\r{MESSAGE}\rMSH|\r")
    reports, unread = read_messages(tmp_path / "a.hl7")
    assert (len(reports), unread) == (1, 2)
    (tmp_path / "b.hl7").write_bytes(bytes(range(256)) * 50)
    assert read_messages(tmp_path / "b.hl7")[0] == []


def test_a_corrected_message_replaces_the_first(tmp_path: Path) -> None:
    second = MESSAGE.replace("20240726150000", "20240727090000").replace("No shift", "Some shift")
    preliminary = MESSAGE.replace("20240726150000", "20240728090000").replace("||||||F\rOBX|1|", "||||||P\rOBX|1|")
    (tmp_path / "a.hl7").write_text(f"{preliminary}\r{second}\r{MESSAGE}\r")
    text, origin = written(read_messages(tmp_path / "a.hl7")[0])
    assert origin == "hl7" and "Some shift" in text


# ---- tables and links ----------------------------------------------------------------------------------------


def test_tables_of_every_kind_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('StudyInstanceUID;Report Text;PatientName\n1.2;"Bleed;\nno shift.";Roe^Jane\n')
    (tmp_path / "b.jsonl").write_text(
        json.dumps({"accession_number": "7", "sentences": ["Bleed.", "No shift."]}) + "\n"
    )
    (tmp_path / "c.csv").write_text("Accession,Findings,Impression\n8,Bleed.,No shift.\n9,,\n")
    semicolons, lines, parts = (read_table(tmp_path / name) for name in ("a.csv", "b.jsonl", "c.csv"))
    assert semicolons[0].text == "Bleed;\nno shift." and semicolons[0].identities.names == {"Roe^Jane"}
    assert lines[0].accession_numbers == ("7",) and sentences(lines[0].text) == ("Bleed.", "No shift.")
    assert [sentences(report.text) for report in parts] == [("Bleed.", "No shift.")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("a,b\n1,2\n", "no column StudyInstanceUID"), ("StudyInstanceUID,b\n1,2\n", "no column `report`")],
)
def test_a_table_without_the_columns_is_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(InputError, match=complaint):
        read_table(tmp_path / "a.csv")


def _report(uid: str, *numbers: str, text: str = "Bleed.") -> Report:
    return Report(study_instance_uid=uid, accession_numbers=numbers, text=text, origin="table")


def test_reports_are_linked_by_uid_and_else_by_accession_number() -> None:
    book = Book([_report("1.1", "A"), _report("", "b "), _report("1.3", "C"), _report("", "nobody")])
    assert len(book.of("1.1", "")) == 1
    assert len(book.of("1.2", "B")) == 1
    assert book.of("1.4", "C") == (), "it names another study"
    assert book.of("1.5", "") == ()
    assert book.counts == {"given": 4, "linked": 2, "unlinked": 2}


def test_labels_are_true_false_or_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("StudyInstanceUID,ich,fracture,shift\n1.1,1,0,\n1.2,True,false,-1\n")
    labels = read_labels(tmp_path / "a.csv")
    assert labels.of("1.1", "") == {"ich": True, "fracture": False}
    assert labels.of("9", "") == {}
    assert labels.counts == {"given": 2, "unlinked": 1}
    (tmp_path / "b.csv").write_text("StudyInstanceUID,ich\n1.1,perhaps\n")
    with pytest.raises(InputError, match=r"line 2, column ich"):
        read_labels(tmp_path / "b.csv")
