"""What a viewer that no one here wrote makes of our objects: OHIF in front of Orthanc, asserted from the page.

Screenshots and the text of each page are kept in HLIP_SCREENSHOTS, or in pytest's temporary folder.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.uid import generate_uid

from plugin.results import StudyReport, build_results, to_bytes
from reports import FRACTURE, ICH, score
from studies import FULL, QUICK, Study, encoded, overlaid, study
from viewer import Screen, Viewer, running

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    with running(tmp_path_factory.mktemp("viewer")) as started:
        yield started


CASES = [
    *(pytest.param(case, id=name) for name, case in QUICK.items()),
    *(pytest.param(case, id=name, marks=pytest.mark.full) for name, case in FULL.items()),
]


def look_at(viewer: Viewer, name: str, made: Study) -> None:
    """Open every object of the study: nothing crashes, slices are right, rows jump, the summary can be read."""
    results = build_results(made.report)
    for content in [*map(encoded, made.images), *map(to_bytes, results)]:
        viewer.archive.store(content)
    with viewer.study(str(made.report.source.StudyInstanceUID)) as screen:
        screen.open_series("AI summary")
        for score_ in made.report.scores():
            screen.wait_for(score_.finding.name)
        screen.wait_for("Research software, not for diagnosis.")
        screen.shoot(f"{name} summary")
        if made.report.located:
            look_at_findings(screen, name, made.report)
        if made.report.key_slices:
            screen.open_series("AI key images")
            first = next(result for result in results if result.Modality == "OT")
            screen.wait_for_image(first.SOPInstanceUID)
            screen.shoot(f"{name} key image")
        if made.report.relevance_map is not None:
            look_at_relevance(screen, name, has_map=any(result.SeriesNumber == 9104 for result in results))
        screen.assert_whole()


def look_at_findings(screen: Screen, name: str, made: StudyReport) -> None:
    places = [each.location.source for each in made.located if each.location]
    screen.open_series("AI findings")
    screen.wait_for_image(places[0].sop_instance_uid, places[0].frame_number or 1)
    screen.wait_for("AI score")
    screen.shoot(f"{name} findings")
    screen.list_rows()
    rows = screen.rows()
    assert len(rows) == len(made.located)
    for row, each in zip(rows, made.located, strict=True):
        assert f"{each.finding.name}: AI score" in row
    for number, place in reversed(list(enumerate(places))):
        screen.click_row(number)
        screen.wait_for_image(place.sop_instance_uid, place.frame_number or 1)
    screen.shoot(f"{name} rows")


def look_at_relevance(screen: Screen, name: str, *, has_map: bool) -> None:
    """The outline asks to be opened, and then is a segment with its label; the map colours the slices."""
    screen.open_series("AI relevance outline")
    screen.wait_for("Do you want to open this Segmentation?")
    screen.page.get_by_text("Yes", exact=True).last.click(timeout=60_000)
    screen.wait_for_segment("Where the model looked: Intracranial hemorrhage")
    screen.shoot(f"{name} outline")
    if has_map:
        screen.open_series("AI relevance,")
        screen.wait_for_blue()
        screen.shoot(f"{name} relevance")


@pytest.mark.parametrize("case", CASES)
def test_every_object_of_the_matrix_opens_in_the_viewer(
    viewer: Viewer, case: Callable[[], Study], request: pytest.FixtureRequest
) -> None:
    look_at(viewer, request.node.callspec.id, case())


def test_the_real_tilted_head_opens_on_its_slice(viewer: Viewer, shared: Path) -> None:
    files = sorted((shared / "data/ct/ge_hispeed_human_tilt_vargap").iterdir())
    images = [dcmread(file) for file in files]
    look_at(viewer, "real head", study(images, score(ICH), score(FRACTURE), on=(14, 5)))


@pytest.mark.full
def test_relevance_lies_on_the_real_tilted_head(viewer: Viewer, shared: Path) -> None:
    files = sorted((shared / "data/ct/ge_hispeed_human_tilt_vargap").iterdir())
    images = [dcmread(file) for file in files]
    study_uid, series_uid = generate_uid(), generate_uid()  # the archive may hold the same study with other results
    for image in images:
        image.StudyInstanceUID, image.SeriesInstanceUID = study_uid, series_uid
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    look_at(viewer, "real head with relevance", overlaid(images))
