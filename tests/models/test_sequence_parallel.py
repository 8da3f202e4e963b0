"""Several processes that share the tokens of a sample compute what one process does."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from icve.models import sequence_parallel
from icve.models.hunyuan_video.transformer import HunyuanVideoInContextTransformer3DModel
from icve.models.sequence_parallel import Shards, shards_of, split_sizes
from icve.models.wan.transformer import WanInContextTransformer3DModel

HEADS, HEAD_DIM = 6, 8
FAMILIES = ("hunyuan_video", "wan")


def model(seed: int = 0, layers: int = 2, family: str = "hunyuan_video"):
    torch.manual_seed(seed)
    common = {"in_channels": 4, "out_channels": 4, "num_attention_heads": HEADS, "attention_head_dim": HEAD_DIM}
    common |= {"num_layers": layers, "masks": True}
    if family == "wan":
        transformer = WanInContextTransformer3DModel(**common, text_dim=12, ffn_dim=40, freq_dim=16).double()
    else:
        transformer = HunyuanVideoInContextTransformer3DModel(
            **common,
            num_single_layers=layers,
            num_refiner_layers=1,
            rope_axes_dim=(2, 2, 4),
            text_embed_dim=12,
            pooled_projection_dim=10,
            guidance_embeds=True,
        ).double()
    for parameter in transformer.parameters():  # modulations and the output start at zero, where nothing would differ
        nn.init.normal_(parameter, std=0.1)
    return transformer


def inputs(target=(3, 6, 10), source=(3, 6, 10), lengths=(3, 7), referenced=None, family="hunyuan_video") -> dict:
    random = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(shape, generator=random, dtype=torch.float64)

    batch = len(lengths)
    own = {"pooled_projections": draw(batch, 10), "guidance": torch.full((batch,), 1000.0, dtype=torch.float64)}
    return ({} if family == "wan" else own) | {
        "hidden_states": draw(batch, 4, *target),
        "source_hidden_states": None if source is None else draw(batch, 4, *source),
        "timestep": torch.linspace(100, 900, batch, dtype=torch.float64),
        "encoder_hidden_states": draw(batch, 8, 12),
        "encoder_attention_mask": torch.arange(8) < torch.tensor(lengths)[:, None],
        **({} if referenced is None else {"reference_hidden_states": draw(batch, 4, 1, *target[1:])}),
        **({} if referenced is None else {"mask": draw(batch, 1, *source).sign().clamp(min=0)}),
        "referenced": None if referenced is None else torch.tensor(referenced),
    }


CASES = {
    "as many tokens as divide": {"target": (2, 4, 12), "source": (2, 4, 12)},
    "odd counts, texts of several lengths": {},
    "a shorter source": {"source": (1, 2, 6)},
    "no source": {"source": None},
    "texts of one length": {"lengths": (5, 5)},
    "masks, and a reference that one sample lacks": {"referenced": (True, False), "lengths": (5, 5)},
    "fewer source tokens than processes": {"source": (1, 2, 2), "lengths": (2,)},
}


def loss_and_gradients(transformer, batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    transformer.zero_grad()
    output = transformer(**batch)
    (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).reshape(output.shape)).sum().backward()
    return output.detach(), [p.grad.clone() for p in transformer.parameters()]


def compare(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    for family in FAMILIES:
        transformer = model(family=family)
        for name, shapes in CASES.items():
            compare_case(transformer, inputs(**shapes, family=family), size, f"{family}, {name}")
    dist.destroy_process_group()


def compare_case(transformer, batch, size: int, name: str) -> None:
    expected, gradients = loss_and_gradients(transformer, batch)
    for checkpointing in (False, True):
        transformer.gradient_checkpointing = False
        if checkpointing:
            transformer.enable_gradient_checkpointing()
        with sequence_parallel.sequence_parallel(dist.group.WORLD):
            output, mine = loss_and_gradients(transformer, batch)
        torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-10, msg=name)
        for (parameter, _), gradient, whole in zip(transformer.named_parameters(), mine, gradients, strict=True):
            dist.all_reduce(gradient)
            torch.testing.assert_close(gradient / size, whole, atol=1e-11, rtol=1e-9, msg=f"{name}: {parameter}")
    transformer.gradient_checkpointing = False


@pytest.mark.multiprocess
@pytest.mark.timeout(120)
@pytest.mark.parametrize("size", [2, 3])
def test_outputs_and_gradients_are_those_of_one_process(tmp_path, size):
    torch.multiprocessing.spawn(compare, args=(size, str(tmp_path / "store")), nprocs=size)


def count_traffic(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    sent = []

    exchange = sequence_parallel._exchange

    def counted(tensor, output_splits, input_splits, group):
        sent.append((sum(input_splits) - input_splits[rank]) * tensor[0].numel())
        return exchange(tensor, output_splits, input_splits, group)

    sequence_parallel._exchange = counted
    transformer, batch = model(), inputs()
    with sequence_parallel.sequence_parallel(dist.group.WORLD), torch.no_grad():
        transformer(**batch)
    samples, tokens, text, width, blocks = 2, 3 * 3 * 5, 7, HEADS * HEAD_DIM, 4
    mine = 2 * split_sizes(tokens, size)[rank]
    remote = size - 1
    block = [
        3 * samples * mine * width * remote // size,  # query, key, value
        samples * text * width // size * remote,  # what attention gave the text, for this process's heads
        samples * (2 * tokens - mine) * width // size,  # what it gave the others' tokens
    ]
    output = samples * mine // 2 * 4 * 2 * 2 * remote  # predictions of 4 channels in patches of 2 x 2
    assert sent == block * blocks + [output], (sent, block, output)
    dist.destroy_process_group()


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_what_is_sent_is_ulysses_volume_and_the_text(tmp_path):
    torch.multiprocessing.spawn(count_traffic, args=(3, str(tmp_path / "store")), nprocs=3)


class Recorded(TorchDispatchMode):
    """Which matrix products are computed while exchanges go on: the widths of their results."""

    def __init__(self):
        super().__init__()
        self.under_way, self.meanwhile = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops._c10d_functional.all_to_all_single.default:
            self.under_way += 1
        elif func is torch.ops._c10d_functional.wait_tensor.default:
            self.under_way -= 1
        elif self.under_way and func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.meanwhile.append(tuple(args[-1].shape))
        return func(*args, **kwargs or {})


def record_what_is_computed_meanwhile(rank: int, size: int, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    transformer, batch = model(), inputs(lengths=(4,))
    width = HEADS * HEAD_DIM
    with sequence_parallel.sequence_parallel(dist.group.WORLD):
        with Recorded() as forward:
            output = transformer(**batch)
        with Recorded() as backward:
            output.sum().backward()
    assert forward.under_way == backward.under_way == 0
    # Weights of the text's modulation, projections, output and MLP, and of the MLP beside attention.
    text = [(width, 6 * width)] + [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
    assert forward.meanwhile == 2 * text + 2 * [(width, 4 * width)]
    # Each has two products in the backward pass: for its input and for its weight.
    assert len(backward.meanwhile) == 2 * len(forward.meanwhile)
    dist.destroy_process_group()


@pytest.mark.multiprocess
@pytest.mark.timeout(180)
def test_blocks_compute_while_exchanges_go_on(tmp_path):
    torch.multiprocessing.spawn(record_what_is_computed_meanwhile, args=(2, str(tmp_path / "store")), nprocs=2)


def test_shares_are_even_to_one_token():
    assert split_sizes(7, 3) == [3, 2, 2]
    assert split_sizes(2, 3) == [1, 1, 0]
    assert sum(split_sizes(40_321, 64)) == 40_321


def test_heads_must_be_shared_evenly(monkeypatch):
    class Four:
        group_name = "four"

        def size(self):
            return 4

        def rank(self):
            return 3

    monkeypatch.setattr(sequence_parallel, "_group", Four())
    with pytest.raises(ValueError, match="6 attention heads cannot be shared by 4 processes"):
        shards_of([10, 10], 6)
    assert isinstance(shards_of([10, 10], 8), Shards)


def test_one_process_shares_nothing():
    class One:
        def size(self):
            return 1

    with sequence_parallel.sequence_parallel(One()):
        assert shards_of([10, 10], 6) is None
    assert shards_of([10, 10], 6) is None
