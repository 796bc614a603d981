"""The road of a study, from a sender's C-STORE to the result in a PACS, with real peers at both ends."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from hlip_core.files import open_series
from hlip_core.headers import lenient
from hlip_core.volume import prepare
from peers import dciodvfy_errors, dcmsend, free_port, orthanc, storescu, wait_until
from plugin.bootstrap import Plugin
from plugin.folder import analyse_folder
from plugin.pictures import with_pictures
from plugin.settings import ResultsSettings
from plugin.withdrawal import withdraw
from reports import texts
from road import head_ct, renamed, road, settings
from series import chest, head, series, write

pytestmark = pytest.mark.usefixtures("stack")

DELIVER = {"send_results_of_untrained_or_phantom_models": True, "first_retry_seconds": 0.2}
POSITIVE = {"intracranial_hemorrhage": -1.0}


def uid(*parts: str) -> str:
    return generate_uid(entropy_srcs=list(parts))


def destination(pacs) -> dict:  # type: ignore[no-untyped-def]
    return {"name": "pacs", "url": pacs.dicomweb}


def evidence(sr: Dataset) -> set[str]:
    """Every SOPInstanceUID in the evidence of an SR."""
    return {
        instance.ReferencedSOPInstanceUID
        for study in sr.CurrentRequestedProcedureEvidenceSequence
        for of_series in study.ReferencedSeriesSequence
        for instance in of_series.ReferencedSOPSequence
    }


def fates(study: dict) -> dict[int, str]:
    """By SeriesNumber: the state, or the reason of a refused series."""
    return {s["series_number"]: s["reason"] or s["state"] for s in study["series"]}


def test_a_real_head_ct_becomes_reports_in_the_pacs(shared: Path, tmp_path: Path) -> None:
    source_folder = shared / "data/ct/ge_hispeed_human_tilt_vargap"
    source = dcmread(next(iter(sorted(source_folder.iterdir()))), stop_before_pixels=True)
    with (
        orthanc(tmp_path / "pacs") as pacs,
        road(tmp_path, destinations=[destination(pacs)], delivery=DELIVER, thresholds=POSITIVE) as plugin,
    ):
        dcmsend(plugin.port, source_folder)
        status = plugin.settled(instances=28)
        assert fates(status["studies"][0]) == {2: "prepared"}
        reports = pacs.series(source.StudyInstanceUID, "SR")
        assert [r["MainDicomTags"]["SeriesNumber"] for r in reports] == ["9101", "9102"]
        (key_images,) = pacs.series(source.StudyInstanceUID, "OT")
        (picture,) = (dcmread(BytesIO(pacs.file(uid_))) for uid_ in key_images["Instances"])
        assert (picture.SeriesNumber, picture.PhotometricInterpretation) == (9103, "RGB")
        assert picture.SourceImageSequence[0].ReferencedSOPInstanceUID in {
            dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in source_folder.iterdir()
        }
        allowed = set().union(*(dciodvfy_errors(path) for path in source_folder.iterdir()))
        (tmp_path / "picture.dcm").write_bytes(pacs.file(key_images["Instances"][0]))
        assert dciodvfy_errors(tmp_path / "picture.dcm") <= allowed
        for report in reports:
            file = tmp_path / "report.dcm"
            file.write_bytes(pacs.file(report["Instances"][0]))
            sr = dcmread(file)
            assert dciodvfy_errors(file) <= allowed
            for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID",
                            "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):  # fmt: skip
                assert sr.get(keyword) == (source.get(keyword) or ""), keyword
            assert evidence(sr) == {dcmread(p, stop_before_pixels=True).SOPInstanceUID for p in source_folder.iterdir()}
            assert "UNTRAINED" in str(sr)


def test_every_series_of_a_real_study_has_its_fate(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data/ct/philips_phantom_study_21570"
    with road(tmp_path) as plugin:
        dcmsend(plugin.port, folder)
        study = plugin.settled(instances=len([p for p in folder.rglob("*") if p.is_file()]), seconds=120)["studies"][0]
        assert study["state"] == "reported"
        assert len(study["series"]) == 5
        assert all(s["state"] in ("prepared", "refused") for s in study["series"])
        assert sum(s["state"] == "prepared" for s in study["series"]) == 3
        assert sorted(s["reason"] for s in study["series"] if s["reason"]) == ["dose_page", "localizer"]
        path = plugin.plugin.spool / study["revisions"][0]["results"][0]["path"]
        summary = dcmread(path)
        for of_series in study["series"]:
            assert of_series["series_description"].encode() in path.read_bytes()
        assert summary.CompletionFlag == "COMPLETE"


def test_what_is_no_head_ct_ends_with_a_reason(shared: Path, tmp_path: Path) -> None:
    with road(tmp_path) as plugin:
        unnamed_chest = renamed(series(chest(24), BodyPartExamined="", PixelSpacing=[4.2, 4.2]), name="chest", number=1)
        paths = write(unnamed_chest, tmp_path / "chest")
        dcmsend(plugin.port, tmp_path / "chest", shared / "data/ct/wg04_ct1_chest_not_head",
                shared / "data/ct/enhanced_ct_perfusion_supplemental_palette")  # fmt: skip
        status = plugin.settled(instances=len(paths) + 2)
        assert {s["state"] for s in status["studies"]} == {"refused"}
        reasons = {s["reason"] for study in status["studies"] for s in study["series"]}
        assert reasons == {"not_a_head", "derived_map"}
        assert all(not study["revisions"] for study in status["studies"])


def test_malformed_files_are_refused_or_end_with_a_reason(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data/nasty/fuzz").rglob("*.dcm"))
    with road(tmp_path) as plugin:
        for start in range(0, len(files), 20):
            storescu(plugin.port, files[start : start + 20], "-R", "--no-halt", "+sd")
        dcmsend(plugin.port, *[p.parent for p in head_ct(tmp_path, name="after the storm")[:1]])
        wait_until(lambda: plugin.study(uid("after the storm")), "the next study to be taken")
        status = plugin.settled(instances=12, seconds=120)
        states = {study["state"] for study in status["studies"]}
        assert states <= {"reported", "refused", "ignored"}
        assert plugin.study(uid("after the storm"))["state"] == "reported"
        outside = {p for p in tmp_path.rglob("*") if p.is_file()} - {p for p in (tmp_path / "data").rglob("*")}
        assert {p.parent.name for p in outside} == {"after the storm-2"}


def test_the_same_study_again_makes_no_second_result(tmp_path: Path) -> None:
    paths = head_ct(tmp_path)
    with road(tmp_path) as plugin:
        dcmsend(plugin.port, paths[0].parent)
        first = plugin.settled(instances=12)["studies"][0]
        dcmsend(plugin.port, paths[0].parent)
        wait_until(lambda: not plugin.plugin.spool.arrivals(1), "the repeats to be dropped")
        assert plugin.settled(instances=12)["studies"][0]["revisions"] == first["revisions"]
        assert len(list(plugin.plugin.spool)) == 12


def test_a_late_series_makes_a_second_revision_that_names_the_first(tmp_path: Path) -> None:
    early, late = head_ct(tmp_path, number=2), head_ct(tmp_path, number=3)
    with road(tmp_path, thresholds=POSITIVE) as plugin:
        dcmsend(plugin.port, early[0].parent)
        first = plugin.settled(instances=12)["studies"][0]["revisions"][0]
        dcmsend(plugin.port, late[0].parent)
        old, new = plugin.settled(instances=24)["studies"][0]["revisions"]
        assert (old["number"], old["current"], new["number"], new["current"]) == (1, False, 2, True)
        assert old["results"] == first["results"]
        for result in new["results"]:
            sr = dcmread(plugin.plugin.spool / result["path"])
            if sr.Modality != "SR":
                continue
            named = {
                instance.ReferencedSOPInstanceUID
                for study in sr.PredecessorDocumentsSequence
                for of_series in study.ReferencedSeriesSequence
                for instance in of_series.ReferencedSOPSequence
            }
            assert named <= {r["sop_instance_uid"] for r in old["results"]} and named
            assert len(evidence(sr)) == 24


def test_our_own_results_coming_back_start_nothing(tmp_path: Path) -> None:
    port = free_port()
    with orthanc(tmp_path / "pacs", forward_to_port=port) as pacs:
        sections = {
            "listener": {"port": port}, "destinations": [destination(pacs)], "delivery": DELIVER,
            "thresholds": POSITIVE,
        }  # fmt: skip
        with road(tmp_path, **sections) as plugin:
            for path in head_ct(tmp_path):
                pacs.store(path.read_bytes())
            wait_until(lambda: len(pacs.series(uid("a"), "SR")) == 2, "both reports in the PACS", 60)
            wait_until(lambda: pacs.series(uid("a"), "OT"), "the key image in the PACS", 60)
            status = plugin.settled(instances=15)
            study = status["studies"][0]
            assert (study["state"], study["revision"], len(study["revisions"])) == ("reported", 1, 1)
            assert sorted(s["reason"] or s["state"] for s in study["series"]) == ["non_image"] * 3 + ["prepared"]
            stored = {
                dcmread(BytesIO(pacs.file(r["Instances"][0]))).SOPInstanceUID
                for modality in ("SR", "OT")
                for r in pacs.series(uid("a"), modality)
            }
            assert stored == {r["sop_instance_uid"] for r in study["revisions"][0]["results"]}


def test_up_to_three_findings_get_a_key_image_each(tmp_path: Path) -> None:
    labels = ("intracranial_hemorrhage", "midline_shift", "skull_fracture", "hydrocephalus")
    with road(tmp_path, thresholds=dict.fromkeys(labels, -1.0)) as plugin:
        dcmsend(plugin.port, head_ct(tmp_path)[0].parent)
        (revision,) = plugin.settled(instances=12)["studies"][0]["revisions"]
        pictures = [r for r in revision["results"] if "key images" in r["description"]]
        assert len(revision["results"]) == 5 and len({r["path"] for r in pictures}) == 3
        assert {dcmread(plugin.plugin.spool / r["path"]).InstanceNumber for r in pictures} == {1, 2, 3}


def test_what_the_settings_switch_off_is_not_made(tmp_path: Path) -> None:
    off = {"findings_report": False, "key_images": False}
    with road(tmp_path, thresholds=POSITIVE, results=off) as plugin:
        dcmsend(plugin.port, head_ct(tmp_path)[0].parent)
        (revision,) = plugin.settled(instances=12)["studies"][0]["revisions"]
        assert [Path(r["path"]).name[:6] for r in revision["results"]] == ["9101-1"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:300])])
def test_a_source_that_is_gone_or_broken_costs_the_pictures_only(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    paths = head_ct(tmp_path)
    plugin = Plugin(settings(tmp_path, thresholds=POSITIVE))
    (outcome,) = analyse_folder(plugin, paths, tmp_path / "out", device="cpu", progress=lambda *_: None)
    assert outcome.analysis is not None and len(outcome.analysis.files) == 3
    with lenient():
        datasets = open_series(paths)
        scan = prepare(datasets, plugin.bundle.preprocessing)
    places = {str(dataset.SOPInstanceUID): path for dataset, path in zip(datasets, paths, strict=True)}
    rest = {scan.series_instance_uid: scan}, plugin.bundle.preprocessing, lambda _, uid_: places[uid_]
    wanted = ResultsSettings(parametric_map=True)
    whole = with_pictures(outcome.analysis.report, *rest, wanted)
    assert len(whole.key_slices) == 1 and whole.relevance_map is not None
    for path in paths:
        damage(path)
    bare = with_pictures(outcome.analysis.report, *rest, wanted)
    assert (bare.key_slices, bare.relevance_map) == ((), None)


def test_analyze_says_the_same_as_the_served_road(tmp_path: Path) -> None:
    paths = [*head_ct(tmp_path / "in", number=2), *head_ct(tmp_path / "in", number=3, slices=20)]
    with road(tmp_path, thresholds=POSITIVE) as plugin:
        dcmsend(plugin.port, tmp_path / "in")
        served = plugin.settled(instances=len(paths))["studies"][0]["revisions"][0]
        (outcome,) = analyse_folder(
            plugin.plugin, [tmp_path / "in"], tmp_path / "out", device="cpu", progress=lambda *_: None
        )
        assert outcome.analysis is not None
        written = json.loads((outcome.folder / "findings.json").read_text())
        assert written["findings"] == served["findings"]
        assert [r["file"] for r in written["results"]] == [Path(r["path"]).name for r in served["results"]]


def test_results_and_their_withdrawal_are_dated_in_the_zone_of_the_site(tmp_path: Path) -> None:
    with road(tmp_path, thresholds=POSITIVE, results={"time_zone": "Asia/Kolkata"}) as plugin:
        dcmsend(plugin.port, head_ct(tmp_path)[0].parent)
        plugin.settled(instances=12)
        withdraw(plugin.plugin, uid("a"), reason="quality")
        made = [dcmread(path) for path in plugin.plugin.spool.results_folder(uid("a"), 1).iterdir()]
        assert [each.TimezoneOffsetFromUTC for each in made] == ["+0530"] * 4


def test_a_series_without_some_of_its_slices_is_said_to_be_analysed_in_part(tmp_path: Path) -> None:
    paths = head_ct(tmp_path / "in", slices=20)
    paths.pop(7).unlink()
    with road(tmp_path, thresholds=POSITIVE) as plugin:
        dcmsend(plugin.port, paths[0].parent)
        (study,) = plugin.settled(instances=19)["studies"]
        (revision,) = study["revisions"]
        served = [dcmread(plugin.plugin.spool.folder / result["path"]) for result in revision["results"]]
        (outcome,) = analyse_folder(plugin.plugin, paths, tmp_path / "out", device="cpu", progress=lambda *_: None)
    findings = json.loads((outcome.folder / "findings.json").read_text())
    assert findings["is_partial"] and findings["series"][0]["is_partial"]
    written = [dcmread(outcome.folder / result["file"]) for result in findings["results"]]
    for result in (*served, *written):
        assert result.Modality != "SR" or result.CompletionFlag == "PARTIAL"
    said = "PARTIAL: 1 series analysed, 1 of them in part: slices are missing or were left out, see below."
    assert said in texts(served[0]) and said in texts(written[0])


def test_results_go_to_a_storage_scp_too(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs:
        peer = {"name": "scp", "host": "127.0.0.1", "port": pacs.dicom_port, "ae_title": pacs.ae_title}
        with road(tmp_path, destinations=[peer], delivery=DELIVER, thresholds=POSITIVE) as plugin:
            dcmsend(plugin.port, head_ct(tmp_path)[0].parent)
            plugin.settled(instances=12)
            assert len(pacs.series(uid("a"), "SR")) == 2


def test_an_untrained_models_results_stay_here(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs, road(tmp_path, destinations=[destination(pacs)]) as plugin:
        dcmsend(plugin.port, head_ct(tmp_path)[0].parent)
        status = plugin.settled(instances=12)
        assert status["deliveries_by_state"] == {"held": 1}
        assert pacs.get("/instances") == []


def test_a_study_of_two_patients_is_refused(tmp_path: Path) -> None:
    first, second = head_ct(tmp_path, number=2), head_ct(tmp_path, number=3, PatientID="P2")
    with road(tmp_path) as plugin:
        dcmsend(plugin.port, first[0].parent, second[0].parent)
        study = plugin.settled(instances=24)["studies"][0]
        assert (study["state"], study["reason"], study["revisions"]) == ("refused", "inconsistent", [])


def test_a_head_with_too_few_slices_is_said_to_be_incomplete(tmp_path: Path) -> None:
    with road(tmp_path) as plugin:
        dcmsend(plugin.port, head_ct(tmp_path, slices=4)[0].parent)
        study = plugin.settled(instances=4)["studies"][0]
        assert fates(study) == {2: "too_few_slices"}
        summary = dcmread(plugin.plugin.spool / study["revisions"][0]["results"][0]["path"])
        assert summary.CompletionFlag == "PARTIAL"


@pytest.mark.parametrize("reverse", [False, True])
def test_the_order_of_arrival_changes_nothing(tmp_path: Path, reverse: bool) -> None:
    paths = sorted(head_ct(tmp_path), key=lambda path: dcmread(path).InstanceNumber, reverse=reverse)
    with road(tmp_path) as plugin:
        storescu(plugin.port, paths)
        revision = plugin.settled(instances=12)["studies"][0]["revisions"][0]
        (outcome,) = analyse_folder(plugin.plugin, paths, tmp_path / "out", device="cpu", progress=lambda *_: None)
        assert outcome.analysis is not None
        assert outcome.analysis.findings == revision["findings"]


def test_nothing_of_the_heads_pixels_is_changed_on_disk(tmp_path: Path) -> None:
    paths = head_ct(tmp_path)
    with road(tmp_path) as plugin:
        storescu(plugin.port, paths)
        plugin.settled(instances=12)
        kept = {dcmread(p).SOPInstanceUID: dcmread(p).PixelData for p in plugin.plugin.spool}
        assert kept == {dcmread(p).SOPInstanceUID: dcmread(p).PixelData for p in paths}
        assert head(12).shape == (12, 96, 96)
