import pydoc

import pytest
import torch

from icve.models.counting import Counts
from icve.preflight.layouts import (
    STRATEGIES,
    Layout,
    Model,
    communication,
    in_words,
    layouts,
    memory,
    ways_to_checkpoint,
)
from icve.training.distributed.activation_checkpointing import Checkpointing

P = 1000
COUNTS = Counts(1.0, 2.0, 1.0, 400.0, 800.0)


def model(**changes):
    values = {"parameters": P, "block": 100, "optimizer": 8.0, "frozen": 50, "width": 8, "blocks": 3, "heads": 24}
    return Model(**{**values, "weight": 2, "mixed": True, "ema": True, **changes})


def used(strategy, gpus=4, ranks=1, samples=1, **changes):
    return memory(model(**changes), Layout(gpus, strategy, ranks, Checkpointing("full")), COUNTS, 20, samples, 7)


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

    def sent(strategy, passes=1, ranks=1, gpus=4, checkpointing=("none",), **changes):
        layout = Layout(gpus, strategy, ranks, Checkpointing(*checkpointing))
        return communication(model(**changes), layout, 20, 1, passes)

    assert [sent(name) for name in STRATEGIES] == [4 * share, 2 * share, 2 * share, 3 * share]
    assert [sent(name, passes=3) for name in STRATEGIES] == [4 * share, 2 * share, 4 * share, 9 * share]
    assert sent("ddp", gpus=1) == 0
    exchange = 20 / 4 * 8 * 2 * 3 / 4  # a GPU's tokens of one tensor, but for the heads it keeps
    assert sent("zero1", ranks=4) - sent("zero1") == 8 * 3 * exchange
    for mode in ("selective", "full"):  # neither keeps what was exchanged
        assert sent("zero1", ranks=4, checkpointing=(mode,)) - sent("zero1") == 12 * 3 * exchange
        assert sent("zero1", ranks=4, checkpointing=(mode, 2)) - sent("zero1") == (8 * 3 + 4 * 2) * exchange


def test_layouts_divide_heads_gpus_and_batch():
    found = list(layouts(64, model(), 32, 8))
    assert {layout.sequence_parallel for layout in found} == {2, 4, 8}
    assert len(found) == 3 * len(STRATEGIES) * len(ways_to_checkpoint(3))
    assert {layout.groups for layout in found} == {32, 16, 8}
    assert not list(layouts(64, model(), 12, 8))  # 8 groups of 8: 12 is no multiple
    assert {layout.sequence_parallel for layout in layouts(48, model(), 12, 8)} == {4, 8}
    assert {layout.strategy for layout in layouts(1, model(), 12, 8)} == {"ddp"}
    assert {layout.strategy for layout in layouts(1, model(), 12, 8, ["zero3"])} == {"zero3"}


def test_every_k_that_makes_a_difference_is_tried():
    ways = ways_to_checkpoint(60)
    assert {way.mode for way in ways} == {"none", "selective", "full"}
    numbers = [way.blocks(60) for way in ways if way.mode == "full"]
    assert numbers == sorted(set(numbers))
    assert set(numbers) == {len(range(0, 60, k)) for k in range(1, 61)}
    assert [in_words(way) for way in ways_to_checkpoint(3)] == [
        "no checkpointing",
        "selective checkpointing of every 3rd block",
        "selective checkpointing of every 2nd block",
        "selective checkpointing",
        "full checkpointing of every 3rd block",
        "full checkpointing of every 2nd block",
        "full checkpointing",
    ]


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


def test_weights_that_an_adapter_belongs_to_have_no_gradient_and_no_state():
    for strategy, share in (("ddp", 1), ("zero2", 1), ("zero3", 4)):
        plain, adapted = used(strategy), used(strategy, adapted=1000)
        assert adapted.parameters == plain.parameters + 1000 / share
        assert adapted.total - plain.total == pytest.approx(1000 / share)
