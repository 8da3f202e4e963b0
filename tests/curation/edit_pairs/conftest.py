"""Folders of tiny models, made once."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_detector(tmp_path_factory) -> Path:
    from tests.curation.edit_pairs.tiny_models import save_tiny_grounding_dino

    return save_tiny_grounding_dino(tmp_path_factory.mktemp("grounding_dino"))


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory) -> Path:
    from tests.curation.edit_pairs.tiny_models import save_tiny_sam2

    return save_tiny_sam2(tmp_path_factory.mktemp("sam2"))


@pytest.fixture(scope="session")
def tiny_vace(tmp_path_factory) -> Path:
    from tests.curation.edit_pairs.tiny_models import save_tiny_vace

    return save_tiny_vace(tmp_path_factory.mktemp("vace"))
