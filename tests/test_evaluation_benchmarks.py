"""Readers of public sets, on tiny copies of their layouts, and a bundle on what they read."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from typer.testing import CliRunner

import tiny
from hlip_core.errors import InputError, Refused
from hlip_core.findings import FindingsTable
from hlip_core.headers import lenient
from hlip_core.volume import open_series, prepare
from public_sets import copy_series, images, rsna_image, write_reads, write_rsna
from trainer.cli import app
from trainer.evaluation.benchmarks import TABLE, Benchmark
from trainer.evaluation.cq500 import read_cq500_cases
from trainer.evaluation.evaluation import Options, evaluate
from trainer.evaluation.rsna import mend, read_labels, read_rsna_cases
from trainer.phantom import PhantomStudy, read_study, write_study

pytestmark = pytest.mark.usefixtures("one_thread")

CQ500, RSNA = Benchmark.named("cq500"), Benchmark.named("rsna")


def track(things, what):
    return things


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> PhantomStudy:
    """A normal head with a thick and a bone series."""
    return write_study(
        tmp_path_factory.mktemp("phantom") / "p", seed=1, preset="tiny", lesions=[], series=["thick", "bone"]
    )


@pytest.fixture
def cq500(tmp_path, phantom) -> Path:
    write_reads(
        tmp_path / "reads.csv",
        {
            "CQ500-CT-10": {"ICH": "111", "SDH": "110", "EDH": "100", "BleedLocation-Left": "011"},
            "CQ500-CT-2": {"Fracture": "011", "CalvarialFracture": "001"},
            "CQ500-CT-3": {},
        },
    )
    for name in ("CQ500CT10 CQ500CT10", "CQ500-CT-2/CQ500CT2 CQ500CT2", "qct01/CQ500CT44 CQ500CT44"):
        copy_series(phantom, "thick", tmp_path / name / "Unknown Study" / "CT PLAIN THIN")
    copy_series(phantom, "bone", tmp_path / "CQ500CT10 CQ500CT10" / "Unknown Study" / "CT BONE")
    (tmp_path / "CQ500CT10 CQ500CT10" / "Unknown Study" / "notes.txt").write_text("no DICOM")
    return tmp_path


def test_cq500_truth_is_the_majority_of_three(cq500):
    data = read_cq500_cases(cq500, CQ500)
    assert [case.study for case in data.cases] == ["CQ500-CT-2", "CQ500-CT-10"]
    two, ten = (case.truth for case in data.cases)
    assert {name for name, present in ten.items() if present} == {"ICH", "SDH", "left"}
    assert {name for name, present in two.items() if present} == {"fracture"}
    assert set(ten) == {row.name for row in CQ500.classes}
    assert data.notes[0].startswith("2 of the 3 studies") and "1 folders have no reads" in data.notes[1]


def test_cq500_studies_are_prepared_series_by_series(cq500):
    two, ten = read_cq500_cases(cq500, CQ500).cases
    assert [scan.series_description for scan in two.load(tiny.SPEC)]
    assert [scan.series_number for scan in ten.load(tiny.SPEC)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "marks", "said"),
    [("CQ500-CT-x", {}, "line 2: the name"), ("CQ500-CT-1", {"ICH": "1 1"}, "line 2: a reader's mark")],
)
def test_reads_that_are_not_as_published_are_an_error(tmp_path, name, marks, said):
    write_reads(tmp_path / "reads.csv", {name: marks})
    with pytest.raises(InputError, match=said):
        read_cq500_cases(tmp_path, CQ500)


def test_cq500_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"reads.csv is missing"):
        read_cq500_cases(tmp_path, CQ500)
    (tmp_path / "reads.csv").write_text("name,Category\n")
    with pytest.raises(InputError, match="lacks the columns R1:BleedLocation-Left"):
        read_cq500_cases(tmp_path, CQ500)
    write_reads(tmp_path / "reads.csv", {"CQ500-CT-1": {}})
    with pytest.raises(InputError, match="unpack"):
        read_cq500_cases(tmp_path, CQ500)


# ---- RSNA --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rsna(tmp_path_factory, phantom) -> Path:
    folder = tmp_path_factory.mktemp("rsna")
    write_rsna(folder, phantom, {"ID_aaaa": {5: "subdural", 9: "epidural"}, "ID_bbbb": {}})
    (folder / "stage_2_train" / "ID_ffffffff0.dcm").write_bytes(images(phantom)[0].read_bytes())
    return folder


def test_an_rsna_study_is_positive_when_any_of_its_slices_is(rsna):
    data = read_rsna_cases(rsna, RSNA, track=track)
    assert [case.study for case in data.cases] == ["ID_aaaa", "ID_bbbb"]
    first, second = (case.truth for case in data.cases)
    assert {name for name, present in first.items() if present} == {"any", "subdural", "epidural"}
    assert not any(second.values())
    assert "1 images have no labels" in data.notes[1]


def test_rsna_images_without_uids_and_sop_class_become_the_scan_that_they_were(rsna, phantom):
    scans = read_rsna_cases(rsna, RSNA, track=track).cases[0].load(tiny.SPEC)
    original = prepare(open_series(images(phantom)), tiny.SPEC)
    np.testing.assert_array_equal(scans[0].voxels, original.voxels)
    with pytest.raises(Refused):
        prepare(open_series(sorted((rsna / "stage_2_train").glob("ID_0000*"))), tiny.SPEC)


def test_rsna_images_that_lost_their_sign_get_it_back(phantom):
    for path in images(phantom)[8:10]:
        good = dcmread(path)
        hu = good.pixel_array
        bad = rsna_image(path, "ID_1", "ID_2")
        bad.BitsStored, bad.HighBit, bad.PixelRepresentation = 12, 11, 0
        bad.PixelData = (np.maximum(hu, -1000) % 4096).astype("<u2").tobytes()
        with lenient():
            mend(bad)
        np.testing.assert_array_equal(bad.pixel_array, np.maximum(hu, -1000))
        assert bad.RescaleIntercept == 0
    whole = dcmread(path)
    mend(whole)
    np.testing.assert_array_equal(whole.pixel_array, hu)


def test_the_grouping_of_rsna_images_is_kept(rsna, tmp_path):
    seen = []

    def count(things, what):
        seen.append(len(things))
        return things

    first = read_rsna_cases(rsna, RSNA, track=count, keep=tmp_path)
    again = read_rsna_cases(rsna, RSNA, track=count, keep=tmp_path)
    assert len(seen) == 1
    assert [case.truth for case in first.cases] == [case.truth for case in again.cases]


@pytest.mark.parametrize(
    ("text", "said"),
    [("a,b\n", "does not begin"), ("ID,Label\nID_1_any,2\n", "line 2"), ("ID,Label\nID_1_huge,1\n", "line 2")],
)
def test_a_table_that_is_not_rsnas_is_an_error(tmp_path, text, said):
    (tmp_path / "stage_2_train.csv").write_text(text)
    with pytest.raises(InputError, match=said):
        read_labels(tmp_path, RSNA)


def test_rsna_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match=r"stage_2_train.csv is missing"):
        read_rsna_cases(tmp_path, RSNA, track=track)
    (tmp_path / "stage_2_train.csv").write_text("ID,Label\nID_1_any,1\n")
    with pytest.raises(InputError, match="unpack"):
        read_rsna_cases(tmp_path, RSNA, track=track)


# ---- the table of classes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TABLE))
def test_classes_of_the_table_are_answered_by_findings_or_prompts(name):
    benchmark, labels = Benchmark.named(name), FindingsTable.from_toml().labels
    names = [row.name for row in benchmark.classes]
    assert len(set(names)) == len(names)
    assert all(row.label in labels if row.label else row.prompts for row in benchmark.classes)
    assert all(set(of_macro) <= set(names) for of_macro in benchmark.macros.values())
    assert all(set(row) == {"model", "protocol", "auc", "classes"} for row in benchmark.published)


# ---- a bundle on them --------------------------------------------------------------------------------------------


def test_the_public_sets_are_printed_beside_what_others_published(bundle, phantoms, tmp_path):
    write_reads(tmp_path / "reads.csv", {"CQ500-CT-0": {"SDH": "111", "ICH": "111"}, "CQ500-CT-4": {}})
    for number, phantom in ((0, 1), (4, 4)):
        folder = tmp_path / f"CQ500CT{number} CQ500CT{number}" / "Unknown Study" / "CT Plain"
        shutil.copytree(phantoms / f"phantom-{phantom}" / "2-thick", folder)
    arguments = ["evaluate", str(bundle.path), "--benchmark", "cq500", "--data", str(tmp_path)]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "83.1" in result.output and "they are no ranking" in result.output
    assert "nine, with calvarial fracture (2, 7 missing)" in result.output


def test_rsna_goes_the_same_way(bundle, phantoms, tmp_path):
    write_rsna(tmp_path, read_study(phantoms / "phantom-1"), {"ID_aaaa": {5: "subdural"}, "ID_bbbb": {}})
    document = evaluate(bundle, "rsna", tmp_path, Options()).document
    assert document["studies"] == 2
    assert document["classes"]["any"]["auc"][0] == 0.5  # two copies of one study
    assert document["published"][0]["auc"] == "85.7"
