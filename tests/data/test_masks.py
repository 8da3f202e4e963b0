import numpy as np
import pytest

from icve.data.masks import load_mask, save_mask


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
