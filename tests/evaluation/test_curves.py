import math
import re

import pytest

from icve.evaluation.curves import curve_chart, nice_ticks, read_curves, smooth


def test_reads_event_files_and_the_resumed_runs_values_stand(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    for folder, steps, offset in ((tmp_path / "a", range(4), 0.0), (tmp_path / "b", range(2, 6), 10.0)):
        with SummaryWriter(folder) as writer:
            for step in steps:
                writer.add_scalar("loss", step + offset, step)
    assert read_curves(tmp_path)["loss"] == [(0, 0), (1, 1), (2, 12), (3, 13), (4, 14), (5, 15)]


def test_reads_a_csv_log_with_blank_cells(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/loss\n0,0,1.5,\n0,1,,0.7\n0,2,1.25,\n")
    assert read_curves(tmp_path) == {"train/loss": [(0, 1.5), (2, 1.25)], "val/loss": [(1, 0.7)]}


def test_a_folder_without_logs_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path))):
        read_curves(tmp_path)


def test_smoothing_averages_noise_keeps_a_trend_and_drops_what_is_not_finite():
    noisy = [(step, step + (-1) ** step) for step in range(200)]
    smoothed = dict(smooth(noisy, windows=10))
    assert [smoothed[step] for step in range(20, 180)] == pytest.approx(list(range(20, 180)), abs=0.1)
    assert smoothed[199] == pytest.approx(194, abs=1)  # the mean of the last half window, not one noisy value
    assert smooth([(0, 1.0), (1, math.nan), (2, 3.0)]) == [(0, 1.0), (2, 3.0)]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.013, 0.0131), (-5.0, 700.0), (99.9, 100.2)])
def test_ticks_are_few_round_and_inside(low, high):
    ticks = nice_ticks(low, high, 5)
    assert 2 <= len(ticks) <= 7
    assert low - 1e-9 <= ticks[0] <= ticks[-1] <= high + 1e-9


def test_chart_escapes_names_and_draws_every_curve_inside_the_frame():
    svg = curve_chart({"a<b": [(0, 1.0), (10, 0.5)], "c": [(3, 0.7)]}, "loss & more", smoothed=True)
    assert "a&lt;b" in svg
    assert "loss &amp; more" in svg
    assert svg.count('class="curve ') == 2
    for x, y in re.findall(r"[ML](-?[\d.]+) (-?[\d.]+)", svg):
        assert 0 <= float(x) <= 560
        assert 0 <= float(y) <= 264


def test_a_curve_of_equal_or_missing_values_draws():
    assert "<svg" in curve_chart({"flat": [(0, 0.0), (1, 0.0)]}, "flat")
    assert "no finite value" in curve_chart({"bad": [(0, math.nan)]}, "bad")
