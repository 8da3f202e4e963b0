import numpy as np
import pytest

from icve.curation.edit_pairs.area import MaskArea
from icve.curation.stage import Rejected
from icve.data.masks import save_mask
from tests.curation.edit_pairs.scripted import workspace


def outcome(tmp_path, areas: list[float], **parameters):
    """Of a mask that covers these shares of its frames."""
    mask = np.zeros((len(areas), 10, 100), bool)
    for frame, area in zip(mask, areas, strict=True):
        frame[:, : round(area * 100)] = True
    save_mask(tmp_path / "mask.npz", mask)
    (result,) = MaskArea(**parameters)([{"key": "a", "mask_path": "mask.npz"}], workspace(tmp_path))
    return result


@pytest.mark.parametrize(
    ("areas", "reason"),
    [
        ([0.5] * 10, None),
        ([0.3] * 8 + [0.9] * 2, None),
        ([0.3] * 7 + [0.9] * 3, "mask too large"),
        ([0.51] * 10, "mask too large"),
        ([0.0] * 10, "empty mask"),
        ([0.01] + [0.0] * 9, "mask too small"),
        ([0.03] + [0.0] * 9, None),
    ],
)
def test_at_most_half_the_frame_in_four_of_five_frames(tmp_path, areas, reason):
    result = outcome(tmp_path, areas)
    if reason is None:
        assert result["mask_area"] == pytest.approx(np.mean(areas), abs=1e-5)
    else:
        assert isinstance(result, Rejected)
        assert result.reason == reason


def test_the_rule_is_a_parameter(tmp_path):
    areas = [0.3] * 5 + [0.9] * 5
    assert isinstance(outcome(tmp_path, areas), Rejected)
    assert isinstance(outcome(tmp_path, areas, min_share=0.5), dict)
    assert isinstance(outcome(tmp_path, areas, max_area=0.95), dict)
    with pytest.raises(ValueError, match="lie in"):
        MaskArea(max_area=50)
