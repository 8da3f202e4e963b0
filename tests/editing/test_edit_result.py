import pytest
import torch

from icve.editing.edit_result import EditResult
from tests.tiny import tiny_editor

VIDEO = torch.zeros(2, 3, 5, 32, 48)


def test_a_result_without_alpha_is_its_video():
    result = EditResult(VIDEO)
    assert (result.video is VIDEO, result.alpha, result.layers) == (True, None, None)


def test_alpha_and_layers_are_of_the_videos_frames_and_size():
    result = EditResult(VIDEO, torch.ones(2, 1, 5, 32, 48), {"edit": VIDEO, "matte": VIDEO[:, :1]})
    assert torch.cat([result.video, result.alpha], 1).shape == (2, 4, 5, 32, 48)
    wrong = [{"alpha": VIDEO}, {"alpha": torch.ones(1, 1, 5, 32, 48)}, {"alpha": torch.ones(5, 32, 48)}]
    wrong += [{"layers": {"edit": VIDEO[:, :, :4]}}, {"layers": {"edit": VIDEO[0]}}]
    for parts in wrong:
        with pytest.raises(ValueError, match="of an EditResult must be of shape"):
            EditResult(VIDEO, **parts)


@pytest.mark.parametrize(
    ("output_type", "shape", "dtype"),
    [
        ("pt", (1, 3, 5, 32, 32), torch.float32),
        ("uint8", (1, 3, 5, 32, 32), torch.uint8),
        ("latent", (1, 16, 2, 4, 4), torch.float32),
    ],
)
def test_editors_of_today_give_a_video_alone(output_type, shape, dtype):
    result = tiny_editor(steps=1)(torch.zeros(1, 3, 5, 32, 32), "make it red", output_type=output_type)
    assert isinstance(result, EditResult)
    assert (tuple(result.video.shape), result.video.dtype, result.alpha, result.layers) == (shape, dtype, None, None)
