"""The precision of a run: chosen at its start, kept when it is resumed; and no 16-bit matrix products without it."""

import logging

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from icve.cli.edit import main as edit
from icve.cli.main import main
from icve.runtime import precision
from icve.runtime.precision import MatmulTimes
from icve.training.checkpoints.stage_record import read_stage
from icve.training.run.run_precision import device_type, run_size

MATRIX_WORK = ("mm", "bmm", "addmm", "baddbmm", "addbmm", "linear", "convolution", "attention", "matmul", "einsum")
TRANSFORMER = {"class_path": "x", "init_args": {"num_attention_heads": 6, "attention_head_dim": 32}}
DATA = {"class_path": "x", "init_args": {"buckets": [[64, 64, 9], [32, 32, 1]], "batch_size": 4}}


class SixteenBitProducts(TorchDispatchMode):
    """Names of the matrix products in 16 bits on the CPU, forward and backward."""

    def __init__(self):
        super().__init__()
        self.found, self.seen = set(), 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name().split("::")[1].split(".")[0]
        if any(word in name for word in MATRIX_WORK):
            self.seen += 1
            tensors = [x for x in torch.utils._pytree.tree_leaves(arguments) if isinstance(x, torch.Tensor)]
            if any(x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) for x in tensors):
                self.found.add(name)
        return function(*arguments, **(options or {}))


@pytest.fixture
def cpu(monkeypatch):
    """Pretend that bfloat16 takes so many times as long as float32 on this CPU."""

    def pretend(ratio):
        monkeypatch.setattr(precision, "measure_matmuls", lambda *size, backward: MatmulTimes(1, 1, True, 1.0, ratio))

    return pretend


@pytest.fixture
def fit(tiny_yaml):
    return lambda *arguments: main(["fit", "-c", str(tiny_yaml), *map(str, arguments)])


def test_a_run_keeps_the_precision_that_it_began_with(fit, tmp_path, cpu, caplog):
    caplog.set_level(logging.INFO)
    run = tmp_path / "run"
    cpu(0.2)
    assert fit("--trainer.precision", "auto", "--trainer.max_steps", 2) == 0
    assert read_stage(run / "checkpoints" / "last")["precision"] == "bf16-mixed"
    assert "Precision bf16-mixed (auto)" in caplog.text
    cpu(50.0)  # as if it went on elsewhere
    assert fit("--trainer.precision", "auto", "--trainer.max_steps", 3, "--ckpt_path", run) == 0
    assert read_stage(run / "checkpoints" / "last")["precision"] == "bf16-mixed"
    assert "bf16-mixed, with which the run began" in caplog.text
    assert fit("--trainer.precision", "32", "--trainer.max_steps", 4, "--ckpt_path", run) == 0
    assert read_stage(run / "checkpoints" / "last")["precision"] == "32-true"
    assert "The precision changes from bf16-mixed" in caplog.text


def test_a_new_stage_measures_anew(fit, tmp_path, cpu):
    cpu(0.2)
    assert fit("--trainer.precision", "auto", "--trainer.max_steps", 1) == 0
    cpu(50.0)
    options = ["--model.stage", "next", "--trainer.default_root_dir", tmp_path / "next", "--trainer.max_steps", 1]
    assert fit("--trainer.precision", "auto", *options, "--ckpt_path", tmp_path / "run") == 0
    assert read_stage(tmp_path / "next" / "checkpoints" / "last")["precision"] == "32-true"


def test_where_16_bits_are_slow_a_fit_and_an_edit_do_no_matrix_work_in_them(fit, tmp_path, cpu, make_clip, capsys):
    """Optimizer, EMA, validation, previews and export included."""
    cpu(50.0)
    with SixteenBitProducts() as watch:
        previews = [
            "--trainer.callbacks+=icve.training.callbacks.previews.EditPreviews",
            "--trainer.callbacks.steps",
            1,
        ]
        assert fit("--trainer.precision", "auto", *previews) == 0
    trained = watch.seen
    assert trained > 100
    assert not watch.found
    clip = make_clip("clip.mp4", frames=5, size=(32, 32))
    options = ["--model", tmp_path / "run", "--input", clip, "--output", tmp_path / "edited", "--instruction", "edit"]
    with watch:
        assert edit(list(map(str, options))) == 0
    assert capsys.readouterr().err.count("Precision float32 (auto)") == 1
    assert watch.seen > trained
    assert not watch.found


def test_the_watch_sees_16_bits_where_they_are_asked_for(fit, cpu):
    cpu(50.0)
    with SixteenBitProducts() as watch:
        assert fit("--trainer.precision", "bf16-mixed", "--trainer.max_steps", 1) == 0
    assert {"mm", "addmm"} & watch.found


def test_the_size_is_that_of_the_largest_pass():
    config = {"trainer": {"accelerator": "cpu", "devices": 2}, "model": {"transformer": TRANSFORMER}, "data": DATA}
    assert run_size(config) == {"device": "cpu", "processes": 2, "tokens": 4 * 2 * 16 * 3, "width": 192}


def test_of_classes_of_others_a_size_is_assumed():
    config = {"trainer": {"accelerator": "cpu", "devices": 1}, "model": {"transformer": {"class_path": "theirs"}}}
    size = run_size(config)
    assert size["tokens"] > 0
    assert size["width"] > 0


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "device"),
    [
        ("auto", True, False, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("gpu", False, True, "mps"),
        ("cpu", True, True, "cpu"),
        (None, False, False, "cpu"),
    ],
)
def test_the_device_is_the_one_that_lightning_will_choose(monkeypatch, accelerator, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert device_type({"accelerator": accelerator}) == device
