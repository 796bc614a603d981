"""Real series, prepared or refused with their reason."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.encaps import encapsulate, get_frame

from hlip_core.preprocessing import BRAIN_MRI, HEAD_CT
from hlip_core.reasons import Reason
from hlip_core.volume import open_series, prepare
from series import refusal


def files(folder: Path) -> list[Path]:
    """The files of a folder in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.is_file())


def test_a_real_tilted_head_with_two_spacings_is_prepared(shared: Path) -> None:
    paths = files(shared / "data/ct/ge_hispeed_human_tilt_vargap")
    scan = prepare(open_series(paths), HEAD_CT)
    assert scan.voxels.shape == (48, 256, 256)
    assert scan.voxels.min() == -1024  # the padding is -1500
    assert len(scan.instances) == 28
    assert scan.notes == (
        "gantry tilt 18.5 degrees, not resampled",
        "variable slice spacing 1.08 to 7.00 mm",
        "slices overlap in 1 of 27 places",
    )
    assert dcmread(paths[0]).SOPInstanceUID == scan.source_of(0, 0, 0).sop_instance_uid


def test_a_real_head_without_a_named_body_part_is_known_by_its_content(shared: Path) -> None:
    datasets = open_series(files(shared / "data/ct/ge_hispeed_human_tilt_vargap"))
    named = prepare(datasets, HEAD_CT)
    for dataset in datasets:
        dataset.BodyPartExamined = ""
    np.testing.assert_array_equal(prepare(datasets, HEAD_CT).voxels, named.voxels)


@pytest.mark.parametrize(
    ("folder", "num_slices"),
    [("S2010_5mm_soft_jpegll", 28), ("S2020_1mm_soft_jpegls", 70), ("S2030_1mm_bone_j2k", 50)],
)
def test_the_compressed_series_of_a_real_study_are_prepared(shared: Path, folder: str, num_slices: int) -> None:
    scan = prepare(open_series(files(shared / "data/ct/philips_phantom_study_21570" / folder)), HEAD_CT)
    assert len(scan.instances) == num_slices
    assert scan.notes == ("the content does not look like a head; its BodyPartExamined says so",)  # plastic, air inside


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("philips_phantom_study_21570/S1000_localizer", Reason.LOCALIZER),
        ("philips_phantom_study_21570/S4010_sc_dose_burnedin", Reason.DOSE_PAGE),
        ("enhanced_ct_perfusion_supplemental_palette", Reason.DERIVED_MAP),
        ("wg04_ct1_chest_not_head", Reason.NOT_A_HEAD),
        ("wg04_ct2_head_toshiba_7encodings", Reason.INCONSISTENT),
    ],
)
def test_other_real_series_are_refused_with_their_reason(shared: Path, folder: str, reason: Reason) -> None:
    assert refusal(open_series(files(shared / "data/ct" / folder)), HEAD_CT) == reason


def test_seven_encodings_of_one_real_slice_give_the_same_values(shared: Path) -> None:
    spec = dataclasses.replace(HEAD_CT, num_slices=1, min_slices=1)
    scans = {
        path.name: prepare(open_series([path]), spec).voxels.astype(float)
        for path in files(shared / "data/ct/wg04_ct2_head_toshiba_7encodings")
    }
    for name in ("CT2_RLE", "CT2_JPLL", "CT2_JLSL", "CT2_J2KR"):
        np.testing.assert_array_equal(scans[name], scans["CT2_UNC"])
    assert np.abs(scans["CT2_JLSN"] - scans["CT2_UNC"]).max() < 20
    assert np.abs(scans["CT2_J2KI"] - scans["CT2_UNC"]).mean() < 60


@pytest.mark.parametrize("name", ["CT2_RLE", "CT2_JPLL", "CT2_JLSL", "CT2_J2KR"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_real_slice_with_its_end_cut_off_is_undecodable(shared: Path, name: str, share: float) -> None:
    dataset = dcmread(shared / "data/ct/wg04_ct2_head_toshiba_7encodings" / name)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: int(len(frame) * share)]])
    assert refusal([dataset], dataclasses.replace(HEAD_CT, min_slices=1)) == Reason.UNDECODABLE


def test_a_real_single_head_slice_is_too_few_not_another_body_part(shared: Path) -> None:
    slices = open_series([shared / "data/ct/wg04_ct2_head_toshiba_7encodings/CT2_UNC"])
    assert refusal(slices, HEAD_CT) == Reason.TOO_FEW_SLICES


@pytest.mark.parametrize(
    ("folder", "orientation", "num_instances"),
    [("siemens_prisma_t1_sag_HFS", "sagittal", 20), ("ge_mr750_epi", "axial", 15)],
)
def test_real_mr_series_are_prepared(shared: Path, folder: str, orientation: str, num_instances: int) -> None:
    scan = prepare(open_series(files(shared / "data/mr" / folder)), BRAIN_MRI)
    assert (scan.orientation, len(scan.instances)) == (orientation, num_instances)


def test_a_mosaic_is_refused(shared: Path) -> None:
    assert refusal(open_series(files(shared / "data/mr/siemens_prisma_dwi_mosaic_HFS")), BRAIN_MRI) == Reason.MOSAIC
