"""Ordinary files are counted by their packets, without decoding them."""

import av
import numpy as np
import pytest

from icve.data.media import video_index
from icve.data.media.picture_heads import picture_head
from icve.data.media.video import probe
from icve.data.media.video_packets import Packet, packets_are_frames
from tests.data.media.streams import X264, noisy, write

X265 = {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:bframes=2"}


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "libx264", X264 | {"bf": "2", "g": "6"}),
        ("a.mov", "libx264", X264 | {"x264-params": "open-gop=1:keyint=6:min-keyint=6:bframes=2"}),
        ("a.mkv", "libx264", X264),
        ("a.mp4", "libx265", X265),
        ("a.webm", "libvpx", {"g": "6"}),
        ("a.webm", "libvpx-vp9", {"g": "6"}),
        ("a.mp4", "libvpx-vp9", {"g": "6"}),
        ("a.mkv", "ffv1", {}),
    ],
)
def test_ordinary_files_are_not_decoded_to_be_counted(tmp_path, monkeypatch, name, codec, options):
    monkeypatch.setattr(video_index, "_decoded", lambda path: pytest.fail("it was decoded"))
    write(tmp_path / name, noisy(18), codec, options)
    assert probe(tmp_path / name).frames == 18


def packets(count, **changes):
    """Packets of a steady stream with a key frame every fourth; changes: field -> {number: value}."""
    made = [Packet(10 * k, 10 * k, k % 4 == 0, False, False, b"size" if k % 4 == 0 else b"") for k in range(count)]
    for field, values in changes.items():
        for number, value in values.items():
            made[number] = made[number]._replace(**{field: value})
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {"pts": {3: None}},
        {"pts": {3: 20}},  # twice
        {"pts": {k: 10 * k + 20 for k in range(5, 12)}},  # packets are missing
        {"pts": {0: 10, 1: 0}},  # a picture before the first key frame
        {"is_keyframe": {0: False}},
        {"head": {8: b"another"}},
        {"head": {8: None}},
        {"head": {0: b""}},  # stated later only
    ],
)
def test_what_may_differ_from_its_frames(changes):
    assert packets_are_frames(packets(12), "h264", {"mp4"})
    assert not packets_are_frames(packets(12, **changes), "h264", {"mp4"})


def test_codecs_and_containers_that_prove_nothing():
    assert not packets_are_frames(packets(12), "mpeg4", {"mp4"})
    assert not packets_are_frames(packets(12), "h264", {"mpegts"})
    assert not packets_are_frames([], "h264", {"mp4"})
    assert packets_are_frames(packets(12, is_discard={0: True}), "h264", {"mp4"})  # hidden by an edit list


@pytest.mark.parametrize(("codec", "encoder"), [("vp8", "libvpx"), ("vp9", "libvpx-vp9")])
def test_sizes_stated_in_packets(tmp_path, codec, encoder):
    stated = []
    for height, width in ((64, 96), (48, 64)):
        write(tmp_path / "a.webm", noisy(8, height, width), encoder, {"g": "4"})
        with av.open(str(tmp_path / "a.webm")) as file:
            heads = [picture_head(codec, memoryview(packet), b"") for packet in file.demux(video=0) if packet.size]
        assert heads[0] == heads[4]
        assert set(heads) == {heads[0], b""}
        stated.append(heads[0])
    assert stated[0] != stated[1]


def test_bytes_that_are_nothing():
    for codec in ("h264", "hevc", "av1", "vp8", "vp9", "prores", "ffv1"):
        for size in (0, 1, 2, 9, 40):
            for seed in range(20):
                data = np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8).tobytes()
                head = picture_head(codec, memoryview(data), data)
                assert head is None or isinstance(head, bytes)
