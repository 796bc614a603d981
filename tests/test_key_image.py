"""Key images: valid RGB Secondary Captures of the right slice, with banner, finding and mark."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from pydicom import dcmread

from peers import dciodvfy_errors
from plugin.results import KeySlice, build_results, key_findings, key_slice, to_bytes
from plugin.results.key_image import RED, YELLOW, key_images
from plugin.results.orientation import edges
from reports import (
    FRACTURE,
    ICH,
    SHIFT,
    Card,
    assert_valid,
    location,
    report,
    report_of,
    score,
    source,
)
from series import MR, head, series


def flat(label: str = ICH.label, shape: tuple[int, int] = (512, 512), **changes) -> KeySlice:
    return KeySlice(label=label, grey=np.full(shape, 90, np.uint8), **changes)


def pixels(result) -> np.ndarray:
    return dcmread(BytesIO(to_bytes(result))).pixel_array


def places(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return np.argwhere((image == colour).all(axis=2))


@pytest.mark.parametrize("shape", [(512, 512), (511, 513), (64, 96), (768, 512)])
def test_a_key_image_is_a_valid_secondary_capture(tmp_path, shape):
    at = location(row=20, column=30)
    (image,) = key_images(report(score(ICH, at=at), key_slices=(flat(shape=shape),)))
    assert_valid(image, tmp_path)
    drawn = pixels(image)
    assert drawn.shape == (image.Rows, image.Columns, 3)
    assert image.Columns >= 512
    assert image.SeriesNumber == 9103


def test_the_banner_is_above_the_slice_and_hides_nothing_of_it():
    (image,) = key_images(report(score(ICH), key_slices=(flat(),)))
    drawn = pixels(image)
    banner = places(drawn, RED)[:, 0]
    slice_rows = np.flatnonzero((drawn == 90).all(axis=2).sum(axis=1) > 400)
    assert banner.max() < slice_rows.min()
    assert slice_rows.max() - slice_rows.min() == 511


def test_an_untrained_model_has_a_second_banner():
    def banner_rows(**changes) -> int:
        (image,) = key_images(report(score(ICH), key_slices=(flat(),), **changes))
        return len(np.unique(places(pixels(image), RED)[:, 0]))

    assert banner_rows(bundle=Card(status="untrained")) > banner_rows()


def test_the_ring_is_round_the_place_where_the_model_looked():
    (image,) = key_images(report(score(ICH, at=location(row=100, column=300)), key_slices=(flat(),)))
    drawn = pixels(image)
    top = places(drawn, (90, 90, 90))[:, 0].min()
    centre = places(drawn, YELLOW).mean(axis=0) - (top, 0)
    assert np.abs(centre - (100, 300)).max() <= 1


@pytest.mark.parametrize("spacing", [(2.0, 1.0), (0.5, 0.75), (0.488281, 0.4883)])
def test_a_slice_is_as_long_as_wide_in_mm_and_the_ring_stays_at_its_place(spacing, tmp_path):
    row, column, orientation = 100, 300, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    square = np.array([[50, 60], [50, 90], [80, 90], [80, 60]], float)
    key = flat(shape=(300, 400), spacing=spacing, orientation=orientation, contours=(square,))
    (image,) = key_images(report(score(ICH, at=location(row=row, column=column)), key_slices=(key,)))
    assert_valid(image, tmp_path)
    drawn = pixels(image)
    picture = places(drawn, (90, 90, 90))
    corner, size = picture.min(axis=0), np.ptp(picture, axis=0) + 1
    length, width = 300 * spacing[0], 400 * spacing[1]
    assert size[0] / size[1] == pytest.approx(length / width, rel=0.01)
    marks = places(drawn, YELLOW) - corner
    scale = size / (300, 400)
    ring = marks[marks[:, 1] > 150 * scale[1]]
    outline = marks[marks[:, 1] <= 150 * scale[1]]
    assert np.abs((ring.min(axis=0) + ring.max(axis=0)) / 2 - (np.array([row, column]) + 0.5) * scale).max() <= 1
    assert np.abs(outline.min(axis=0) - 0.5 - np.array([50, 60]) * scale - scale / 2).max() <= 2


def test_a_spacing_that_cannot_be_meant_stretches_nothing():
    (image,) = key_images(report(score(ICH), key_slices=(flat(spacing=(20.0, 0.01)),)))
    assert image.Columns == 512 and image.Rows < 700


ORIENTATIONS = {  # ImageOrientationPatient, PatientOrientation, and the letters left and on top
    "supine": ((1, 0, 0, 0, 1, 0), "L\\P", ("R", "A")),
    "prone": ((-1, 0, 0, 0, -1, 0), "R\\A", ("L", "P")),
    "feet first": ((-1, 0, 0, 0, 1, 0), "R\\P", ("L", "A")),
    "coronal": ((1, 0, 0, 0, 0, -1), "L\\F", ("R", "H")),
    "sagittal": ((0, 1, 0, 0, 0, -1), "P\\F", ("A", "H")),
    "tilted a little": ((1, 0, 0, 0, 0.98, -0.199), "L\\P", ("R", "A")),
    "oblique": ((0.8, 0.6, 0, 0, 0, -1), "LP\\F", ("RA", "H")),
}


@pytest.mark.parametrize("case", ORIENTATIONS)
def test_the_orientation_is_that_of_the_source(case, tmp_path):
    orientation, expected, (left, top) = ORIENTATIONS[case]
    image = series(head(1), directions=(orientation[:3], orientation[3:]))[0]
    at = location(sop_instance_uid=image.SOPInstanceUID)
    (made,) = key_images(report(score(ICH, at=at), key_slices=(key_slice(image, score(ICH, at=at)),)))
    assert "\\".join(made.PatientOrientation) == expected
    beyond = edges(orientation)
    assert (beyond["left"], beyond["top"]) == (left, top)
    assert_valid(made, tmp_path)


def test_the_letters_stand_beside_the_slice_and_hide_nothing_of_it():
    orientation = (0.8, 0.6, 0.0, 0.0, 0.0, -1.0)
    (image,) = key_images(report(score(ICH), key_slices=(flat(orientation=orientation),)))
    drawn = pixels(image)
    slice_pixels = places(drawn, (90, 90, 90))
    (top, left), (bottom, right) = slice_pixels.min(axis=0), slice_pixels.max(axis=0)
    assert (bottom - top, right - left) == (511, 511)
    assert not (drawn[top : bottom + 1, left : right + 1] == 255).all(axis=2).any()
    middle = slice(top + 200, bottom - 200)
    for margin in (drawn[middle, :left], drawn[middle, right + 1 :]):
        inked = np.flatnonzero((margin > 128).all(axis=2).any(axis=0))
        assert inked.size and inked.min() > 0 and inked.max() < margin.shape[1] - 1
    centre = slice(left + 200, right - 200)
    for margin in (drawn[top - 34 : top, centre], drawn[bottom + 1 : bottom + 35, centre]):
        assert (margin > 128).all(axis=2).any()


def test_where_the_orientation_is_not_known_there_is_none(tmp_path):
    (image,) = key_images(report(score(ICH), key_slices=(flat(),)))
    assert image.PatientOrientation == ""
    assert image.Columns == 512
    assert_valid(image, tmp_path)


def test_the_padding_of_an_mr_does_not_make_its_window_wide():
    stored = np.full((1, 64, 64), 0.0)
    stored[0, :, 16:] = np.linspace(300, 400, 64)[:, None]
    (image,) = series(stored, sop_class_uid=MR, PixelPaddingValue=0)
    at = location(sop_instance_uid=image.SOPInstanceUID)
    grey = key_slice(image, score(ICH, at=at)).grey
    assert (grey[:, :16] == 0).all()
    assert grey[0, 16:].max() < 5 and grey[-1, 16:].min() > 250
    assert 120 < grey[32, 32] < 136


def test_a_contour_is_drawn_where_it_lies():
    square = np.array([[50, 60], [50, 90], [80, 90], [80, 60]], float)
    at = location(row=300, column=300)
    with_contour, without = (
        pixels(key_images(report(score(ICH, at=at), key_slices=(flat(contours=contours),)))[0])
        for contours in ((square,), ())
    )
    top = places(without, (90, 90, 90))[:, 0].min()
    changed = np.argwhere((with_contour != without).any(axis=2)) - (top, 0)
    assert np.abs(changed.min(axis=0) - (50, 60)).max() <= 2
    assert np.abs(changed.max(axis=0) - (80, 90)).max() <= 2


def test_the_key_image_refers_to_its_source_frame():
    at = location(sop_instance_uid="2.25.5", frame_number=3)
    (image,) = key_images(report(score(ICH, at=at), key_slices=(flat(),)))
    reference = image.SourceImageSequence[0]
    assert (reference.ReferencedSOPInstanceUID, reference.ReferencedFrameNumber) == ("2.25.5", 3)
    assert "Intracranial hemorrhage: AI score 0.31" in image.ImageComments


def test_there_are_at_most_three_in_one_series_and_the_highest_scores_are_chosen():
    scores = (score(ICH, value=0.3), score(SHIFT, value=0.5), score(FRACTURE, value=0.4), score(ICH, value=0.26))
    assert [s.score for s in key_findings(report(*scores))] == [0.5, 0.4, 0.3]
    slices = tuple(flat(finding.label) for finding in (SHIFT, FRACTURE, ICH, ICH))
    images = key_images(report(*scores, key_slices=slices))
    assert [image.InstanceNumber for image in images] == [1, 2, 3]
    assert len({image.SeriesInstanceUID for image in images}) == 1
    assert len({image.SOPInstanceUID for image in images}) == 3


def test_a_key_slice_of_a_finding_that_is_not_located_is_refused():
    with pytest.raises(ValueError, match="not located"):
        report(score(ICH, value=0.0), key_slices=(flat(),))
    with pytest.raises(ValueError, match="not located"):
        key_slice(source(), replace(score(ICH), location=None))


def test_a_lossy_source_makes_a_lossy_key_image(tmp_path):
    image = series(head(1), LossyImageCompression="01", LossyImageCompressionRatio="10.5")[0]
    at = location(sop_instance_uid=image.SOPInstanceUID)
    key = key_slice(image, score(ICH, at=at))
    (made,) = key_images(report(score(ICH, at=at), key_slices=(key,)))
    assert (made.LossyImageCompression, made.LossyImageCompressionRatio) == ("01", "10.5")
    assert_valid(made, tmp_path)


def test_the_real_head_is_shown_in_the_window_of_the_finding(shared, tmp_path):
    files = sorted((shared / "data/ct/ge_hispeed_human_tilt_vargap").iterdir())
    made = report_of(files, score(ICH), score(FRACTURE))
    middle = dcmread(files[14])
    slices = tuple(key_slice(middle, each) for each in key_findings(made))
    brain, bone = (key.grey for key in slices)
    assert brain.shape == (512, 512)
    assert (brain == 255).sum() > 5 * (bone == 255).sum()
    for image in key_images(replace(made, key_slices=slices)):
        assert_valid(image, tmp_path, source_errors=dciodvfy_errors(files[14]))


def test_the_same_report_draws_the_same_bytes():
    first, second = (
        [to_bytes(result) for result in build_results(report(score(ICH), key_slices=(flat(),)))] for _ in range(2)
    )
    assert len(first) == 3
    assert first == second
