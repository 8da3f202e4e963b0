import pytest

from icve.data.media.video import probe
from icve.synthetic.events import read_events
from icve.synthetic.raw import plan_raw_video, scene_log
from icve.synthetic.raw_files import synthesize_raw


def test_log_and_videos_belong_together(tmp_path):
    events = synthesize_raw(tmp_path, 1, split="train", seed=9)
    assert events == tmp_path / "events.jsonl"
    (log,) = read_events(events).values()
    assert log["scenes"] == scene_log(plan_raw_video("train", 9, 0))
    info = probe(tmp_path / log["video"])
    assert (info.frames, info.width, info.height, info.fps) == (log["frames"], 64, 64, 8.0)
    assert {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.*")} == {"events.jsonl", log["video"]}


def test_a_rerun_keeps_files_and_more_videos_do_not_change_earlier_ones(tmp_path):
    synthesize_raw(tmp_path, 1, seed=2)
    (video,) = (tmp_path / "videos").iterdir()
    time, first = video.stat().st_mtime_ns, (tmp_path / "events.jsonl").read_text()
    synthesize_raw(tmp_path, 2, seed=2)
    assert video.stat().st_mtime_ns == time
    assert (tmp_path / "events.jsonl").read_text().startswith(first)


def test_impossible_arguments(tmp_path):
    with pytest.raises(ValueError, match="count"):
        synthesize_raw(tmp_path / "out", 0)
    assert not (tmp_path / "out").exists()
