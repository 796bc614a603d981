"""The table of codes: every code of our objects stands in it, with evidence, and the evidence is checked."""

from collections.abc import Iterable

import pytest
from pydicom import Dataset
from pydicom.sr._concepts_dict import concepts

from plugin.results import build_results
from plugin.results.codes import CLINICAL, CODES, DICTIONARY, PRIVATE, PRIVATE_SCHEME, code, coding_schemes
from reports import FINDINGS, FRACTURE, ICH, report, score

ROWS = {**CODES, **{row.meaning: row for row in CLINICAL}}
HIGHDICOM = {
    ("DCM", "111000"), ("DCM", "112039"), ("DCM", "112040"), ("DCM", "121005"), ("DCM", "121012"),
    ("DCM", "121013"), ("DCM", "121014"), ("DCM", "121015"), ("DCM", "121049"), ("DCM", "121058"),
    ("DCM", "121071"), ("DCM", "122405"), ("DCM", "125007"), ("DCM", "126000"), ("DCM", "126010"),
    ("SCT", "260753009"),
}  # fmt: skip
"""What highdicom's templates bring along; viewers compare these meanings as exact strings."""

MULTIPLY = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 4, 0, 6, 7, 8, 9, 5], [2, 3, 4, 0, 1, 7, 8, 9, 5, 6],
    [3, 4, 0, 1, 2, 8, 9, 5, 6, 7], [4, 0, 1, 2, 3, 9, 5, 6, 7, 8], [5, 9, 8, 7, 6, 0, 4, 3, 2, 1],
    [6, 5, 9, 8, 7, 1, 0, 4, 3, 2], [7, 6, 5, 9, 8, 2, 1, 0, 4, 3], [8, 7, 6, 5, 9, 3, 2, 1, 0, 4],
    [9, 8, 7, 6, 5, 4, 3, 2, 1, 0],
]  # fmt: skip
PERMUTE = [1, 5, 7, 6, 2, 8, 3, 0, 9, 4]


def verhoeff(number: str) -> int:
    """0 for a number with a right check digit (dihedral group D5), as each SNOMED CT identifier has."""
    check = 0
    for position, digit in enumerate(reversed(number)):
        value = int(digit)
        for _ in range(position % 8):
            value = PERMUTE[value]
        check = MULTIPLY[check][value]
    return check


def codes_of(datasets: Iterable[Dataset]) -> set[tuple[str, str, str]]:
    found = set()
    for dataset in datasets:
        if "CodeValue" in dataset:
            found.add((dataset.CodingSchemeDesignator, dataset.CodeValue, dataset.CodeMeaning))
        for element in dataset:
            if element.VR == "SQ":
                found |= codes_of(element.value)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_the_evidence_of_each_row_holds(name):
    row = ROWS[name]
    assert row.evidence
    assert 0 < len(row.value) <= 16
    assert 0 < len(row.meaning) <= 64
    if row.evidence == DICTIONARY:
        meanings = [entry[row.value][0] for entry in concepts[row.scheme].values() if row.value in entry]
        assert row.meaning in meanings
    assert (row.scheme == PRIVATE_SCHEME) == (row.evidence == PRIVATE)


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.scheme == "SCT"], ids=lambda row: row.value)
def test_each_snomed_code_has_a_right_check_digit(row):
    assert verhoeff(row.value) == 0


@pytest.mark.parametrize("value", ["83329005", "274110009"])
def test_invented_snomed_codes_that_circulate_fail_the_check_digit(value):
    assert verhoeff(value) != 0


def test_no_value_stands_for_two_concepts():
    keys = [(row.scheme, row.value) for row in ROWS.values()]
    assert len(keys) == len(set(keys))


def test_every_public_code_of_the_findings_table_is_in_the_table_of_evidence():
    known = {(row.value, row.scheme, row.meaning) for row in CLINICAL}
    for finding in FINDINGS.findings:
        for used in (finding.code, finding.site):
            assert used.scheme == PRIVATE_SCHEME or (used.value, used.scheme, used.meaning) in known


def test_no_private_finding_has_the_value_of_a_concept_of_ours():
    ours = {row.value for row in CODES.values()}
    assert not ours & {finding.code.value for finding in FINDINGS.findings}


def test_our_objects_carry_no_code_that_is_not_in_the_tables():
    known = {(row.scheme, row.value) for row in ROWS.values()} | HIGHDICOM
    known |= {(finding.code.scheme, finding.code.value) for finding in FINDINGS.findings}
    results = build_results(report(score(ICH, probability=0.9, threshold=0.5), score(FRACTURE)))
    assert {(scheme, value) for scheme, value, _ in codes_of(results)} <= known


def test_an_object_declares_the_private_schemes_that_it_uses_and_no_other():
    for result in build_results(report(score(ICH))):
        assert [item.CodingSchemeDesignator for item in result.CodingSchemeIdentificationSequence] == ["99HLIP"]
    assert coding_schemes([code("certainty")]) == []


def test_a_private_scheme_of_the_bundle_is_declared_too():
    foreign = Dataset()
    foreign.CodeValue, foreign.CodingSchemeDesignator, foreign.CodeMeaning = "x", "99SITE", "Thing of a site"
    declared = coding_schemes([foreign, code("looked")])
    assert [item.CodingSchemeDesignator for item in declared] == ["99HLIP", "99SITE"]
