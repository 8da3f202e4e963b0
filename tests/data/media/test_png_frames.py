import numpy as np
import pytest

from icve.data.media.png_frames import iterate_png_frames, remove_frames
from icve.data.media.video import VideoError, write_video

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 4), np.uint8)


@pytest.mark.parametrize("channels", [3, 4])
def test_frames_come_in_order_as_many_as_asked_for(tmp_path, channels):
    write_video(tmp_path / "a", FRAMES[..., :channels], 10, format="png")
    assert np.array_equal(np.stack(list(iterate_png_frames(tmp_path / "a"))), FRAMES[..., :channels])
    assert len(list(iterate_png_frames(tmp_path / "a", 2))) == 2


def test_folders_without_frames_and_damaged_frames_are_told(tmp_path):
    with pytest.raises(VideoError, match=r"its frame 000000\.png cannot be read: No such file"):
        list(iterate_png_frames(tmp_path))
    write_video(tmp_path / "a", FRAMES, 10, format="png")
    (tmp_path / "a" / "000002.png").write_bytes(b"none")
    with pytest.raises(VideoError, match=r"its frame 000002\.png is damaged"):
        list(iterate_png_frames(tmp_path / "a"))


def test_only_folders_of_frames_alone_are_removed(tmp_path):
    for name in ("a", "b"):
        write_video(tmp_path / name, FRAMES, 10, format="png")
        (tmp_path / "b").mkdir(exist_ok=True)
    (tmp_path / "b" / "notes.txt").write_text("mine")
    for name in ("a", "b", "absent"):
        remove_frames(tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["b"]
    assert len(list((tmp_path / "b").iterdir())) == 5
