"""Whether the point of relevance lies on the lesion."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tiny
from evaluations import run
from hlip_core.assessment import order_scans
from hlip_core.errors import InputError
from hlip_core.prepared import SourceVoxel
from hlip_core.volume import open_series, prepare
from trainer.evaluation import pointing as pointing_module
from trainer.evaluation.pointing import Pointing, patient_point, pointing_rows
from trainer.phantom import LABELS, LesionMask, read_study

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = SourceVoxel("", "", None, 0, 0)


def test_a_pixel_is_a_point_in_the_patient(phantoms):
    (path, *_) = sorted((phantoms / "phantom-1" / "2-thick").iterdir())
    (header,) = open_series([path])
    here = np.array(header.ImagePositionPatient, float)
    spacing = float(header.PixelSpacing[0])
    row, column = np.array(header.ImageOrientationPatient[:3]), np.array(header.ImageOrientationPatient[3:])
    np.testing.assert_allclose(patient_point(header, replace(HERE, row=0, column=0)), here)
    expected = here + 3 * spacing * column + 7 * spacing * row
    np.testing.assert_allclose(patient_point(header, replace(HERE, row=3, column=7)), expected)
    del header.ImagePositionPatient
    with pytest.raises(InputError, match="no position"):
        patient_point(header, HERE)


def test_a_point_on_the_lesion_is_near_and_one_across_the_head_is_not(phantoms):
    """The masks, the preparation and the way back to the patient agree: a dense clot lies where its mask says."""
    study = next(s for s in map(read_study, sorted(phantoms.glob("phantom-*"))) if s.labels["epidural_hemorrhage"])
    mask = LesionMask.load(study.folder / "lesions.npz")
    series = [open_series(sorted((study.folder / record.folder).iterdir())) for record in study.series]
    (scan,) = order_scans(pointing_module.prepare_series(series, tiny.SPEC)[0])
    headers = {str(dataset.SOPInstanceUID): dataset for datasets in series for dataset in datasets}
    lesion = mask.points("epidural_hemorrhage")
    voxels = [(z, y, x) for z in range(8) for y in range(40) for x in range(40)]
    sources = [scan.source_of(*voxel) for voxel in voxels]
    points = np.array([patient_point(headers[source.sop_instance_uid], source) for source in sources])
    away = np.array([mask.distance("epidural_hemorrhage", point) for point in points[::37]])
    expected = [np.linalg.norm(lesion - point, axis=1).min() for point in points[::37]]
    np.testing.assert_allclose(away, expected)
    nearest = voxels[int(np.argmin(np.linalg.norm(points - lesion.mean(axis=0), axis=1)))]
    assert scan.voxels[nearest] > 25  # HU: blood, not air or the other side's bone edge
    assert away.max() > 50


def test_pointing_counts_true_positives_only_and_says_what_chance_would_reach(
    bundle, phantom_cohort, phantoms, tmp_path
):
    found = run(bundle, phantom_cohort, phantoms=phantoms, out=tmp_path).document["phantoms"]["pointing"]
    assert found["true_positives"] == sum(row["true_positives"] for row in found["findings"].values()) > 0
    assert 0 <= found["share"][0] <= 1 and 0 <= found["chance"] < 1
    assert set(found["thresholds"].values()) == {"Youden's, chosen on these studies"}
    none = run(bundle, phantom_cohort, phantoms=phantoms, out=tmp_path, site=dict.fromkeys(LABELS, 9.0))
    assert none.document["phantoms"]["pointing"]["true_positives"] == 0
    assert none.document["phantoms"]["pointing"]["share"] is None


def test_the_point_is_that_of_the_findings_report(bundle, phantoms):
    """What the check measures is the location that the bundle reports for the same study."""
    study = read_study(phantoms / "phantom-1")
    scan = prepare(open_series(sorted((study.folder / "2-thick").iterdir())), tiny.SPEC)
    label = "subdural_hemorrhage"
    score = next(s for s in bundle.assess([scan], thresholds={label: -9}).findings if s.finding.label == label)
    source = score.location.source
    images = open_series(sorted((study.folder / "2-thick").iterdir()))
    (header,) = (image for image in images if image.SOPInstanceUID == source.sop_instance_uid)
    expected = LesionMask.load(study.folder / "lesions.npz").distance(label, patient_point(header, source))
    (distance, chance), *_ = pointing_module._look(bundle, study.folder, [label], "cpu").values()
    assert distance == pytest.approx(expected, abs=0.01)
    assert 0 <= chance < 0.5


def test_pointing_is_kept_and_shares_are_counted_by_hand(bundle, phantom_cohort, phantoms, tmp_path):
    pointing = Pointing(bundle, phantoms, device="cpu", folder=tmp_path)
    pointing.of = {"a": {"x": [3.0, 0.1]}, "b": {"x": [10.5, 0.3], "y": [None, 0.0]}, "c": {"x": [10.0, 0.2]}}
    rows = pointing_rows(pointing, {"x": ["a", "b", "c", "unseen"], "y": ["b"], "z": []})
    assert rows["findings"]["x"]["share"][0] == pytest.approx(2 / 3)
    assert rows["findings"]["x"]["chance"] == pytest.approx(0.2)
    assert rows["findings"]["y"]["share"][0] == 0
    assert (rows["true_positives"], rows["share"][0], rows["chance"], rows["not_looked_at"]) == (4, 0.5, 0.15, 1)
    pointing._save()
    assert Pointing(bundle, phantoms, device="cpu", folder=tmp_path).of == pointing.of
    assert Pointing(bundle, tmp_path, device="cpu", folder=tmp_path).of == {}


def test_phantoms_of_another_folder_are_an_error(bundle, phantom_cohort, tmp_path):
    with pytest.raises(InputError, match="none of the cohort's phantoms"):
        run(bundle, phantom_cohort, phantoms=tmp_path)
