import pydoc

import pytest
import torch

from icve.models.counting import Counts
from icve.preflight.layouts import STRATEGIES, Layout, Model, communication, layouts, memory

P = 1000
COUNTS = Counts(1.0, 2.0, 1.0, 400.0, 800.0)


def model(**changes):
    values = {"parameters": P, "block": 100, "optimizer": 8.0, "frozen": 50, "width": 8, "blocks": 3, "heads": 24}
    return Model(**{**values, "weight": 2, "mixed": True, "ema": True, **changes})


def used(strategy, gpus=4, ranks=1, samples=1, **changes):
    return memory(model(**changes), Layout(gpus, strategy, ranks, True), COUNTS, 20, samples, 7)


def test_one_gpu_keeps_what_mixed_precision_keeps():
    part = used("ddp", gpus=1)
    # float32 weights, gradients and averages, two moments, and the weights once more in 16 bits
    assert (part.parameters, part.gradients, part.optimizer, part.ema) == (4 * P, 4 * P, 8 * P, 4 * P)
    assert (part.buffers, part.activations, part.frozen, part.reserve) == (2 * P, 800, 50, 7)
    assert part.total == 22 * P + 857
    part = used("ddp", gpus=1, weight=4, mixed=False, ema=False)
    assert (part.parameters, part.gradients, part.optimizer, part.ema, part.buffers) == (4 * P, 4 * P, 8 * P, 0, 0)
    part = used("ddp", gpus=1, mixed=False)
    assert (part.parameters, part.gradients, part.optimizer, part.buffers) == (2 * P, 2 * P, 4 * P, 0)


def test_every_zero_stage_partitions_one_thing_more():
    parts = {name: used(name) for name in STRATEGIES[1:]}
    assert [part.optimizer for part in parts.values()] == [3 * P] * 3  # originals and two moments over four GPUs
    assert [part.ema for part in parts.values()] == [P] * 3
    assert [part.gradients for part in parts.values()] == [4 * P, P, P]  # summed in float32
    assert [part.parameters for part in parts.values()] == [2 * P, 2 * P, P / 2]
    assert used("zero3", gpus=1).total >= used("zero3").total


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sequence_parallelism_divides_activations_only(strategy):
    one, four = used(strategy), used(strategy, ranks=4)
    assert four.activations == one.activations / 4
    assert four.buffers - one.buffers == 4 * 20 / 4 * 8 * 2  # what is exchanged around attention
    assert (four.parameters, four.optimizer) == (one.parameters, one.optimizer)
    assert used(strategy, samples=2).activations == 2 * one.activations


def test_communication():
    share = 2 * P * 3 / 4  # of 16-bit weights, what a GPU of four sends in a ring

    def sent(strategy, passes=1, ranks=1, gpus=4, checkpointing=False, **changes):
        layout = Layout(gpus, strategy, ranks, checkpointing)
        return communication(model(**changes), layout, 20, 1, passes)

    assert [sent(name) for name in STRATEGIES] == [4 * share, 2 * share, 2 * share, 3 * share]
    assert [sent(name, passes=3) for name in STRATEGIES] == [4 * share, 2 * share, 4 * share, 9 * share]
    assert sent("ddp", gpus=1) == 0
    exchange = 20 / 4 * 8 * 2 * 3 / 4  # a GPU's tokens of one tensor, but for the heads it keeps
    assert sent("zero1", ranks=4) - sent("zero1") == 8 * 3 * exchange
    assert sent("zero1", ranks=4, checkpointing=True) - sent("zero1") == 12 * 3 * exchange


def test_layouts_divide_heads_gpus_and_batch():
    found = list(layouts(64, 24, 32, 8))
    assert {layout.sequence_parallel for layout in found} == {2, 4, 8}
    assert len(found) == 3 * len(STRATEGIES) * 2
    assert {layout.groups for layout in found} == {32, 16, 8}
    assert not list(layouts(64, 24, 12, 8))  # 8 groups of 8: 12 is no multiple
    assert {layout.sequence_parallel for layout in layouts(48, 24, 12, 8)} == {4, 8}
    assert {layout.strategy for layout in layouts(1, 24, 12, 8)} == {"ddp"}
    assert {layout.strategy for layout in layouts(1, 24, 12, 8, ["zero3"])} == {"zero3"}


@pytest.mark.parametrize("path", ["torch.optim.AdamW", "icve.training.optimization.optimizers.MuonAdamW"])
def test_state_of_an_optimizer_is_counted(path):
    from icve.models.counting import build_on_meta
    from icve.preflight.configured_run import _parameters, configured_transformer
    from tests.training.conftest import tiny_transformer

    real = tiny_transformer()
    part = {
        "class_path": "icve.models.hunyuan_video.transformer.HunyuanVideoInContextTransformer3DModel",
        "init_args": dict(real.config),
    }
    part["init_args"] = {k: v for k, v in part["init_args"].items() if not k.startswith("_")}
    counted = _parameters(build_on_meta(*configured_transformer(part)), {"class_path": path, "init_args": {"lr": 1e-3}})
    optimizer = pydoc.locate(path)(real.named_parameters(), lr=1e-3)
    for parameter in real.parameters():
        parameter.grad = torch.ones_like(parameter)
    gradients = sum(parameter.grad.nbytes for parameter in real.parameters())
    optimizer.step()
    state = sum(x.nbytes for entry in optimizer.state.values() for x in entry.values() if torch.is_tensor(x))
    assert counted["parameters"] == sum(parameter.numel() for parameter in real.parameters()) == gradients / 4
    assert counted["optimizer"] * counted["parameters"] == pytest.approx(state)
