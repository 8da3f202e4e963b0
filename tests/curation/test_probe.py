import shutil

import numpy as np
import pytest

from icve.curation import probe as module
from icve.curation.probe import Probe
from icve.curation.stage import Rejected, Workspace
from icve.data.identity import file_digest
from icve.data.manifest import ManifestError
from icve.data.media.video import VideoError
from tests.data.media.test_picture import encode

ANY = {"min_side": 16, "min_seconds": 0}


def run(path, **limits):
    (outcome,) = Probe(**(ANY | limits))(
        [{"key": "a", "video": path.name, "note": 7}], Workspace(path.parent, path.parent, path.parent)
    )
    return outcome


def test_what_the_file_says_becomes_columns(make_clip):
    path = make_clip("a.mp4", frames=12, size=(48, 80), fps=10)
    outcome = run(path)
    assert outcome == {
        "key": "a", "video": "a.mp4", "note": 7, "width": 80, "height": 48, "fps": 10.0, "frames": 12,
        "duration": pytest.approx(1.2), "rotation": 0, "codec": "h264", "digest": file_digest(path),
    }  # fmt: skip


def test_hdr_and_interlaced_videos_can_be_refused(tmp_path):
    frames = np.full((12, 48, 80, 3), 90, np.uint8)
    tags = {"colorspace": 9, "color_primaries": 9, "color_trc": 16, "color_range": 1}
    hdr = encode(tmp_path / "hdr.mp4", frames, pixels="yuv420p10le", tags=tags)
    interlaced = encode(tmp_path / "interlaced.mp4", frames, flags="+ildct+ilme")
    assert isinstance(run(hdr), dict)
    assert isinstance(run(interlaced), dict)
    refused = run(hdr, hdr=False)
    assert (refused.reason, refused.detail) == ("HDR", "PQ, only SDR wanted")
    assert run(interlaced, interlaced=False).reason == "interlaced"
    assert isinstance(run(interlaced, hdr=False), dict)


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"min_side": 64}, "too small"),
        ({"min_seconds": 1.3}, "too short"),
        ({"max_seconds": 1.0}, "too long"),
        ({"min_fps": 12}, "frame rate"),
        ({"max_fps": 9}, "frame rate"),
        ({"max_pixels": 3000}, "too large"),
    ],
)
def test_limits(make_clip, limits, reason):
    path = make_clip("a.mp4", frames=12, size=(48, 80), fps=10)
    outcome = run(path, **limits)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    assert "wanted" in outcome.detail


def test_enormous_frames_are_refused_before_one_is_decoded(make_clip, monkeypatch):
    path = make_clip("a.mp4", size=(48, 80))
    monkeypatch.setattr(module, "probe", lambda path: pytest.fail("it was opened for decoding"))
    assert run(path, max_pixels=48 * 80 - 1).reason == "too large"


@pytest.mark.parametrize("times", [[0, 0.1, np.nan, 0.3], [0, 0.1, 0.1, 0.3], [0, 0.1, np.inf, np.inf]])
def test_impossible_timestamps(make_clip, monkeypatch, times):
    path = make_clip("a.mp4", frames=4)
    monkeypatch.setattr(module, "timestamps", lambda path: np.array(times))
    assert run(path).reason == "bad timestamps"


def test_a_gap_in_time(make_clip, monkeypatch):
    path = make_clip("a.mp4", frames=40)
    seconds = np.arange(40) / 10
    monkeypatch.setattr(module, "timestamps", lambda path: seconds + 5 * (np.arange(40) >= 7))
    outcome = run(path)
    assert outcome.reason == "timestamp gap"
    assert "frame 7" in outcome.detail
    assert not isinstance(run(path, max_gap=6), Rejected)
    # A lapse of four seconds per frame has no gap: eight times its usual interval are allowed.
    monkeypatch.setattr(module, "timestamps", lambda path: seconds * 40)
    assert not isinstance(run(path), Rejected)


def test_a_still_picture_of_a_codec_is_too_short(make_clip):
    assert run(make_clip("a.mp4", frames=1)).reason == "too short"


def test_what_is_no_video_has_a_reason(tmp_path):
    broken = tmp_path / "b.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(VideoError):
        run(broken)


def test_a_path_may_not_leave_the_input(make_clip, tmp_path):
    path = make_clip("a.mp4")
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "link.mp4").symlink_to(path)
    with pytest.raises(ManifestError):
        run(inside / "link.mp4")


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="limits"):
        Probe(min_fps=30, max_fps=20)
    with pytest.raises(ValueError, match="min_side"):
        Probe(min_side=0)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("bad/one_frame", "too short"), ("bad/timestamp_gap_60s", "timestamp gap"), ("filter/very_low_res", "too small")],
)
def test_real_files_that_are_no_use(shared_data, tmp_path, name, reason):
    shutil.copy(shared_data / "videos" / f"{name}.mp4", tmp_path / "a.mp4")
    assert run(tmp_path / "a.mp4", min_side=128, min_seconds=2.0).reason == reason


@pytest.mark.parametrize(
    ("name", "size", "rotation"),
    [
        ("filter/vfr", (832, 480), 0),
        ("bad/odd_dims_351x199", (351, 199), 0),
        ("bad/rotated_metadata_90", (480, 832), 90),
    ],
)
def test_real_files_that_are_odd_but_fine(shared_data, name, size, rotation):
    outcome = run(shared_data / "videos" / f"{name}.mp4", min_side=128, min_seconds=2.0)
    assert (outcome["width"], outcome["height"]) == size
    assert outcome["rotation"] % 180 == rotation
