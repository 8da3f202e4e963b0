import numpy as np
import pytest

from icve.curation.quality import Quality
from icve.curation.stage import Rejected, Workspace

GOOD = {"luma": 120.0, "contrast": 50.0, "sharpness": 0.5, "bars": np.zeros(4)}


@pytest.fixture
def judge(tmp_path):
    """judge(signal=value, ...): what becomes of frames 10..30 of 40 that are good but for these."""

    def make(limits=None, **signals):
        arrays = {name: np.full((40, *np.shape(value)), np.nan) for name, value in GOOD.items()}
        for name, value in (GOOD | signals).items():
            arrays[name][10:30] = value
        np.savez(tmp_path / "signals.npz", **arrays)
        row = {"key": "a", "signals": "signals.npz", "scene_start": 10, "scene_end": 30}
        (outcome,) = Quality(**(limits or {}))([row], Workspace(tmp_path, tmp_path, tmp_path))
        return outcome

    return make


def test_a_good_scene_passes_with_what_was_measured(judge):
    outcome = judge()
    assert (outcome["luma"], outcome["contrast"], outcome["sharpness"], outcome["letterbox"]) == (120, 50, 0.5, 0)


@pytest.mark.parametrize(
    ("signals", "reason"),
    [
        ({"luma": 6.0}, "too dark"),
        ({"luma": 251.0}, "too bright"),
        ({"contrast": 2.0}, "too flat"),
        ({"sharpness": 0.05}, "blurred"),
        ({"bars": np.array([0.12, 0.12, 0, 0])}, "letterbox"),
        ({"bars": np.array([0.0, 0, 0.25, 0.25])}, "letterbox"),
    ],
)
def test_bad_scenes_are_dropped(judge, signals, reason):
    outcome = judge(**signals)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == reason
    assert "wanted" in outcome.detail


def test_one_odd_frame_decides_nothing(judge):
    luma, bars = np.full(20, 100.0), np.tile([0.2, 0.2, 0, 0], (20, 1))
    luma[3], bars[4], bars[9] = 0, np.nan, 0  # a black frame, and something in the bars for a moment
    assert judge(luma=luma)["luma"] == 100
    assert judge({"max_letterbox": 0.5}, bars=bars)["letterbox"] == pytest.approx(0.4)


def test_only_what_is_always_black_is_a_bar(judge):
    bars = np.zeros((20, 4))
    bars[:15, 0] = 0.6  # the night sky, until the moon rises
    assert judge(bars=bars)["letterbox"] == 0
    assert judge(bars=np.full((20, 4), np.nan))["letterbox"] == 0  # every frame is black: for another limit to say


def test_bars_of_both_kinds_are_counted_once(judge):
    outcome = judge({"max_letterbox": 1.0}, bars=np.array([0.1, 0.1, 0.25, 0.25]))
    assert outcome["letterbox"] == pytest.approx(1 - 0.8 * 0.5)


def test_parameters_are_checked():
    with pytest.raises(ValueError, match="min_luma"):
        Quality(min_luma=200, max_luma=100)
    with pytest.raises(ValueError, match="max_letterbox"):
        Quality(max_letterbox=2)
