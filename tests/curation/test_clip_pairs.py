import json
from fractions import Fraction
from itertools import combinations, pairwise

import numpy as np
import pytest

from icve.curation.clip_pairs import ClipPairs, cut_clips
from icve.curation.measure import Measure
from icve.curation.motion import Motion
from icve.curation.probe import Probe
from icve.curation.quality import Quality
from icve.curation.segments import Segments
from icve.curation.similarity import SimilarityBand
from icve.curation.stage import Rejected, Workspace
from icve.data.buckets import Bucket
from icve.data.frame_choice import FrameChoice
from icve.data.manifest import read_manifest, write_manifest
from icve.data.media.video import VideoWriter, sample_indices, timestamps, write_video
from icve.data.pair_reading import clip_indices, load_pair
from icve.data.selection import select
from icve.data.unpaired_clips import read_clips
from tests.curation.running import run_stages

VARIABLE = np.cumsum(np.concatenate([[0], np.full(60, 1 / 24), np.full(40, 1 / 12), np.full(30, 1 / 6)]))


@pytest.fixture
def pair(tmp_path):
    """pair(seconds, start, end, **parameters): what a scene of a file with frames at these times gives."""

    def make(seconds, start=0, end=None, key="scene", fps=24.0, **parameters):
        np.savez(tmp_path / "signals.npz", seconds=np.asarray(seconds, np.float64))
        end = len(seconds) if end is None else end
        row = {"key": key, "video": "a.mp4", "signals": "signals.npz", "scene_start": start, "scene_end": end}
        (outcome,) = ClipPairs(**parameters)([row | {"fps": fps}], Workspace(tmp_path, tmp_path, tmp_path))
        return outcome

    return make


@pytest.mark.parametrize("rate", [16, 23.976, 24, 25, 29.97, 30, 60])
@pytest.mark.parametrize("fps", [None, 8, 24])
def test_clips_fill_a_range_without_overlapping(rate, fps):
    seconds = np.arange(400) / rate
    clips = cut_clips(seconds, 10, 391, 17, fps)
    spans = [end - start for start, end in clips]
    assert clips[0][0] == 10
    assert clips[-1][1] == 391  # time left over is spread
    assert all(a[1] <= b[0] for a, b in pairwise(clips))
    assert len(clips) == 381 // spans[0]
    for start, end in clips:
        indices = np.arange(start, end)[:17] if fps is None else sample_indices(seconds[:end], fps, start, 17)
        assert len(indices) == 17
        assert indices[-1] == end - 1


@pytest.mark.parametrize("fps", [5, 8, 12, 24, 30])
def test_clips_of_a_variable_rate_last_as_long_as_their_samples(fps):
    clips = cut_clips(VARIABLE, 3, 128, 9, fps)
    assert len(clips) > 4
    for start, end in clips:
        assert 3 <= start < end <= 128
        assert len(sample_indices(VARIABLE[:end], fps, start, 9)) == 9
        assert VARIABLE[end - 1] - VARIABLE[start] <= 8 / min(fps, 6) + 1 / 6
        assert end - start >= 9
    assert all(a[1] <= b[0] for a, b in pairwise(clips))


def test_a_pair_is_two_clips_of_the_scene(pair):
    (row,) = pair(np.arange(200) / 24, 40, 160, frames=17)
    starts = sorted((row["source_start"], row["target_start"]))
    assert starts[0] >= 42
    assert starts[0] + 17 <= starts[1] <= 158 - 17
    assert row["source_path"] == row["target_path"] == "a.mp4"
    assert row["source_frames"] == row["target_frames"] == 17
    assert row["fps"] == 24
    assert row["scene_start"] == 40


def test_which_pairs_depends_on_key_and_seed_alone(pair):
    def chosen(**parameters):
        rows = pair(np.arange(2000) / 24, frames=17, pairs_per_scene=20, **parameters)
        return [(row["source_start"], row["target_start"]) for row in rows]

    assert chosen() == chosen()
    assert len({tuple(chosen()), tuple(chosen(seed=1)), tuple(chosen(key="other"))}) == 3
    unordered = [frozenset(starts) for starts in chosen()]
    assert len(set(unordered)) == 20
    forwards = sum(source < target for source, target in chosen())
    assert 3 < forwards < 17


def test_every_pair_is_given_once_where_all_are_asked_for(pair):
    rows = pair(np.arange(17 * 5 + 4) / 24, frames=17, pairs_per_scene=100)
    starts = [2 + 17 * k for k in range(5)]
    found = sorted(tuple(sorted((row["source_start"], row["target_start"]))) for row in rows)
    assert found == list(combinations(starts, 2))


def test_gaps_are_seconds_between_clips(pair):
    rows = pair(np.arange(1000) / 24, frames=17, pairs_per_scene=500, min_gap=2.0, max_gap=5.0)
    assert len(rows) > 10
    for row in rows:
        first, second = sorted((row["source_start"], row["target_start"]))
        assert 2.0 <= (second - (first + 16)) / 24 <= 5.0
    outcome = pair(np.arange(100) / 24, frames=17, min_gap=60)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "no pair of clips"


def test_a_scene_too_short_for_two_clips_is_rejected(pair):
    outcome = pair(np.arange(200) / 24, 100, 100 + 37, frames=17)
    assert outcome.reason == "scene too short"
    assert "1 of two" in outcome.detail
    assert len(pair(np.arange(200) / 24, 100, 100 + 38, frames=17)) == 1
    assert pair(np.arange(200) / 24, 100, 102, frames=17).reason == "scene too short"


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="fps"):
        ClipPairs(frames=17, fps=0)
    with pytest.raises(ValueError, match="min_gap"):
        ClipPairs(frames=17, min_gap=2, max_gap=1)


def test_slow_clips_are_taken_frame_by_frame_or_left_out(pair):
    (row,) = pair(np.arange(60) / 8, fps=8.0, frames=17)
    assert (row["source_frames"], row["target_frames"], row["fps"]) == (17, 17, 8)
    outcome = pair(np.arange(60) / 8, fps=8.0, frames=17, slow_clips="drop")
    assert (outcome.reason, outcome.detail) == (
        "slow video",
        "3 of 3 clips are slower than 24 fps: slow_clips own_rate would take them at their own rate",
    )
    (row,) = pair(np.arange(60) * 1001 / 24000, fps=23.976, frames=17, slow_clips="drop")
    assert row["source_frames"] == 17
    # of a file whose rate varies, what is fast enough is taken
    rows = pair(VARIABLE, frames=9, fps=13.0, slow_clips="drop", pairs_per_scene=100)
    assert {round(row["fps"], 6) for row in rows} == {24}
    assert max(row["source_start"] + row["source_frames"] for row in rows) <= 61


def stages(**parameters):
    return [
        Probe(min_side=32, min_seconds=0.5), Measure(), Segments(), Quality(min_sharpness=0),
        Motion(min=0, min_peak=0), ClipPairs(**parameters),
    ]  # fmt: skip


def trained(rows, root, folder, frames):
    """Samples that training makes of rows."""
    rows = [row | {"instruction": "Move on."} for row in rows]
    manifest = read_manifest(write_manifest(rows, folder / "manifest.parquet", root=root))
    bucket = Bucket(32, 48, frames)
    selection = select(manifest, [bucket], fps=24)
    assert selection.dropped == []
    return [load_pair(pair, root, bucket, read_clips, FrameChoice(24)) for pair in selection.pairs]


def test_rows_of_every_rate_train_as_they_are(tmp_path):
    """Also those of a file whose rate changes: its average would make clips of the slow part look too short."""
    raw, rng = tmp_path / "raw", np.random.default_rng(0)
    raw.mkdir()
    picture = rng.integers(30, 220, (12, 30, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    clip = np.stack([picture[:64, k : k + 96] for k in range(100)])
    write_video(raw / "film.mp4", clip, 24000 / 1001)
    write_video(raw / "fast.mp4", clip, 60)
    times = np.round(VARIABLE[30:] * 24000).astype(int)
    with VideoWriter(raw / "variable.mp4", 24, time_base=Fraction(1, 24000)) as writer:
        writer.write(clip[: len(times)], times[:100] - times[0])
    assert np.diff(timestamps(raw / "variable.mp4")).max() > 0.1
    work = Workspace(raw, tmp_path / "out", raw)
    inputs = [{"key": path.stem, "video": path.name} for path in sorted(raw.glob("*.mp4"))]
    rows, rejected = run_stages(stages(frames=9, pairs_per_scene=15), inputs, work)
    assert rejected == []
    assert {row["video"] for row in rows} == {"film.mp4", "fast.mp4", "variable.mp4"}
    assert len({row["fps"] for row in rows if row["video"] == "variable.mp4"}) > 1
    for row in rows:
        for role in ("source", "target"):
            where = row[f"{role}_start"], row[f"{role}_frames"]
            assert len(clip_indices(raw / row["video"], *where, 9, FrameChoice(24))) == 9
    samples = trained(rows, raw, tmp_path, 9)
    assert len(samples) == len(rows)
    assert all(sample["source"].shape == (3, 9, 32, 48) for sample in samples)


@pytest.mark.slow
def test_real_videos(shared_data, measured):
    """Bad files go with a reason, odd ones stay, and no clip crosses a cut."""
    root, (rows, first_rejected, work) = shared_data / "videos", measured
    chain = [Segments(), Quality(), Motion(), ClipPairs(frames=17, fps=24, pairs_per_scene=3), SimilarityBand()]
    rows, rejected = run_stages(chain, rows, work)
    rejected = first_rejected + rejected
    reasons = {key.split("/")[0]: reason for _, key, reason in rejected if not key.startswith("long")}
    unreadable = (
        "audio_only",
        "corrupt_bytes",
        "text_renamed",
        "truncated_faststart",
        "truncated_no_moov",
        "zero_byte",
    )
    assert reasons == dict.fromkeys(unreadable, "unreadable video") | {
        "one_frame": "too short",
        "timestamp_gap_60s": "timestamp gap",
        "very_low_res": "too small",
        "blurry": "blurred",
        "very_dark": "too dark",
        "static": "low motion",
    }
    assert {"vfr", "odd_dims_351x199", "rotated_metadata_90"} <= {row["key"].split("/")[0] for row in rows}
    assert not [key for name, key, _ in rejected if name == "Quality" and key.startswith("long")]
    truth = {video["file"]: video for video in json.loads((root / "long" / "cuts.json").read_text())["videos"]}
    checked = 0
    for row in rows:
        if not row["video"].startswith("long/"):
            continue
        for role in ("source", "target"):
            start, end = row[f"{role}_start"], row[f"{role}_start"] + row[f"{role}_frames"]
            for transition in truth[row["video"].removeprefix("long/")]["transitions"]:
                first, last = transition["start"], max(transition["start"] + 1, transition["end"])
                assert end <= first or start >= (first if transition["type"] == "hard_cut" else last)
            checked += 1
    assert checked > 80
