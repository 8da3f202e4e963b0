import json

import numpy as np
import pytest

from icve.curation.scenes import detect_scenes
from icve.data.video import VideoError, write_video
from icve.synthetic.events import read_events
from icve.synthetic.raw_files import synthesize_raw


def test_finds_exactly_the_cuts_of_raw_videos(tmp_path):
    logs = read_events(synthesize_raw(tmp_path, 2, split="train", seed=5)).values()
    for log in logs:
        scenes = detect_scenes(tmp_path / log["video"])
        assert scenes == [(scene["start"], scene["end"]) for scene in log["scenes"]]


def test_a_video_without_cuts_is_one_scene(tmp_path):
    write_video(tmp_path / "still.mp4", np.full((12, 64, 64, 3), 90, np.uint8), 8)
    assert detect_scenes(tmp_path / "still.mp4") == [(0, 12)]


def test_real_cuts(shared_data):
    folder = shared_data / "videos" / "long"
    (truth,) = (v for v in json.loads((folder / "cuts.json").read_text())["videos"] if v["file"] == "long_01.mp4")
    scenes = detect_scenes(folder / "long_01.mp4")
    assert [start for start, _ in scenes[1:]] == truth["cuts"]
    assert scenes[-1][1] == truth["frames"]


@pytest.mark.parametrize("name", ["zero_byte", "text_renamed", "audio_only", "truncated_faststart", "corrupt_bytes"])
def test_damaged_files_are_refused_with_a_reason(shared_data, name):
    with pytest.raises(VideoError) as failure:
        detect_scenes(shared_data / "videos" / "bad" / f"{name}.mp4")
    assert failure.value.reason


def test_missing_file(tmp_path):
    with pytest.raises(VideoError):
        detect_scenes(tmp_path / "none.mp4")
