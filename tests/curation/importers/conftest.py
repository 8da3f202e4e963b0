"""Sets of paired edits as they lie on a disk, in the small."""

import json

import numpy as np
import pytest

from icve.data.media.video import write_video


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Bytes of a video of 9 frames, and of one of 7."""
    folder, frames = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    clip = frames.integers(0, 255, (9, 48, 64, 3)).astype(np.uint8)
    for length in (9, 7):
        write_video(folder / f"{length}.mp4", clip[:length], 8)
    return {length: (folder / f"{length}.mp4").read_bytes() for length in (9, 7)}


@pytest.fixture
def put(tmp_path, video):
    """Writes files of a set: bytes, text, a list as JSON, or True for a video (or its number of frames)."""

    def write(**files):
        for name, content in files["files"].items():
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, (list, dict)):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            path.write_bytes(video[9 if data is True else data] if isinstance(data, int) else data)
        return tmp_path / "set"

    return write
