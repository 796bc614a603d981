"""Every encoding of a series gives the same volume; damaged and lying files are refused, and take no memory."""

import contextlib
import copy
import dataclasses
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

import series
from hlip_core import resample
from hlip_core.errors import Refused
from hlip_core.reasons import Reason
from hlip_core.volume import open_series, prepare
from series import SMALL, refusal


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
def test_every_lossless_encoding_gives_the_same_volume(syntax: str, tmp_path: Path) -> None:
    datasets = series.series(series.head())
    plain = prepare(datasets, SMALL)
    for dataset in datasets:
        dataset.compress(syntax, generate_instance_uid=False)
    scan = prepare(open_series(series.write(datasets, tmp_path)), SMALL)
    np.testing.assert_array_equal(scan.voxels, plain.voxels)
    assert scan.instances == plain.instances


def test_big_endian_gives_the_same_volume(tmp_path: Path) -> None:
    datasets = series.series(series.head())
    turned = [series.big_endian(dataset) for dataset in datasets]
    scan = prepare(open_series(series.write(turned, tmp_path)), SMALL)
    np.testing.assert_array_equal(scan.voxels, prepare(datasets, SMALL).voxels)


def test_a_deflated_file_gives_the_same_volume(tmp_path: Path) -> None:
    datasets = series.series(series.head())
    plain = prepare(datasets, SMALL)
    for dataset in datasets:
        dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    np.testing.assert_array_equal(prepare(open_series(series.write(datasets, tmp_path)), SMALL).voxels, plain.voxels)


def test_opening_a_series_leaves_its_pixels_in_the_files(tmp_path: Path) -> None:
    paths = series.write(series.series(series.head()), tmp_path)
    datasets = open_series(paths)
    prepare(datasets, SMALL)
    assert all(dataset.get_item("PixelData", keep_deferred=True).value is None for dataset in datasets)


def test_only_the_sampled_slices_of_a_ct_are_decoded(tmp_path: Path) -> None:
    datasets = series.series(series.head(40))
    paths = series.write(datasets, tmp_path)
    whole = prepare(open_series(paths), SMALL)
    sampled = set(resample.nearest_slices(40, 10).tolist())
    for k, path in enumerate(paths):
        if k not in sampled:
            path.write_bytes(path.read_bytes()[:-1000])  # nobody who decodes this slice gets away with it
    np.testing.assert_array_equal(prepare(open_series(paths), SMALL).voxels, whole.voxels)
    broken = paths[min(sampled)]
    broken.write_bytes(broken.read_bytes()[:-1000])
    assert refusal(open_series(paths)) == Reason.UNDECODABLE


def test_a_file_that_is_not_dicom_is_undecodable(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("no DICOM here " * 100)
    with pytest.raises(Refused) as caught:
        open_series([path])
    assert caught.value.reason == Reason.UNDECODABLE
    assert "notes" not in str(caught.value)


def test_a_file_that_has_gone_is_no_refusal(tmp_path: Path) -> None:
    paths = series.write(series.series(series.head()), tmp_path)
    with pytest.raises(FileNotFoundError):
        open_series([*paths, tmp_path / "none.dcm"])
    datasets = open_series(paths)
    paths[0].unlink()
    with pytest.raises(FileNotFoundError):
        prepare(datasets, SMALL)


def test_an_encapsulated_frame_that_claims_gigabytes_takes_no_memory(tmp_path: Path) -> None:
    datasets = series.series(np.random.default_rng(1).integers(-1000, 1000, (12, 96, 96)))
    for dataset in datasets:
        dataset.compress(RLELossless, generate_instance_uid=False)
    paths = series.write(datasets, tmp_path)
    for path in paths:
        data = bytearray(path.read_bytes())
        item = data.index(b"\xfe\xff\x00\xe0", data.index(b"\xfe\xff\x00\xe0") + 4)
        data[item + 4 : item + 8] = struct.pack("<I", 0xFFFFFFF0)
        path.write_bytes(data)
    opened = open_series(paths)
    tracemalloc.start()
    with contextlib.suppress(Refused):
        prepare(opened, SMALL)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_truncated_compressed_slice_is_undecodable(tmp_path: Path) -> None:
    datasets = series.series(series.head())
    for dataset in datasets:
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    frame = b"\xff\x4f\xff\x51" + b"\0" * 40
    datasets[4].PixelData = encapsulate([frame])
    assert refusal(datasets) == Reason.UNDECODABLE


def test_malformed_compressed_slices_are_refused_and_nothing_crashes() -> None:
    whole = series.series(series.head(9))[0]
    rng = np.random.default_rng(1)
    for syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        dataset = copy.deepcopy(whole)
        dataset.compress(syntax, generate_instance_uid=False)
        pixels = dataset.PixelData
        for _ in range(40):
            mutated = bytearray(pixels)
            for at in rng.integers(16, len(pixels), 4):
                mutated[at] = rng.integers(256)
            dataset.PixelData = bytes(mutated)
            with contextlib.suppress(Refused):
                prepare([dataset], dataclasses.replace(SMALL, num_slices=1, min_slices=1))


def test_a_compressed_image_that_claims_a_huge_size_is_not_decoded() -> None:
    datasets = series.series(series.head())
    datasets[4].compress(JPEG2000Lossless, generate_instance_uid=False)
    bomb = bytearray(datasets[4].PixelData)
    at = bomb.index(b"\xff\x4f\xff\x51") + 8
    bomb[at : at + 8] = struct.pack(">2I", 60000, 60000)
    datasets[4].PixelData = bytes(bomb)
    assert refusal(datasets) == Reason.UNDECODABLE


def test_a_dataset_without_a_transfer_syntax_is_undecodable() -> None:
    datasets = series.series(series.head())
    del datasets[3].file_meta
    assert refusal(datasets) == Reason.UNDECODABLE
