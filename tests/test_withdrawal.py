"""Withdrawal: a rejection note for exactly our objects, deletion where it is asked for, and the next revision."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pydicom import Dataset, dcmread
from pydicom.uid import generate_uid

from peers import Orthanc, dciodvfy_errors, dcmsend, free_port, orthanc, wait_until
from plugin import screens, withdrawal
from plugin.bootstrap import Plugin
from plugin.index import outcomes
from reports import items
from road import Road, head_ct, road, settings

STUDY = generate_uid(entropy_srcs=["a"])
DELIVER = {"send_results_of_untrained_or_phantom_models": True, "first_retry_seconds": 0.2}
POSITIVE = {"intracranial_hemorrhage": -1.0}


def sections(pacs: Orthanc, **destination: Any) -> dict[str, Any]:
    return {
        "destinations": [{"name": "pacs", "url": pacs.dicomweb, **destination}],
        "delivery": DELIVER,
        "thresholds": POSITIVE,
    }


def report(plugin: Road, folder: Path, *, number: int = 2) -> dict[str, Any]:
    """Send a series of the study, and wait for its revision."""
    dcmsend(plugin.port, head_ct(folder, number=number)[0].parent)
    return plugin.settled(instances=12 * (number - 1))["studies"][0]["revisions"][-1]


def uids(objects: list[dict[str, Any]]) -> set[str]:
    return {row["sop_instance_uid"] for row in objects}


def held(pacs: Orthanc) -> set[str]:
    found = pacs.find("Instance", StudyInstanceUID=STUDY)
    return {instance["MainDicomTags"]["SOPInstanceUID"] for instance in found}


def notes(pacs: Orthanc, folder: Path) -> list[Dataset]:
    """The rejection notes in the archive, each without a validator's error."""
    found = []
    for of_series in pacs.series(STUDY, "KO"):
        content = pacs.file(of_series["Instances"][0])
        (folder / "note.dcm").write_bytes(content)
        assert dciodvfy_errors(folder / "note.dcm") == set()
        found.append(dcmread(BytesIO(content)))
    return found


def rejected(note: Dataset) -> set[str]:
    """What the content tree references, which must be what the evidence lists."""
    tree = {
        reference.ReferencedSOPInstanceUID
        for item in items(note, "COMPOSITE") + items(note, "IMAGE")
        for reference in item.ReferencedSOPSequence
    }
    evidence = {
        reference.ReferencedSOPInstanceUID
        for study in note.CurrentRequestedProcedureEvidenceSequence
        for of_series in study.ReferencedSeriesSequence
        for reference in of_series.ReferencedSOPSequence
    }
    assert tree == evidence
    return tree


def idle(plugin: Road) -> dict[str, Any]:
    study: dict[str, Any] = plugin.settled(instances=0)["studies"][0]
    return study


def test_the_note_is_in_the_archive_and_rejects_exactly_our_objects(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs, road(tmp_path, **sections(pacs)) as plugin:
        made = report(plugin, tmp_path)
        before = held(pacs)
        done = withdrawal.withdraw(plugin.plugin, STUDY, reason="patient-safety")
        assert (done.revision, done.destinations, done.note.is_file()) == (1, ("pacs",), True)
        study = idle(plugin)
        (note,) = notes(pacs, tmp_path)
        assert rejected(note) == uids(made["results"]) and len(made["results"]) == 3
        assert note.ConceptNameCodeSequence[0].CodeValue == "113037"
        assert held(pacs) == before | {note.SOPInstanceUID}
        (revision,) = study["revisions"]
        assert (revision["current"], revision["withdrawn"]) == (False, "patient-safety")
        page = screens.status_page(screens.read_status(plugin.plugin, study_uids=(), limit=5))
        assert "results withdrawn: patient-safety" in [str(line).strip() for line in page.renderables]


def test_a_withdrawn_study_stays_so_until_new_images_come(tmp_path: Path) -> None:
    with road(tmp_path, thresholds=POSITIVE) as plugin:
        report(plugin, tmp_path)
        withdrawal.withdraw(plugin.plugin, STUDY, reason="quality")
        outcomes.retry(plugin.plugin.database, study_instance_uid=STUDY)
        study = idle(plugin)
        assert [(r["number"], r["withdrawn"]) for r in study["revisions"]] == [(1, "quality")]
        with pytest.raises(ValueError, match="withdrawn already"):
            withdrawal.withdraw(plugin.plugin, STUDY, reason="quality")
        after = report(plugin, tmp_path, number=3)
        assert (after["number"], after["current"], after["withdrawn"]) == (2, True, None)


def test_a_reissue_has_new_uids_and_names_what_was_withdrawn(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs, road(tmp_path, **sections(pacs)) as plugin:
        report(plugin, tmp_path)
        withdrawal.withdraw(plugin.plugin, STUDY, reason="quality")
        withdrawal.reissue(plugin.plugin, STUDY)
        old, new = idle(plugin)["revisions"]
        assert (old["current"], new["current"], new["number"]) == (False, True, 2)
        assert new["findings"] == old["findings"]
        assert len(new["results"]) == 3 and not uids(new["results"]) & uids(old["results"])
        assert uids(new["results"]) <= held(pacs)
        summary = dcmread(plugin.plugin.spool / new["results"][0]["path"])
        earlier = summary.PredecessorDocumentsSequence[0].ReferencedSeriesSequence
        assert {s.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for s in earlier} <= uids(old["results"])
        assert len(notes(pacs, tmp_path)) == 1
        with pytest.raises(ValueError, match="not withdrawn"):
            withdrawal.reissue(plugin.plugin, STUDY)


def test_a_revision_that_supersedes_withdraws_the_findings_and_pictures_before_it(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs, road(tmp_path, **sections(pacs)) as plugin:
        old = report(plugin, tmp_path)
        report(plugin, tmp_path, number=3)
        (note,) = notes(pacs, tmp_path)
        gone = {r["sop_instance_uid"] for r in old["results"] if "summary" not in r["description"]}
        assert rejected(note) == gone and len(gone) == 2
        old, new = idle(plugin)["revisions"]
        assert (old["current"], old["withdrawn"], new["current"]) == (False, None, True)
        assert uids(old["rejection_notes"]) == {note.SOPInstanceUID}


def test_the_switch_keeps_superseded_results_as_they_are(tmp_path: Path) -> None:
    switched = {"results": {"withdraw_superseded": False}}
    with orthanc(tmp_path / "pacs") as pacs, road(tmp_path, **sections(pacs), **switched) as plugin:
        report(plugin, tmp_path)
        report(plugin, tmp_path, number=3)
        assert notes(pacs, tmp_path) == []


def test_results_that_no_one_received_are_withdrawn_without_a_delivery(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs:
        kept = sections(pacs) | {"delivery": {}}
        with road(tmp_path, **kept) as plugin:
            report(plugin, tmp_path)
            done = withdrawal.withdraw(plugin.plugin, STUDY, reason="quality")
            assert done.destinations == () and done.note.is_file()
            assert idle(plugin)["revisions"][0]["rejection_notes"][0]["deliveries"] == []
            assert plugin.status()["deliveries_by_state"] == {"obsolete": 3}
            assert pacs.get("/instances") == []


def test_orthanc_deletes_what_was_withdrawn_and_nothing_else(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs, road(tmp_path, **sections(pacs, delete_withdrawn="orthanc")) as plugin:
        source = head_ct(tmp_path / "archived", number=7)
        for path in source:
            pacs.store(path.read_bytes())
        report(plugin, tmp_path)
        withdrawal.withdraw(plugin.plugin, STUDY, reason="quality")
        (revision,) = idle(plugin)["revisions"]
        assert held(pacs) == uids(revision["rejection_notes"]) | {dcmread(path).SOPInstanceUID for path in source}
        assert plugin.status()["deliveries_by_state"] == {"deleted": 3, "delivered": 1}


def test_a_deletion_is_tried_until_the_archive_answers(tmp_path: Path) -> None:
    with orthanc(tmp_path / "pacs") as pacs:
        away = {"delete_withdrawn": "orthanc", "orthanc_url": f"http://127.0.0.1:{free_port()}"}
        with road(tmp_path, **sections(pacs, **away)) as plugin:
            report(plugin, tmp_path)
            withdrawal.withdraw(plugin.plugin, STUDY, reason="quality")

            def tried() -> list[tuple[str, bool]]:
                study = plugin.study(STUDY)
                assert study is not None
                sent = [d for r in study["revisions"][0]["results"] for d in r["deliveries"]]
                return [(d["action"], d["attempts"] > 1) for d in sent]

            wait_until(lambda: tried() == [("delete", True)] * 3, "three deletions tried again")
            wait_until(lambda: len(held(pacs)) == 4, "the rejection note beside what could not be deleted")


def test_a_study_that_is_unknown_or_has_no_results_is_said_to_be(tmp_path: Path) -> None:
    plugin = Plugin(settings(tmp_path))
    plugin.database.upgrade()
    with pytest.raises(ValueError, match="no study of this"):
        withdrawal.withdraw(plugin, "1.2.3", reason="quality")
    plugin.database.close()
