"""What benchmarks are made of: the study is a valid one, of the size that the tables name."""

import sys
from pathlib import Path

import pytest
from pydicom import dcmread

from peers import dciodvfy_errors

BENCH = Path(__file__).resolve().parents[1] / "deploy" / "bench"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.delitem(sys.modules, "_ct_study", raising=False)
    from _ct_study import write_ct_study

    return write_ct_study(tmp_path, instances=3)


def test_the_study_of_the_ingest_benchmark_is_a_valid_ct_series(study: list[Path]) -> None:
    images = [dcmread(path) for path in study]
    assert len({image.SOPInstanceUID for image in images}) == 3
    assert len({image.SeriesInstanceUID for image in images}) == 1
    assert all(image.pixel_array.shape == (512, 512) for image in images)
    assert all(524_288 < path.stat().st_size < 527_000 for path in study)


def test_its_slices_pass_a_validator(study: list[Path]) -> None:
    assert dciodvfy_errors(study[0]) == set()
