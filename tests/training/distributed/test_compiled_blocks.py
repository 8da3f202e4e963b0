"""Compiled blocks: whole graphs, few of them, and the results and names of blocks that are not compiled."""

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.sequence_parallel import sequence_parallel
from icve.training.distributed.activation_checkpointing import Checkpointing, compiled_blocks
from tests.models import test_sequence_parallel as parallel
from tests.models.conftest import TINY, batch, randomised

# Traced and differentiated as for kernels, which are left out: they take a C++ compiler and minutes.
TRACED = {"backend": "aot_eager", "fullgraph": True}
KINDS = 2  # of blocks, one of each


def tiny():
    return randomised(HunyuanVideoInContextTransformer3DModel(**TINY | {"num_layers": 1, "num_single_layers": 1}))


def gradients(model, inputs):
    model.zero_grad()
    output = model(**inputs)
    output.float().square().mean().backward()
    return [output.detach(), *(p.grad.clone() for p in model.parameters())]


def graphs():
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_sizes_become_symbols_after_one_recompilation_each(mode):
    model, plain = tiny(), tiny()
    plain.load_state_dict(model.state_dict())
    Checkpointing(mode, compile=True).apply(model, **TRACED)

    def agree(**sizes):
        inputs = batch(**sizes)
        for a, b in zip(gradients(plain, inputs), gradients(model, inputs), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        return graphs()

    first = agree(lengths=(7, 3))
    assert first == KINDS
    for lengths in ((6, 3), (5, 4), (4, 2)):
        assert agree(lengths=lengths) <= 2 * KINDS, lengths
    for grid in ((2, 4, 8), (2, 6, 8), (3, 4, 4)):
        assert agree(source=grid, target=grid) <= 3 * KINDS, grid


def saved_bytes(model, inputs):
    known = {x.untyped_storage()._cdata for x in (*model.parameters(), *inputs.values())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            saved[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**inputs).sum()
    total = sum(size for size, _ in saved.values())
    del loss
    return total


@pytest.mark.slow
def test_the_compiler_keeps_what_the_mode_says():
    """In tokens times width times 4 bytes for each block; no mode keeps a query, a key or an MLP's hidden values."""
    inputs = batch(source=(2, 8, 12), target=(2, 8, 12), lengths=(7, 7))
    unit = 2 * (2 * 2 * 4 * 6 + 7) * TINY["num_attention_heads"] * TINY["attention_head_dim"] * 4
    kept = {}
    for mode in ("none", "full", "selective"):
        model = tiny()
        torch._dynamo.reset()
        Checkpointing(mode, compile=True).apply(model, **TRACED)
        kept[mode] = saved_bytes(model, inputs) / unit / KINDS
    assert 0.8 < kept["selective"] - kept["full"] < 1.2  # attention's result, and a logarithm per head
    assert kept["none"] - kept["selective"] > 8


def test_names_and_the_inner_calls_stay(tmp_path):
    model, plain = tiny(), tiny()
    plain.load_state_dict(model.state_dict())
    Checkpointing("selective", compile=True).apply(model, backend="eager")
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert compiled_blocks(model) == [*model.transformer_blocks, *model.single_transformer_blocks]
    model.save_pretrained(tmp_path / "model")
    loaded = HunyuanVideoInContextTransformer3DModel.from_pretrained(tmp_path / "model")
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True))
    assert not compiled_blocks(loaded)
    Checkpointing().apply(model)
    assert not compiled_blocks(model)
    with torch.no_grad():
        assert torch.equal(model(**batch()), plain(**batch()))


def share_tokens(rank: int, size: int, store: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    transformer = parallel.model(layers=1)
    # Tokens that the processes can share evenly, and that they cannot; texts of other lengths.
    cases = [parallel.inputs(lengths=(3, 7)), parallel.inputs(lengths=(2, 5))]
    cases.append(parallel.inputs(target=(2, 4, 12), source=(2, 4, 12)))
    with sequence_parallel(dist.group.WORLD):
        expected = [parallel.loss_and_gradients(transformer, case) for case in cases]
        Checkpointing("selective", compile=True).apply(transformer, **TRACED)
        for number, (case, (output, plain)) in enumerate(zip(cases, expected, strict=True), 1):
            found, gradients = parallel.loss_and_gradients(transformer, case)
            torch.testing.assert_close(found, output, atol=1e-12, rtol=1e-10)
            for a, b in zip(plain, gradients, strict=True):
                torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)
            assert graphs() <= number * KINDS
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
def test_processes_that_share_tokens_compile_whole_blocks(tmp_path):
    torch.multiprocessing.spawn(share_tokens, args=(2, str(tmp_path / "store")), nprocs=2)
