"""The synthetic studies: valid, repeatable, true to their labels, and heads or no heads to the serving road."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from hlip_core.errors import Refused
from hlip_core.findings import FindingsTable
from hlip_core.preprocessing import PREPROCESSINGS
from hlip_core.reasons import Reason
from hlip_core.volume import open_series, prepare
from trainer.phantom import LABELS, Examination, LesionMask, PhantomStudy, read_study, write_study
from trainer.phantom.lesions import KINDS
from trainer.phantom.population import LABEL_OF_KIND, SERIES

HEAD_CT = PREPROCESSINGS["head-ct/1"]


def paths(study: PhantomStudy, kind: str) -> list[Path]:
    """The files of one series."""
    folder = next(record.folder for record in study.series if record.kind == kind)
    return sorted((study.folder / folder).iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_labels_are_those_of_the_findings_table() -> None:
    assert set(LABELS) == {finding.label for finding in FindingsTable.from_toml().findings}


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a/s", "b/s"):
        write_study(tmp_path / name, seed=5, preset="tiny", series=["thick", "localizer"])
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_another_seed_gives_another_study(tmp_path: Path) -> None:
    one, two = (write_study(tmp_path / str(seed), seed=seed, preset="tiny") for seed in (1, 2))
    assert one.study_instance_uid != two.study_instance_uid
    assert one.sentences != two.sentences


def test_every_series_has_no_error_of_the_standard(tmp_path: Path) -> None:
    tool = shutil.which("dciodvfy")
    if tool is None:
        pytest.skip("dciodvfy (Debian package dicom3tools) is not installed")
    study = write_study(tmp_path / "s", seed=3, preset="tiny", series=list(SERIES), lesions=["epidural"])
    contrast = next(s for s in range(100) if Examination(seed=s, preset="tiny").head.contrast)
    other = write_study(tmp_path / "c", seed=contrast, preset="tiny", series=["thick"])
    checked = [paths(study, kind)[0] for kind in SERIES] + [paths(study, "thick")[-1], paths(other, "thick")[3]]
    for path in checked:
        said = subprocess.run([tool, str(path)], capture_output=True, text=True, check=False)
        assert "Error" not in said.stdout + said.stderr, (path, said.stderr)


@pytest.mark.parametrize("kind", list(LABEL_OF_KIND))
def test_a_lesion_that_was_asked_for_is_labelled(kind: str) -> None:
    exam = Examination(seed=8, kinds=[kind], preset="tiny", conspicuity=(0.7, 0.9))
    assert LABEL_OF_KIND[kind] in exam.findings
    assert exam.mask().points(LABEL_OF_KIND[kind]).shape[1] == 3


def test_a_head_without_lesions_has_no_finding() -> None:
    assert Examination(seed=8, kinds=[], preset="tiny").findings == {}
    assert Examination(seed=8, kinds=["none"], preset="tiny").findings == {}


def test_the_other_make_of_scanner_sees_the_same_head() -> None:
    usual, other = (Examination(seed=8, preset="tiny", make=make) for make in ("usual", "other"))
    assert usual.lesions == other.lesions
    assert usual.scanner.blur < other.scanner.blur
    assert usual.header.StudyInstanceUID != other.header.StudyInstanceUID


def test_a_label_may_be_asked_for_instead_of_a_kind() -> None:
    exam = Examination(seed=8, kinds=["subdural_hemorrhage"], preset="tiny")
    assert [lesion.kind for lesion in exam.lesions] == ["subdural"]


@pytest.mark.parametrize(
    "wrong", [{"kinds": ["wart"]}, {"series": ["pet"]}, {"body": "foot"}, {"preset": "huge"}, {"make": "?"}]
)
def test_an_unknown_name_is_told(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no such"):
        Examination(seed=1, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("series", ["thick", "coronal"])
def test_the_mask_lies_on_the_blood(tmp_path: Path, series: str) -> None:
    study = write_study(
        tmp_path / "s", seed=8, preset="training", size=128, series=[series], lesions=["intraparenchymal"],
        conspicuity=(0.95, 1.0),
    )  # fmt: skip
    points = LesionMask.load(study.folder / "lesions.npz").points("intraparenchymal_hemorrhage")
    inside, outside = hu_at(paths(study, series), points), hu_at(paths(study, series), points * [-1, 1, 1])
    assert np.median(inside) > 55
    assert np.median(outside) < 45


def hu_at(series: list[Path], points: np.ndarray) -> np.ndarray:
    """HU of the pixels nearest to patient points (x, y, z), those within a slice's thickness."""
    found = []
    for path in series:
        image = dcmread(path)
        row, column = (np.array(image.ImageOrientationPatient[i : i + 3], float) for i in (0, 3))
        offset = points - np.array(image.ImagePositionPatient, float)
        near = np.abs(offset @ np.cross(row, column)) < float(image.SliceThickness) / 2
        c, r = (np.rint(offset[near] @ axis / float(image.PixelSpacing[0])).astype(int) for axis in (row, column))
        found.append(image.pixel_array[r, c])
    return np.concatenate(found)


def test_a_collection_on_the_left_pushes_the_midline_to_the_right() -> None:
    exams = (Examination(seed=s, kinds=["subdural"], preset="tiny", conspicuity=(1, 1)) for s in range(6))
    shifts = {exam.lesions[0].side: exam.truth.shift_mm for exam in exams}
    assert shifts["left"] < 0 < shifts["right"]


def test_a_more_conspicuous_lesion_is_larger() -> None:
    for kind in set(KINDS) - {"hydrocephalus", "scalp", "fracture", "intraventricular", "subarachnoid"}:
        faint, plain = (
            sum(
                Examination(seed=s, kinds=[kind], preset="tiny", conspicuity=(c, c)).truth.volumes_ml[0]
                for s in range(3)
            )
            for c in (0.1, 0.9)
        )
        assert faint < plain, kind


def test_a_finished_study_is_kept_and_another_is_replaced(tmp_path: Path) -> None:
    first = write_study(tmp_path / "s", seed=1, preset="tiny", series=["thick"])
    stamp = (tmp_path / "s" / "study.json").stat().st_mtime_ns
    again = write_study(tmp_path / "s", seed=1, preset="tiny", series=["thick"])
    assert again == first == read_study(tmp_path / "s")
    assert (tmp_path / "s" / "study.json").stat().st_mtime_ns == stamp
    other = write_study(tmp_path / "s", seed=2, preset="tiny", series=["bone"])
    assert [record.kind for record in other.series] == ["bone"]
    assert len(list((tmp_path / "s").iterdir())) == 3


def test_an_unfinished_study_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "s.part" / "1-thick").mkdir(parents=True)
    (tmp_path / "s.part" / "1-thick" / "9999.dcm").write_bytes(b"torn")
    study = write_study(tmp_path / "s", seed=1, preset="tiny", series=["thick"])
    assert not (tmp_path / "s.part").exists()
    assert len(paths(study, "thick")) == study.series[0].instances


@pytest.mark.parametrize("series", ["thick", "thin", "bone", "coronal"])
@pytest.mark.parametrize("body_part", [None, ""])
def test_a_head_is_prepared(tmp_path: Path, series: str, body_part: str | None) -> None:
    study = write_study(tmp_path / "s", seed=4, preset="training", size=128, series=[series], body_part=body_part)
    prepared = prepare(open_series(paths(study, series)), HEAD_CT)
    assert prepared.voxels.shape == (48, 256, 256)
    assert prepared.study_instance_uid == study.study_instance_uid


def test_a_localizer_is_refused(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", seed=4, preset="tiny", series=["localizer"])
    with pytest.raises(Refused) as refused:
        prepare(open_series(paths(study, "localizer")), HEAD_CT)
    assert refused.value.reason is Reason.LOCALIZER


@pytest.mark.parametrize("body", ["chest", "abdomen", "cylinder"])
@pytest.mark.parametrize("body_part", [None, ""])
def test_what_is_no_head_is_refused(tmp_path: Path, body: str, body_part: str | None) -> None:
    study = write_study(
        tmp_path / "s", seed=4, preset="training", size=128, series=["thick"], body=body, body_part=body_part
    )
    assert not any(study.labels.values())
    with pytest.raises(Refused) as refused:
        prepare(open_series(paths(study, "thick")), HEAD_CT)
    assert refused.value.reason in {Reason.OTHER_BODY_PART, Reason.NOT_A_HEAD}


def test_the_slices_in_memory_are_those_on_the_disk(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", seed=6, preset="tiny", series=["coronal", "thick"])
    exam = Examination(seed=6, preset="tiny", series=["coronal", "thick"])
    for number, kind in enumerate(exam.series, 1):
        slices = list(exam.images(kind, number)[1])
        assert slices == [dcmread(path) for path in paths(study, kind)]
    assert "DerivationDescription" not in slices[0]


def test_no_header_names_a_person_or_a_hospital(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", seed=6, preset="tiny", series=["thick"])
    image = dcmread(paths(study, "thick")[0])
    assert image.PatientName == "Phantom^Head"
    assert image.PatientID.startswith("PHANTOM-")
    assert image.InstitutionName == "No hospital"


def test_the_study_file_says_what_was_made(tmp_path: Path) -> None:
    study = write_study(tmp_path / "s", seed=6, preset="tiny", lesions=["subdural_chronic"], conspicuity=(0.8, 0.8))
    row = json.loads((tmp_path / "s" / "study.json").read_text())
    assert row["labels"]["subdural_hemorrhage"]
    assert row["conspicuity"]["subdural_hemorrhage"] == 0.8
    assert row["report"] == study.report
    assert row["lesions"][0]["kind"] == "subdural"
