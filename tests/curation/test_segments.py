import json
import warnings
from itertools import pairwise

import numpy as np
import pytest
from scenedetect import AdaptiveDetector, detect

from icve.curation import segments
from icve.curation.measure import Measure, read_signals
from icve.curation.probe import Probe
from icve.curation.segments import Segments, scenes, transitions
from icve.curation.stage import Rejected, Workspace

FPS = 24.0


def drifting(frames, seed, speed=0.04):
    """Mosaics (frames, 16, 16, 3) of a view that drifts over a smooth texture."""
    rng = np.random.default_rng(seed)
    phases, waves = rng.uniform(0, 2 * np.pi, (3, 6)), rng.uniform(-1, 1, (3, 6, 2))
    y, x = np.mgrid[0:16, 0:16]
    k = np.arange(frames)[:, None, None]
    channels = [
        sum(np.cos(phase + wave[0] * (x + speed * k) + wave[1] * y) for phase, wave in zip(phase6, wave6, strict=True))
        for phase6, wave6 in zip(phases, waves, strict=True)
    ]
    return np.clip(110 + 16 * np.stack(channels, -1) + rng.uniform(-60, 60, 3), 0, 255)


def joined(length, through=None, before=50, after=60, seed=0):
    """Two takes with a transition of so many frames from `before` on: a cross-fade, or one through a plain picture."""
    a, b = drifting(before + length, 2 * seed), drifting(length + after, 2 * seed + 1)
    share = ((np.arange(length) + 1) / (length + 1))[:, None, None, None]
    if through is None:
        middle = a[before:] * (1 - share) + b[:length] * share
    else:
        plain = np.full((16, 16, 3), float(through))
        middle = np.where(
            share < 0.5,
            a[before:] * (1 - 2 * share) + plain * 2 * share,
            b[:length] * (2 * share - 1) + plain * (2 - 2 * share),
        )
    return np.concatenate([a[:before], middle, b[length:]]).round().astype(np.uint8)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("length", [8, 16, 24])
def test_a_cross_fade_is_found_where_it_is(seed, length):
    ((start, end),) = transitions(joined(length, seed=seed), FPS)
    assert 50 - 3 <= start < end <= 50 + length + 3
    assert abs((start + end) / 2 - (50 + length / 2)) <= 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("plain", [0, 255])
def test_a_fade_through_a_plain_picture_is_one_gap(seed, plain):
    mosaic = joined(24, through=plain, seed=seed)
    (before, after) = scenes(len(mosaic), [62], transitions(mosaic, FPS), margin=2, min_frames=3)
    assert before[0] == 0
    assert 44 <= before[1] <= 52
    assert 72 <= after[0] <= 80
    assert after[1] == len(mosaic)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("speed", [0.04, 0.1, 0.15, 2.0])
def test_a_moving_view_is_no_transition(seed, speed):
    assert transitions(drifting(120, seed, speed).astype(np.uint8), FPS) == []


def test_a_hard_cut_is_no_gradual_transition():
    mosaic = np.concatenate([drifting(40, 1), drifting(40, 2)]).astype(np.uint8)
    assert transitions(mosaic, FPS) == []


def test_long_videos_are_compared_in_blocks(monkeypatch):
    mosaic = np.concatenate([joined(16, seed=seed) for seed in range(3)])
    whole = transitions(mosaic, FPS)
    assert len(whole) >= 3
    monkeypatch.setattr(segments, "_BLOCK", 7)
    assert transitions(mosaic, FPS) == whole


def test_scenes_lie_between_cuts_and_outside_of_transitions():
    assert scenes(100, [], [], 2, 3) == [(0, 100)]
    assert scenes(100, [30, 60], [], 2, 3) == [(0, 30), (30, 60), (60, 100)]
    assert scenes(100, [30], [(50, 60)], 2, 3) == [(0, 30), (30, 48), (62, 100)]
    assert scenes(100, [49, 55, 62], [(50, 60)], 2, 3) == [(0, 48), (62, 100)]  # cuts seen within a fade are the fade
    assert scenes(100, [], [(0, 10), (12, 20), (95, 100)], 2, 3) == [(22, 93)]
    assert scenes(100, [2, 50, 52], [], 0, 3) == [(2, 50), (52, 100)]  # shorter than the shortest scene
    assert scenes(10, [], [(0, 10)], 2, 3) == []


def run(path, output, **parameters):
    work = Workspace(path.parent, output, path.parent)
    (row,) = Probe(min_side=16, min_seconds=0)([{"key": path.stem, "video": path.name}], work)
    (row,) = Measure()([row], work)
    return Segments(**parameters)([row], work)[0]


@pytest.fixture(scope="module")
def found(shared_data, measured):
    """Scenes and truth of the real videos with known cuts, by name."""
    rows, _, work = measured
    truth = json.loads((shared_data / "videos" / "long" / "cuts.json").read_text())["videos"]
    result = {}
    for video in truth:
        (row,) = (row for row in rows if row["video"] == f"long/{video['file']}")
        scenes = Segments()([row], work)[0]
        result[video["file"]] = [(scene["scene_start"], scene["scene_end"]) for scene in scenes], video
    return result


@pytest.mark.slow
def test_real_cuts_are_found_and_nothing_else(found):
    matched = total = true = 0
    for spans, video in found.values():
        cuts = [start for (_, end), (start, _) in pairwise(spans) if end == start]
        matched += sum(any(abs(cut - other) <= 1 for other in video["cuts"]) for cut in cuts)
        total, true = total + len(cuts), true + len(video["cuts"])
        assert spans[0][0] == 0
        assert spans[-1][1] == video["frames"]
    assert 2 * matched / (total + true) >= 0.98


@pytest.mark.slow
def test_real_transitions_are_found_and_left_out(found):
    spans, video = found["long_04_fades.mp4"]
    gaps = [(end, start) for (_, end), (start, _) in pairwise(spans) if start > end]
    gradual = [(t["start"], t["end"]) for t in video["transitions"] if t["start"] < t["end"]]
    assert len(gaps) == len(gradual) == 5
    for gap, (start, end) in zip(gaps, gradual, strict=True):
        assert start <= sum(gap) / 2 <= end
        assert gap[0] <= start + 1  # of the first frame, a twelfth or less is the other scene's
        assert gap[1] >= end - 1
    for name in ("long_01.mp4", "long_02.mp4", "long_03_short_scenes.mp4"):
        spans, _ = found[name]
        assert all(end == start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.slow
def test_replayed_scores_decide_as_pyscenedetect_does(measured):
    rows, _, work = measured
    (row,) = (row for row in rows if row["video"] == "long/long_03_short_scenes.mp4")
    (change,) = read_signals(work, row, "change")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = detect(str(work.video(row)), AdaptiveDetector(min_scene_len=3))
    assert Segments(content_threshold=255)._hard_cuts(change) == [start.frame_num for start, _ in reference[1:]]


def test_a_video_without_a_cut_is_one_scene(make_clip, tmp_path):
    (row,) = run(make_clip("a.mp4", frames=12, size=(64, 64)), tmp_path / "out")
    assert (row["scene_start"], row["scene_end"]) == (0, 12)


def test_a_video_too_short_for_any_scene_is_rejected(make_clip, tmp_path):
    outcome = run(make_clip("a.mp4", frames=4, size=(64, 64)), tmp_path / "out", min_frames=5)
    assert isinstance(outcome, Rejected)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="positive"):
        Segments(adaptive_threshold=0)
    with pytest.raises(ValueError, match="min_frames"):
        Segments(min_frames=0)
