"""What each mode keeps and computes again, and that neither outputs nor gradients notice."""

import time
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from icve.models.counting import LiveBytes
from icve.models.lora import LoRA, add_lora
from icve.models.recompute import KEPT
from icve.models.sequence_parallel import sequence_parallel, split_sizes
from icve.training.distributed.activation_checkpointing import Checkpointing
from tests.models import test_sequence_parallel as parallel
from tests.models.conftest import TINY, batch, tiny_model

NONE = Checkpointing()
MODES = {
    "full": Checkpointing("full"),
    "every second": Checkpointing("full", every=2),
    "selective": Checkpointing("selective"),
    "every second, selective": Checkpointing("selective", every=2),
}
BLOCKS = 4
FAMILIES = parallel.FAMILIES
EXCHANGE = torch.ops._c10d_functional.all_to_all_single.default


def tiny(family="hunyuan_video"):
    return tiny_model(family, BLOCKS if family == "wan" else BLOCKS // 2)


def gradients(model, inputs):
    """Output and gradients of a training pass; random draws, if there are any, are the same in every call."""
    model.zero_grad()
    torch.manual_seed(0)
    output = model(**inputs)
    output.float().square().mean().backward()
    return [output.detach()] + [p.grad.clone() for p in model.parameters() if p.requires_grad]


class Operations(TorchDispatchMode):
    """How often each operation that is kept was computed, and how often processes exchanged."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function] += function in (*KEPT, EXCHANGE)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("family", "precision"),
    [("hunyuan_video", precision) for precision in ("float32", "bfloat16", "autocast", "adapter")]
    + [("wan", precision) for precision in ("float32", "autocast", "adapter")],
)
def test_outputs_and_gradients_are_the_same_bit_for_bit(mode, family, precision):
    model, inputs = tiny(family).train(), batch(family=family)
    if precision == "adapter":
        pytest.importorskip("peft")
        add_lora(model, LoRA(rank=2, dropout=0.5, weights_dtype="float32"))
    if precision == "bfloat16":
        model.bfloat16()
        inputs = {k: v.bfloat16() if v.is_floating_point() and k != "timestep" else v for k, v in inputs.items()}
    passes = []
    for chosen in (NONE, MODES[mode]):
        chosen.apply(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            passes.append([gradients(model, inputs) for _ in range(2)])  # the second finds weights that were cast
    for plain, checkpointed in zip(*passes, strict=True):
        for expected, found in zip(plain, checkpointed, strict=True):
            assert torch.equal(expected, found)


def live_bytes(model, inputs):
    """Counts what is computed, without parameters and inputs."""
    return LiveBytes({tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *inputs.values())})


def kept_bytes(checkpointing, family):
    """Bytes that wait for the backward pass; and those left after it."""
    model, inputs = tiny(family), batch(family=family)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    checkpointing.apply(model)
    # Not with saved_tensors_hooks, which a checkpointed block hides its own from.
    with live_bytes(model, inputs) as memory:
        loss = model(**inputs).sum()
        kept = memory.live
        loss.backward()
        del loss
    return kept, memory.live


@pytest.mark.parametrize("family", FAMILIES)
def test_each_mode_keeps_less_than_the_one_above_it(family):
    kept = {name: kept_bytes(mode, family)[0] for name, mode in {"none": NONE, **MODES}.items()}
    assert kept["full"] < kept["selective"] < kept["every second, selective"] < kept["none"]
    assert kept["full"] < kept["every second"] < kept["every second, selective"]
    samples, heads, width = 2, TINY["num_attention_heads"], TINY["attention_head_dim"]
    # Wan's tokens attend twice: to each other, and to the text, which is not among them.
    tokens = 2 * (12 + 12) if family == "wan" else 12 + 12 + 7
    # A result of attention, and the logarithm of its sum for each head.
    attention = samples * tokens * heads * (width + 1) * torch.float32.itemsize
    assert kept["selective"] - kept["full"] == BLOCKS * attention
    assert kept["every second, selective"] - kept["every second"] == BLOCKS // 2 * attention


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_kept_after_the_backward_pass(mode, family):
    assert kept_bytes(MODES[mode], family)[1] <= kept_bytes(NONE, family)[1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("mode", "times"), [(NONE, 1), (Checkpointing("full"), 2), (Checkpointing("selective"), 1)])
def test_selective_attends_once(mode, times, family):
    model, inputs = tiny(family), batch(family=family)
    mode.apply(model)
    with Operations() as operations:
        gradients(model, inputs)
    # HunyuanVideo's refiner is never checkpointed: its tokens are few.
    expected = 2 * BLOCKS * times if family == "wan" else BLOCKS * times + TINY["num_refiner_layers"]
    assert operations.counts.total() == expected


def test_without_gradients_nothing_is_kept():
    model, inputs = tiny(), batch()
    Checkpointing("selective").apply(model)
    with torch.no_grad(), live_bytes(model, inputs) as memory:
        output = model(**inputs)
    assert memory.live == output.nbytes


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_compiled_blocks_give_the_same(mode):
    model, inputs = tiny(), batch()
    expected = gradients(model, inputs)
    for block in blocks_of(model):
        block.compile(backend="aot_eager")
    MODES[mode].apply(model)
    for a, b in zip(expected, gradients(model, inputs), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def blocks_of(transformer):
    return [module for module in transformer.modules() if type(module).__name__ in transformer._repeated_blocks]


def share_tokens(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    # A block exchanges queries, keys and values, what attention gave, and HunyuanVideo's what it gave the text.
    for family, exchanges in {"hunyuan_video": 3, "wan": 2}.items():
        share_tokens_of(family, exchanges, rank, size)
    dist.destroy_process_group()


def share_tokens_of(family: str, exchanges: int, rank: int, size: int) -> None:
    transformer, inputs = parallel.model(family=family), parallel.inputs(family=family)
    blocks = len(blocks_of(transformer))
    with sequence_parallel(dist.group.WORLD):
        output, plain = parallel.loss_and_gradients(transformer, inputs)
        # As many back as forward, and as many in blocks that are computed again; around them one and one.
        for name, passes in {"full": 3, "selective": 3, "every second": 2.5}.items():
            MODES[name].apply(transformer)
            with Operations() as operations:
                found, gradients = parallel.loss_and_gradients(transformer, inputs)
            assert operations.counts[EXCHANGE] == passes * exchanges * blocks + 2, (family, name)
            assert torch.equal(found, output), (family, name)
            for a, b in zip(plain, gradients, strict=True):
                assert torch.equal(a, b), (family, name)
        kept = {}
        for name in ("full", "selective"):
            MODES[name].apply(transformer)
            with live_bytes(transformer, {k: v for k, v in inputs.items() if v is not None}) as memory:
                output = transformer(**inputs)
                while kept.get(name) != memory.live:  # gloo's thread lets go of what it sent a moment later
                    kept[name] = memory.live
                    time.sleep(0.2)
                output.sum().backward()
    # Attention's result for this process's heads and all tokens, and a logarithm each: the one unit of its tokens that
    # `selective` keeps more, though the text's tokens are on every process. What was exchanged is not kept.
    samples, tokens, heads = 2, 2 * 3 * 3 * 5, parallel.HEADS // size
    results = heads * (tokens + 7)
    if family == "wan":  # what the text gave this process's tokens, of all heads
        results = heads * tokens + parallel.HEADS * 2 * split_sizes(tokens // 2, size)[rank]
    assert kept["selective"] - kept["full"] == blocks * samples * results * (parallel.HEAD_DIM + 1) * 8, family


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
def test_processes_that_share_tokens_keep_as_little_and_exchange_again(tmp_path):
    """That sharing tokens gives what one process does, tests/models/test_sequence_parallel.py shows without a mode."""
    torch.multiprocessing.spawn(share_tokens, args=(2, str(tmp_path / "store")), nprocs=2)


@pytest.mark.parametrize(("arguments", "told"), [(("some",), "none, full or selective"), (("full", 0), "at least 1")])
def test_a_wrong_value_is_told(arguments, told):
    with pytest.raises(ValueError, match=told):
        Checkpointing(*arguments)
