"""What is refused by its header, each with its reason, and what is not."""

import copy
import dataclasses
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

import series
from hlip_core.errors import Refused
from hlip_core.preprocessing import BRAIN_MRI, HEAD_CT
from hlip_core.reasons import Reason
from hlip_core.volume import open_series, prepare
from series import SMALL, refusal


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, Reason.LOCALIZER),
        ({"SOPClassUID": series.CAPTURE, "SeriesDescription": "Dose Report"}, Reason.DOSE_PAGE),
        ({"SOPClassUID": series.CAPTURE, "SeriesDescription": "Key images"}, Reason.SECONDARY_CAPTURE),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Reason.SCREEN_SAVE),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CT_SOM5 PROT"]}, Reason.DOSE_PAGE),
        ({"ImageType": ["DERIVED", "PRIMARY", "PERFUSION", "RCBF"]}, Reason.DERIVED_MAP),
        ({"RescaleType": "HU", "BodyPartExamined": "CHEST"}, Reason.OTHER_BODY_PART),
        ({"BodyPartExamined": "LSPINE"}, Reason.OTHER_BODY_PART),
        ({"BodyPartExamined": "NECK"}, Reason.OTHER_BODY_PART),
        ({"RescaleType": "MGML"}, Reason.NON_HU),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.11"}, Reason.NON_IMAGE),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, Reason.NON_IMAGE),
        ({"SOPClassUID": "1.2.3.4"}, Reason.NON_IMAGE),
        ({"SOPClassUID": series.MR, "Modality": "MR"}, Reason.MODALITY),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1", "Modality": "CR"}, Reason.MODALITY),
        ({"Modality": "MR"}, Reason.HEADER),
        ({"RescaleSlope": None}, Reason.HEADER),
        ({"RescaleSlope": 0}, Reason.HEADER),
        ({"RescaleIntercept": None}, Reason.HEADER),
        ({"SOPInstanceUID": ""}, Reason.HEADER),
        ({"StudyInstanceUID": None}, Reason.HEADER),
    ],
)
def test_what_is_no_head_ct_is_refused_with_its_reason(elements: dict[str, object], reason: Reason) -> None:
    assert refusal(series.series(series.head(), **elements)) == reason


@pytest.mark.parametrize(
    ("keyword", "value", "reason"),
    [
        ("SamplesPerPixel", 3, Reason.COLOUR),
        ("PhotometricInterpretation", "PALETTE COLOR", Reason.COLOUR),
        ("PhotometricInterpretation", "", Reason.HEADER),
        ("PixelData", None, Reason.MISSING_PIXELS),
        ("PixelData", b"", Reason.MISSING_PIXELS),
        ("Rows", 65535, Reason.TOO_LARGE),
        ("Rows", 0, Reason.HEADER),
        ("Columns", None, Reason.HEADER),
        ("Columns", 97, Reason.UNDECODABLE),
        ("BitsAllocated", 9, Reason.HEADER),
        ("BitsStored", 17, Reason.HEADER),
        ("PixelRepresentation", 7, Reason.HEADER),
    ],
)
def test_pixels_that_cannot_be_meant_are_refused(keyword: str, value: object, reason: Reason) -> None:
    datasets = series.series(series.head())
    for dataset in datasets:
        setattr(dataset, keyword, value)
    assert refusal(datasets) == reason


@pytest.mark.parametrize("body_part", ["HEAD", "BRAIN", "SKULL", "HEADNECK", "HEAD NECK", "KOPF", "HEAD_NECK"])
def test_a_head_may_be_named_in_many_ways(body_part: str) -> None:
    assert prepare(series.series(series.head(), BodyPartExamined=body_part), SMALL).notes == ()


def test_a_coded_anatomic_region_names_the_body_part() -> None:
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Thorax"
    datasets = series.series(series.head(), BodyPartExamined="", AnatomicRegionSequence=[region])
    assert refusal(datasets) == Reason.OTHER_BODY_PART


def test_too_few_slices_are_refused() -> None:
    assert refusal(series.series(series.head(7))) == Reason.TOO_FEW_SLICES
    assert refusal([]) == Reason.TOO_FEW_SLICES


def test_values_without_air_are_no_hounsfield_units() -> None:
    assert refusal(series.series(series.head() + 1024)) == Reason.NON_HU


def test_a_localizer_among_the_slices_is_left_out_and_noted() -> None:
    datasets = series.series(series.head())
    scout = copy.deepcopy(datasets[0])
    scout.ImageType, scout.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "1.2.4.99"
    scout.ImageOrientationPatient, scout.FrameOfReferenceUID = [0, 1, 0, 0, 0, -1], "1.2.3.9"
    scan = prepare([scout, *datasets], SMALL)
    assert scan.notes == ("1 of 13 left out: localizer",)
    assert scout.SOPInstanceUID not in dict(scan.instances).values() and len(scan.instances) == 12


def test_one_slice_without_pixels_refuses_the_series() -> None:
    datasets = series.series(series.head())
    del datasets[5].PixelData
    assert refusal(datasets) == Reason.MISSING_PIXELS


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "PixelSpacing", "RescaleSlope", "SliceThickness"])
@pytest.mark.parametrize("raw", [b"abc ", b"nan ", b"1e999 ", b"\\\\\\ ", b"\xff\xfe"])
def test_numbers_that_are_none_never_crash(keyword: str, raw: bytes, tmp_path: Path) -> None:
    paths = series.write(series.series(series.head(), SliceThickness=7777), tmp_path)
    for path in paths:
        element = dcmread(path).get_item(keyword)
        data = bytearray(path.read_bytes())
        start, length = element.value_tell, element.length
        data[start : start + length] = raw.ljust(length)[:length]
        path.write_bytes(data)
    if keyword == "SliceThickness":
        assert prepare(open_series(paths), SMALL)
    else:
        assert refusal(open_series(paths)) in (Reason.GEOMETRY, Reason.HEADER)


@pytest.mark.filterwarnings("ignore")
def test_malformed_files_are_refused_and_nothing_crashes(shared: Path) -> None:
    anything = [dataclasses.replace(spec, min_slices=1) for spec in (HEAD_CT, BRAIN_MRI)]
    for path in sorted(path for path in (shared / "data" / "nasty").rglob("*") if path.is_file()):
        for spec in anything:
            try:
                datasets = open_series([path])
                prepare(datasets, spec)
            except Refused as refused:
                assert refused.reason in Reason
