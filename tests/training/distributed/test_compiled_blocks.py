"""Compiled blocks: whole graphs, few of them, and the results and names of blocks that are not compiled."""

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks

from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.sequence_parallel import sequence_parallel
from icve.training.distributed.activation_checkpointing import Checkpointing, compiled_blocks
from icve.training.run.configuration import parse_configuration
from tests.models import test_sequence_parallel as parallel
from tests.models.conftest import TINY, batch, tiny_model

# Traced and differentiated as for kernels, which are left out: they take a C++ compiler and minutes.
TRACED = {"backend": "aot_eager", "fullgraph": True}
KINDS = {"hunyuan_video": 2, "wan": 1}  # of blocks: a graph each, however many blocks there are


def tiny(layers=1):
    return tiny_model("hunyuan_video", layers)


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
@pytest.mark.parametrize("family", KINDS)
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_sizes_become_symbols_after_one_recompilation_each(mode, family):
    model, plain, kinds = tiny_model(family, 2), tiny_model(family, 2), KINDS[family]
    plain.load_state_dict(model.state_dict())
    Checkpointing(mode).apply(model, compile=True, **TRACED)

    def agree(**sizes):
        inputs = batch(**sizes, family=family)
        for a, b in zip(gradients(plain, inputs), gradients(model, inputs), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        return graphs()

    first = agree(lengths=(7, 3))
    assert first == kinds
    for lengths in ((6, 3), (5, 4), (4, 2)):
        assert agree(lengths=lengths) <= 2 * kinds, lengths
    for grid in ((2, 4, 8), (2, 6, 8), (3, 4, 4)):
        assert agree(source=grid, target=grid) <= 3 * kinds, grid


def saved_bytes(model, inputs):
    known = {x.untyped_storage()._cdata for x in (*model.parameters(), *inputs.values())}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # Without the random state (bytes) that a block keeps whose attention is done again, as for a dropout: 5 kB.
        if storage._cdata not in known and tensor.dtype != torch.uint8:
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
        Checkpointing(mode).apply(model, compile=True, **TRACED)
        kept[mode] = saved_bytes(model, inputs) / unit / KINDS["hunyuan_video"]
    # Attention's result, and a logarithm per head.
    assert kept["selective"] - kept["full"] == pytest.approx(1 + 1 / TINY["attention_head_dim"])
    assert kept["none"] - kept["selective"] > 8


def test_a_configuration_switches_it_on(repository, make_module):
    config = parse_configuration(["-c", str(repository / "configs" / "debug" / "sft.yaml"), "--model.compile=true"])
    assert config.model.compile is True
    assert compiled_blocks(make_module(compile=config.model.compile).transformer)
    assert not compiled_blocks(make_module().transformer)


def test_names_and_the_inner_calls_stay(tmp_path):
    model, plain = tiny(), tiny()
    plain.load_state_dict(model.state_dict())
    Checkpointing("selective").apply(model, compile=True, backend="eager")
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


def share_tokens(rank: int, size: int, store: str, mode: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for family in KINDS:
        torch._dynamo.reset()
        counters.clear()
        share_tokens_of(family, mode)
    dist.destroy_process_group()


def share_tokens_of(family: str, mode: str) -> None:
    transformer = parallel.model(layers=1, family=family)
    # Graphs of a kind of block so far -> inputs: other texts are one more, other buckets too, and the third is none.
    # Tokens that the processes can share evenly, and that they cannot.
    grids = ((2, 4, 12), (3, 6, 10), (2, 6, 8))
    cases = [(1, {"lengths": (3, 7)}), (2, {"lengths": (2, 5)}), (2, {"lengths": (4, 6)})]
    cases += [(3, {"target": grid, "source": grid}) for grid in grids]
    cases += [(3, {"target": grids[0], "source": grids[0], "lengths": (1, 4)})]
    cases = [(allowed, parallel.inputs(**sizes, family=family)) for allowed, sizes in cases]
    with sequence_parallel(dist.group.WORLD):
        expected = [parallel.loss_and_gradients(transformer, case) for _, case in cases]
        Checkpointing(mode).apply(transformer, compile=True, **TRACED)
        for (allowed, case), (output, plain) in zip(cases, expected, strict=True):
            found, gradients = parallel.loss_and_gradients(transformer, case)
            torch.testing.assert_close(found, output, atol=1e-12, rtol=1e-10)
            for a, b in zip(plain, gradients, strict=True):
                torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-9)
            assert graphs() <= allowed * KINDS[family], family


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(400)
@pytest.mark.parametrize("mode", ["none", "selective"])
def test_processes_that_share_tokens_compile_as_few_graphs(tmp_path, mode):
    torch.multiprocessing.spawn(share_tokens, args=(2, str(tmp_path / "store"), mode), nprocs=2)
