"""All objects of the matrix of studies: valid, equal after a round trip, and taken by a real archive."""

import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest
from dicomweb_client import DICOMwebClient
from highdicom.sr import srread
from pydicom import dcmread

import plugin.results
from peers import Orthanc, dciodvfy_errors, needs, orthanc
from plugin.results import build_results, rejection_note, to_bytes
from reports import CREATED, assert_valid
from studies import FULL, QUICK, Study, encoded

MATRIX = [pytest.param(case, id=name) for name, case in (QUICK | FULL).items()]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("archive")) as started:
        yield started


def objects(made: Study) -> list:
    """All results of a study, and the note that withdraws them."""
    results = build_results(made.report)
    withdrawn = [(str(r.SOPClassUID), str(r.SOPInstanceUID), str(r.SeriesInstanceUID)) for r in results]
    note = rejection_note(made.report.source, withdrawn, created=CREATED, installation_uid="2.25.4000")
    return [*results, note]


def stored(archive: Orthanc, made: Study) -> set[str]:
    found = archive.find("Instance", StudyInstanceUID=str(made.report.source.StudyInstanceUID))
    return {instance["MainDicomTags"]["SOPInstanceUID"] for instance in found}


@pytest.mark.parametrize("case", MATRIX)
def test_every_object_of_the_matrix_is_valid_and_comes_back_equal(case: Callable[[], Study], tmp_path: Path) -> None:
    made = case()
    image = tmp_path / "source.dcm"
    image.write_bytes(encoded(made.images[0]))
    for result in objects(made):
        assert_valid(result, tmp_path, source_errors=dciodvfy_errors(image))
        data = to_bytes(result)
        assert dcmread(BytesIO(data)) == result
        if result.Modality == "SR":
            assert to_bytes(srread(BytesIO(data))) == data


@pytest.mark.parametrize("case", MATRIX)
def test_the_archive_takes_every_object_by_stow_rs(case: Callable[[], Study], archive: Orthanc) -> None:
    made = case()
    DICOMwebClient(archive.dicomweb).store_instances(objects(made))
    assert stored(archive, made) == {result.SOPInstanceUID for result in objects(made)}


@pytest.mark.parametrize("case", MATRIX)
def test_the_archive_takes_every_object_by_c_store(case: Callable[[], Study], archive: Orthanc, tmp_path: Path) -> None:
    made = case()
    for number, result in enumerate(objects(made)):
        (tmp_path / f"{number}.dcm").write_bytes(to_bytes(result))
    command = [needs("storescu", "dcmtk"), "-R", "-aec", archive.ae_title, "+sd", "127.0.0.1", str(archive.dicom_port)]
    subprocess.run([*command, str(tmp_path)], check=True, capture_output=True)
    assert stored(archive, made) == {result.SOPInstanceUID for result in objects(made)}


def test_the_surface_is_what_it_says() -> None:
    assert plugin.results.__all__ == [
        "KINDS",
        "REJECTIONS",
        "SUPERSEDED_KINDS",
        "KeySlice",
        "Kind",
        "RelevanceMap",
        "SeriesFate",
        "SourceFrame",
        "StudyReport",
        "build_results",
        "creation_time",
        "html",
        "key_findings",
        "key_slice",
        "page_of",
        "rejection_note",
        "result_sentence",
        "result_uid",
        "terminal",
        "to_bytes",
    ]
    assert all(hasattr(plugin.results, name) for name in plugin.results.__all__)
