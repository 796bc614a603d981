import tomllib

import pytest
from pydicom.sr._concepts_dict import concepts

from hlip_core.errors import InputError
from hlip_core.findings import DEFAULT, PRIVATE_SCHEME, Code, FindingsTable

ROW = """
[[finding]]
label = "{label}"
name = "A name"
prompts = ["a prompt"]
code = {{ value = "1", scheme = "99HLIP", meaning = "A name" }}
site = {{ value = "12738006", scheme = "SCT", meaning = "Brain" }}
"""
HEAD = 'version = "x/1"\ntemplates = ["There is {}."]\n'


def table(*rows: str, head: str = HEAD) -> FindingsTable:
    return FindingsTable.from_bytes((head + "".join(rows)).encode())


def test_the_default_table_has_the_findings_of_the_public_benchmarks():
    default = FindingsTable.from_toml()
    assert len(default.findings) == 11
    kinds = {f.label for f in default.findings if f.parent == "intracranial_hemorrhage"}
    bleeds = ("intraparenchymal", "intraventricular", "subarachnoid", "subdural", "epidural")
    assert kinds == {f"{kind}_hemorrhage" for kind in bleeds}
    assert not default["skull_fracture"].critical
    assert default["intraventricular_hemorrhage"].critical


def test_the_default_table_has_the_eighteen_published_kinds_of_templates():
    kinds = "identified noted seen new known prominent likely possibly indicating reflecting representing suggesting"
    phrases = ["indicative of", "suggestive of", "related to", "consistent with", "compatible with", *kinds.split()]
    templates = FindingsTable.from_toml().templates
    assert len(templates) == len(set(templates)) == 18
    for phrase in phrases:
        assert sum(phrase in template for template in templates) == 1
    assert all(template.startswith("This study shows: ") for template in templates)


def test_codes_that_pydicom_knows_have_its_meaning():
    rows = [(value, row[0].split(" (")[0]) for entry in concepts["SCT"].values() for value, row in entry.items()]
    known = {value for value, _ in rows}
    seen = {code for f in FindingsTable.from_toml().findings for code in (f.code, f.site) if code.value in known}
    assert {code.value for code in seen} == {"1386000", "12738006", "35764002", "35951006", "89546000"}
    for code in seen:
        assert (code.value, code.meaning) in rows


def test_a_finding_of_another_scheme_than_our_own_says_where_its_code_was_verified():
    for row in tomllib.loads(DEFAULT.read_text())["finding"]:
        assert (row["code"]["scheme"] == PRIVATE_SCHEME) != ("evidence" in row["code"])


def test_the_digest_sees_what_counts_and_nothing_else():
    rows = ROW.format(label="a"), ROW.format(label="b")
    one = table(*rows)
    assert table("# a comment\n", *rows).digest == one.digest
    assert table(*reversed(rows)).digest != one.digest
    assert table(*rows, head=HEAD.replace("There", "Here")).digest != one.digest


def test_a_negative_prompt_is_optional():
    text = ROW.format(label="a").replace("prompts", 'negatives = ["no a"]\nprompts', 1)
    assert table(text)["a"].negative_prompts == ("no a",)
    assert table(ROW.format(label="a"))["a"].negative_prompts == ()


BAD = {
    "no rows": HEAD,
    "a label twice": HEAD + ROW.format(label="a") * 2,
    "a label with capitals": HEAD + ROW.format(label="A"),
    "an orphan": HEAD + ROW.format(label="a") + 'parent = "b"\n',
    "an unknown field": HEAD + ROW.format(label="a") + "urgent = true\n",
    "no code": HEAD + ROW.format(label="a").replace("code", "colour"),
    "a long code": HEAD + ROW.format(label="a").replace('"1"', '"12345678901234567"'),
    "no prompts": HEAD + ROW.format(label="a").replace('["a prompt"]', "[]"),
    "an empty prompt": HEAD + ROW.format(label="a").replace('["a prompt"]', '[""]'),
    "no version": HEAD.replace("version", "edition") + ROW.format(label="a"),
    "a template without a place": HEAD.replace("{}", "it") + ROW.format(label="a"),
    "no TOML": "version = ",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_table_that_cannot_be_meant_is_an_error(kind):
    with pytest.raises(InputError):
        FindingsTable.from_bytes(BAD[kind].encode())


def test_bytes_that_are_no_text_are_an_error():
    with pytest.raises(InputError, match="not TOML"):
        FindingsTable.from_bytes(b"\xff\xfe")


def test_an_unknown_label_is_a_key_error():
    with pytest.raises(KeyError):
        FindingsTable.from_toml()["nothing"]


def test_codes_are_equal_whatever_their_evidence():
    assert Code("1", "SCT", "x", "a") == Code("1", "SCT", "x", "b")
