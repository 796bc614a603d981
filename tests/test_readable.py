"""Reports as pages: everything that is said is shown, of ours and of others', and nothing in it is obeyed."""

from html.parser import HTMLParser
from io import StringIO

import pytest
from pydicom import Dataset, dcmread
from rich.console import Console

from hlip_core.reasons import Reason
from plugin.results import build_results
from plugin.results.readable import html, page_of, terminal
from reports import FRACTURE, ICH, SHIFT, Card, refused, report, score, source


def shown(dataset: Dataset) -> str:
    console = Console(file=StringIO(), width=120, force_terminal=True)
    console.print(terminal(page_of(dataset)))
    return console.file.getvalue()


def plain(dataset: Dataset) -> str:
    console = Console(file=StringIO(), width=120)
    console.print(terminal(page_of(dataset)))
    return console.file.getvalue()


def text_item(name: str, value: str) -> Dataset:
    concept = Dataset()
    concept.CodeValue, concept.CodingSchemeDesignator, concept.CodeMeaning = "1", "99TEST", name
    item = Dataset()
    item.ValueType, item.TextValue, item.ConceptNameCodeSequence = "TEXT", value, [concept]
    item.RelationshipType = "CONTAINS"
    return item


def document(*content: Dataset) -> Dataset:
    root = Dataset()
    root.ValueType = "CONTAINER"
    root.ContentSequence = list(content)
    return root


class Tags(HTMLParser):
    """The elements of a page and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.open += [] if tag == "meta" else [tag]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_summary_shows_findings_scores_refusals_and_the_notice():
    scores = (score(ICH), score(SHIFT, value=0.1), score(FRACTURE, threshold=None))
    series = (*report().series, refused(Reason.GEOMETRY))
    (summary, _) = build_results(report(*scores, series=series, bundle=Card(status="untrained")))
    page = plain(summary)
    for said in (
        "Doe Jane",
        "1950-01-02",
        "Intracranial hemorrhage: Present",
        "Midline shift: Absent",
        "Zero-shot similarity score, not calibrated: 0.31",
        "Calvarial fracture: Not assessed: no threshold.",
        "UNTRAINED MODEL",
        Reason.GEOMETRY.sentence,
        "PARTIAL",
    ):
        assert said in page


def test_the_findings_report_shows_certainty_point_and_image():
    findings = build_results(report(score(ICH, probability=0.934, threshold=0.5)))[1]
    page = plain(findings)
    assert "Certainty of Finding: 93.4%" in page
    assert "Where the model looked: POINT (300.5, 200.5)" in page
    assert "CT Image 2.25.2000.14" in page


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("dcmqi_tid1500_sr.dcm", ["SUVbw: 6.01529", "Volume: 33.5824 ml", "more"]),
        ("highdicom_tid1500_sr_document.dcm", ["Area of defined region: 1.7 cm2", "CIRCLE (58, 52) (58, 41)"]),
        ("reportsi.dcm", ["Report Text: Enter text"]),
        ("test-SR.dcm", ["Diameter: 3 cm", "2000-12-06 12:00:00", "See: content item 1.3.2"]),
    ],
)
def test_reports_of_other_programs_are_readable(shared, name, said):
    dataset = dcmread(shared / "data/sr" / name)
    page = plain(dataset)
    assert all(words in page for words in said)
    assert Tags(html(page_of(dataset))).open == []


def test_what_is_not_a_report_is_refused(shared):
    with pytest.raises(ValueError, match="no content tree"):
        page_of(dcmread(shared / "data/sr/dcmqi_seg.dcm"))


def test_html_is_escaped_and_runs_nothing():
    hostile = document(text_item("<b>name</b>", "<script>alert(1)</script>\" onload='x'"))
    hostile.PatientName = "<img src=x>^A"
    tags = Tags(html(page_of(hostile)))
    assert not {"script", "img"} & tags.names
    assert "<script>alert(1)</script>" in tags.text
    assert "default-src 'none'" in html(page_of(hostile))


def test_control_characters_and_markup_do_not_reach_the_terminal():
    page = shown(document(text_item("name", "before\x1b[2J\x07\u202eafter [red]markup[/red]")))
    assert "\x1b[2J" not in page
    assert "\x07" not in page
    assert "\u202e" not in page
    assert "[red]markup[/red]" in page


def test_line_ends_of_all_kinds_are_new_lines():
    page = page_of(document(text_item("name", "one\r\ntwo\rthree")))
    assert page.items[0].value == "one\ntwo\nthree"


def test_a_long_row_of_references_is_cut_and_counted():
    references = []
    for number in range(20):
        reference, item = Dataset(), Dataset()
        reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        reference.ReferencedSOPInstanceUID = f"2.25.{number + 1}"
        item.ValueType, item.ReferencedSOPSequence = "IMAGE", [reference]
        references.append(item)
    items = page_of(document(*references)).items
    assert len(items) == 7
    assert items[-1].value == "and 14 more"


@pytest.mark.parametrize("value_type", ["TEXT", "CODE", "NUM", "IMAGE", "SCOORD", "UIDREF", "PNAME", "ODD", ""])
def test_a_broken_content_item_is_shown_as_far_as_it_goes(value_type):
    item = Dataset()
    item.ValueType = value_type
    page = page_of(document(item))
    assert len(page.items) == 1
    assert page.title == "Structured report"
    assert html(page)


def test_names_in_other_scripts_are_shown_whole():
    header = source(SpecificCharacterSet="ISO_IR 192", PatientName="Yamada^Tarou=山田^太郎")
    (summary,) = build_results(report(source=header))
    assert "Yamada Tarou / 山田 太郎" in html(page_of(summary))
