"""Is it a head? Asked of volumes whose headers do not say."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import series
from hlip_core.content import axial, looks_like_a_head, skull_planes
from hlip_core.errors import Refused
from hlip_core.preprocessing import BRAIN_MRI, HEAD_CT
from hlip_core.reasons import Reason
from hlip_core.volume import open_series, prepare

SMALL = dataclasses.replace(HEAD_CT, num_slices=12, size=96, crop=84)
HEAD_SPACING, CHEST_SPACING = (10.0, 2.5, 2.5), (10.0, 400 / 96, 400 / 96)


def disc(radius: float, hu: float, *, core: float = 0.0, core_hu: float = 0.0) -> np.ndarray:
    """Twelve slices of a disc (mm) in air, with a core, on 96 x 96 pixels of 2.5 mm."""
    y, x = (np.arange(96) - 47.5)[:, None] * 2.5, (np.arange(96) - 47.5)[None] * 2.5
    image = np.where(np.hypot(x, y) < radius, hu, -1000.0)
    image[np.hypot(x, y) < core] = core_hu
    return np.repeat(image[None], 12, 0)


def test_a_head_is_a_head() -> None:
    assert looks_like_a_head(series.head(), HEAD_SPACING, "axial")


@pytest.mark.parametrize(("orientation", "turn"), [("coronal", (1, 0, 2)), ("sagittal", (2, 0, 1))])
def test_a_head_is_a_head_in_every_orientation(orientation: str, turn: tuple[int, int, int]) -> None:
    turned = series.head().transpose(turn)
    spacing = tuple(HEAD_SPACING[axis] for axis in turn)
    assert looks_like_a_head(turned, (spacing[0], spacing[1], spacing[2]), orientation)
    planes, back = axial(turned, (spacing[0], spacing[1], spacing[2]), orientation)
    np.testing.assert_array_equal(planes, series.head())
    assert back == HEAD_SPACING


def test_a_head_without_a_piece_of_skull_is_a_head() -> None:
    open_skull = series.head()
    piece = open_skull[:, 30:60, 70:]
    piece[piece > 500] = 30
    assert looks_like_a_head(open_skull, HEAD_SPACING, "axial")


def test_a_head_full_of_blood_is_a_head() -> None:
    bleeding = series.head()
    bleeding[(bleeding > 30) & (bleeding < 40)] = 75
    assert looks_like_a_head(bleeding, HEAD_SPACING, "axial")


def test_a_head_and_neck_down_to_the_shoulders_is_a_head() -> None:
    shoulders = disc(115, 40, core=20, core_hu=500)
    both = np.concatenate([np.repeat(shoulders, 3, 0), series.head()])
    assert looks_like_a_head(both, HEAD_SPACING, "axial")


@pytest.mark.parametrize(
    ("volume", "spacing"),
    [
        (series.chest(), CHEST_SPACING),
        (disc(90, 0), HEAD_SPACING),  # a cylinder of water
        (disc(90, 40, core=20, core_hu=900), HEAD_SPACING),  # a thigh
        (disc(60, 300, core=50, core_hu=250), HEAD_SPACING),  # a knee: bone through and through
        (disc(90, 900, core=75, core_hu=-1000), HEAD_SPACING),  # an empty plastic skull
        (disc(30, 900, core=22, core_hu=35), HEAD_SPACING),  # a ring too small for a skull
        (np.full((12, 96, 96), -1000.0), HEAD_SPACING),  # air
        (np.full((12, 96, 96), 40.0), HEAD_SPACING),  # no air at all
    ],
    ids=["chest", "water", "thigh", "knee", "empty skull", "small ring", "air", "full"],
)
def test_other_volumes_are_no_heads(volume: np.ndarray, spacing: tuple[float, float, float]) -> None:
    assert not looks_like_a_head(volume, spacing, "axial")


def test_planes_without_a_body_do_not_count() -> None:
    assert skull_planes(np.concatenate([np.full((5, 96, 96), -1000.0), series.head()]), (2.5, 2.5))[0] == 12


def test_a_chest_without_a_named_body_part_is_not_a_head() -> None:
    datasets = series.series(series.chest(), spacing=CHEST_SPACING, BodyPartExamined="")
    with pytest.raises(Refused) as caught:
        prepare(datasets, SMALL)
    assert caught.value.reason == Reason.NOT_A_HEAD


def test_a_head_without_a_named_body_part_is_prepared() -> None:
    for body_part in ("", "WHOLEBODY", "TRAUMA"):
        assert prepare(series.series(series.head(), BodyPartExamined=body_part), SMALL).notes == ()


def test_a_named_head_that_does_not_look_like_one_is_used_and_noted() -> None:
    scan = prepare(series.series(disc(90, 0)), SMALL)
    assert scan.notes == ("the content does not look like a head; its BodyPartExamined says so",)


def test_an_mr_is_not_judged() -> None:
    stored = np.random.default_rng(1).integers(0, 4000, (12, 64, 64))
    assert prepare(series.series(stored, sop_class_uid=series.MR, BodyPartExamined=""), BRAIN_MRI).notes == ()


def test_real_slices_are_judged_rightly(shared: Path) -> None:
    spec = dataclasses.replace(HEAD_CT, num_slices=1, min_slices=1)
    assert prepare(open_series([shared / "data/ct/wg04_ct2_head_toshiba_7encodings/CT2_UNC"]), spec).notes == ()
    with pytest.raises(Refused) as caught:
        prepare(open_series([shared / "data/ct/wg04_ct1_chest_not_head/CT1_J2KR"]), spec)
    assert caught.value.reason == Reason.NOT_A_HEAD
