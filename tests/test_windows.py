"""Windows and model scans."""

import dataclasses

import numpy as np
import pytest

import series
from hlip_core.errors import InputError
from hlip_core.preprocessing import BRAIN_MRI, HEAD_CT
from hlip_core.volume import PreparedScan, prepare
from hlip_core.windows import WINDOWS, display, model_scans, prepared_voxel

SMALL = dataclasses.replace(HEAD_CT, num_slices=10, size=64, crop=56)


@pytest.fixture(scope="module")
def scan() -> PreparedScan:
    return prepare(series.series(series.head()), SMALL)


@pytest.mark.parametrize(
    ("name", "low", "high", "width", "center"),
    [
        ("brain", 0, 80, 80, 40),
        ("blood", -20, 180, 200, 80),
        ("tissue", -10, 110, 120, 50),
        ("bone", -800, 2000, 2800, 600),
        ("chest", -1150, 350, 1500, -400),
    ],
)
def test_the_windows_are_those_of_the_model(name: str, low: int, high: int, width: int, center: int) -> None:
    window = WINDOWS[name]
    assert (window.low, window.high, window.width, window.center) == (low, high, width, center)


def test_a_head_ct_is_three_scans_in_the_order_of_the_table(scan: PreparedScan) -> None:
    scans = model_scans(scan, SMALL)
    assert scans.shape == (3, 1, 10, 56, 56)
    assert scans.dtype == np.float32
    cropped = scan.voxels[:, 4:60, 4:60].astype(np.float64)
    for image, name in zip(scans[:, 0], SMALL.windows, strict=True):
        window = WINDOWS[name]
        expected = (np.clip((cropped - window.low) / window.width, 0, 1) - SMALL.mean) / SMALL.std
        np.testing.assert_allclose(image, expected, atol=5e-6)


def test_an_mr_is_one_scan() -> None:
    spec = dataclasses.replace(BRAIN_MRI, num_slices=10, size=64, crop=56)
    stored = np.random.default_rng(1).integers(0, 4000, (10, 64, 64))
    scans = model_scans(prepare(series.series(stored, sop_class_uid=series.MR), spec), spec)
    assert scans.shape == (1, 1, 10, 56, 56)
    assert scans.min() == pytest.approx(-spec.mean / spec.std, abs=1e-6)
    assert scans.max() == pytest.approx((1 - spec.mean) / spec.std, abs=1e-6)


def test_a_scan_prepared_by_another_specification_is_refused(scan: PreparedScan) -> None:
    with pytest.raises(InputError, match="head-ct/1"):
        model_scans(scan, HEAD_CT)


def test_a_model_voxel_is_found_in_the_prepared_scan(scan: PreparedScan) -> None:
    scans = model_scans(scan, SMALL)
    z, y, x = prepared_voxel(3, 20, 30, spec=SMALL)
    bone = WINDOWS["bone"]
    value = (scan.voxels[int(z), int(y), int(x)] - bone.low) / bone.width
    assert scans[2, 0, 3, 20, 30] == pytest.approx((value - SMALL.mean) / SMALL.std, abs=1e-5)


def test_a_display_window_runs_from_black_to_white() -> None:
    grey = display(np.array([-100, 0, 40, 80, 900]), center=40, width=80)
    np.testing.assert_array_equal(grey, [0, 0, 128, 255, 255])
    assert grey.dtype == np.uint8
    with pytest.raises(ValueError, match="positive"):
        display(np.zeros(1), center=40, width=0)
