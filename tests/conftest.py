"""Fixtures that several test files share: the test data folder and real peers on free ports."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real DICOM data beside the repository; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip("the shared test data folder is not beside the repository")
    return SHARED
