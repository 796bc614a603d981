"""Specifications, and the float functions against numbers of the published reference."""

import dataclasses
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hlip_core import resample
from hlip_core.errors import InputError
from hlip_core.preprocessing import PREPROCESSINGS, Preprocessing

FIXTURES = Path(__file__).parent / "fixtures"
RECORDED: dict[str, Any] = json.loads((FIXTURES / "preproc.json").read_text())
CASES = [name for name in RECORDED if name != "normalise"]
HEAD, MRI, CHEST = (PREPROCESSINGS[name] for name in ("head-ct/1", "brain-mri/1", "chest-ct/1"))


def stream(name: str, shape: Any) -> np.ndarray:
    """The named normal stream of the fixtures, float64."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(shape))


def volume(case: dict[str, Any]) -> np.ndarray:
    """The synthetic volume of a recorded case: float32 [D, H, W], 0..1 or HU."""
    shape = case["in_shape"]
    noise = stream(case["volume"], shape)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    if case["kind"] == "ct":
        return np.round(-400 + 700 * np.sin(0.2 * z + 0.013 * y - 0.009 * x) + 100 * noise).astype(np.float32)
    return np.clip(0.5 + 0.3 * np.sin(0.2 * z + 0.13 * y - 0.09 * x) + 0.1 * noise, 0, 1).astype(np.float32)


def model_input(case: dict[str, Any]) -> np.ndarray:
    """What our functions make of a recorded case, [B, N, 1, D, H, W]."""
    source = volume(case)
    if case["kind"] == "ct":
        return resample.chest(source, CHEST, mode=case["mode"])[None, None]
    if "num_scans" in case:  # training volumes are stored as bytes, and repeated when a study has too few
        stored = np.round(source * 255).astype(np.uint8)
        scan = resample.normalise(stored / np.float32(255), MRI)
        return np.repeat(scan[None, None, None], case["num_scans"], axis=1)
    return resample.brain(source, dataclasses.replace(MRI, num_slices=case["num_slices"]))[None, None]


@pytest.mark.parametrize("name", CASES)
def test_the_reference_and_ours_give_the_same_numbers(name: str) -> None:
    case = RECORDED[name]
    ours = model_input(case)
    assert list(ours.shape) == case["out_shape"]
    with np.load(FIXTURES / "preproc.npz") as theirs:
        sampled = ours[tuple(slice(None, None, step) for step in case["stride"])]
        np.testing.assert_allclose(sampled, theirs[f"{name}/stride"], atol=5e-6, rtol=0)
        middle = ours[0, 0, 0, ours.shape[3] // 2][[0, 1, 111, -1]]
        np.testing.assert_allclose(middle, theirs[f"{name}/mid_rows"], atol=5e-6, rtol=0)
        flat = ours.ravel().astype(np.float64)
        probe = flat @ stream(f"probe:{name}", flat.shape) / np.sqrt(flat.size)
        stats = [flat.mean(), flat.std(), flat.min(), flat.max(), probe]
        np.testing.assert_allclose(stats, theirs[f"{name}/stats"], atol=5e-6, rtol=0)


def test_mean_and_standard_deviation_are_those_of_the_reference_to_the_bit() -> None:
    for spec in PREPROCESSINGS.values():
        assert np.float32(spec.mean) == np.float32(RECORDED["normalise"]["mean"])
        assert spec.mean == float.fromhex(RECORDED["normalise"]["mean_hex"])
        assert spec.std == float.fromhex(RECORDED["normalise"]["std_hex"])


@pytest.mark.parametrize("num_slices", [24, 48, 72, 144])
def test_depth_takes_the_slice_whose_centre_is_nearest(num_slices: int) -> None:
    for depth in range(1, 600):
        centres = (np.arange(num_slices) + 0.5) * depth / num_slices
        taken = resample.nearest_slices(depth, num_slices)
        is_tie = np.abs(centres - np.round(centres)) < 1e-6
        np.testing.assert_array_equal(taken[~is_tie], np.floor(centres[~is_tie]))
        assert np.isin(taken[is_tie] - np.round(centres[is_tie]), (-1, 0)).all()


def test_an_odd_pixel_of_padding_goes_to_the_right_and_the_bottom() -> None:
    squared = resample.square_pad(np.ones((1, 4, 7)), value=-1)
    assert squared.shape == (1, 7, 7)
    np.testing.assert_array_equal(squared[0, :, 0], [-1, 1, 1, 1, 1, -1, -1])


def test_a_crop_starts_at_the_floored_centre() -> None:
    row = np.arange(9.0)
    np.testing.assert_array_equal(resample.centre_fit(row, (4,)), [2, 3, 4, 5])
    np.testing.assert_array_equal(resample.centre_fit(row[:3], (6,)), [0, 0, 1, 2, 0, 0])


def test_a_volume_needs_three_axes() -> None:
    with pytest.raises(InputError):
        resample.brain(np.zeros((4, 4)), MRI)
    with pytest.raises(InputError):
        resample.chest(np.zeros((4, 4, 4)), CHEST, mode="stretch")


def test_a_specification_survives_json() -> None:
    for spec in PREPROCESSINGS.values():
        again = Preprocessing.from_dict(json.loads(json.dumps(spec.to_dict())))
        assert again == spec
        assert again.digest == spec.digest


def test_the_digest_tells_two_specifications_of_one_name_apart() -> None:
    assert len({spec.digest for spec in PREPROCESSINGS.values()}) == len(PREPROCESSINGS)
    assert dataclasses.replace(HEAD, num_slices=72).digest != HEAD.digest


def test_the_digests_of_published_specifications_never_change() -> None:
    assert HEAD.digest == "93fb127552b9e6a3300475d104ec7f1cfff11525d0fb3ceb586baace996e6107"


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_slices", 0), ("crop", 300), ("windows", ()), ("windows", ("lung",)), ("std", 0.0), ("percentiles", (1, 2))],
)
def test_a_specification_that_cannot_be_meant_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(HEAD, **{field: value})


def test_unknown_and_missing_keys_are_named() -> None:
    row = HEAD.to_dict()
    with pytest.raises(ValueError, match="unknown keys: colour"):
        Preprocessing.from_dict({**row, "colour": 1})
    del row["size"]
    with pytest.raises(ValueError, match="lacks keys: size"):
        Preprocessing.from_dict(row)
