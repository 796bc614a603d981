"""The routing table: the first row that fits decides."""

from pydicom import Dataset

from hlip_core.headers import lenient
from plugin.routing import route
from plugin.settings import DEFAULT_ROUTING, RoutingRule


def header(**elements: str) -> Dataset:
    dataset = Dataset()
    with lenient():
        for keyword, value in {"Modality": "CT", "BodyPartExamined": "HEAD", **elements}.items():
            setattr(dataset, keyword, value)
    return dataset


def test_by_default_every_ct_is_looked_at_and_nothing_else() -> None:
    assert route(header(), DEFAULT_ROUTING) is not None
    assert route(header(BodyPartExamined=""), DEFAULT_ROUTING) is not None
    assert route(header(Modality="MR"), DEFAULT_ROUTING) is None


def test_the_first_row_that_fits_decides() -> None:
    rules = (
        RoutingRule(action="skip", description="angio"),
        RoutingRule(body_part="head|brain", priority=10),
        RoutingRule(priority=80),
    )
    assert route(header(SeriesDescription="CT ANGIO 0.6"), rules) is None
    found = [route(header(BodyPartExamined=part), rules) for part in ("Brain", "CHEST")]
    assert [rule and rule.priority for rule in found] == [10, 80]


def test_age_is_looked_at_where_it_is_known() -> None:
    adults = (RoutingRule(min_age_years=18),)
    assert route(header(PatientAge="017Y"), adults) is None
    assert route(header(PatientAge="011M"), adults) is None
    assert route(header(PatientAge="018Y"), adults) is not None
    assert route(header(PatientBirthDate="20200101", StudyDate="20260101"), adults) is None
    assert route(header(), adults) is not None


def test_hostile_values_are_only_text() -> None:
    assert route(header(SeriesDescription="(((((", PatientAge="XXX"), DEFAULT_ROUTING) is not None
