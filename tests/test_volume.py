"""From the datasets of one series to its prepared scan, or to the reason why there is none."""

import contextlib
import copy
import dataclasses
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

import series
from hlip_core import resample
from hlip_core.errors import DamagedScan, Refused
from hlip_core.preprocessing import BRAIN_MRI, CHEST_CT, HEAD_CT, Preprocessing
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan, open_series, prepare

SMALL = dataclasses.replace(HEAD_CT, num_slices=10, size=64, crop=56)
SMALL_MR = dataclasses.replace(BRAIN_MRI, num_slices=10, size=64, crop=56)


def refusal(datasets: list[Dataset], spec: Preprocessing = SMALL) -> Reason:
    """The reason why a series is refused."""
    with pytest.raises(Refused) as caught:
        prepare(datasets, spec)
    return caught.value.reason


def files(folder: Path) -> list[Path]:
    """The files of a folder in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_file())


# ---- values --------------------------------------------------------------------------------------------------


def test_the_prepared_scan_is_the_volume_padded_and_resized_in_hounsfield_units() -> None:
    values = np.round(np.random.default_rng(1).normal(0, 300, (12, 40, 60))).clip(-1000, 2000)
    scan = prepare(series.series(values), SMALL)
    sampled = values[resample.nearest_slices(12, 10)].astype(np.float32)
    squared = resample.square_pad(sampled, -1024)
    expected = resample.linear(resample.linear(squared, 64, 1), 64, 2)
    np.testing.assert_array_equal(scan.voxels, np.rint(expected))
    assert scan.voxels.dtype == np.int16


def test_fewer_slices_than_the_model_takes_are_repeated() -> None:
    scan = prepare(series.series(series.head(9)), dataclasses.replace(SMALL, num_slices=18))
    np.testing.assert_array_equal(scan.voxels[::2], scan.voxels[1::2])


@pytest.mark.parametrize("intercept", [0.0, -1024.0, -8192.0])
def test_the_rescale_slope_is_applied_once(intercept: float) -> None:
    values = series.head()
    plain = prepare(series.series(values, intercept=-1024), SMALL)
    datasets = series.series(values, intercept=-8192)
    for dataset, image in zip(datasets, values, strict=True):
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.5, intercept
        series.set_pixels(dataset, (image - intercept) * 2, signed=intercept == 0)
    np.testing.assert_array_equal(prepare(datasets, SMALL).voxels, plain.voxels)


@pytest.mark.parametrize(
    "elements",
    [
        {},  # unmarked, but below any physical value
        {"PixelPaddingValue": -2000},
        {"PixelPaddingValue": 63536},  # the same, written without its sign
        {"PixelPaddingValue": -3000, "PixelPaddingRangeLimit": -1500},
    ],
)
def test_padding_outside_the_scanners_field_becomes_air(elements: dict[str, int]) -> None:
    values = series.head()
    y, x = np.ogrid[-1:1:96j, -1:1:96j]
    padded = np.where(x**2 + y**2 > 1, -2000, values)
    datasets = series.series(padded, intercept=0)
    for dataset, image in zip(datasets, padded, strict=True):
        series.set_pixels(dataset, image, signed=True)
        dataset.update(elements and Dataset())
        for keyword, value in elements.items():
            dataset.add_new(keyword, "SS" if value < 0 else "US", value)
    scan = prepare(datasets, SMALL)
    assert scan.voxels[:, 0, 0].max() == scan.voxels.min() == -1024


def test_padding_that_looks_like_tissue_becomes_air() -> None:
    values = series.head()
    values[:, :10] = 40
    datasets = series.series(values, PixelPaddingValue=40 + 1024)
    assert (prepare(datasets, SMALL).voxels[:, 0] == -1024).all()


def test_a_padding_value_in_the_middle_of_tissue_is_not_believed() -> None:
    values = series.head()  # its brain has 35 HU, its corners are air
    believed = prepare(series.series(values), SMALL)
    doubted = prepare(series.series(values, PixelPaddingValue=35 + 1024), SMALL)
    np.testing.assert_array_equal(doubted.voxels, believed.voxels)


def test_an_mr_is_clipped_to_its_percentiles() -> None:
    stored = np.random.default_rng(1).integers(0, 4000, (10, 64, 64))
    scan = prepare(series.series(stored, sop_class_uid=series.MR), SMALL_MR)
    low, high = np.percentile(stored, (0.5, 99.5))
    expected = np.clip((stored - low) / (high - low), 0, 1) * 32767
    np.testing.assert_allclose(scan.voxels, expected, atol=1)
    assert scan.voxels.max() == 32767 and scan.voxels.min() == 0


def test_an_inverted_mr_is_turned_round() -> None:
    stored = np.random.default_rng(1).integers(0, 4000, (10, 64, 64))
    plain = prepare(series.series(stored, sop_class_uid=series.MR), SMALL_MR)
    inverted = series.series(4000 - stored, sop_class_uid=series.MR)
    for dataset in inverted:
        dataset.PhotometricInterpretation = "MONOCHROME1"
    np.testing.assert_allclose(prepare(inverted, SMALL_MR).voxels, plain.voxels, atol=1)


@pytest.mark.parametrize("is_inverted", [False, True])
def test_the_padding_of_an_mr_is_as_dark_as_its_darkest_tissue(is_inverted: bool) -> None:
    stored = np.random.default_rng(1).integers(100, 4000, (10, 64, 64))
    stored[:, :8] = 63000
    datasets = series.series(stored, sop_class_uid=series.MR, PixelPaddingValue=63000)
    for dataset in datasets:
        dataset.PhotometricInterpretation = "MONOCHROME1" if is_inverted else "MONOCHROME2"
    scan = prepare(datasets, SMALL_MR)
    assert scan.voxels[:, :8].max() < 0.005 * 32767
    tissue = 4000 - stored[:, 8:] if is_inverted else stored[:, 8:]
    assert np.corrcoef(scan.voxels[:, 8:].ravel(), tissue.ravel())[0, 1] > 0.99


def test_a_blank_mr_is_refused() -> None:
    assert refusal(series.series(np.zeros((10, 32, 32)), sop_class_uid=series.MR), SMALL_MR) == Reason.UNDECODABLE


def test_a_chest_is_resampled_to_its_spacing_and_kept_in_its_middle() -> None:
    spec = dataclasses.replace(CHEST_CT, num_slices=24, size=80, crop=80, min_slices=8)
    values, centres = series.blocks((20, 60, 70))
    scan = prepare(series.series(values, spacing=(2.0, 1.0, 1.5), BodyPartExamined="CHEST"), spec)
    assert scan.voxels.shape == (24, 80, 80)
    assert scan.spacing == (3.0, 1.0, 1.0)
    held = [z for z in range(24) if (scan.voxels[z] > 0).any()]
    assert len(held) == 13  # 40 mm in steps of 3 mm
    assert (scan.voxels[[0, 23]] == -1150).all()
    for z in held:
        rows, columns = np.nonzero(scan.voxels[z] > 0)
        source = scan.source_of(z, float(rows.mean()), float(columns.mean()))
        row, column = centres[int(source.sop_instance_uid.rsplit(".", 1)[1]) - 1]
        assert abs(source.row - row) <= 1 and abs(source.column - column) <= 1


# ---- multi-frame ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sop_class_uid", [series.ENHANCED_CT, series.LEGACY_CT])
def test_a_multi_frame_image_gives_the_same_volume(sop_class_uid: str) -> None:
    datasets = series.series(series.head())
    image = series.enhanced(datasets[6:] + datasets[:6], sop_class_uid)
    scan = prepare([image], SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(datasets, SMALL).voxels)
    assert scan.instances == ((sop_class_uid, image.SOPInstanceUID),)


def test_a_bright_block_is_found_again_in_its_frame(tmp_path: Path) -> None:
    values, centres = series.blocks((10, 40, 48))
    image = series.enhanced(series.series(values, spacing=(2.0, 0.7, 0.7))[::-1])
    scan = prepare(open_series(series.write([image], tmp_path)), SMALL)
    for z in range(10):
        rows, columns = np.nonzero(scan.voxels[z] > 0)
        source = scan.source_of(z, float(rows.mean()), float(columns.mean()))
        assert source.frame_number is not None
        row, column = centres[10 - source.frame_number]
        assert abs(source.row - row) <= 0.75 and abs(source.column - column) <= 0.75


def test_the_first_volume_of_a_temporal_multi_frame_image_is_used() -> None:
    values = series.head()
    first = series.series(values, TemporalPositionIdentifier=1)
    second = series.series(values + 50, TemporalPositionIdentifier=2)
    scan = prepare([series.enhanced(second + first)], SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(first, SMALL).voxels)
    assert scan.source_of(0, 0, 0).frame_number == 13


def test_an_enhanced_mr_gives_the_same_volume() -> None:
    stored = np.random.default_rng(1).integers(0, 4000, (10, 64, 64))
    datasets = series.series(stored, sop_class_uid=series.MR)
    image = series.enhanced(datasets, series.ENHANCED_MR)
    np.testing.assert_array_equal(prepare([image], SMALL_MR).voxels, prepare(datasets, SMALL_MR).voxels)


@pytest.mark.parametrize("claimed", [0, 1, 11, 13, 10**6, 2**31])
def test_a_lie_about_the_number_of_frames_is_refused(claimed: int) -> None:
    image = series.enhanced(series.series(series.head()))
    image.NumberOfFrames = claimed
    assert refusal([image]) in (Reason.HEADER, Reason.TOO_LARGE)


def test_many_frames_without_functional_groups_are_refused() -> None:
    datasets = series.series(series.head(), NumberOfFrames=12)
    assert refusal(datasets) == Reason.HEADER


# ---- encodings and files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_every_lossless_encoding_gives_the_same_volume(syntax: str, tmp_path: Path) -> None:
    datasets = series.series(series.head())
    plain = prepare(datasets, SMALL)
    for dataset in datasets:
        dataset.compress(syntax, generate_instance_uid=False)
    scan = prepare(open_series(series.write(datasets, tmp_path)), SMALL)
    np.testing.assert_array_equal(scan.voxels, plain.voxels)
    assert scan.instances == plain.instances


def test_big_endian_gives_the_same_volume(tmp_path: Path) -> None:
    datasets = series.series(series.head())
    turned = [series.big_endian(dataset) for dataset in datasets]
    scan = prepare(open_series(series.write(turned, tmp_path)), SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(datasets, SMALL).voxels)


def test_a_deflated_file_gives_the_same_volume(tmp_path: Path) -> None:
    datasets = series.series(series.head())
    plain = prepare(datasets, SMALL)
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    np.testing.assert_array_equal(prepare(open_series(series.write(datasets, tmp_path)), SMALL).voxels, plain.voxels)


def test_opening_a_series_leaves_its_pixels_in_the_files(tmp_path: Path) -> None:
    paths = series.write(series.series(series.head()), tmp_path)
    datasets = open_series(paths)
    prepare(datasets, SMALL)
    assert all(dataset.get_item("PixelData", keep_deferred=True).value is None for dataset in datasets)


def test_only_the_sampled_slices_of_a_ct_are_decoded(tmp_path: Path) -> None:
    datasets = series.series(series.head(40))
    paths = series.write(datasets, tmp_path)
    whole = prepare(open_series(paths), SMALL)
    sampled = set(resample.nearest_slices(40, 10).tolist())
    for k, path in enumerate(paths):
        if k not in sampled:
            path.write_bytes(path.read_bytes()[:-1000])  # nobody who decodes this slice gets away with it
    np.testing.assert_array_equal(prepare(open_series(paths), SMALL).voxels, whole.voxels)
    broken = paths[min(sampled)]
    broken.write_bytes(broken.read_bytes()[:-1000])
    assert refusal(open_series(paths)) == Reason.UNDECODABLE


def test_a_file_that_is_not_dicom_is_undecodable(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no DICOM here " * 100)
    with pytest.raises(Refused) as caught:
        open_series([path])
    assert caught.value.reason == Reason.UNDECODABLE
    assert "notes" not in str(caught.value)


def test_a_file_that_has_gone_is_no_refusal(tmp_path: Path) -> None:
    paths = series.write(series.series(series.head()), tmp_path)
    with pytest.raises(FileNotFoundError):
        open_series([*paths, tmp_path / "none.dcm"])
    datasets = open_series(paths)
    paths[0].unlink()
    with pytest.raises(FileNotFoundError):
        prepare(datasets, SMALL)


def test_an_encapsulated_frame_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    datasets = series.series(np.random.default_rng(1).integers(-1000, 1000, (12, 96, 96)))
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    paths = series.write(datasets, tmp_path)
    for path in paths:
        data = bytearray(path.read_bytes())
        item = data.index(b"\xfe\xff\x00\xe0", data.index(b"\xfe\xff\x00\xe0") + 4)
        data[item + 4 : item + 8] = struct.pack("<I", 0xFFFFFFF0)
        path.write_bytes(data)
    opened = open_series(paths)
    tracemalloc.start()
    with contextlib.suppress(Refused):
        prepare(opened, SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_truncated_compressed_slice_is_undecodable(tmp_path: Path) -> None:
    datasets = series.series(series.head())
    for dataset in datasets:
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    frame = b"\xff\x4f\xff\x51" + b"\0" * 40
    datasets[4].PixelData = encapsulate([frame])
    assert refusal(datasets) == Reason.UNDECODABLE


def test_malformed_compressed_slices_are_refused_and_nothing_crashes() -> None:
    whole = series.series(series.head(9))[0]
    rng = np.random.default_rng(1)
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        dataset = copy.deepcopy(whole)
        dataset.compress(syntax, generate_instance_uid=False)
        pixels = dataset.PixelData
        for _ in range(40):
            mutated = bytearray(pixels)
            for at in rng.integers(16, len(pixels), 4):
                mutated[at] = rng.integers(256)
            dataset.PixelData = bytes(mutated)
            with contextlib.suppress(Refused):
                prepare([dataset], dataclasses.replace(SMALL, num_slices=1, min_slices=1))


def test_a_compressed_image_that_claims_a_huge_size_is_not_decoded() -> None:
    datasets = series.series(series.head())
    datasets[4].compress(JPEG2000Lossless, generate_instance_uid=False)
    bomb = bytearray(datasets[4].PixelData)
    at = bomb.index(b"\xff\x4f\xff\x51") + 8
    bomb[at : at + 8] = struct.pack(">2I", 60000, 60000)
    datasets[4].PixelData = bytes(bomb)
    assert refusal(datasets) == Reason.UNDECODABLE


def test_a_dataset_without_a_transfer_syntax_is_undecodable() -> None:
    datasets = series.series(series.head())
    del datasets[3].file_meta
    assert refusal(datasets) == Reason.UNDECODABLE


# ---- what is refused by its header ---------------------------------------------------------------------------


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


# ---- the stored scan -----------------------------------------------------------------------------------------


def test_a_stored_scan_comes_back_whole(tmp_path: Path) -> None:
    scan = prepare(series.series(series.head(), step=(0.0, 1.0, 5.0)), SMALL)
    scan.save(tmp_path / "scan.b2nd")
    again = PreparedScan.load(tmp_path / "scan.b2nd")
    np.testing.assert_array_equal(again.voxels, scan.voxels)
    for field in dataclasses.fields(scan):
        if field.name != "voxels":
            assert getattr(again, field.name) == getattr(scan, field.name)
    assert again.source_of(3, 10, 20) == scan.source_of(3, 10, 20)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.b2nd"]


def test_a_damaged_scan_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "scan.b2nd"
    prepare(series.series(series.head()), SMALL).save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for damaged in (b"", b"text", whole[:20], whole[: len(whole) // 2], whole[:-1], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(DamagedScan):
            PreparedScan.load(path)


def test_a_saved_scan_says_whether_it_is_partial(tmp_path: Path) -> None:
    datasets = series.series(series.head(20))
    for given, is_partial in ((datasets, False), (datasets[:7] + datasets[8:], True)):
        prepare(given, SMALL).save(tmp_path / "scan.b2nd")
        assert PreparedScan.load(tmp_path / "scan.b2nd").is_partial is is_partial


def test_a_missing_scan_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        PreparedScan.load(tmp_path / "none.b2nd")


# ---- real series ---------------------------------------------------------------------------------------------


def test_a_real_tilted_head_with_two_spacings_is_prepared(shared: Path) -> None:
    paths = files(shared / "data/ct/ge_hispeed_human_tilt_vargap")
    scan = prepare(open_series(paths), HEAD_CT)
    assert scan.voxels.shape == (48, 256, 256)
    assert scan.voxels.min() == -1024  # the padding is -1500
    assert len(scan.instances) == 28
    assert scan.notes == (
        "gantry tilt 18.5 degrees, not resampled",
        "variable slice spacing 1.08 to 7.00 mm",
        "slices overlap in 1 of 27 places",
    )
    assert dcmread(paths[0]).SOPInstanceUID == scan.source_of(0, 0, 0).sop_instance_uid


def test_a_real_head_without_a_named_body_part_is_known_by_its_content(shared: Path) -> None:
    datasets = open_series(files(shared / "data/ct/ge_hispeed_human_tilt_vargap"))
    named = prepare(datasets, HEAD_CT)
    for dataset in datasets:
        dataset.BodyPartExamined = ""
    np.testing.assert_array_equal(prepare(datasets, HEAD_CT).voxels, named.voxels)


@pytest.mark.parametrize(
    ("folder", "num_slices"),
    [("S2010_5mm_soft_jpegll", 28), ("S2020_1mm_soft_jpegls", 70), ("S2030_1mm_bone_j2k", 50)],
)
def test_the_compressed_series_of_a_real_study_are_prepared(shared: Path, folder: str, num_slices: int) -> None:
    scan = prepare(open_series(files(shared / "data/ct/philips_phantom_study_21570" / folder)), HEAD_CT)
    assert len(scan.instances) == num_slices
    assert scan.notes == ("the content does not look like a head; its BodyPartExamined says so",)  # plastic, air inside


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("philips_phantom_study_21570/S1000_localizer", Reason.LOCALIZER),
        ("philips_phantom_study_21570/S4010_sc_dose_burnedin", Reason.DOSE_PAGE),
        ("enhanced_ct_perfusion_supplemental_palette", Reason.DERIVED_MAP),
        ("wg04_ct1_chest_not_head", Reason.NOT_A_HEAD),
        ("wg04_ct2_head_toshiba_7encodings", Reason.INCONSISTENT),
    ],
)
def test_other_real_series_are_refused_with_their_reason(shared: Path, folder: str, reason: Reason) -> None:
    assert refusal(open_series(files(shared / "data/ct" / folder)), HEAD_CT) == reason


def test_seven_encodings_of_one_real_slice_give_the_same_values(shared: Path) -> None:
    spec = dataclasses.replace(HEAD_CT, num_slices=1, min_slices=1)
    scans = {
        path.name: prepare(open_series([path]), spec).voxels.astype(float)
        for path in files(shared / "data/ct/wg04_ct2_head_toshiba_7encodings")
    }
    for name in ("CT2_RLE", "CT2_JPLL", "CT2_JLSL", "CT2_J2KR"):
        np.testing.assert_array_equal(scans[name], scans["CT2_UNC"])
    assert np.abs(scans["CT2_JLSN"] - scans["CT2_UNC"]).max() < 20
    assert np.abs(scans["CT2_J2KI"] - scans["CT2_UNC"]).mean() < 60


@pytest.mark.parametrize("name", ["CT2_RLE", "CT2_JPLL", "CT2_JLSL", "CT2_J2KR"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_real_slice_with_its_end_cut_off_is_undecodable(shared: Path, name: str, share: float) -> None:
    dataset = dcmread(shared / "data/ct/wg04_ct2_head_toshiba_7encodings" / name)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: int(len(frame) * share)]])
    assert refusal([dataset], dataclasses.replace(HEAD_CT, min_slices=1)) == Reason.UNDECODABLE


def test_a_real_single_head_slice_is_too_few_not_another_body_part(shared: Path) -> None:
    slices = open_series([shared / "data/ct/wg04_ct2_head_toshiba_7encodings/CT2_UNC"])
    assert refusal(slices, HEAD_CT) == Reason.TOO_FEW_SLICES


@pytest.mark.parametrize(
    ("folder", "orientation", "num_instances"),
    [("siemens_prisma_t1_sag_HFS", "sagittal", 20), ("ge_mr750_epi", "axial", 15)],
)
def test_real_mr_series_are_prepared(shared: Path, folder: str, orientation: str, num_instances: int) -> None:
    scan = prepare(open_series(files(shared / "data/mr" / folder)), BRAIN_MRI)
    assert (scan.orientation, len(scan.instances)) == (orientation, num_instances)


def test_a_mosaic_is_refused(shared: Path) -> None:
    assert refusal(open_series(files(shared / "data/mr/siemens_prisma_dwi_mosaic_HFS")), BRAIN_MRI) == Reason.MOSAIC
