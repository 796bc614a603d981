"""Relevance on the source: it lies where the patches lie, for every orientation, and is outlined there."""

import dataclasses

import numpy as np
import pytest

from hlip_core.overlay import HIGH, outlines, relevance_on_source
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.volume import prepare
from series import AXIAL, CORONAL, SAGITTAL, chest, enhanced, head, series

SPEC = PREPROCESSINGS["head-ct/1"]
GRID = (6, 14, 14)


def one_patch(*cell: int) -> np.ndarray:
    relevance = np.zeros(GRID, np.float32)
    relevance[cell] = 1
    return relevance


def centre(*cell: int) -> tuple[float, float, float]:
    """The prepared index at the centre of a patch."""
    margin = (SPEC.size - SPEC.crop) // 2
    z, y, x = ((i + 0.5) * side / count - 0.5 for i, side, count in zip(cell, (48, 224, 224), GRID, strict=True))
    return z, y + margin, x + margin


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL], ids=["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("as_frames", [False, True], ids=["single frames", "multi-frame"])
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "reversed"])
def test_the_height_of_relevance_lies_where_the_patch_does(directions, as_frames, backwards):
    cell = (3, 6, 8)
    datasets = series(head(96), directions=directions, spacing=(2.5, 2.5, 2.5))
    ordered = datasets[::-1] if backwards else datasets
    scan = prepare([enhanced(ordered)] if as_frames else ordered, SPEC)
    frames = list(range(len(scan.source.frames)))
    values = relevance_on_source(one_patch(*cell), scan, SPEC, frames)
    assert values.shape == (96, 96, 96) and values.dtype == np.float32
    at = scan.source_of(*centre(*cell))
    places = [(scan.instances[instance][1], number) for instance, number in scan.source.frames]
    frame = places.index((at.sop_instance_uid, at.frame_number))
    weighted = [
        float((np.arange(side) * values.sum(axis=tuple({0, 1, 2} - {axis}))).sum() / values.sum())
        for axis, side in enumerate(values.shape)
    ]
    prepared_slice = 96 / SPEC.num_slices
    assert np.abs(np.subtract(weighted, (frame, at.row, at.column))).max() <= prepared_slice
    assert values[frame, round(at.row), round(at.column)] > 0.7


@pytest.mark.parametrize("num_slices", [12, 48, 200])
def test_every_slice_of_the_series_has_relevance_sampled_or_not(num_slices):
    scan = prepare(series(head(num_slices), spacing=(150 / num_slices, 2.5, 2.5)), SPEC)
    even = relevance_on_source(np.ones(GRID, np.float32), scan, SPEC, range(num_slices))
    assert len(even) == num_slices and even.max() == even[:, 48, 48].min() == 1


@pytest.mark.parametrize("is_backwards", [False, True])
@pytest.mark.parametrize(("num_slices", "first"), [(20, 46), (112, 0), (131, -9)])
def test_padding_and_slices_that_were_cut_off_have_no_part_in_relevance(num_slices, first, is_backwards):
    spec = dataclasses.replace(PREPROCESSINGS["chest-ct/1"], size=64, crop=64, spacing=(3.0, 6.25, 6.25))
    datasets = series(chest(num_slices, 64), spacing=(3.0, 6.25, 6.25), BodyPartExamined="CHEST")
    scan = prepare(datasets[::-1] if is_backwards else datasets, spec)
    relevance = np.broadcast_to(np.arange(1, 113, dtype=np.float32)[:, None, None], (112, 8, 8))
    values = relevance_on_source(relevance, scan, spec, range(num_slices))[:, 32, 32]
    expected = np.arange(first, first + num_slices) + 1.0
    expected[(expected < 1) | (expected > 112)] = 0
    assert np.allclose(values, expected)


def test_what_the_crop_took_off_has_no_relevance():
    scan = prepare(series(head(12)), SPEC)
    values = relevance_on_source(np.ones(GRID, np.float32), scan, SPEC, [6])
    y, x = np.nonzero(values[0] == 0)
    assert len(y) and {0, 95} <= set(y.tolist()) | set(x.tolist())


def test_an_outline_runs_along_the_edges_of_the_region():
    mask = np.zeros((6, 8), bool)
    mask[2:4, 3:6] = True
    (line,) = outlines(mask)
    assert line.min(axis=0).tolist() == [1.5, 2.5] and line.max(axis=0).tolist() == [3.5, 5.5]
    assert len(line) == 2 * (2 + 3)
    assert {tuple(np.abs(step)) for step in np.diff(line, axis=0)} == {(0.0, 1.0), (1.0, 0.0)}


def test_each_region_and_each_hole_has_an_outline_and_nothing_has_none():
    mask = np.zeros((9, 9), bool)
    mask[0:5, 0:5] = True
    mask[2, 2] = False
    mask[7:, 7:] = True
    assert sorted(len(line) for line in outlines(mask)) == [4, 8, 20]
    assert outlines(np.zeros((4, 4), bool)) == ()
    assert 0 < HIGH < 1
