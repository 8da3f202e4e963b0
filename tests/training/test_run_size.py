import pytest
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator

from icve.training.run_size import device_type, run_size

TRANSFORMER = {"class_path": "x", "init_args": {"num_attention_heads": 6, "attention_head_dim": 32}}
DATA = {"class_path": "x", "init_args": {"buckets": [[64, 64, 9], [32, 32, 1]], "batch_size": 4}}


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
    monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: cuda))
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: mps))
    assert device_type({"accelerator": accelerator}) == device
