"""From the datasets of one series to its prepared scan, and the scan as it is stored."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset

import series
from hlip_core import resample
from hlip_core.errors import DamagedScan
from hlip_core.preprocessing import CHEST_CT
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan, open_series, prepare
from series import SMALL, SMALL_MR, refusal

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
