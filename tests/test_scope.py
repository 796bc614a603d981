"""Facts of headers that routing rules read."""

import pytest
from pydicom import Dataset

import series
from hlip_core.preprocessing import HEAD_CT
from hlip_core.reasons import Reason
from hlip_core.scope import MODALITY_OF_CLASS, age_years, is_image, refusal, region


@pytest.mark.parametrize(
    ("age", "years"),
    [("063Y", 63), ("018M", 1.5), ("052W", 1.0), ("010D", 0.03), ("", None), ("old", None), ("-1Y", None)],
)
def test_the_age_is_read_from_its_element(age: str, years: float | None) -> None:
    dataset = Dataset()
    dataset.add_new("PatientAge", "LO", age)
    assert age_years(dataset) == (None if years is None else pytest.approx(years, abs=0.01))


@pytest.mark.parametrize(
    ("birth", "study", "years"),
    [
        ("19600102", "20260102", 66),
        ("", "20260102", None),
        ("20270101", "20260102", None),
        ("19609999", "20260102", None),
    ],
)
def test_the_age_is_else_read_from_the_dates(birth: str, study: str, years: float | None) -> None:
    dataset = Dataset()
    dataset.add_new("PatientBirthDate", "LO", birth)
    dataset.add_new("StudyDate", "LO", study)
    assert age_years(dataset) == (None if years is None else pytest.approx(years, abs=0.01))


@pytest.mark.parametrize(
    ("body_part", "named"),
    [
        ("HEAD", "head"),
        ("HEAD AND NECK", "head"),
        ("brain", "head"),
        ("CHEST", "chest"),
        ("C-SPINE", "other"),
        ("NECK", "other"),
        ("WHOLEBODY", None),
        ("", None),
    ],
)
def test_a_body_part_names_a_region(body_part: str, named: str | None) -> None:
    dataset = Dataset()
    dataset.add_new("BodyPartExamined", "LO", body_part)
    assert region(dataset) == named


@pytest.mark.parametrize(
    ("sop_class_uid", "image"),
    [
        *((uid, True) for uid in MODALITY_OF_CLASS),
        (series.CAPTURE, True),
        ("1.2.840.10008.5.1.4.1.1.88.33", False),  # Comprehensive SR
        ("1.2.840.10008.5.1.4.1.1.88.59", False),  # Key Object Selection
        ("1.2.840.10008.5.1.4.1.1.11.1", False),  # Presentation State
        ("1.2.840.10008.5.1.4.1.1.66.4", False),  # Segmentation
        ("1.2.840.10008.5.1.4.1.1.30", False),  # Parametric Map
        ("nonsense", False),
    ],
)
def test_only_images_are_study_content(sop_class_uid: str, image: bool) -> None:
    assert is_image(sop_class_uid) is image


def test_an_unknown_sop_class_is_not_quoted() -> None:
    dataset = Dataset()
    dataset.add_new("SOPClassUID", "LO", "Doe^John")
    refused = refusal(dataset, HEAD_CT)
    assert refused is not None and refused.reason == Reason.NON_IMAGE
    assert "Doe" not in str(refused)
