import pytest
import torch

from icve.data.buckets import Bucket
from icve.models.attention_kernels import NAMES, attention_kernel
from icve.training.callbacks.attention_kernel import AttentionKernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_is_the_one_that_torch_takes(dtype):
    """Kernels of the CPU and their names, as the profiler sees them."""
    kernel = attention_kernel(24, 2, 8, torch.device("cpu"), dtype)
    assert kernel in NAMES.values()
    query = torch.randn(1, 2, 24, 8, dtype=dtype, requires_grad=True)
    with torch.profiler.profile() as profile:
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert any(kernel in event.key for event in profile.key_averages())
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert attention_kernel(24, 2, 8, torch.device("cpu"), dtype) == "math"


def started(make_module, make_trainer, make_data, monkeypatch, kernel):
    said = {"rank_zero_info": [], "rank_zero_warn": []}
    for name, lines in said.items():
        monkeypatch.setattr(f"icve.training.callbacks.attention_kernel.{name}", lines.append)
    asked = []

    def answer(*size):
        asked.append(size)
        return kernel

    monkeypatch.setattr("icve.training.callbacks.attention_kernel.attention_kernel", answer)
    data = make_data()
    data.buckets = [Bucket(16, 16, 5), Bucket(32, 16, 9)]
    make_trainer(1, [AttentionKernel()]).fit(make_module(), datamodule=data)
    return asked, said


def test_a_run_says_its_kernel_once(make_module, make_trainer, make_data, monkeypatch):
    asked, said = started(make_module, make_trainer, make_data, monkeypatch, "flash")
    assert asked == [(12, 2, 8, torch.device("cpu"), torch.float32)]  # 2 x (2x1 tokens in each of 3 frames)
    assert said["rank_zero_info"] == [
        "Attention is computed by torch's kernel 'flash' (12 visual tokens, 2 heads of 8, float32, cpu)."
    ]
    assert not said["rank_zero_warn"]


def test_the_slow_kernel_is_warned_of_on_a_gpu(make_module, make_trainer, make_data, monkeypatch):
    callback, trainer, module = AttentionKernel(), make_trainer(1), make_module()
    _, said = started(make_module, make_trainer, make_data, monkeypatch, "math")
    assert not said["rank_zero_warn"]  # a CPU has nothing else for some sizes
    trainer.datamodule = make_data()
    trainer.datamodule.buckets = [Bucket(16, 16, 5)]
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device("cuda"))
    callback.on_train_start(trainer, module)
    (warning,) = said["rank_zero_warn"]
    assert "set trainer.precision to bf16-mixed" in warning


def test_data_without_buckets_say_nothing(make_module, make_trainer, make_data, caplog):
    make_trainer(1, [AttentionKernel()]).fit(make_module(), datamodule=make_data())
    assert "Attention is computed" not in caplog.text
