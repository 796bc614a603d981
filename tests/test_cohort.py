"""Cohorts from folders: prepared as serving prepares, resumable, split by patient, and nobody named."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from canaries import EXPECTED, Deadly, identified, leaks
from hlip_core.prepared import PreparedScan
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.volume import open_series, prepare
from trainer.cli import app
from trainer.cohort.folder import FolderSource
from trainer.cohort.gather import WORK, gather
from trainer.cohort.make import Job, Recipe, make_record
from trainer.cohort.pseudonyms import Pseudonyms
from trainer.cohort.rows import split_of
from trainer.cohort.study import FoundSeries
from trainer.manifest import Cohort, read_cohort
from trainer.phantom.generate import Batch, generate

HLIP_TRAIN = Path(sys.executable).parent / "hlip-train"


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six phantoms, each with a thick series and a localizer."""
    folder = tmp_path_factory.mktemp("phantoms")
    list(generate(Batch(folder, 6, 0, {"preset": "tiny", "series": ["thick", "localizer"]}), workers=1))
    return folder


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, frozenset[str]]:
    """Six studies of three patients, in folders of the spool's layout, and all that names them."""
    folder = tmp_path_factory.mktemp("identities")
    canaries: set[str] = set()
    for number in range(6):
        study = identified(folder, number, slices=8, patient=number % 3)
        study.write(folder / "spool" / "instances" / study.study_instance_uid / "x")
        canaries |= study.canaries
    return folder / "spool", frozenset(canaries)


def make(out: Path, *arguments: str | Path, fails: int = 0) -> str:
    done = CliRunner().invoke(app, ["cohort", "--out", str(out), "-w", "1", *map(str, arguments)])
    assert done.exit_code == fails, done.output
    return done.output


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.b2nd")}


def scans(cohort: Cohort) -> list[PreparedScan]:
    return [PreparedScan.load(cohort.folder / path) for row in cohort.rows for path in row.scans]


# ---- what is written -----------------------------------------------------------------------------------------


def test_a_folder_of_phantoms_becomes_a_cohort(phantoms: Path, tmp_path: Path) -> None:
    output = make(tmp_path / "out", "--folder", phantoms)
    cohort = read_cohort(tmp_path / "out")
    known = {path.parent.name: json.loads(path.read_text()) for path in phantoms.glob("*/study.json")}
    assert [row.source for row in cohort.rows] == sorted(known)
    for row in cohort.rows:
        study = known[row.source]
        assert list(row.sentences) == study["sentences"]
        assert dict(row.labels) == study["labels"] and dict(row.conspicuity) == study["conspicuity"]
        assert len(row.scans) == 1
    assert cohort.facts["refused_series"] == {"localizer": 6}
    assert "localizer" in output and "The series is a localizer" in output
    assert len((tmp_path / "out" / "refused.jsonl").read_text().splitlines()) == 6
    assert cohort.preprocessing == PREPROCESSINGS["head-ct/1"]


def test_a_phantom_that_is_not_finished_is_left_alone(phantoms: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("phantom-0000000", "phantom-0000001.part")):
        shutil.copytree(phantoms / f"phantom-000000{number}", tmp_path / "in" / name)
    (tmp_path / "in" / "phantom-0000001.part" / "study.json").unlink()
    make(tmp_path / "out", "--folder", tmp_path / "in")
    assert [row.source for row in read_cohort(tmp_path / "out").rows] == ["phantom-0000000"]


def test_scans_are_those_of_serving_without_identities(phantoms: Path, tmp_path: Path) -> None:
    make(tmp_path / "out", "--folder", phantoms, "--salt-file", tmp_path / "salt")
    make(tmp_path / "kept", "--folder", phantoms, "--keep-identities")
    files = sorted((phantoms / "phantom-0000000" / "1-thick").iterdir())
    served = prepare(open_series(files), PREPROCESSINGS["head-ct/1"])
    scan, kept = (scans(read_cohort(tmp_path / name))[0] for name in ("out", "kept"))
    for one in (scan, kept):
        assert np.array_equal(one.voxels, served.voxels)
        assert (one.spacing, one.orientation, one.notes) == (served.spacing, served.orientation, served.notes)
    assert kept.source_of(20, 128, 128) == served.source_of(20, 128, 128)
    assert kept.study_instance_uid == served.study_instance_uid
    pseudonyms = Pseudonyms(bytes((tmp_path / "salt").read_bytes().strip()))
    assert scan.study_instance_uid == pseudonyms.uid(served.study_instance_uid) != served.study_instance_uid
    assert scan.instances[0][1] == pseudonyms.uid(served.instances[0][1])
    assert scan.series_description == ""


def test_nobody_is_named_in_a_cohort_of_a_spool(identities: tuple[Path, frozenset[str]], tmp_path: Path) -> None:
    spool, canaries = identities
    output = make(tmp_path / "out", "--spool", spool, "--headers")
    cohort = read_cohort(tmp_path / "out")
    assert len(cohort.rows) == 6 and cohort.facts["reports"]["from_document"] == 6
    assert all(set(row.sentences) >= EXPECTED for row in cohort.rows)
    assert len(list((tmp_path / "out" / "headers").iterdir())) == 6
    assert leaks(tmp_path / "out", canaries, output) == set()
    assert not (tmp_path / "out" / WORK).exists(), "the salt must go"


def test_identities_are_written_only_when_asked_for(identities: tuple[Path, frozenset[str]], tmp_path: Path) -> None:
    spool, canaries = identities
    make(tmp_path / "out", "--spool", spool, "--keep-identities", "--all-sections")
    found = {canary for _, canary in leaks(tmp_path / "out", canaries)}
    assert {"Quillfeather", "PZ-771-4092301", "1.2.826.0.1.3680043.8.498.7731.4", "Zebbyseries"} <= found
    assert read_cohort(tmp_path / "out").facts["deidentification"].startswith("none")


def test_reports_and_labels_of_tables_and_messages_are_linked(
    identities: tuple[Path, frozenset[str]], tmp_path: Path
) -> None:
    spool, canaries = identities
    root = "1.2.826.0.1.3680043.8.498.7731"
    rows = [
        {"StudyInstanceUID": f"{root}.0.1", "report": "Mrs. Quillfeather has a bleed."},
        {"AccessionNumber": "akz553001801", "report": "No bleed."},
        {"AccessionNumber": "77", "report": "Lost."},
    ]
    (tmp_path / "reports.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "labels.csv").write_text(
        "AccessionNumber,intracranial_hemorrhage\nAKZ553001800,1\nAKZ553001801,0\nx,1\n"
    )
    report = "OBR|1||AKZ553001802\rOBX|1|TX|a||Small bleed of Zebulona.||||||F"
    message = f"MSH|^~\\&|||||1||ORU^R01\r{report}\rZDS|{root}.2.1\r"
    (tmp_path / "hl7").mkdir()
    (tmp_path / "hl7" / "a.hl7").write_text(message)
    arguments = ["--spool", spool, "--reports", tmp_path / "reports.jsonl", "--hl7", tmp_path / "hl7", "--labels",
                 tmp_path / "labels.csv"]  # fmt: skip
    dry = make(tmp_path / "out", *arguments, "--dry-run")
    assert "studies with a given report" in dry and not (tmp_path / "out").exists()
    make(tmp_path / "out", *arguments)
    cohort = read_cohort(tmp_path / "out")
    assert cohort.facts["reports_given"] == {"given": 4, "linked": 3, "unlinked": 1, "messages_not_read": 0}
    assert cohort.facts["labels_given"] == {"given": 3, "unlinked": 1}
    assert {key: value for key, value in cohort.facts["reports"].items() if key.startswith("from_")} == {
        "from_table": 2, "from_hl7": 1, "from_document": 3,
    }  # fmt: skip
    by_sentence = {row.sentences[0]: row for row in cohort.rows}
    assert dict(by_sentence["Mrs. [name] has a bleed."].labels) == {"intracranial_hemorrhage": True}
    assert dict(by_sentence["No bleed."].labels) == {"intracranial_hemorrhage": False}
    assert "Small bleed of [name]." in by_sentence
    assert leaks(tmp_path / "out", canaries) == set()


def test_studies_of_a_patient_share_the_split(identities: tuple[Path, frozenset[str]], tmp_path: Path) -> None:
    spool, _ = identities
    make(tmp_path / "out", "--spool", spool, "--validation", "0.3", "--test", "0.3")
    rows = read_cohort(tmp_path / "out").rows
    assert len({row.patient for row in rows}) == 3
    assert len({(row.patient, row.split) for row in rows}) == 3


def test_the_splits_have_the_asked_for_shares() -> None:
    pseudonyms = Pseudonyms(b"s" * 32)
    splits = [split_of(pseudonyms.fraction(str(i)), validation=0.2, test=0.1) for i in range(2000)]
    assert splits.count("validation") / 2000 == pytest.approx(0.2, abs=0.03)
    assert splits.count("test") / 2000 == pytest.approx(0.1, abs=0.03)


def test_a_study_of_two_patients_is_refused(tmp_path: Path) -> None:
    study = identified(tmp_path, 1, slices=8)
    study.document.PatientID = "another"
    study.write(tmp_path / "in")
    output = make(tmp_path / "out", "--folder", tmp_path / "in")
    cohort = read_cohort(tmp_path / "out")
    assert cohort.rows == () and cohort.facts["refused_series"] == {"inconsistent": 2}
    assert "mixes patients" in output
    assert list((tmp_path / "out").rglob("*.b2nd")) == []


def test_pixels_with_burned_in_words_are_refused(tmp_path: Path) -> None:
    study = identified(tmp_path, 1, slices=8)
    study.images[3].BurnedInAnnotation = "YES"
    study.write(tmp_path / "in")
    make(tmp_path / "out", "--folder", tmp_path / "in")
    assert read_cohort(tmp_path / "out").facts["refused_series"] == {"burned_in": 1}
    make(tmp_path / "kept", "--folder", tmp_path / "in", "--keep-identities")
    assert len(read_cohort(tmp_path / "kept").rows) == 1


def test_a_stray_study_json_makes_no_phantom(identities: tuple[Path, frozenset[str]], tmp_path: Path) -> None:
    study = identified(tmp_path, 1, slices=8)
    study.write(tmp_path / "in" / "Quillfeather" / "a")
    row = {"study_instance_uid": study.study_instance_uid, "series": [{"folder": "a", "series_instance_uid": "1"}],
           "sentences": ["Quillfeather"], "labels": {}, "conspicuity": {}}  # fmt: skip
    (tmp_path / "in" / "Quillfeather" / "study.json").write_text(json.dumps(row))
    for image in study.images:
        image.Manufacturer = "Some scanner"
    study.write(tmp_path / "in" / "Quillfeather" / "a")
    make(tmp_path / "out", "--folder", tmp_path / "in")
    (only,) = read_cohort(tmp_path / "out").rows
    assert only.source == "" and set(only.sentences) >= EXPECTED


# ---- again and again -----------------------------------------------------------------------------------------


def test_a_second_start_makes_nothing_twice(phantoms: Path, tmp_path: Path) -> None:
    arguments = ["--folder", phantoms, "--salt-file", tmp_path / "salt"]
    make(tmp_path / "out", *arguments)
    before, text = stamps(tmp_path / "out"), (tmp_path / "out" / "studies.jsonl").read_text()
    make(tmp_path / "out", *arguments)
    assert stamps(tmp_path / "out") == before
    assert (tmp_path / "out" / "studies.jsonl").read_text() == text
    make(tmp_path / "out", *arguments, "--split", "validation")
    assert stamps(tmp_path / "out") == before
    assert {row.split for row in read_cohort(tmp_path / "out").rows} == {"validation"}


def test_a_truncated_or_lost_scan_is_made_again(phantoms: Path, tmp_path: Path) -> None:
    arguments = ["--folder", phantoms, "--salt-file", tmp_path / "salt"]
    make(tmp_path / "out", *arguments)
    first, second, *rest = sorted((tmp_path / "out" / "scans").rglob("*.b2nd"))
    whole, before = first.read_bytes(), stamps(tmp_path / "out")
    first.write_bytes(whole[:1000])
    second.unlink()
    make(tmp_path / "out", *arguments)
    assert first.read_bytes() == whole and PreparedScan.load(second)
    after = stamps(tmp_path / "out")
    assert all(after[path.name] == before[path.name] for path in rest)


def test_a_study_whose_report_came_later_is_made_again(identities: tuple[Path, frozenset[str]], tmp_path: Path) -> None:
    spool, _ = identities
    arguments = ["--spool", spool, "--salt-file", tmp_path / "salt"]
    make(tmp_path / "out", *arguments)
    before = stamps(tmp_path / "out")
    (tmp_path / "a.csv").write_text("AccessionNumber,report\nAKZ553001803,A late report.\n")
    make(tmp_path / "out", *arguments, "--reports", tmp_path / "a.csv")
    changed = {name for name, stamp in stamps(tmp_path / "out").items() if before[name] != stamp}
    assert len(changed) == 1
    assert ["A late report."] in [list(row.sentences) for row in read_cohort(tmp_path / "out").rows]


def test_a_killed_run_is_continued(phantoms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["cohort", "--folder", str(phantoms), "--out", str(out), "-w", "1"]
    process = subprocess.Popen([HLIP_TRAIN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = out / WORK / "records"
    end = time.monotonic() + 60
    while not list(records.glob("*.json")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (out / "cohort.json").exists()
    time.sleep(1)  # the worker notices that its parent is gone
    before = stamps(out)
    done = {path.stem for path in records.glob("*.json")}
    make(out, "--folder", phantoms)
    assert len(read_cohort(out).rows) == 6 and len(stamps(out)) == 6
    kept = {path.name for path in (out / "scans").rglob("*.b2nd") if path.parent.name in done}
    assert kept and all(stamps(out)[name] == before[name] for name in kept)
    assert not list(out.rglob("*.part")) and not (out / WORK).exists()


def test_a_series_that_could_not_be_read_is_taken_up_again(phantoms: Path, tmp_path: Path) -> None:
    (study,) = FolderSource(phantoms / "phantom-0000000").studies(ThreadPoolExecutor(1), lambda done, total: None)
    away = FoundSeries(series_instance_uid="1.2", files=(str(tmp_path / "away.dcm"),))
    recipe = Recipe(out=tmp_path / "out", preprocessing=PREPROCESSINGS["head-ct/1"], pseudonyms=Pseudonyms(b"s" * 32))
    record = make_record(Job(study=replace(study, series=(*study.series, away))), recipe)
    assert record.is_to_retry and len(record.scans) == 1


def test_a_study_that_kills_its_worker_is_left_out_alone(phantoms: Path, tmp_path: Path) -> None:
    studies = FolderSource(phantoms).studies(ThreadPoolExecutor(1), lambda done, total: None)
    deadly = studies[1].study_instance_uid
    recipe = Recipe(
        out=tmp_path, preprocessing=PREPROCESSINGS["head-ct/1"], pseudonyms=Pseudonyms(b"s" * 32), source=Deadly(deadly)
    )
    (tmp_path / WORK / "records").mkdir(parents=True)
    records = gather([Job(study=study) for study in studies[:3]], recipe, 2, lambda record: None)
    assert sorted(len(record.scans) for record in records) == [0, 1, 1]
    assert {one.reason for record in records for one in record.refused if not record.scans} == {"crashed"}


def test_a_finished_cohort_without_its_salt_is_not_continued(phantoms: Path, tmp_path: Path) -> None:
    make(tmp_path / "out", "--folder", phantoms)
    assert "salt was destroyed" in " ".join(make(tmp_path / "out", "--folder", phantoms, fails=1).split())


def test_other_options_do_not_mix_in_one_folder(phantoms: Path, tmp_path: Path) -> None:
    arguments = ["--folder", phantoms, "--salt-file", tmp_path / "salt"]
    make(tmp_path / "out", *arguments)
    assert "another value of keep_identities" in " ".join(
        make(tmp_path / "out", *arguments, "--keep-identities", fails=1).split()
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--folder", "{empty}"], "no study was found"),
        (["--spool", "{empty}"], "which holds `instances`"),
        ([], "name one source"),
        (["--folder", "{empty}", "--spool", "{empty}"], "name one source"),
        (["--folder", "{empty}", "--split", "dev"], "There are: train"),
        (["--folder", "{empty}", "--preprocessing", "x"], "There are: head-ct/1"),
        (["--folder", "{empty}", "--test", "0.6", "--validation", "0.6"], "more than 1"),
        (["--folder", "{empty}", "--salt-file", "{out}/salt"], "would get the salt"),
        (["--dicomweb", "http://127.0.0.1:9", "--match", "StudyDate"], "KEYWORD=VALUE"),
    ],
)
def test_a_mistake_is_explained(arguments: list[str], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    filled = [argument.format(empty=tmp_path / "empty", out=out) for argument in arguments]
    done = CliRunner().invoke(app, ["cohort", "--out", str(out), *filled], env={"COLUMNS": "400"})
    assert done.exit_code in (1, 2)
    assert complaint in " ".join(done.output.replace("│", " ").split())
    assert not (out / "cohort.json").exists()
