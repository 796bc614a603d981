"""Readers of public sets, on tiny copies of their layouts."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

import tiny
from hlip_core.errors import InputError, Refused
from hlip_core.findings import FindingsTable
from hlip_core.headers import lenient
from hlip_core.volume import open_series, prepare
from trainer.evaluation.benchmarks import TABLE, Benchmark
from trainer.evaluation.cq500 import read_cq500_cases
from trainer.evaluation.rsna import mend, read_labels, read_rsna_cases
from trainer.phantom import PhantomStudy, write_study

CQ500, RSNA = Benchmark.named("cq500"), Benchmark.named("rsna")
MARKS = (
    "ICH", "IPH", "IVH", "SDH", "EDH", "SAH", "BleedLocation-Left", "BleedLocation-Right", "ChronicBleed",
    "Fracture", "CalvarialFracture", "OtherFracture", "MassEffect", "MidlineShift",
)  # fmt: skip
SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
RSNA_KEEPS = (
    "SOPInstanceUID", "Modality", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "StudyID",
    "ImagePositionPatient", "ImageOrientationPatient", "SamplesPerPixel", "PhotometricInterpretation", "Rows",
    "Columns", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "WindowCenter",
    "WindowWidth", "RescaleIntercept", "RescaleSlope", "PixelData",
)  # fmt: skip


def track(things, what):
    return things


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> PhantomStudy:
    """A normal head with a thick and a bone series."""
    return write_study(
        tmp_path_factory.mktemp("phantom") / "p", seed=1, preset="tiny", lesions=[], series=["thick", "bone"]
    )


def images(phantom: PhantomStudy, kind: str = "thick") -> list[Path]:
    folder = next(record.folder for record in phantom.series if record.kind == kind)
    return sorted((phantom.folder / folder).iterdir())


def write_reads(path: Path, votes: dict[str, dict[str, str]]) -> None:
    """`votes`: of the three readers ("110") by mark and study, 000 where nothing is said."""
    columns = [f"{reader}:{mark}" for reader in ("R1", "R2", "R3") for mark in MARKS]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "Category", *columns])
        for name, marks in votes.items():
            row = [marks.get(mark, "000")[reader] for reader in range(3) for mark in MARKS]
            writer.writerow([name, "B1", *row])


def copy_series(phantom: PhantomStudy, kind: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    for place, path in enumerate(images(phantom, kind)):
        (folder / f"CT{place:06}.dcm").write_bytes(path.read_bytes())


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


def rsna_image(path: Path, image: str, study: str) -> Dataset:
    """A phantom's slice with the header that the set leaves."""
    original = dcmread(path)
    stripped = Dataset()
    original.StudyID = ""
    for keyword in RSNA_KEEPS:
        stripped[keyword] = original[keyword]
    stripped.file_meta = original.file_meta
    with lenient():
        for keyword, value in (("SOPInstanceUID", image), ("StudyInstanceUID", study), ("SeriesInstanceUID", study)):
            del stripped[keyword]
            setattr(stripped, keyword, value)
    stripped.PatientID = "ID_0002cd41"
    return stripped


def write_rsna(folder: Path, phantom: PhantomStudy, positives: dict[str, dict[int, str]]) -> list[str]:
    """Studies of all slices; `positives` names the subtype of slices that are positive, by study."""
    (folder / "stage_2_train").mkdir(parents=True)
    lines, names = ["ID,Label"], []
    for place, (study, slices) in enumerate(positives.items()):
        for index, path in enumerate(images(phantom)):
            names.append(image := f"ID_{place:04x}{index:05x}")
            with lenient():
                written = folder / "stage_2_train" / f"{image}.dcm"
                rsna_image(path, image, study).save_as(written, enforce_file_format=True)
            found = {slices[index], "any"} if index in slices else set()
            lines += [f"{image}_{subtype},{int(subtype in found)}" for subtype in SUBTYPES]
    lines += lines[1:7]  # the set holds some images twice
    (folder / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    return names


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
