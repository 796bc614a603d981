"""What is made again is the same to the byte, and what is made anew has UIDs of its own."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from pydicom.uid import generate_uid

from peers import dcmsend
from plugin.analysis import created_before
from plugin.bootstrap import Plugin
from plugin.folder import analyse_folder
from plugin.results import build_results, to_bytes
from reports import CREATED, report, score
from road import head_ct, road, settings, tiny_bundle

STUDY = generate_uid(entropy_srcs=["a"])
POSITIVE = {"intracranial_hemorrhage": -1.0}


def served(folder: Path) -> dict[str, bytes]:
    """The objects of the study's first revision, by name, from a server that is sent the study."""
    with road(folder, thresholds=POSITIVE) as plugin:
        dcmsend(plugin.port, folder / "a-2")
        plugin.settled(instances=12)
        plugin.plugin.database.close()
        place = plugin.plugin.spool.results_folder(STUDY, 1)
        return {path.name: path.read_bytes() for path in place.iterdir()}


def test_a_server_whose_index_is_lost_makes_the_same_bytes_again(tmp_path: Path) -> None:
    head_ct(tmp_path)
    first = served(tmp_path)
    for path in (tmp_path / "data").glob("index*"):
        path.unlink()
    assert served(tmp_path) == first
    assert len(first) == 3


def test_only_objects_of_the_same_uids_say_when_they_were_made(tmp_path: Path) -> None:
    made = report(score())
    assert created_before(made, tmp_path / "nowhere") is None
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    for number, result in enumerate(build_results(made)):
        (tmp_path / f"{number}.dcm").write_bytes(to_bytes(result))
    assert created_before(replace(made, created=CREATED + timedelta(days=1)), tmp_path) == CREATED
    assert created_before(replace(made, revision=2), tmp_path) is None
    assert created_before(replace(made, installation_uid="2.25.4001"), tmp_path) is None


def test_two_runs_of_analyze_make_objects_of_their_own(tmp_path: Path) -> None:
    paths, plugin = head_ct(tmp_path), Plugin(settings(tmp_path, thresholds=POSITIVE))
    made: list[str] = []
    for out in ("one", "one", "two"):
        (outcome,) = analyse_folder(plugin, paths, tmp_path / out, device="cpu", progress=lambda *_: None)
        assert outcome.analysis is not None
        made += [file.sop_instance_uid for file in outcome.analysis.files]
    assert len(made) == len(set(made)) == 9


def test_results_that_go_where_the_images_lie_leave_the_images_there(tmp_path: Path) -> None:
    plugin = Plugin(settings(tmp_path, model={"bundle": str(tiny_bundle())}))
    place = tmp_path / "archive" / STUDY
    place.parent.mkdir()
    head_ct(tmp_path)[0].parent.rename(place)
    (place / "letter.txt").write_text("Dear colleague")
    before = {path.name for path in place.iterdir()}
    for _ in range(2):
        (outcome,) = analyse_folder(plugin, [place.parent], place.parent, device="cpu", progress=lambda *_: None)
        assert outcome.analysis is not None and outcome.folder == place
        written = {"findings.json", *(file.name for file in outcome.analysis.files)}
        assert {path.name for path in place.iterdir()} == before | written


def test_results_do_not_outlive_a_run_that_has_nothing_to_say(tmp_path: Path) -> None:
    plugin = Plugin(settings(tmp_path, model={"bundle": str(tiny_bundle())}))
    paths, out = head_ct(tmp_path), tmp_path / "out"
    (first,) = analyse_folder(plugin, paths, out, device="cpu", progress=lambda *_: None)
    assert (first.folder / "findings.json").is_file()
    (first.folder / "letter.txt").write_text("Dear colleague")
    paths += head_ct(tmp_path, number=3, PatientID="P2")
    (second,) = analyse_folder(plugin, paths, out, device="cpu", progress=lambda *_: None)
    assert (second.folder, second.reason) == (first.folder, "inconsistent")
    assert [path.name for path in second.folder.iterdir()] == ["letter.txt"]
