"""Small real MP4 files whose frames say which frame they are."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from icve.data.manifest import write_manifest
from icve.data.media.video import write_video


def numbered(count: int, height: int = 48, width: int = 64, first: int = 0) -> np.ndarray:
    """Frames (F, H, W, 3) of one grey each: frame k is 16 + 4 (first + k)."""
    greys = 16 + 4 * (first + np.arange(count))
    return np.broadcast_to(greys[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="session")
def numbered_frames() -> Callable[..., np.ndarray]:
    return numbered


@pytest.fixture(scope="session")
def frame_numbers() -> Callable[[np.ndarray], list[int]]:
    """Inverse of numbered_frames, for decoded frames (F, H, W, 3)."""
    return lambda frames: [round((float(frame.mean()) - 16) / 4) for frame in np.asarray(frames)]


@pytest.fixture(scope="session")
def pairs_folder(tmp_path_factory) -> Path:
    """A manifest of ten edits, 64x48 (eight) and 48x64, 12 frames each; target frame k is source frame k + 20."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for i in range(10):
        height, width = (48, 64) if i < 8 else (64, 48)
        for kind, first in (("source", i), ("target", i + 20)):
            write_video(folder / f"{kind}s" / f"{i}.mp4", numbered(12, height, width, first), fps=8)
        rows.append(
            {
                "id": f"edit{i}",
                "source_path": f"sources/{i}.mp4",
                "target_path": f"targets/{i}.mp4",
                "source_frames": 12,
                "target_frames": 12,
                "width": width,
                "height": height,
                "fps": 8.0,
                "instruction": f"make it {i + 20}",
            }
        )
    write_manifest(rows, folder / "manifest.parquet")
    return folder
