"""Relevance as images: on the pixels of the source, with true references, the same bytes each time."""

from collections.abc import Sequence

import numpy as np
import pytest
from pydicom import Dataset

from plugin.results import build_results, to_bytes
from series import CORONAL
from studies import head_series, multi_frame, overlaid


def relevance_objects(images: Sequence[Dataset]) -> dict[str, Dataset]:
    """The Parametric Map and the Segmentation, by short names."""
    names = {9104: "PM", 9105: "SEG"}
    results = build_results(overlaid(images).report)
    return {names[result.SeriesNumber]: result for result in results if result.SeriesNumber in names}


def references(result: Dataset) -> list[tuple[str, int | None]]:
    """The source frame of each frame."""
    sources = (g.DerivationImageSequence[0].SourceImageSequence[0] for g in result.PerFrameFunctionalGroupsSequence)
    numbered = ((source.ReferencedSOPInstanceUID, source.get("ReferencedFrameNumber")) for source in sources)
    return [(uid, None if number is None else int(number)) for uid, number in numbered]


def test_each_plane_of_the_map_lies_on_its_source_image() -> None:
    images = head_series(24)
    result = relevance_objects(images)["PM"]
    assert {uid for uid, _ in references(result)} == {image.SOPInstanceUID for image in images}
    by_uid = {image.SOPInstanceUID: image for image in images}
    for group, (uid, _) in zip(result.PerFrameFunctionalGroupsSequence, references(result), strict=True):
        position = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(position, by_uid[uid].ImagePositionPatient)
    values = np.frombuffer(result.FloatPixelData, "<f4")
    assert (values.min(), values.max(), values.size) == (0.0, 1.0, 24 * 96 * 96)


def test_frames_of_a_multi_frame_are_named_by_number() -> None:
    (image,) = multi_frame()
    made = relevance_objects([image])
    assert sorted(references(made["PM"])) == [(image.SOPInstanceUID, number) for number in range(1, 13)]
    assert set(references(made["SEG"])) < set(references(made["PM"]))
    (series,) = made["SEG"].ReferencedSeriesSequence
    assert [i.ReferencedSOPInstanceUID for i in series.ReferencedInstanceSequence] == [image.SOPInstanceUID]


def test_the_outline_says_what_it_is_and_who_made_it() -> None:
    result = relevance_objects(head_series(24, directions=CORONAL))["SEG"]
    (segment,) = result.SegmentSequence
    assert segment.SegmentLabel == "Where the model looked: Intracranial hemorrhage"
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert "weights sha256" in segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
    assert "NOT FOR DIAGNOSIS" in result.SeriesDescription
    assert result.PatientName == "Phantom"


def test_the_same_report_gives_the_same_bytes() -> None:
    made = overlaid(head_series(24)).report
    assert [*map(to_bytes, build_results(made))] == [*map(to_bytes, build_results(made))]


@pytest.mark.parametrize(
    "uneven", [{"step": (0.0, 1.5, 5.0)}, {"offsets": [i + 0.2 * (i % 2) for i in range(24)]}], ids=["tilted", "gaps"]
)
def test_a_tilted_or_uneven_series_has_an_outline_and_no_map(uneven: dict) -> None:
    assert set(relevance_objects(head_series(24, **uneven))) == {"SEG"}
