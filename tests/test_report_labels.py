"""Reading reports: which findings they affirm, deny or doubt, and where nothing is learnt."""

import re
import tomllib
from pathlib import Path

import pytest

from hlip_core.errors import InputError
from hlip_core.findings import FindingsTable
from hlip_core.report_labels import ReportWords

WORDS = ReportWords.from_toml()
PHANTOM = Path(__file__).parents[1] / "trainer" / "phantom" / "sentences.toml"

LABEL_OF = {
    "subdural acute": "subdural_hemorrhage",
    "subdural chronic": "subdural_hemorrhage",
    "epidural": "epidural_hemorrhage",
    "intraparenchymal": "intraparenchymal_hemorrhage",
    "subarachnoid": "subarachnoid_hemorrhage",
    "intraventricular": "intraventricular_hemorrhage",
    "infarct": "cerebral_infarction",
    "hydrocephalus": "hydrocephalus",
    "fracture": "skull_fracture",
    "midline shift": "midline_shift",
    "mass effect": "mass_effect",
    "hemorrhage": "intracranial_hemorrhage",
}


def state(report: str, label: str) -> str:
    return WORDS.read(report)[label].state


@pytest.mark.parametrize(
    ("report", "label", "expected"),
    [
        ("Acute left subdural hematoma.", "subdural_hemorrhage", "present"),
        ("No subdural hematoma.", "subdural_hemorrhage", "absent"),
        ("No acute hemorrhage, mass effect, or midline shift.", "midline_shift", "absent"),
        ("There is a subdural hematoma without midline shift.", "subdural_hemorrhage", "present"),
        ("There is a subdural hematoma without midline shift.", "midline_shift", "absent"),
        ("No fracture, but there is an epidural hematoma.", "epidural_hemorrhage", "present"),
        ("No hemorrhage. Hydrocephalus.", "hydrocephalus", "present"),
        ("Hydrocephalus is not seen.", "hydrocephalus", "absent"),
        ("The previously seen subarachnoid hemorrhage has resolved.", "subarachnoid_hemorrhage", "unmentioned"),
        ("Possible subarachnoid hemorrhage.", "subarachnoid_hemorrhage", "uncertain"),
        ("A small subdural hematoma cannot be excluded.", "subdural_hemorrhage", "uncertain"),
        ("No significant change in the subdural hematoma.", "subdural_hemorrhage", "present"),
        ("No new hemorrhage.", "intracranial_hemorrhage", "unmentioned"),
        ("No new hemorrhage. Stable subdural hematoma.", "intracranial_hemorrhage", "present"),
        ("History of subdural hematoma.", "subdural_hemorrhage", "unmentioned"),
        ("HISTORY: Rule out subdural hematoma.\n\nFINDINGS: Normal study.", "subdural_hemorrhage", "unmentioned"),
        ("Right parietal scalp hematoma.", "intracranial_hemorrhage", "unmentioned"),
        ("Subgaleal hemorrhage over the vertex.", "intracranial_hemorrhage", "unmentioned"),
        ("Old lacunar infarct in the left thalamus.", "cerebral_infarction", "unmentioned"),
        ("Acute infarct in the left MCA territory.", "cerebral_infarction", "present"),
        ("Nasal bone fracture.", "skull_fracture", "unmentioned"),
        ("The calvarium is intact.", "skull_fracture", "absent"),
        ("Negative for hemorrhage.", "epidural_hemorrhage", "absent"),
        ("Negative for hemorrhage. Epidural hematoma on the left.", "epidural_hemorrhage", "present"),
        ("5 mm right-to-left midline shift.", "midline_shift", "present"),
        ("Ventriculomegaly ex vacuo.", "hydrocephalus", "present"),
        ("", "hydrocephalus", "unmentioned"),
        ("There is a large left subdural hematoma, and midline shift is not seen.", "subdural_hemorrhage", "present"),
        ("There is a large left subdural hematoma, and midline shift is not seen.", "midline_shift", "absent"),
        ("Acute subdural hematoma along the left convexity, the ventricles are normal in size.", "subdural_hemorrhage",
         "present"),
        ("Subarachnoid hemorrhage in the sylvian fissure, basal cisterns are normal.", "subarachnoid_hemorrhage",
         "present"),
        ("No midline shift, acute subdural hematoma measuring 9 mm.", "subdural_hemorrhage", "present"),
        ("No midline shift, acute subdural hematoma measuring 9 mm.", "midline_shift", "absent"),
        ("Interval resolution of the midline shift with residual subdural hematoma.", "subdural_hemorrhage", "present"),
        ("Interval resolution of the midline shift with residual subdural hematoma.", "midline_shift", "absent"),
        ("Compared to the prior study, the subdural hematoma has increased.", "subdural_hemorrhage", "present"),
        ("Previously seen left subdural hematoma has increased in size.", "subdural_hemorrhage", "present"),
        ("Previously seen left subdural hematoma.", "subdural_hemorrhage", "unmentioned"),
        ("Status post craniotomy with residual subdural hematoma.", "subdural_hemorrhage", "present"),
        ("No hemorrhage, hydrocephalus, mass effect or midline shift.", "midline_shift", "absent"),
        ("No acute intracranial hemorrhage, large territorial infarct, or midline shift.", "midline_shift", "absent"),
        ("Hemorrhage, hydrocephalus and midline shift are not seen.", "intracranial_hemorrhage", "absent"),
        ("Hydrocephalus or midline shift is not seen.", "hydrocephalus", "absent"),
    ],
)  # fmt: skip
def test_a_sentence_says_what_a_reader_takes_it_for(report: str, label: str, expected: str) -> None:
    assert state(report, label) == expected


def test_a_kind_of_hemorrhage_is_a_hemorrhage_and_its_sentence_is_kept() -> None:
    said = WORDS.read("Unremarkable skull. Small SAH in the left sylvian fissure.")
    assert (said["intracranial_hemorrhage"].state, said["skull_fracture"].state) == ("present", "unmentioned")
    assert said["intracranial_hemorrhage"].sentence == "Small SAH in the left sylvian fissure."


def test_the_words_are_those_of_the_findings() -> None:
    assert set(WORDS.labels) == set(FindingsTable.from_toml().labels)


def test_a_table_with_a_field_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="version"):
        ReportWords({})
    (tmp_path / "words.toml").write_text("[")
    with pytest.raises(InputError, match="not TOML"):
        ReportWords.from_toml(tmp_path / "words.toml")


def test_synthetic_reports_are_read_as_they_are_meant() -> None:
    table = tomllib.loads(PHANTOM.read_text())
    wrong = []
    for kind, rows in table["present"].items():
        for sentence in [*rows["sentences"], *rows["names"]]:
            filled = re.sub(r"\{(\w+)\}", lambda match: FILLED[match[1]], sentence)
            if kind in LABEL_OF and state(filled, LABEL_OF[kind]) != "present":
                wrong.append(filled)
    for label, sentences in table["absent"].items():
        wrong += [sentence for sentence in sentences if state(sentence, label) not in ("absent", "unmentioned")]
    for kind in ("scalp", "tumour"):
        for sentence in table["present"][kind]["sentences"]:
            filled = re.sub(r"\{(\w+)\}", lambda match: FILLED[match[1]], sentence)
            wrong += [filled for label in WORDS.labels if state(filled, label) == "present" and label != "mass_effect"]
    assert wrong == []


FILLED = {
    "side": "left", "region": "frontal", "size": "8", "shift": "6", "degree": "moderate", "other": "right", "name": "",
}  # fmt: skip
