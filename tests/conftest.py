"""Fixtures every test may use."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout the tests run from: configs/, README.md and the other files outside the package."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_weights_tool(repository):
    """The module tools/make_tiny_weights.py."""
    spec = importlib.util.spec_from_file_location("make_tiny_weights", repository / "tools" / "make_tiny_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_tiny_weights(tiny_weights_tool):
    return tiny_weights_tool.make_tiny_weights


@pytest.fixture(scope="session")
def tiny_wan(tmp_path_factory, make_tiny_weights):
    """A tiny random Wan 2.1 and a 2.2."""
    folder = tmp_path_factory.mktemp("wan")
    return [make_tiny_weights(folder / version, family=version) for version in ("wan", "wan2.2")]


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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Model folder of an editor with random weights that takes windows of 5 frames near 32x32."""
    from tests.tiny import tiny_editor

    folder = tmp_path_factory.mktemp("model")
    tiny_editor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def metric_models(shared_data, tmp_path_factory) -> Path:
    """Folder with the models of the shipped suites of metrics, tiny ones by the names of the real ones."""
    import torch

    folder, tiny = tmp_path_factory.mktemp("metric_models"), shared_data / "golden_metrics" / "models"
    real = {"clip-vit-base-patch32": "clip", "dino-vitb16": "dino", "PickScore_v1": "pick"}
    for name, model in (real | {"CLIP-ViT-H-14-laion2B-s32B-b79K": "pick"}).items():
        (folder / name).symlink_to(tiny / model)
    shapes = {0: (64, 3, 11, 11), 3: (192, 64, 5, 5), 6: (384, 192, 3, 3), 8: (256, 384, 3, 3), 10: (256, 256, 3, 3)}
    weights = {f"features.{layer}.weight": torch.randn(shape) / 50 for layer, shape in shapes.items()}
    weights |= {f"features.{layer}.bias": torch.zeros(shape[0]) for layer, shape in shapes.items()}
    torch.save(weights, folder / "alexnet-owt-7be5be79.pth")
    return folder


@pytest.fixture
def make_clip(tmp_path):
    """Write a video of coarse noise that drifts from frame to frame: make_clip("a.mp4", frames=12, size=(48, 80))."""
    from icve.data.media.video import write_video

    def make(name: str, frames: int = 5, size: tuple[int, int] = (32, 32), fps: float = 10, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        picture = rng.integers(40, 200, (size[0] // 8 + 1, size[1] // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)
        drift = rng.normal(0, 2, (frames, 1, 1, 3)).cumsum(0)
        clip = np.clip(picture[: size[0], : size[1]] + drift, 0, 255).astype(np.uint8)
        write_video(tmp_path / name, clip, fps)
        return tmp_path / name

    return make


@pytest.fixture
def watched():
    """Remembers a process that it is given, which is not left running when the test fails."""
    processes = []

    def remember(process):
        processes.append(process)
        return process

    yield remember
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(scope="session")
def _s3_server():
    from tests.s3_server import s3_server

    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3_server, tmp_path, monkeypatch):
    """A local S3 server that the environment names; buckets of earlier tests may be there."""
    from tests.s3_server import use

    _s3_server.reset()
    use(_s3_server, tmp_path / "cache", monkeypatch)
    yield _s3_server
    _s3_server.reset()
