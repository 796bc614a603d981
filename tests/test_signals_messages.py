"""What a signal says, in HL7, FHIR and JSON: valid whatever the patient is called, and recognisably research."""

import json
from pathlib import Path
from typing import Any

import hl7
import pytest
from fhir.resources.R4B.bundle import Bundle
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message

from plugin.index import signals
from plugin.settings import Settings
from plugin.signals.example import EXAMPLE
from plugin.signals.facts import facts, offer
from plugin.signals.message import context
from plugin.signals.switchboard import Switchboard
from plugin.signals.template import MessageTemplate, TemplateFault, escape_hl7
from receivers import row
from reports import FRACTURE, ICH, SHIFT, Card, report, score, source

HOSTILE = "O'Neil|PID|2^Me&Co~~\\X0D\\<script>alert(1)</script>^\"}]\u2028\x0b"


def told(kind: str, *scores: Any, status: str = "new", retracted: tuple[str, ...] = (), **elements: Any) -> str:
    """The message of a report with these scores to a receiver of everything."""
    receiver = row(kind, findings="any", minimum_state="reported")
    made = report(*scores, source=source(**elements))
    content = facts(made, results=[("2.25.5", "2.25.6", "AI summary")])
    offered = offer(receiver, made, content, hold=False)
    errand = signals.SignalErrand(
        receiver=kind, study_instance_uid="2.25.1000", key="0123456789abcdef0123456789abcdef", status=status,
        corrects=None if status == "new" else "f" * 32, retracted=retracted, created_at=1.8e9, content=offered.content,
    )  # fmt: skip
    return MessageTemplate(kind).render(context(errand, receiver))


SCORES = {
    "positive": (score(ICH, probability=0.934, threshold=0.5), score(SHIFT, value=0.1)),
    "negative": (score(ICH, value=0.1), score(FRACTURE, threshold=None)),
}
CASES = [
    ("new", "positive", "Doe^Jane^^Dr^MD"),
    ("new", "negative", HOSTILE),
    ("corrected", "negative", ""),
    ("corrected", "positive", HOSTILE),
    ("withdrawn", "positive", HOSTILE),
]


@pytest.mark.parametrize(("status", "found", "name"), CASES)
def test_an_oru_is_valid_hl7_whatever_the_patient_is_called(status: str, found: str, name: str) -> None:
    text = told("hl7", *SCORES[found], status=status, PatientName=name, SpecificCharacterSet="ISO_IR 192")
    parsed = parse_message(text, validation_level=VALIDATION_LEVEL.STRICT, find_groups=True)
    assert parsed.validate()
    kinds = [segment[:3] for segment in text.split("\r") if segment]
    assert set(kinds) == {"MSH", "PID", "OBR", "NTE", "TQ1", "OBX"} and kinds.count("PID") == 1


def test_what_a_receiver_reads_of_a_hostile_name_is_the_name() -> None:
    text = told("hl7", score(ICH), PatientName="a|b^c&d~e", PatientID="P|1^2")
    message = hl7.parse(text)
    assert message.extract_field("PID", 1, 5, 1, 1) == "a|b"
    assert message.extract_field("PID", 1, 5, 1, 2) == "c&d~e"
    assert message.extract_field("PID", 1, 3, 1, 1) == "P|1^2"
    assert escape_hl7("e\\f") == "e\\E\\f"
    assert escape_hl7("a\rPID|\x1c") == "a\\X0D\\PID\\F\\\\X1C\\"


def test_an_oru_says_what_was_found_by_which_model_and_that_it_is_research() -> None:
    text = told("hl7", *SCORES["positive"])
    message = hl7.parse(text)
    (first, certainty, absent) = [s for s in message.segments("OBX") if str(s(2)) in ("CWE", "NM")][:3]
    assert str(first(3)) == "1386000^Intracranial hemorrhage^SCT" and str(first(5)) == "52101004^Present^SCT"
    assert (str(first(8)), str(first(11))) == ("AA", "P")
    assert (str(certainty(5)), str(certainty(6))) == ("93.4", "%^percent^UCUM")
    assert str(absent(5)) == "272519000^Absent^SCT"
    assert str(message.segment("TQ1")(9)) == "S^STAT"
    assert str(message.segment("MSH")(10)) == "0123456789ABCDEF0123"
    card = Card()
    for said in ("not for diagnosis", card.digest, card.weights_digest, card.prompts_digest, card.name, "2.25.1000"):
        assert said in text


def test_a_correction_says_that_it_is_one() -> None:
    text = told("hl7", *SCORES["negative"], status="corrected", retracted=("intracranial_hemorrhage",))
    message = hl7.parse(text)
    assert str(message.segment("OBR")(25)) == "C"
    assert str(message.segments("OBX")[0](5)) == "272519000^Absent^SCT"
    assert {str(segment(11)) for segment in message.segments("OBX")} == {"C"}
    report_, observation, *_ = json.loads(
        told("fhir", *SCORES["negative"], status="corrected", retracted=("intracranial_hemorrhage",))
    )["entry"]
    assert report_["resource"]["status"] == observation["resource"]["status"] == "amended"
    assert "no longer holds" in json.dumps(observation)


@pytest.mark.parametrize(("status", "found", "name"), CASES)
def test_a_bundle_is_valid_fhir_whatever_the_patient_is_called(status: str, found: str, name: str) -> None:
    text = told("fhir", *SCORES[found], status=status, PatientName=name, AccessionNumber=name[:4], StudyDate="")
    bundle = Bundle.model_validate_json(text)
    assert [entry.resource.get_resource_type() for entry in bundle.entry] == ["DiagnosticReport", *["Observation"] * 2]
    assert "not for diagnosis" in bundle.entry[0].resource.conclusion
    assert Card().weights_digest in bundle.entry[0].resource.conclusion


def test_a_fhir_report_keeps_its_identifier_over_revisions_and_is_put_by_it() -> None:
    first, second = (json.loads(told("fhir", *scores)) for scores in SCORES.values())
    for one, other in zip(first["entry"][:2], second["entry"][:2], strict=True):
        assert one["resource"]["identifier"] == other["resource"]["identifier"]
        assert one["request"]["method"] == "PUT" and "?identifier=urn" in one["request"]["url"]


def test_a_webhook_is_json_with_everything() -> None:
    body = json.loads(told("webhook", *SCORES["positive"], PatientName=HOSTILE))
    assert body["urgency"] == "critical" and "not for diagnosis" in body["notice"]
    assert body["findings"][0]["probability"] == 0.934
    assert body["patient"]["name"]["family"].startswith("O'Neil|PID|2")


def test_the_model_of_no_patients_is_named_as_such() -> None:
    made = report(score(ICH), bundle=Card(status="phantom"))
    receiver = row("hl7")
    content = offer(receiver, made, facts(made, results=[]), hold=False).content
    errand = signals.SignalErrand(**{**vars(EXAMPLE), "content": content, "status": "new", "retracted": ()})
    text = MessageTemplate("hl7").render(context(errand, receiver))
    assert "PHANTOM MODEL" in text and hl7.parse(text).segment("MSH")(11)[0] == "T"


def test_a_sites_template_takes_the_place_of_ours(tmp_path: Path) -> None:
    file = tmp_path / "own.hl7"
    file.write_text("MSH|^~\\&|OURS||||||ORU^R01|{{ control_id }}|P|2.3\n\n  ZAI|{{ patient.name.family }}\n")
    settings = Settings(signals=[{"name": "x", "kind": "hl7", "address": "mllp://h:1", "template": str(file)}])
    message = Switchboard.from_settings(settings).lines["x"].message(EXAMPLE)
    assert message.text == "MSH|^~\\&|OURS||||||ORU^R01|0123456789ABCDEF0123|P|2.3\rZAI|Doe\r"


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("hl7", "PID|{{ patient.nane }}"),
        ("hl7", "PID|{{ patient"),
        ("webhook", '{"a": {{ nothing }}}'),
        ("webhook", '{"a": {{ patient.id }}'),
        ("webhook", "{{ ().__class__.__base__.__subclasses__() }}"),
    ],
)
def test_a_template_that_cannot_work_is_told_at_the_start(tmp_path: Path, kind: str, text: str) -> None:
    file = tmp_path / "own"
    file.write_text(text)
    settings = Settings(signals=[row(kind, template=str(file)).model_dump()])
    with pytest.raises(TemplateFault, match="own"):
        Switchboard.from_settings(settings)
