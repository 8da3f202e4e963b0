import numpy as np
import pytest

from icve.curation.edit_pairs.inpaint import Inpaint, paste, soft_edge
from icve.data.masks import save_mask
from icve.data.media.video import VideoError, read_frames
from tests.curation.edit_pairs.scripted import clip_row, moving_square, workspace


@pytest.fixture
def work(tmp_path):
    return workspace(tmp_path)


@pytest.fixture
def row(work):
    save_mask(work.output / "mask.npz", moving_square()[1])
    return clip_row(work) | {"mask_path": "mask.npz", "caption": "a grey wall"}


def test_tiny_vace_takes_a_row_from_caption_to_target_file(work, row, tiny_vace):
    stage = Inpaint(str(tiny_vace), steps=1, guidance=1.0)
    stage.setup()
    (edited,) = stage([row], work)
    assert row.items() <= edited.items()
    assert (edited["target_path"], edited["target_start"], edited["target_frames"]) == ("targets/clip.mp4", 0, 9)
    first = work.file(edited, "target_path").read_bytes()
    assert stage([row], work) == [edited]
    assert work.file(edited, "target_path").read_bytes() == first
    stage([{**row, "key": "other"}], work)
    assert (work.output / "targets/other.mp4").read_bytes() != first


@pytest.fixture
def stage(tiny_vace):
    """Draws green everywhere."""
    stage = Inpaint(str(tiny_vace))
    stage.vace = lambda video, mask, caption, seed: np.full_like(video, (20, 180, 20))
    return stage


def test_pasting_keeps_the_rest_of_the_source(work, row, stage):
    (edited,) = stage([row], work)
    target, source = (read_frames(work.file(edited, f"{side}_path")).astype(int) for side in ("target", "source"))
    mask = moving_square()[1]
    assert np.abs(target - source)[~mask].mean() < 2
    assert np.abs(target[:, 22:26] - source[:, 22:26])[mask[:, 22:26]].mean() > 50


def test_without_pasting_the_models_whole_picture_is_taken(work, row, stage):
    stage.paste = False
    (edited,) = stage([row], work)
    assert np.abs(read_frames(work.file(edited, "target_path")).astype(int) - (20, 180, 20)).mean() < 4


def test_a_mask_of_another_shape_is_an_error_of_the_row(work, row, stage):
    save_mask(work.output / "mask.npz", np.ones((9, 24, 40), bool))
    with pytest.raises(VideoError, match="its mask"):
        stage([row], work)


def test_the_soft_edge_lies_inside_the_mask():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, 8:32, 8:32] = True
    weight = soft_edge(mask, width=4)
    assert (weight[~mask] == 0).all()
    assert (weight[0, 12:28, 12:28] == 1).all()
    np.testing.assert_allclose(weight[0, 20, 8:14], [0.2, 0.4, 0.6, 0.8, 1, 1], atol=1e-3)
    np.testing.assert_array_equal(soft_edge(mask, width=0), mask)


def test_the_border_of_the_frame_is_no_edge():
    mask = np.zeros((2, 20, 20), bool)
    mask[0, :, :10] = True
    mask[1] = True
    weight = soft_edge(mask, width=3)
    assert (weight[0, :, :7] == 1).all()
    assert (weight[1] == 1).all()


def test_pasting_mixes_by_weight():
    rng = np.random.default_rng(0)
    source, drawn = rng.integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    weight = rng.random((3, 8, 8), dtype=np.float32)
    mixed = paste(source, drawn, weight)
    np.testing.assert_allclose(mixed, source + weight[..., None] * (drawn.astype(float) - source), atol=0.51)
    np.testing.assert_array_equal(paste(source, drawn, np.zeros_like(weight)), source)
    np.testing.assert_array_equal(paste(source, drawn, np.ones_like(weight)), drawn)


def test_parameters_are_checked(tmp_path, tiny_vace):
    with pytest.raises(ValueError, match=r"no model_index\.json"):
        Inpaint(str(tmp_path))
    with pytest.raises(ValueError, match="at least 1 step"):
        Inpaint(str(tiny_vace), steps=0)
