"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout the tests run from: configs/, README.md and the other files outside the package."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real videos and golden tensors, which are not part of the repository.

    The folder is ``$ICVE_TEST_DATA``, or ``../shared/data`` beside the checkout; a test that needs it is skipped where
    neither exists. A variable that names a missing folder is an error, so that a typing mistake never skips tests.
    """
    named = os.environ.get("ICVE_TEST_DATA")
    if named:
        folder = Path(named).expanduser().resolve()
        if not folder.is_dir():
            pytest.fail(f"ICVE_TEST_DATA names {folder}, which is not a folder: correct it or unset it.")
        return folder
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared test data is absent: set ICVE_TEST_DATA to its folder to run this test")
    return folder
