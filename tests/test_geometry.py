"""Slices in any order, orientation and spacing become one stack in one order, and every voxel knows its source."""

import dataclasses
import itertools
import random
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset

import series
from hlip_core.errors import Refused
from hlip_core.geometry import ORIENTATIONS
from hlip_core.preprocessing import BRAIN_MRI, HEAD_CT, Preprocessing
from hlip_core.reasons import Reason
from hlip_core.volume import PreparedScan, prepare

SMALL = dataclasses.replace(HEAD_CT, num_slices=10, size=64, crop=56, min_slices=3)
UNITS = [tuple(sign * float(i == axis) for i in range(3)) for axis in range(3) for sign in (1, -1)]
DIRECTIONS = [pair for pair in itertools.product(UNITS, UNITS) if np.dot(*pair) == 0]


def refusal(datasets: list[Dataset], spec: Preprocessing = SMALL) -> Reason:
    """The reason why a series is refused."""
    with pytest.raises(Refused) as caught:
        prepare(datasets, spec)
    return caught.value.reason


def position(datasets: list[Dataset], scan: PreparedScan, z: float, y: float, x: float) -> np.ndarray:
    """The patient position (mm) of a prepared voxel by its source's own header."""
    source = scan.source_of(z, y, x)
    dataset = next(d for d in datasets if d.SOPInstanceUID == source.sop_instance_uid)
    across, down = np.split(np.array(dataset.ImageOrientationPatient, float), 2)
    rows, columns = (float(v) for v in dataset.PixelSpacing)
    return np.array(dataset.ImagePositionPatient, float) + across * columns * source.column + down * rows * source.row


def brightest(image: np.ndarray) -> tuple[float, float]:
    """Row and column of the middle of the one bright block of a prepared slice."""
    rows, columns = np.nonzero(image > 0)
    return float(rows.mean()), float(columns.mean())


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("backwards", [False, True])
def test_a_bright_block_is_found_again_in_every_orientation(directions: series.Directions, backwards: bool) -> None:
    values, centres = series.blocks((10, 40, 48))
    step = np.cross(*directions) * (-2.0 if backwards else 2.0)
    datasets = series.series(values, directions=directions, spacing=(2.0, 0.7, 0.7), step=step)
    scan = prepare(random.Random(1).sample(datasets, 10), SMALL)
    uids = [dataset.SOPInstanceUID for dataset in datasets]
    for z in range(10):
        source = scan.source_of(z, *brightest(scan.voxels[z]))
        k = uids.index(source.sop_instance_uid)
        pixel = 48 / 64  # a prepared pixel in source pixels
        assert abs(source.row - centres[k][0]) <= pixel
        assert abs(source.column - centres[k][1]) <= pixel
    assert len({scan.source_of(z, 0, 0).sop_instance_uid for z in range(10)}) == 10


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_axes_run_in_the_order_of_the_table(directions: series.Directions) -> None:
    values, _ = series.blocks((10, 40, 48))
    datasets = series.series(values, directions=directions, spacing=(2.0, 0.7, 0.7))
    scan = prepare(datasets, SMALL)
    start = position(datasets, scan, 4, 30, 30)
    for axis, (patient, sign) in enumerate(ORIENTATIONS[scan.orientation]):
        there = position(datasets, scan, *(np.array([4, 30, 30]) + np.eye(3)[axis] * 2))
        moved = there - start
        assert np.argmax(np.abs(moved)) == patient and np.sign(moved[patient]) == sign
        assert abs(moved[patient]) == pytest.approx(2 * scan.spacing[axis], abs=1e-6)


@pytest.mark.parametrize(
    ("directions", "name"),
    [(series.AXIAL, "axial"), (series.CORONAL, "coronal"), (series.SAGITTAL, "sagittal")],
)
def test_the_orientation_is_named_by_the_slice_normal(directions: series.Directions, name: str) -> None:
    assert prepare(series.series(series.blocks((10, 40, 48))[0], directions=directions), SMALL).orientation == name


def test_reversed_slices_give_the_same_volume() -> None:
    datasets = series.series(series.head())
    np.testing.assert_array_equal(prepare(datasets, SMALL).voxels, prepare(datasets[::-1], SMALL).voxels)


def test_instance_numbers_say_nothing() -> None:
    datasets = series.series(series.head())
    plain = prepare(datasets, SMALL)
    for dataset, misleading in zip(datasets, random.Random(2).sample(range(12), 12), strict=True):
        dataset.InstanceNumber = misleading
    shuffled = prepare(random.Random(3).sample(datasets, 12), SMALL)
    np.testing.assert_array_equal(plain.voxels, shuffled.voxels)
    assert plain.instances == shuffled.instances


def test_gantry_tilt_is_noted_and_not_resampled() -> None:
    values = series.head()
    tilted = prepare(series.series(values, step=(0.0, 5 * np.sin(0.3), 5 * np.cos(0.3))), SMALL)
    np.testing.assert_array_equal(tilted.voxels, prepare(series.series(values), SMALL).voxels)
    assert "gantry tilt 17.2 degrees, not resampled" in tilted.notes


def test_a_stack_that_moves_mostly_sideways_is_refused() -> None:
    assert refusal(series.series(series.head(), step=(0.0, 5.0, 1.0))) == Reason.GEOMETRY


def test_scattered_slices_are_refused() -> None:
    datasets = series.series(series.head())
    datasets[5].ImagePositionPatient[0] = 80.0
    assert refusal(datasets) == Reason.GEOMETRY


def test_oblique_slices_are_noted() -> None:
    tipped = ((1.0, 0.0, 0.0), (0.0, float(np.cos(0.35)), float(np.sin(0.35))))
    scan = prepare(series.series(series.head(), directions=tipped), SMALL)
    assert scan.orientation == "axial"
    assert scan.notes == ("oblique slices, 20 degrees off the patient's axis",)


def test_variable_spacing_is_noted_and_used() -> None:
    values = series.head(14)
    offsets = [0, 1, 2, 3, 4, 5, 6, 7.5, 9, 10.5, 12, 13.5, 15, 16.5]
    scan = prepare(series.series(values, offsets=offsets, SliceThickness=7.5), SMALL)
    assert "variable slice spacing 5.00 to 7.50 mm" in scan.notes


def test_a_steady_series_has_no_notes() -> None:
    assert prepare(series.series(series.head()), SMALL).notes == ()


def test_overlapping_slices_are_noted() -> None:
    scan = prepare(series.series(series.head(), spacing=(2.5, 2.5, 2.5), SliceThickness=5), SMALL)
    assert scan.notes == ("slices overlap in 11 of 11 places",)


def test_a_missing_slice_is_noted() -> None:
    datasets = series.series(series.head(20), spacing=(5.0, 2.5, 2.5))
    assert "about 1 slices missing in 1 places" in prepare(datasets[:7] + datasets[8:], SMALL).notes


def test_a_series_with_a_fifth_of_its_extent_missing_is_refused() -> None:
    datasets = series.series(series.head(20), spacing=(5.0, 2.5, 2.5))
    assert refusal(datasets[:7] + datasets[12:]) == Reason.GEOMETRY


def test_widely_spaced_slices_are_no_holes() -> None:
    scan = prepare(series.series(series.head(), spacing=(10.0, 2.5, 2.5), SliceThickness=5), SMALL)
    assert scan.notes == ()


def test_the_first_of_two_images_at_one_place_is_used() -> None:
    values = series.head()
    datasets = series.series(values)
    later = series.series(values + 100)[4:6]
    for i, dataset in enumerate(later):
        dataset.SOPInstanceUID += f".{i}"
        dataset.InstanceNumber = 100 + i
    scan = prepare([*later, *datasets], SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(datasets, SMALL).voxels)
    assert scan.notes == ("2 images at positions already taken left out",)
    assert len(scan.instances) == 12 and scan.num_instances == 14


def test_a_repeated_volume_gives_its_first_time_point() -> None:
    values = series.head()
    first = series.series(values, TemporalPositionIdentifier=1)
    second = series.series(values + 50, TemporalPositionIdentifier=2, InstanceNumber=1)
    for dataset in second:
        dataset.SOPInstanceUID += ".2"
    scan = prepare([*second, *first], SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(first, SMALL).voxels)
    assert scan.notes == ("2 images at every position: the first volume is used",)


def acquisition(number: int, *, start: float = 0.0, count: int = 12, hu: float = 0.0, **how: Any) -> list[Dataset]:
    """Slices of one acquisition, the first of them `start` slices along the stack; `hu` brighter than others."""
    offsets = [start + i for i in range(count)]
    datasets = series.series(series.head(count) + hu, offsets=offsets, AcquisitionNumber=number, **how)
    for dataset in datasets:
        dataset.SOPInstanceUID += f".{number}"
    return datasets


@pytest.mark.parametrize("start", [0.02, 0.5, -0.5, 0.9])
@pytest.mark.parametrize("keyword", ["AcquisitionNumber", "TemporalPositionIdentifier"])
def test_two_volumes_are_not_interleaved(start: float, keyword: str) -> None:
    first, second = acquisition(1), acquisition(2, start=start, hu=30)
    for dataset in (*first, *second):
        number = dataset.AcquisitionNumber
        dataset.AcquisitionNumber = None
        setattr(dataset, keyword, number)
    scan = prepare(random.Random(1).sample([*first, *second], 24), SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(first, SMALL).voxels)
    assert scan.spacing == prepare(first, SMALL).spacing
    assert scan.notes == ("12 images of other volumes left out: the first complete volume is used",)


def test_two_volumes_of_a_multi_frame_image_are_not_interleaved() -> None:
    first, second = acquisition(1), acquisition(2, start=0.5, hu=30)
    image = series.enhanced([*first, *second])
    for i, item in enumerate(image.PerFrameFunctionalGroupsSequence):
        item.FrameContentSequence[0].FrameAcquisitionNumber = 1 + i // 12
    scan = prepare([image], SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(first, SMALL).voxels)
    assert [number for _, number in scan.source.frames] == list(range(1, 13))


def test_an_acquisition_that_was_broken_off_is_not_the_first_volume() -> None:
    broken, whole = acquisition(1, count=7, hu=30), acquisition(2)
    scan = prepare([*broken, *whole], SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(whole, SMALL).voxels)
    assert scan.notes == ("7 images at positions already taken left out",)


@pytest.mark.parametrize("rotation", [1, 2, 4])
@pytest.mark.parametrize("spacing", [5.0, 2.5])
def test_the_rotations_of_a_sequential_scan_are_one_volume(rotation: int, spacing: float) -> None:
    datasets = series.series(series.head(), spacing=(spacing, 2.5, 2.5), SliceThickness=5)
    plain = prepare(datasets, SMALL)
    for i, dataset in enumerate(datasets):
        dataset.AcquisitionNumber = 1 + i // rotation
    scan = prepare(datasets, SMALL)
    np.testing.assert_array_equal(scan.voxels, plain.voxels)
    assert (len(scan.instances), scan.notes) == (12, plain.notes)


def test_a_scan_of_many_rotations_that_was_done_twice_gives_its_first_pass() -> None:
    passes = [acquisition(1 + p * 6 + k, start=2 * k + p / 2, count=2, hu=30 * p) for p in (0, 1) for k in range(6)]
    scan = prepare([dataset for rotation in passes for dataset in rotation], SMALL)
    assert {dataset.SOPInstanceUID for rotation in passes[:6] for dataset in rotation} == {u for _, u in scan.instances}


@pytest.mark.parametrize("numbers", [[1] * 12, [None] * 12, [None] * 5 + [7] * 7, [1, 2] * 6, [1] * 5 + [2] + [1] * 6])
def test_parts_that_lie_in_each_others_gaps_or_follow_each_other_are_joined(numbers: list[int | None]) -> None:
    datasets = series.series(series.head())
    plain = prepare(datasets, SMALL)
    for dataset, number in zip(datasets, numbers, strict=True):
        dataset.AcquisitionNumber = number
    scan = prepare(datasets, SMALL)
    np.testing.assert_array_equal(scan.voxels, plain.voxels)
    assert (len(scan.instances), scan.notes) == (12, ())


def test_a_single_slice_that_reaches_into_the_next_rotation_is_kept() -> None:
    lower, upper = acquisition(1, count=1, SliceThickness=4), acquisition(2, start=0.3, count=11)
    assert len(prepare([*upper, *lower], SMALL).instances) == 12


def test_a_single_slice_amid_a_volume_is_left_out() -> None:
    whole, single = acquisition(2), acquisition(1, start=5.4, count=1)
    scan = prepare([*single, *whole], SMALL)
    assert len(scan.instances) == 12
    assert scan.notes == ("1 images of other volumes left out: the first complete volume is used",)


def test_few_images_of_another_size_are_left_out() -> None:
    datasets = series.series(series.head())
    others = series.series(series.head(2, 64))
    for dataset in others:
        dataset.SOPInstanceUID += ".2"
    scan = prepare([*others, *datasets], SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(datasets, SMALL).voxels)
    assert "2 images of another size or orientation left out" in scan.notes


def skull_base(**how: Any) -> list[Dataset]:
    """24 slices of a head and 10 below them, which `how` makes different."""
    above = series.series(series.head(24), offsets=list(range(10, 34)))
    below = series.series(series.head(10, how.pop("side", 96)), spacing=how.pop("spacing", (5.0, 2.5, 2.5)), **how)
    for dataset in below:
        dataset.SOPInstanceUID += ".2"
    return [*below, *above]


@pytest.mark.parametrize(
    "how",
    [
        {"spacing": (5.0, 2.0, 2.0)},
        {"side": 64},
        {"directions": ((1.0, 0.0, 0.0), (0.0, float(np.cos(0.3)), float(np.sin(0.3))))},
    ],
    ids=["field of view", "size", "tilt"],
)
def test_a_scan_without_its_skull_base_is_partial(how: dict[str, Any]) -> None:
    scan = prepare(skull_base(**how), SMALL)
    assert len(scan.instances) == 24
    assert scan.is_partial
    assert "10 images of another size or orientation left out" in scan.notes
    assert any(note.endswith("of the images left out lie beyond the slices that are used") for note in scan.notes)


def test_what_is_left_out_where_the_stack_is_makes_nothing_partial() -> None:
    whole = series.series(series.head())
    smaller = series.series(series.head(4, 64), offsets=[0, 1, 5.5, 11], InstanceNumber=1)
    coronal = series.series(series.head(1), directions=series.CORONAL, offsets=[0])
    coronal[0].ImagePositionPatient = [-120.0, 0.0, 150.0]  # its centre is the head's
    for i, dataset in enumerate((*smaller, *coronal)):
        dataset.SOPInstanceUID += f".{i}"
    assert not prepare([*whole, *smaller, *coronal], SMALL).is_partial
    assert not prepare(whole, SMALL).is_partial


def test_missing_slices_make_a_scan_partial() -> None:
    datasets = series.series(series.head(20), spacing=(5.0, 2.5, 2.5))
    assert prepare(datasets[:7] + datasets[8:], SMALL).is_partial


def test_repeats_and_other_volumes_make_nothing_partial() -> None:
    first = acquisition(1)
    assert not prepare([*first, *acquisition(2)], SMALL).is_partial
    assert not prepare([*first, *acquisition(2, start=0.5)], SMALL).is_partial
    assert not prepare([*acquisition(1, count=7), *acquisition(2)], SMALL).is_partial
    assert not prepare(skull_base(AcquisitionNumber=2), SMALL).is_partial


def test_a_volume_left_out_that_reaches_further_makes_a_scan_partial() -> None:
    scan = prepare([*acquisition(1, count=20), *acquisition(2, start=6, count=20)], SMALL)
    assert scan.is_partial
    assert "5 of the images left out lie beyond the slices that are used" in scan.notes


def test_two_stacks_of_like_size_are_refused() -> None:
    coronal = series.series(series.head(), directions=series.CORONAL)
    assert refusal([*series.series(series.head()), *coronal]) == Reason.GEOMETRY


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("ImagePositionPatient", None),
        ("ImagePositionPatient", [0, 0]),
        ("ImagePositionPatient", [0, 0, 1e12]),
        ("ImageOrientationPatient", [1, 0, 0, 1, 0, 0]),
        ("ImageOrientationPatient", [0, 0, 0, 0, 0, 0]),
        ("PixelSpacing", [0, 0]),
        ("PixelSpacing", [-0.5, 0.5]),
        ("PixelSpacing", None),
    ],
)
def test_geometry_that_cannot_be_meant_is_refused(keyword: str, value: object) -> None:
    assert refusal(series.series(series.head(), **{keyword: value})) == Reason.GEOMETRY


def test_slices_all_at_one_place_are_too_few() -> None:
    assert refusal(series.series(series.head(), offsets=[0] * 12)) == Reason.TOO_FEW_SLICES


def test_two_frames_of_reference_are_refused() -> None:
    datasets = series.series(series.head())
    datasets[3].FrameOfReferenceUID += ".1"
    assert refusal(datasets) == Reason.INCONSISTENT


def test_two_patients_are_refused() -> None:
    datasets = series.series(series.head())
    datasets[3].PatientID = "P2"
    assert refusal(datasets) == Reason.INCONSISTENT


def test_the_coarsest_axis_of_an_mr_becomes_the_depth() -> None:
    stored = np.random.default_rng(1).integers(0, 1000, (40, 12, 30))
    spec = dataclasses.replace(BRAIN_MRI, num_slices=12, size=64, crop=56)
    datasets = series.series(stored, sop_class_uid=series.MR, directions=series.SAGITTAL, spacing=(1.0, 4.0, 1.0))
    scan = prepare(datasets, spec)
    assert scan.orientation == "axial"
    assert scan.spacing[0] == pytest.approx(4.0)
    rows = [scan.source_of(z, 32, 32).row for z in range(12)]
    assert rows == sorted(rows, reverse=True) and len(set(rows)) == 12  # rows run down, the depth up


def test_slices_within_a_percent_of_the_coarsest_axis_stay_the_depth() -> None:
    stored = np.random.default_rng(1).integers(0, 1000, (12, 30, 30))
    spec = dataclasses.replace(BRAIN_MRI, num_slices=12, size=64, crop=56)
    datasets = series.series(stored, sop_class_uid=series.MR, directions=series.SAGITTAL, spacing=(1.0, 1.005, 1.005))
    assert prepare(datasets, spec).orientation == "sagittal"
