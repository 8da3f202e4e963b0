import numpy as np
import pytest
from PIL import Image

from icve.data.masks import load_mask, read_mask, save_mask
from icve.data.media.video import write_video


@pytest.mark.parametrize("shape", [(9, 64, 64), (5, 33, 47), (1, 1, 1)])
def test_round_trip(tmp_path, shape):
    mask = np.random.default_rng(0).random(shape) < 0.3
    save_mask(tmp_path / "mask.npz", mask)
    loaded = load_mask(tmp_path / "mask.npz")
    assert loaded.dtype == bool
    np.testing.assert_array_equal(loaded, mask)
    assert [file.name for file in tmp_path.iterdir()] == ["mask.npz"]


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no mask file"):
        load_mask(tmp_path / "mask.npz")
    (tmp_path / "mask.npz").write_bytes(b"not an archive")
    with pytest.raises(ValueError, match="not an edit mask"):
        load_mask(tmp_path / "mask.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="not an edit mask"):
        load_mask(tmp_path / "other.npz")
    np.savez(tmp_path / "objects.npz", bits=np.array([object()], dtype=object), shape=np.array([1]))
    with pytest.raises(ValueError, match="not an edit mask"):
        load_mask(tmp_path / "objects.npz")


def test_white_of_pictures_and_videos_is_what_changes(tmp_path):
    left = np.zeros((16, 32, 3), np.uint8)
    left[:, :16] = 255
    Image.fromarray(left).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", np.array([0, 4, 9]))
    assert mask.shape == (3, 16, 32)
    assert mask[..., :16].all()
    assert not mask[..., 16:].any()
    clear = np.dstack([left, left[..., 0]])  # white and opaque on the left, transparent elsewhere
    clear[..., :3] = 255
    Image.fromarray(clear).save(tmp_path / "clear.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "clear.png", np.array([0])), mask[:1])
    write_video(tmp_path / "mask.mp4", np.stack([left, left[:, ::-1]]), fps=8, crf=0)
    moving = read_mask(tmp_path / "mask.mp4", np.array([1]))
    assert moving[0, :, 20:].all()
    assert not moving[0, :, :12].any()
    save_mask(tmp_path / "mask.npz", np.concatenate([mask[:1], ~mask[:1]]))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.npz", np.array([1])), ~mask[:1])


def test_a_mask_of_too_few_frames_is_named(tmp_path):
    save_mask(tmp_path / "mask.npz", np.ones((2, 4, 4), bool))
    with pytest.raises(ValueError, match="masks 2 frames, fewer than 4"):
        read_mask(tmp_path / "mask.npz", np.arange(4))
