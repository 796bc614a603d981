"""The point of the Findings SR, from a voxel of the prepared scan to a pixel of a source frame."""

import numpy as np
import pytest

from hlip_core.assessment import Location
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.volume import prepare
from plugin.results.findings_report import findings_report
from reports import ICH, items, location, prepared, report, score, source
from series import AXIAL, CORONAL, SAGITTAL, blocks, enhanced, series

SPEC = PREPROCESSINGS["head-ct/1"]


def points(datasets):
    """(instance, frame, column, row) of the SCOORD for the brightest voxel of each prepared slice."""
    scan = prepare(datasets, SPEC)
    for z, image in enumerate(scan.voxels):
        bright = np.argwhere(image == image.max()).mean(axis=0).round().astype(int)
        y, x = (int(index) for index in bright)
        at = Location(scan.series_instance_uid, z, y, x, scan.source_of(z, y, x))
        fate = prepared(series_instance_uid=scan.series_instance_uid, instances=scan.instances)
        result = findings_report(report(score(ICH, at=at), series=(fate,)))
        (point,), (image_item,) = items(result, "SCOORD"), items(result, "IMAGE")
        reference = image_item.ReferencedSOPSequence[0]
        column, row = point.GraphicData
        yield reference.ReferencedSOPInstanceUID, reference.get("ReferencedFrameNumber"), column, row


@pytest.mark.parametrize("directions", [AXIAL, CORONAL, SAGITTAL], ids=["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("as_frames", [False, True], ids=["single frames", "multi-frame"])
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "reversed"])
def test_a_bright_block_is_pointed_at_within_one_prepared_pixel(directions, as_frames, backwards):
    values, centres = blocks((12, 60, 80))
    datasets = series(values, directions=directions, spacing=(5.0, 2.5, 2.5))
    where = {dataset.SOPInstanceUID: centre for dataset, centre in zip(datasets, centres, strict=True)}
    ordered = datasets[::-1] if backwards else datasets
    centre_of = {(uid, None): centre for uid, centre in where.items()}
    if as_frames:
        image = enhanced(ordered)
        centre_of = {
            (image.SOPInstanceUID, number): where[dataset.SOPInstanceUID]
            for number, dataset in enumerate(ordered, start=1)
        }
        ordered = [image]
    prepared_pixel = max(values.shape[1:]) / SPEC.size
    for instance, frame, column, row in points(ordered):
        expected_row, expected_column = centre_of[instance, frame]
        assert abs(row - 0.5 - expected_row) <= prepared_pixel
        assert abs(column - 0.5 - expected_column) <= prepared_pixel


def test_the_corner_of_the_image_is_the_origin():
    result = findings_report(report(score(ICH, at=location(row=-0.5, column=-0.5)), source=source()))
    assert list(items(result, "SCOORD")[0].GraphicData) == [0.0, 0.0]
