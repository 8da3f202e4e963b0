from fractions import Fraction

import numpy as np
import pytest

from icve.curation.edit_pairs.write_clips import WriteClips, clips_of
from icve.curation.stage import Rejected, Workspace
from icve.data.media.video import VideoWriter, probe, read_frames, write_video


def numbered(frames, height=48, width=80):
    """Frame k has the grey value 8 + 6 k."""
    return (
        (8 + 6 * np.arange(frames, dtype=np.uint8))[:, None, None, None].repeat(height, 1).repeat(width, 2).repeat(3, 3)
    )


def shown(frames):
    return np.round((frames.mean((1, 2, 3)) - 8) / 6).astype(int).tolist()


@pytest.fixture
def work(tmp_path):
    (tmp_path / "in").mkdir()
    return Workspace(tmp_path / "in", tmp_path / "out", tmp_path / "out")


def row(**columns):
    return {"key": "ab12", "video": "a.mp4", "scene_start": 0, "scene_end": 40, "width": 80, "height": 48, **columns}


def test_clips_are_cut_to_rate_without_overlap(work):
    write_video(work.input / "a.mp4", numbered(40), 24, crf=4)
    stage = WriteClips(frames=5, fps=12, sizes=[[32, 32], [24, 40]], clips_per_scene=10, margin=3, crf=4)
    rows = stage([row(note="kept")], work)[0]
    assert len(rows) == 3
    seen = []
    for clip in rows:
        assert (clip["width"], clip["height"], clip["fps"], clip["source_frames"]) == (40, 24, 12.0, 5)
        assert (clip["source_start"], clip["note"], clip["video"]) == (0, "kept", "a.mp4")
        file = work.file(clip, "source_path")
        info = probe(file)
        assert (info.width, info.height, info.fps, info.frames) == (40, 24, 12.0, 5)
        numbers = shown(read_frames(file))
        assert numbers == list(range(clip["clip_start"], clip["clip_start"] + 10, 2))
        seen += range(numbers[0], numbers[-1] + 1)
    assert len(set(seen)) == len(seen)
    assert min(seen) >= 3
    assert max(seen) < 37
    assert len({clip["source_path"] for clip in rows}) == 3


def test_which_clips_are_taken_depends_on_key_and_seed_alone(work):
    write_video(work.input / "a.mp4", numbered(40), 24)

    def starts(seed, key):
        stage = WriteClips(frames=5, fps=12, sizes=[[24, 40]], clips_per_scene=2, seed=seed)
        return tuple(clip["clip_start"] for clip in stage([row(key=key)], work)[0])

    assert starts(0, "k") == starts(0, "k")
    assert len({starts(seed, key) for seed in range(3) for key in "ab"}) > 1


def test_variable_rate_is_sampled_by_timestamp_and_never_repeats_a_frame(work):
    times = np.concatenate([np.arange(24) * 2, 48 + np.arange(12) * 8])  # 24 frames at 24 fps, then 12 at 6, in 1/48 s
    with VideoWriter(work.input / "a.mp4", 24, time_base=Fraction(1, 48), crf=4) as writer:
        writer.write(numbered(36), times)
    stage = WriteClips(frames=5, fps=12, sizes=[[24, 40]], clips_per_scene=20, margin=0, crf=4)
    rows = stage([row(scene_end=36)], work)[0]
    starts = {clip["clip_start"]: shown(read_frames(work.file(clip, "source_path"))) for clip in rows}
    assert min(starts) == 0
    assert max(starts) < 24
    for start, numbers in starts.items():
        assert len(set(numbers)) == 5
        if numbers[-1] < 24:
            assert numbers == list(range(start, start + 10, 2))  # 1/12 s at 24 fps


def test_slow_videos_keep_their_rate_or_are_rejected(work):
    write_video(work.input / "a.mp4", numbered(20), 8, crf=4)
    stage = {"frames": 5, "fps": 24, "sizes": [[24, 40]], "margin": 0, "crf": 4}
    clip = WriteClips(**stage)([row(scene_end=20)], work)[0][0]
    numbers = shown(read_frames(work.file(clip, "source_path")))
    assert numbers == list(range(clip["clip_start"], clip["clip_start"] + 5))
    assert clip["fps"] == pytest.approx(8)
    assert probe(work.file(clip, "source_path")).fps == pytest.approx(8)
    (outcome,) = WriteClips(**stage, slow_clips="drop")([row(scene_end=20)], work)
    assert outcome.reason == "slow video"
    assert "8 fps" in outcome.detail


def test_short_scenes_are_rejected(work):
    write_video(work.input / "a.mp4", numbered(20), 24)
    (outcome,) = WriteClips(frames=9, fps=12, sizes=[[24, 40]])([row(scene_end=20)], work)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "scene too short for a clip"
    assert "20 frames" in outcome.detail


def test_clips_of_one_frame_each_end():
    assert [list(clip) for clip in clips_of(np.arange(5) / 10, 0, 1, 10)] == [[0], [1], [2], [3], [4]]
    assert clips_of(np.arange(5) / 10, 0, 6, 10) == []


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"sizes": []}, {"sizes": [[33, 40]]}, {"crf": 99}])
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match="WriteClips needs"):
        WriteClips(**{"frames": 5, "fps": 12, "sizes": [[32, 32]], **wrong})
