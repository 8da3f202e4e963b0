import pytest
import torch

from icve.runtime import precision
from icve.runtime.precision import MatmulTimes, editing_dtype, measure_matmuls, named, training_precision

SIZE = {"tokens": 64, "width": 32}


@pytest.fixture
def cpu(monkeypatch):
    """Pretend that this CPU takes so many seconds for a product in float32 and in bfloat16."""

    def pretend(single, half):
        def measured(tokens, width, backward):
            return MatmulTimes(tokens, width, backward, single, half)

        monkeypatch.setattr(precision, "measure_matmuls", measured)

    return pretend


def test_bfloat16_is_taken_where_it_is_clearly_faster():
    assert MatmulTimes(1, 1, True, 3.0, 1.0).faster == torch.bfloat16
    assert MatmulTimes(1, 1, True, 1.2, 1.0).faster == torch.float32
    assert MatmulTimes(1, 1, True, 1.0, 54.0).faster == torch.float32
    assert MatmulTimes(1, 1, True, 1.0, 54.0).slowdown(torch.bfloat16) == 54.0
    assert MatmulTimes(1, 1, True, 2.0, 1.0).slowdown(torch.float32) == 2.0


def test_both_are_measured_at_the_size_of_the_run():
    times = measure_matmuls(64, 32, backward=True)
    assert (times.rows, times.width) == (64, 32)
    assert times.float32 > 0
    assert times.bfloat16 > 0
    assert "64 x 32 by 32 x 128 product, forward and backward" in str(times)


def test_an_emulated_bfloat16_is_not_measured_at_full_size(monkeypatch):
    measured = []

    def seconds(rows, inner, columns, dtype, backward):
        measured.append((rows * inner * columns, dtype))
        return (50.0 if dtype == torch.bfloat16 else 1.0) * rows * inner * columns

    monkeypatch.setattr(precision, "_seconds", seconds)
    times = measure_matmuls(4096, 1024, backward=True)
    assert times.slowdown(torch.bfloat16) == 50.0
    largest = {dtype: max(size for size, of in measured if of == dtype) for _, dtype in measured}
    assert largest[torch.bfloat16] < largest[torch.float32] / 10


def test_auto_trains_in_what_is_faster_and_says_it_in_one_line(cpu):
    cpu(1.0, 50.0)
    chosen, line = training_precision("auto", "cpu", 1, **SIZE)
    assert chosen == "32-true"
    assert "Precision 32-true (auto)" in line
    assert "\n" not in line
    cpu(3.0, 1.0)
    assert training_precision("auto", "cpu", 1, **SIZE)[0] == "bf16-mixed"


def test_auto_is_float32_where_processes_could_measure_differently_and_on_other_devices(cpu):
    cpu(3.0, 1.0)
    assert training_precision("auto", "cpu", 2, **SIZE)[0] == "32-true"
    assert training_precision("auto", "mps", 1, **SIZE)[0] == "32-true"
    assert editing_dtype("auto", "cpu", 2, **SIZE) == (torch.float32, "")
    assert editing_dtype("auto", "mps", 1, **SIZE) == (torch.float32, "")


def test_an_explicit_precision_is_obeyed_with_a_warning_where_it_is_slow(cpu):
    cpu(1.0, 6.0)
    chosen, line = training_precision("bf16-mixed", "cpu", 1, **SIZE)
    assert chosen == "bf16-mixed"
    assert "slow here" in line
    assert "32-true" in line
    assert training_precision("32", "cpu", 1, **SIZE) == ("32", "")
    dtype, line = editing_dtype("bf16", "cpu", 1, **SIZE)
    assert dtype == torch.bfloat16
    assert "slow here" in line
    cpu(1.0, 4.0)
    assert training_precision("bf16-mixed", "cpu", 1, **SIZE) == ("bf16-mixed", "")
    cpu(6.0, 1.0)
    assert "bf16-mixed" in training_precision("32-true", "cpu", 1, **SIZE)[1]
    cpu(1.0, 6.0)
    assert "32-true is faster" in training_precision("bf16", "cpu", 2, **SIZE)[1]


def test_weights_are_edited_with_as_they_are_stored_on_an_accelerator():
    assert editing_dtype("auto", "cuda", 1, **SIZE) == (None, "")
    assert editing_dtype("auto", "cuda", 8, **SIZE, stored=torch.bfloat16) == (torch.bfloat16, "")
    assert editing_dtype("32", "cuda", 1, **SIZE) == (torch.float32, "")


def test_short_names_mean_lightnings_full_ones():
    assert [named(name) for name in ("32", 16, "bf16", "bf16-mixed")] == [
        "32-true",
        "16-mixed",
        "bf16-mixed",
        "bf16-mixed",
    ]


@pytest.mark.parametrize(("cuda", "mps", "device"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_default_device_is_the_accelerator_that_is_there(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert precision.default_device() == device
